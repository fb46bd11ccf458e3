"""Accuracy of a run directory, of a deployed student or of any checkpoint, on the data of its configuration."""

import json

from atsc_plugin.commands import Parser, add_student_options, cfg_of_student, tell_unfinished
from atsc_plugin.errors import PluginError, wrapped

EXAMPLES = """
  eval output/quickstart/simkd,res20,res8/seed_1              the deployed student of the last epoch
  eval output/quickstart/simkd,res20,res8/seed_1 --which best
  eval output/quickstart/kd,res20,res8/seed_1/latest          a checkpoint; the cfg.yaml beside it says what it is
  eval teacher.pth --cfg configs/quickstart/vanilla.yaml DISTILLER.STUDENT resnet20     a bare network
"""


def parser():
    options = Parser("eval", __doc__, EXAMPLES)
    options.add_argument(
        "--split", choices=("test", "val"), default="test", help="images to evaluate on (default: test)"
    )
    options.add_argument("--json", action="store_true", help="print one JSON object instead of a sentence")
    add_student_options(options)
    return options


def run(args):
    from atsc_plugin import build, students
    from atsc_plugin.engine.batches import place_module
    from atsc_plugin.engine.evaluate import evaluate

    students.check_there(args.path)
    cfg = cfg_of_student(args)
    if cfg is None:
        raise PluginError(
            f"No cfg.yaml lies beside {args.path}, so it is unknown what it is. Name its configuration with --cfg FILE."
        )
    device = build.device_of(cfg)
    data = build.data_of(cfg, device)
    loader = data.test if args.split == "test" else data.val
    if loader is None:
        raise PluginError(f"{data.name} has no validation split; use --split test.")
    opened = students.open_student(args.path, args.which, cfg, data, build.skeleton)
    tell_unfinished(args.path)
    scores = evaluate(place_module(opened.module, device), loader, device)
    result = {"path": args.path, "what": opened.source, "split": args.split, "dataset": data.name, **scores}
    text = (
        f"{opened.source}, {data.name} {args.split} ({scores['images']:,} images): top-1 {scores['top1']:.2f}, "
        f"top-5 {scores['top5']:.2f}, cross entropy {scores['loss']:.4f}"
    )
    print(json.dumps(result) if args.json else wrapped(text))
    return 0
