"""A CUDA graph's rules on a CPU: operations are recorded once, with the numbers and addresses of that time."""

from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """A recorder for engine/graph.py. Recording leaves all tensors as they were; reading one is refused."""

    recorded = replayed = 0  # by all tapes, so that a test can see that they were used

    def __init__(self, device):
        super().__init__()

    def warm_up(self, function):
        return function()

    def record(self, function):
        type(self).recorded += 1
        self.operations, self.before, self.made = [], {}, {}
        try:
            with self:
                outputs = function()
        finally:
            with torch.no_grad():
                for tensor, before in self.before.values():  # as if nothing had been run yet
                    tensor.copy_(before)
        return partial(self._replayed, self.operations, outputs)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a recorded step read the device")
        for tensor in _tensors((args, kwargs)):
            if id(tensor) not in self.made and id(tensor) not in self.before:
                self.before[id(tensor)] = tensor, tensor.detach().clone()
        out = func(*args, **kwargs)
        inputs = {id(tensor) for tensor in _tensors((args, kwargs))}
        fresh = [tensor for tensor in _tensors(out) if id(tensor) not in inputs]
        self.made |= {id(tensor): tensor for tensor in fresh}
        if not func.is_view:  # a view of a tensor that stays in place stays as it is
            self.operations.append((func, args, kwargs, out))
        return out

    @torch.no_grad()
    def _replayed(self, operations, outputs):
        type(self).replayed += 1
        for func, args, kwargs, out in operations:
            for place, now in zip(_tensors(out), _tensors(func(*args, **kwargs)), strict=True):
                if place is not now:
                    place.copy_(now)
        return outputs


def _tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
