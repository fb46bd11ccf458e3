"""How far the fused ATSC step and the released one part over N steps: same weights, same batches, same flags.

usage: fused_vs_published.py [--cfg configs/quickstart/atsc_published.yaml] [--steps 200] [KEY VALUE ...]

Prints, after 1, 10, 50, ... steps, the relative distance ||a - b|| / ||b - b_0|| between the two runs' weights
(a fused, b published, b_0 both at the start) by part, and how both teachers stand at the end.
"""

import argparse
import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import atsc_plugin
from atsc_plugin.engine.batches import inputs_of

MARKS = (1, 10, 50, 100, 200, 500, 1000)


def parts(distiller):
    """The tensors that are compared, by part."""
    teacher, head = distiller.teacher, {id(p) for p in distiller.classifier.parameters()}
    return {
        "student": distiller.student_parameters()[: -len(list(distiller.projector.parameters()))],
        "projector": list(distiller.projector.parameters()),
        "teacher trunk": [p for p in teacher.parameters() if id(p) not in head],
        "classifier": list(distiller.classifier.parameters()),
        "BN statistics": [b for n, b in teacher.named_buffers() if n.endswith(("running_mean", "running_var"))],
    }


def flat(tensors):
    return torch.cat([t.detach().double().reshape(-1) for t in tensors])


def runner(build, cfg, state):
    """A trainer around a fresh distiller with the given weights, and its training batches."""
    run = build.prepare(cfg)
    run.distiller.load_state_dict(state)
    run.distiller.start.remember(run.distiller.teacher)
    return build.trainer_of(run), run.data.train


def step(trainer, batch, rate):
    inputs = {**inputs_of(batch, trainer.device), "epoch": 1}
    trainer.distiller.train()
    trainer.step.set_rate(rate)
    trainer.step(inputs)


def batches(loader, count):
    made = 0
    while True:
        for batch in loader:
            yield batch
            made += 1
            if made == count:
                return


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--cfg", default="configs/quickstart/atsc_published.yaml")
    words.add_argument("--steps", type=int, default=200)
    words.add_argument("opts", nargs="*")
    args = words.parse_intermixed_args()
    atsc_plugin.register()
    from atsc_plugin import build
    from atsc_plugin.config import load_cfg

    published = load_cfg(args.cfg, args.opts)
    fused = load_cfg(args.cfg, [*args.opts, "ATSC.UPDATE", "fused"])
    state = copy.deepcopy(build.prepare(published).distiller.state_dict())
    (a, loader), (b, _) = runner(build, fused, state), runner(build, published, state)
    begin = {name: flat(tensors) for name, tensors in parts(b.distiller).items()}
    print(f"{'steps':>6}  " + "  ".join(f"{name:>14}" for name in begin))
    for number, batch in enumerate(batches(loader, args.steps), 1):
        step(a, batch, published.SOLVER.LR)
        step(b, batch, published.SOLVER.LR)
        if number in MARKS or number == args.steps:
            ours, theirs = parts(a.distiller), parts(b.distiller)
            shares = [
                ((flat(ours[n]) - flat(theirs[n])).norm() / (flat(theirs[n]) - begin[n]).norm()).item() for n in begin
            ]
            print(f"{number:>6}  " + "  ".join(f"{share:>14.2e}" for share in shares), flush=True)
    for name, trainer in (("fused", a), ("published", b)):
        figures = trainer.distiller.after_epoch(1, trainer.val_loader)["figures"]
        told = ", ".join(f"{key} {figures[key]:.3f}" for key in ("teacher_top1", "teacher_agreement", "feature_scale"))
        print(f"{name}: {told}")


if __name__ == "__main__":
    main()
