"""Run by tests/test_ddp.py under torchrun, once a rank: a tiny training whose end it writes to WHERE/end_RANK.pt.

usage: ddp_script.py WHERE CASE...; one rank writes the same for one process.
"""

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402
from small_atsc import AVERAGED  # noqa: E402
from tiny import TinyNet  # noqa: E402
from torch import nn  # noqa: E402

import atsc_plugin  # noqa: E402
from atsc_plugin.data.device_loader import DeviceLoader  # noqa: E402
from atsc_plugin.engine import distributed  # noqa: E402
from atsc_plugin.engine.trainer import PluginTrainer  # noqa: E402

torch.set_num_threads(1)
atsc_plugin.register()

from atsc_plugin.host import CFG, distiller_dict  # noqa: E402


def without_bn(network):
    network.bn = nn.Identity()
    return network


def loader(seed=None, count=36, start=0):
    draw = torch.Generator().manual_seed(9 + start)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=draw)
    ranks = {"rank": distributed.rank(), "world": distributed.world()} if seed else {}
    return DeviceLoader(images, torch.arange(count) % 10, 8, [0.5] * 3, [0.25] * 3, seed=seed, padding=2, **ranks)


CASES = {
    "vanilla": ("NONE", []),
    "kd": ("KD", []),
    "plain_atsc": ("ATSC", ["ATSC.TEACHER.LR_SCALE", 0.5]),
    "accumulated": ("ATSC", ["SOLVER.ACCUMULATE", 2]),
    "warming": ("ATSC", ["ATSC.TEACHER.WARMUP_EPOCHS", 1]),
    "settling": ("ATSC", ["ATSC.TEACHER.LAST_EPOCH", 1]),
    "averaged": ("ATSC", AVERAGED),
    "normal": ("ATSC", []),
}


def train(where, case, resume=False, die=False):
    """One run; its end: weights, theta_0, the result."""
    method, keys = CASES[case]
    cfg = CFG.clone()
    cfg.merge_from_list(["LOG.PREFIX", str(where), "SOLVER.EPOCHS", 2, "SOLVER.LR", 0.02, "SOLVER.BATCH_SIZE", 8])
    cfg.merge_from_list(["SOLVER.TRAINER", "plugin", "ATSC.MONITOR.IMAGES", 10, "DISTILLER.TYPE", method, *keys])
    torch.manual_seed(1)
    networks = [TinyNet(width=4)] + ([] if method == "NONE" else [TinyNet(width=6)])
    if case != "normal":
        networks = [without_bn(network) for network in networks]
    distiller = distiller_dict[method](*networks, *([] if method == "NONE" else [cfg]))
    if case != "normal" and hasattr(distiller, "projector"):
        distiller.projector = nn.Sequential(nn.Conv2d(4, 6, 1))
    folder = Path(where) / case / "run"
    test = {"test_loader": loader(count=21, start=2)}
    trainer = PluginTrainer("run", distiller, loader(seed=5), loader(count=13, start=1), cfg, folder=folder, **test)
    if die and distributed.rank() == 1:
        trainer.step.precision = None  # the first step fails on this rank alone
    result = trainer.train(resume=resume)
    start = dict(distiller.start.items()) if hasattr(distiller, "start") else {}
    frozen = getattr(trainer.step.called, "find_unused_parameters", None)
    return {"state": distiller.state_dict(), "start": start, "result": result, "looks_for_unused": frozen}


def main():
    where, *cases = sys.argv[1:]
    with distributed.session("cpu"):
        if cases == ["die"]:
            train(where, "vanilla", die=True)
        for case in cases:
            end = train(where, case)
            torch.save(end, Path(where) / f"{case}_{distributed.rank()}of{distributed.world()}.pt")
        if distributed.first():
            Path(where, "said.json").write_text(json.dumps({"world": distributed.world()}))


if __name__ == "__main__":
    main()
