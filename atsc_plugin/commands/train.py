"""Train a student from a config file; everything is checked and built before anything is written."""

from atsc_plugin.commands import Parser, registered_cfg
from atsc_plugin.engine import run_dir
from atsc_plugin.errors import wrapped

EXAMPLES = """
  train --cfg configs/quickstart/simkd.yaml
  train --cfg configs/quickstart/simkd.yaml EXPERIMENT.SEED 2 SOLVER.EPOCHS 12
  train --cfg configs/cifar100/simkd.yaml --dry-run
  torchrun --nproc_per_node=4 tools/train.py --cfg configs/cifar100/atsc/res32x4_res8x4.yaml
"""


def parser():
    options = Parser("train", __doc__, EXAMPLES)
    add = options.add_argument
    add("--cfg", required=True, metavar="FILE", help="YAML configuration")
    again = options.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue an unfinished run exactly where it was left")
    again.add_argument("--overwrite", action="store_true", help="delete what an earlier run left in the same directory")
    add("--dry-run", action="store_true", help="print the resolved plan and stop; nothing is written")
    add("opts", nargs="*", metavar="KEY VALUE", help="keys to override, e.g. SOLVER.EPOCHS 12")
    return options


def run(args):
    cfg = registered_cfg(args.cfg, args.opts)
    from atsc_plugin import build
    from atsc_plugin.engine import distributed

    with distributed.session(cfg.EXPERIMENT.DEVICE):
        return _train(args, cfg, build, distributed)


def _train(args, cfg, build, distributed):
    _, folder = build.place(cfg, args.opts)
    build.check_place(folder)
    if args.dry_run:
        _print_plan(build.plan(build.prepare(cfg, args.opts, dry=True)))
        return 0
    finished, args.resume = distributed.from_first(lambda: _finished(folder, cfg, args))
    if finished:
        return 0
    prepared = build.prepare(cfg, args.opts)
    if distributed.first():
        _print_plan(build.plan(prepared))
        if args.overwrite:
            run_dir.clear(folder)
    build.trainer_of(prepared).train(resume=args.resume)
    return 0


def _print_plan(pairs):
    for label, text in pairs:
        print(wrapped(f"{label:>8}  {text}", indent=10), flush=True)


def _finished(folder, cfg, args):
    """(True when there is nothing to do, whether there is something to resume); what is in the way is refused."""
    from atsc_plugin.commands import earlier_run

    run_dir.refuse_if_held(folder)
    if args.overwrite:
        return False, args.resume
    if cfg.SOLVER.TRAINER == "plugin" and (folder / "cfg.yaml").exists():
        if earlier_run.complete(folder, cfg):
            return True, args.resume
        if not args.resume:
            earlier_run.refuse_unfinished(folder)
        earlier_run.say_changes(folder, cfg)
    if args.resume and not run_dir.has_checkpoint(folder):
        print(f"nothing to resume in {folder}: starting from the beginning", flush=True)
        return False, False
    return False, args.resume
