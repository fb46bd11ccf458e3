"""What `gpu-check` starts under torchrun: three steps of ATSC on two ranks, which must end with the same weights.

usage: torchrun --nproc_per_node=2 -m atsc_plugin.bench.two_ranks BACKEND DEVICE
"""

import json
import os
import sys

import torch
import torch.distributed as dist

import atsc_plugin

atsc_plugin.register()

from atsc_plugin.bench.steps import CLASSES, Arm, begun_step, configuration, distiller_of  # noqa: E402


def main(backend: str, kind: str) -> None:
    rank = int(os.environ["RANK"])
    device = torch.device(f"cuda:{rank if backend == 'nccl' else 0}" if kind == "cuda" else kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend)
    torch.manual_seed(0)
    cfg = configuration(Arm("fused", "resnet20", "resnet8", 16))
    step = begun_step(distiller_of(cfg, device), cfg)
    before = [parameter.detach().clone() for parameter in step.parameters()]
    draw = torch.Generator().manual_seed(rank)  # other images on each
    for _ in range(3):
        image, target = torch.randn(16, 3, 32, 32, generator=draw), torch.randint(CLASSES, (16,), generator=draw)
        step({"image": image.to(device), "target": target.to(device), "epoch": 1})
    apart = torch.zeros((), device=device)
    for parameter in step.parameters():
        least, most = parameter.detach().clone(), parameter.detach().clone()
        dist.all_reduce(least, dist.ReduceOp.MIN)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        apart = torch.maximum(apart, (most - least).max())
    moved = max((now.detach() - then).abs().max().item() for now, then in zip(step.parameters(), before, strict=True))
    if rank == 0:
        print(json.dumps({"difference": apart.item(), "moved": moved}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
