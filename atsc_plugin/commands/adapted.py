"""The teacher as a finished ATSC run left it, as a checkpoint of its own: for SimKD from it, or to use it."""

import argparse
from pathlib import Path

from atsc_plugin.errors import PluginError

EXAMPLE = """example:
  adapted output/quickstart/atsc,res20,res8/seed_1 --out adapted.pth
  train --cfg configs/quickstart/simkd.yaml DISTILLER.TEACHER_CKPT adapted.pth EXPERIMENT.NAME after
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
    teachers = _teachers(folder)
    out = Path(args.out) if args.out else folder / "teacher_last"
    numbered = [out.with_name(f"{out.stem}_{number}{out.suffix}") for number in range(1, len(teachers) + 1)]
    places = [out] if len(teachers) == 1 else numbered
    if there := [str(place) for place in places if place.exists()]:
        raise PluginError(f"{', '.join(there)} is there already; expected a new file. Name another with --out.")
    weights = checkpoint.load(folder / "latest", checked=True)["model"]
    for (name, start), place in zip(teachers, places, strict=True):
        state = {key.removeprefix(start): tensor for key, tensor in weights.items() if key.startswith(start)}
        place.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save({"model": state, "arch": name, "adapted_by": str(folder)}, place)
        print(f"teacher {name}, as {folder} left it: {place}")
    return 0


def _teachers(folder):
    """(name, where its weights lie in the checkpoint) of the teachers of a finished run whose method moves them."""
    from atsc_plugin.engine.run_files import read_json, read_tree

    result = read_json(folder, "result.json") if folder.is_dir() else None
    if result is None:
        raise PluginError(f"{folder} is no finished run (no result.json); expected the directory of one.")
    if result.get("method") not in METHODS:
        raise PluginError(
            f"{folder} is a run of {result.get('method')}, which leaves its teacher as it was; expected a run of "
            f"{' or '.join(METHODS)}. Use the teacher that it was given."
        )
    node = read_tree(folder / "cfg.yaml").get("DISTILLER", {})
    names = node.get("TEACHERS") or [node.get("TEACHER")] if isinstance(node, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PluginError(f"{folder / 'cfg.yaml'} names no teacher; expected the configuration of a run.")
    several = result["method"] == "ATSC_MULTI"  # keeps a list, also of one
    return [(name, f"teacher.{number}." if several else "teacher.") for number, name in enumerate(names)]
