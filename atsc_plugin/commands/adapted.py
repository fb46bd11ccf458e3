"""The networks that learned beside the student of a finished run, each as a checkpoint of its own.

A student trained from scratch on an adapted teacher tells a better teacher from teaching while it adapts.
"""

from pathlib import Path

from atsc_plugin.commands import Parser
from atsc_plugin.errors import PluginError, wrapped

EXAMPLES = """
  adapted output/quickstart/atsc,res20,res8/seed_1 --out adapted.pth
  train --cfg configs/quickstart/simkd.yaml DISTILLER.TEACHER_CKPT adapted.pth EXPERIMENT.NAME after
"""


def parser():
    options = Parser("adapted", __doc__, EXAMPLES)
    options.add_argument("run", metavar="RUN", help="directory of a finished run whose teacher learns")
    options.add_argument(
        "--out", metavar="FILE", help="where it goes; several networks: FILE_1, FILE_2, ... (default: RUN/teacher_last)"
    )
    return options


def run(args):
    from atsc_plugin.engine import checkpoint

    folder = Path(args.run)
    networks = _moved(folder)
    out = Path(args.out) if args.out else folder / "teacher_last"
    numbered = [out.with_name(f"{out.stem}_{number}{out.suffix}") for number in range(1, len(networks) + 1)]
    places = [out] if len(networks) == 1 else numbered
    if there := [str(place) for place in places if place.exists()]:
        raise PluginError(f"{', '.join(there)} is there already; expected a new file. Name another with --out.")
    weights = checkpoint.load(folder / "latest", checked=True)["model"]
    for network, place in zip(networks, places, strict=True):
        start = f"{network['name']}."
        state = {key.removeprefix(start): tensor for key, tensor in weights.items() if key.startswith(start)}
        place.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save({"model": state, "arch": network["title"], "adapted_by": str(folder)}, place)
        print(wrapped(f"{place}: {network['name']} {network['title']}, as {folder} left it"))
    return 0


def _moved(folder):
    """The networks that a finished run moved, as result.json names them."""
    from atsc_plugin.engine.run_dir import read_json

    result = read_json(folder, "result.json") if folder.is_dir() else None
    if result is None:
        raise PluginError(f"{folder} is no finished run (no result.json); expected the directory of one.")
    moved = [network for network in result.get("networks") or [] if network["moved"]]
    if not moved:
        raise PluginError(
            f"{folder} is a run of {result.get('method')}, which leaves its teacher as it was; expected a run whose "
            "teacher learns, e.g. of ATSC. Use the teacher that it was given."
        )
    return moved
