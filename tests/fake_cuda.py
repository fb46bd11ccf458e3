"""A CUDA device without a GPU: torch's fake tensors, on which every operation is asked for and none is computed.

Fake tensors know shapes, formats and devices. A CPU tensor that meets a cuda one, or a shape that has to be read, is
an error of theirs; what a step reads back, sends over or draws is recorded here. Three things of torch do not work
without a driver, and are replaced: backward passes (torch's engine asks the driver for its streams, so that the graph
is walked in Python), `Module.to` (it swaps tensors, which fake ones refuse), and the questions what the GPU is.
"""

import copy
import math
from collections import Counter, defaultdict
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.function import BackwardCFunction
from torch.utils._pytree import tree_leaves

from atsc_plugin.bench.launches import Launches


class Recorded(Launches):
    """Of every step: operations by part, reads of the device, transfers to it, draws, meetings of two devices."""

    def __init__(self):
        super().__init__()
        self.events = [Counter()]
        self.backward = False

    def mark(self):
        super().mark()
        self.events.append(Counter())

    def part(self):
        part = super().part()
        return "backward" if part == "forward" and self.backward else part

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace != "aten":  # a fake tensor asked for its device
            return func(*args, **(kwargs or {}))
        name, tensors = func._overloadpacket.__name__, _tensors((args, kwargs))
        given = set(map(_device, tensors))
        if torch.Tag.data_dependent_output in func.tags and "cuda" in given:
            self.events[-1]["reads"] += 1
            if name == "_local_scalar_dense":  # infinity: in float32 the meters keep since when a number is bad
                return {torch.float32: math.inf, torch.float64: 1.0}.get(args[0].dtype, 1)
        if name == "_fused_sgd_":  # it has no fake kernel, gives nothing back and changes no shape
            self.steps[-1][self.part()] += 1
            out = None
        else:
            out = super().__torch_dispatch__(func, types, args, kwargs)
        made = set(map(_device, _tensors(out)))
        if len(given) > 1:
            self.events[-1]["met"] += 1
        if "cuda" in given and made == {"cpu"}:
            self.events[-1]["reads"] += 1
        if given == {"cpu"} and "cuda" in made:
            self.events[-1]["sent"] += 1
        if torch.Tag.nondeterministic_seeded in func.tags:
            own = (kwargs or {}).get("generator") is not None
            self.events[-1]["drawn by a generator of its own" if own else f"drawn on {', '.join(made)}"] += 1
        return out

    # ---- the backward pass ----

    def run_backward(self, roots, gradients, _retain, _create, inputs, *_, accumulate_grad, **__):
        """What torch's engine does: each node once all gradients of its output are there, summed in its own format."""
        self.backward = True
        waiting, reached, todo = Counter(), set(), [root.grad_fn for root in roots]
        while todo:
            node = todo.pop()
            if node not in reached:
                reached.add(node)
                following = [each for each, _ in node.next_functions if each is not None]
                waiting.update(following)
                todo += following
        given, found = defaultdict(dict), {}
        for root, gradient in zip(roots, gradients, strict=True):
            given[root.grad_fn][0] = torch.ones_like(root) if gradient is None else gradient
        ready = [root.grad_fn for root in roots]
        with torch.no_grad():
            while ready:
                node = ready.pop()
                mine = given.pop(node, {})
                if type(node).__name__ == "AccumulateGrad":
                    leaf = node.variable
                    if mine and not accumulate_grad:
                        found[id(leaf)] = mine[0]
                    elif mine:
                        leaf.grad = mine[0] if leaf.grad is None else leaf.grad + mine[0]
                    continue
                for (following, place), gradient in _gradients(node, mine):
                    if gradient is not None:
                        wanted, others = following._input_metadata[place], given[following]
                        if gradient.shape != wanted.shape:
                            gradient = gradient.sum_to_size(wanted.shape)
                        gradient = gradient.to(wanted.dtype)
                        others[place] = others[place] + gradient if place in others else gradient
                    waiting[following] -= 1
                    if not waiting[following]:
                        ready.append(following)
        self.backward = False
        return tuple(found.get(id(leaf)) for leaf in inputs or ())


def _tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _device(tensor):
    return (tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device).type


def _gradients(node, mine):
    """[((next node, its place), gradient)] of one node of the graph; a Function of ours takes more than tensors."""
    edges = node.next_functions
    if not mine:
        return [(edge, None) for edge in edges if edge[0] is not None]
    given = [mine.get(place) for place in range(len(node._input_metadata))]
    if isinstance(node, BackwardCFunction):
        gradients = node.apply(*given)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        gradients = [each for each, wanted in zip(gradients, node.needs_input_grad, strict=True) if wanted]
        edges = [edge for edge in edges if edge[0] is not None]
    else:
        gradients = node(*given)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    return [pair for pair in zip(edges, gradients, strict=True) if pair[0][0] is not None]


# ---- the device ----


def _apply(module, change, recurse=True):
    """nn.Module._apply, in place as on a real device."""
    for each in module.modules():
        for parameter in filter(lambda entry: entry is not None, each._parameters.values()):
            parameter.data = change(parameter.data)
        for name, buffer in each._buffers.items():
            each._buffers[name] = None if buffer is None else change(buffer)
    return module


def moved(module, fake):
    """A copy of a real module with fake cuda tensors for its parameters and buffers, each once."""
    memo = {}
    with fake:
        for tensor in [*module.parameters(), *module.buffers()]:
            like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
            memo[id(tensor)] = nn.Parameter(like, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else like
    return copy.deepcopy(module, memo)


@contextmanager
def fake_cuda():
    """The block in which "cuda" is a device; gives (the mode to move modules with, what was recorded)."""
    fake, recorded = FakeTensorMode(), Recorded()
    answers = {
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "is_bf16_supported": lambda *_, **__: True,
        "get_device_name": lambda *_: "fake",
    }
    with ExitStack() as block:
        enter = block.enter_context
        for name, answer in answers.items():
            enter(mock.patch.object(torch.cuda, name, answer))
        enter(mock.patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False))
        enter(mock.patch.object(torch.autograd, "_engine_run_backward", recorded.run_backward))
        enter(mock.patch.object(nn.Module, "_apply", _apply))
        block.callback(
            setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark
        )  # the trainer sets it
        yield fake, recorded
