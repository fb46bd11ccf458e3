"""The roofline of a step: how long its operations would take at this machine's measured peaks.

    t = sum over operations of max(FLOPs / matmul peak, bytes read and written / copy peak)

FLOPs are torch.utils.flop_counter's (convolutions and matrix products); bytes are those of an operation's tensors.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from atsc_plugin.bench.timing import milliseconds

MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}
COPY_BYTES = {"cpu": 2**26, "cuda": 2**30}


class CountedOperations(TorchDispatchMode):
    """Records (FLOPs, bytes) of every operation inside the block, backward passes included."""

    def __init__(self):
        super().__init__()
        self.operations: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        flops = flops_of(func, args, kwargs, out)
        self.operations.append((flops, 0 if func.is_view else _bytes((args, kwargs)) + _bytes(out)))
        return out

    def flops(self) -> int:
        return sum(flops for flops, _ in self.operations)

    def seconds(self, peak: dict) -> float:
        """The roofline: each operation takes the longer of its two times."""
        return sum(
            max(flops / peak["flops_per_second"], moved / peak["bytes_per_second"]) for flops, moved in self.operations
        )


def flops_of(func, args, kwargs, out) -> int:
    """FLOPs of one dispatched operation; none but convolutions and matrix products have any."""
    count = flop_registry.get(func._overloadpacket)
    return count(*args, **kwargs, out_val=out) if count else 0


def _bytes(tree):
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))


def measured_peak(device: torch.device, dtype: torch.dtype, tries: int = 5) -> dict:
    """{"flops_per_second", "bytes_per_second"}: the best of a few square matrix products and large copies."""
    side, size = MATRIX_SIDE[device.type], COPY_BYTES[device.type]
    a = torch.randn(side, side, device=device).to(dtype)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = {}
    for name, run in (("product", lambda: a @ a), ("copy", lambda: target.copy_(source))):
        run()
        best[name] = min(milliseconds(run, device) for _ in range(tries)) / 1000
    return {"flops_per_second": 2 * side**3 / best["product"], "bytes_per_second": 2 * size / best["copy"]}
