"""The teacher as a finished ATSC run left it, as a checkpoint of its own: for SimKD from it, or to use it."""

import argparse
from pathlib import Path

from atsc_plugin.errors import PluginError

EXAMPLE = """example:
  adapted output/quickstart/atsc,res20,res8/seed_1 --out adapted.pth
  train --cfg configs/quickstart/simkd.yaml DISTILLER.TEACHER_CKPT adapted.pth
tells a better teacher from teaching while it adapts: a student from scratch has the first and not the second.
"""
METHODS = ("ATSC", "ATSC_MULTI")


def parser():
    words = argparse.ArgumentParser(
        "adapted", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("run", metavar="RUN", help="run directory of ATSC or ATSC_MULTI")
    words.add_argument(
        "--out", metavar="FILE", help="where it goes; several teachers: FILE_1, FILE_2, ... (default: RUN/teacher_last)"
    )
    return words


def run(args):
    from atsc_plugin.engine import checkpoint

    folder = Path(args.run)
    names = _teachers(folder)
    out = Path(args.out) if args.out else folder / "teacher_last"
    places = (
        [out] if len(names) == 1 else [out.with_name(f"{out.stem}_{k}{out.suffix}") for k in range(1, len(names) + 1)]
    )
    if there := [str(place) for place in places if place.exists()]:
        raise PluginError(f"{', '.join(there)} is there already; expected a new file. Name another with --out.")
    weights = checkpoint.load(folder / "latest", checked=True)["model"]
    alone = any(name.startswith("teacher.") and not name.split(".")[1].isdecimal() for name in weights)
    for number, (name, place) in enumerate(zip(names, places, strict=True)):
        start = "teacher." if alone else f"teacher.{number}."
        state = {key.removeprefix(start): tensor for key, tensor in weights.items() if key.startswith(start)}
        place.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save({"model": state, "arch": name, "adapted_by": str(folder)}, place)
        print(f"teacher {name}, as {folder} left it: {place}")
    return 0


def _teachers(folder):
    """The names of the teachers of a finished run whose method moves them."""
    from atsc_plugin.engine.run_files import read_json, read_tree

    result = read_json(folder, "result.json") if folder.is_dir() else None
    if result is None:
        raise PluginError(f"{folder} is no finished run (no result.json); expected the directory of one.")
    if result["method"] not in METHODS:
        raise PluginError(
            f"{folder} is a run of {result['method']}, which leaves its teacher as it was; expected a run of "
            f"{' or '.join(METHODS)}. Use the teacher that it was given."
        )
    node = read_tree(folder / "cfg.yaml")["DISTILLER"]
    return list(node.get("TEACHERS") or [node["TEACHER"]])
