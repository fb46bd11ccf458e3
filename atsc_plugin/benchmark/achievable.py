"""What a step would take if every operation ran at the machine's measured ceiling: a roofline over its operations.

    t = sum over operations of max(flops / matmul ceiling, bytes read and written / copy ceiling)

FLOPs are torch.utils.flop_counter's (convolutions and matrix products); bytes are those of an operation's tensors.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from atsc_plugin.benchmark.timing import milliseconds

SIDES = {"cpu": 1024, "cuda": 8192}  # of the square matrices
COPIED = {"cpu": 2**26, "cuda": 2**30}  # bytes


class Work(TorchDispatchMode):
    """Records (flops, bytes) of every operation that runs inside the block, backward included."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        flops = count(*args, **kwargs, out_val=out) if count else 0
        moved = 0 if func.is_view else _bytes((args, kwargs)) + _bytes(out)
        self.operations.append((flops, moved))
        return out

    def flops(self):
        return sum(flops for flops, _ in self.operations)

    def seconds(self, ceilings):
        """The sum over operations of the larger of its two times."""
        rate, width = ceilings["flops_per_second"], ceilings["bytes_per_second"]
        return sum(max(flops / rate, moved / width) for flops, moved in self.operations)


def _bytes(tree):
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))


def ceilings(device, dtype, tries=5):
    """{"flops_per_second", "bytes_per_second"}: the best of a few square matrix products and large copies."""
    side = SIDES[device.type]
    a = torch.randn(side, side, device=device).to(dtype)
    source = torch.empty(COPIED[device.type], dtype=torch.uint8, device=device).fill_(1)
    goal = torch.empty_like(source)
    for run in (lambda: a @ a, lambda: goal.copy_(source)):
        run()
    product = min(milliseconds(lambda: a @ a, device) for _ in range(tries))
    copy = min(milliseconds(lambda: goal.copy_(source), device) for _ in range(tries))
    return {
        "flops_per_second": 2 * side**3 / product * 1000,
        "bytes_per_second": 2 * source.numel() / copy * 1000,
    }
