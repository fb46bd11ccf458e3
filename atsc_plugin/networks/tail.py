"""The tail of a network: its own modules between the pooled vector and the logits, found by running it once.

fc_norm, LayerNorm2d, hidden layers of the head, the classifier. Found from the logits backwards: the last module whose
output they are, then the one whose output its input is, as long as the inputs are vectors. No forward is rewritten.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Step = tuple[str, int]  # (a module's path, the number of dimensions of its input: N x C, or N x C x 1 x 1)


class Tail(nn.Sequential):
    """vector -> logits through modules that stay the network's; each sees its input in as many dimensions as there."""

    def __init__(self, modules: Sequence[nn.Module], steps: Sequence[Step]) -> None:
        super().__init__(*modules)
        self.steps = [list(step) for step in steps]
        self.origin: dict[str, Any] = {}  # the network to cut these modules from again, for a card

    @classmethod
    def of(cls, network: nn.Module, steps: Sequence[Step]) -> nn.Module:
        """The tail of a network; its only module itself where that is an nn.Linear."""
        modules = [network.get_submodule(path) for path, _ in steps]
        only = modules[0]
        if isinstance(only, nn.Sequential) and not isinstance(only, Tail) and len(only) == 1:
            only = only[0]
        if len(modules) == 1 and isinstance(only, (nn.Linear, Tail)):
            return only
        return cls(modules, steps)

    def forward(self, vector: Tensor) -> Tensor:
        for module, (_, rank) in zip(self, self.steps, strict=True):
            vector = vector.flatten(1)
            vector = module(vector[:, :, None, None] if rank == 4 else vector)
        return vector.flatten(1)


def vector_of(value: Any) -> Tensor | None:
    """N x C of a tensor N x C or N x C x 1 x 1, None for anything else."""
    if not isinstance(value, Tensor) or not (value.dim() == 2 or (value.dim() == 4 and value.shape[2:] == (1, 1))):
        return None
    return value.flatten(1)


def tail_steps(model: nn.Module, image: Tensor, logits: Tensor) -> tuple[tuple[Step, ...], list[Tensor]]:
    """(steps, the vector before each) of a network in eval mode, first to last; ((), []) where nothing leads there."""
    calls, waiting = [], {}

    def before(path):
        def hook(_module, inputs):  # cloned at once: the module may work in place
            value = inputs[0] if inputs else None
            vector = vector_of(value)
            waiting[path] = (value.dim(), vector.clone()) if vector is not None else None

        return hook

    def after(path):
        def hook(_module, _inputs, output):
            entered, left = waiting.pop(path, None), vector_of(output)
            if entered is not None and left is not None:
                calls.append((path, *entered, left.clone()))

        return hook

    with ExitStack() as hooks:
        for path, module in model.named_modules():
            if path:
                hooks.enter_context(module.register_forward_pre_hook(before(path)))
                hooks.enter_context(module.register_forward_hook(after(path)))
        model(image)
    steps: list[Step] = []
    vectors: list[Tensor] = []
    wanted = logits
    for path, rank, entered, left in reversed(calls):  # a container comes before what it holds, which is passed over
        inside = any(path.startswith(f"{taken}.") for taken, _ in steps)
        if inside or left.shape != wanted.shape or not torch.equal(left, wanted):
            continue
        wanted = entered
        module = model.get_submodule(path)
        if not isinstance(module, (nn.Identity, nn.Flatten)) and getattr(module, "p", 1) != 0:  # nor Dropout(0)
            steps.insert(0, (path, rank))
            vectors.insert(0, entered)
    return tuple(steps), vectors


@contextmanager
def without_zeros(model: nn.Module) -> Iterator[None]:
    """Noise in place of parameters that are zero or nearly so, as heads, last norms and layer scales often begin.

    With them a block equals its input and any vector the logits, and a target is found where there is none.
    """
    small = [(p, p.detach().clone()) for p in model.parameters() if p.numel() and p.detach().abs().max() < 1e-3]
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter, _ in small:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in small:
                parameter.copy_(value)
