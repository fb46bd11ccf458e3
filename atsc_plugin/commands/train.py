"""Train one run: the configuration is checked whole, the parts are built, and only then is anything written."""

import argparse
from pathlib import Path

from atsc_plugin.engine import run_files, run_lock
from atsc_plugin.errors import PluginError

# May differ between the start and the continuation of a run: places, how much is logged, how long it goes on.
FREE = ("LOG.", "SOLVER.EPOCHS", "DATASET.NUM_WORKERS", "DATASET.ROOT", "EXPERIMENT.DEVICE", "TEACHER.CACHE")
EXAMPLES = """examples:
  train --cfg configs/quickstart/simkd.yaml
  train --cfg configs/quickstart/simkd.yaml EXPERIMENT.SEED 2 SOLVER.EPOCHS 12
  train --cfg configs/cifar100/simkd/res32x4_res8x4.yaml --dry-run
"""


def parser():
    words = argparse.ArgumentParser(
        "train",
        description="Train a student from a config file.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument(
        "--cfg", required=True, metavar="FILE", help="YAML configuration, e.g. configs/quickstart/simkd.yaml"
    )
    again = words.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue an unfinished run from its `latest` checkpoint")
    again.add_argument("--overwrite", action="store_true", help="delete what an earlier run left in the same directory")
    words.add_argument("--dry-run", action="store_true", help="print the resolved plan and stop; nothing is written")
    words.add_argument("opts", nargs="*", metavar="KEY VALUE", help="keys to override, e.g. SOLVER.EPOCHS 12")
    return words


def run(args):
    import atsc_plugin

    atsc_plugin.register()
    from atsc_plugin import build
    from atsc_plugin.config import load_cfg

    cfg = load_cfg(args.cfg, args.opts)
    _, folder = build.place(cfg, args.opts)
    build.check_place(folder)
    if args.dry_run:
        _print_plan(build.plan(build.prepare(cfg, args.opts, dry=True)))
        return 0
    if cfg.SOLVER.TRAINER == "plugin" and not args.overwrite and _already(folder, cfg, args.resume):
        return 0
    run_lock.refuse_if_held(folder)
    if args.resume and not run_files.has_checkpoint(folder):
        print(f"nothing to resume in {folder}: starting from the beginning", flush=True)
        args.resume = False
    prepared = build.prepare(cfg, args.opts)
    _print_plan(build.plan(prepared))
    if args.overwrite:
        run_files.clear(folder)
    build.trainer_of(prepared).train(resume=args.resume)
    return 0


def _print_plan(pairs):
    for label, text in pairs:
        print(f"{label:>8}  {text}", flush=True)


def _already(folder, cfg, resume):
    """True when this very run is complete; an error when the directory holds another or an unfinished one."""
    if not (folder / "cfg.yaml").exists():
        return False
    differences = _differences(folder, cfg)
    result = run_files.read_json(folder, "result.json")
    if result is not None:
        if differences:
            raise PluginError(
                f"{folder} holds a finished run of another configuration ({'; '.join(differences[:5])}). "
                "Give this one an EXPERIMENT.NAME of its own, or --overwrite."
            )
        print(
            f"{folder} is complete: test top-1 {result['top1_last']:.2f} last, {result['top1_best']:.2f} best epoch. "
            "Nothing to do; --overwrite runs it again."
        )
        return True
    if not resume:
        stopped = run_files.read_json(folder, "stopped.json")
        what = f"a run that was stopped ({stopped['reason']})" if stopped else "an unfinished run"
        raise PluginError(f"{folder} holds {what}. Continue it with --resume, or start anew with --overwrite.")
    fixed = [text for text in differences if not text.startswith(FREE)]
    if fixed:
        raise PluginError(
            f"{folder} was started with another configuration: {'; '.join(fixed[:5])}. Resume with the same keys, or "
            "--overwrite."
        )
    return False


def _differences(folder, cfg):
    """Keys whose value differs between the directory's cfg.yaml and `cfg`, as readable text."""
    import yaml

    from atsc_plugin.keys import flatten

    stored = flatten(yaml.safe_load(Path(folder / "cfg.yaml").read_text()))
    asked = flatten(yaml.safe_load(cfg.dump()))
    names = sorted(stored.keys() | asked.keys())
    return [
        f"{name} was {stored.get(name, 'absent')}, asked {asked.get(name, 'absent')}"
        for name in names
        if stored.get(name) != asked.get(name) and not name.startswith(("LOG.", "TEACHER.CACHE"))
    ]
