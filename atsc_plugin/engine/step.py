"""One training step: losses, gradients, the optimizer, and a second loss where the method has one.

Nothing in it waits for the device: losses stay tensors, and the meters that add them up are read now and then.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from atsc_plugin import contract
from atsc_plugin.contract import IDLE_PARAMETERS, SECOND_STEP, Contract
from atsc_plugin.engine import distributed, optim, precision
from atsc_plugin.engine.batches import give_default_layout
from atsc_plugin.errors import PluginError
from atsc_plugin.networks.deployed import deployed_of
from atsc_plugin.networks.ema import average_of, exchanged, tensor_pairs, update_ema


def micro_batches(inputs: dict[str, Any], count: int) -> list[tuple[dict[str, Any], float]]:
    """[(inputs, share of the images)]: a batch split into `count` micro-batches as equal as can be."""
    images = len(inputs["target"])
    count = min(count, images)
    if count == 1:
        return [(inputs, 1.0)]
    columns = {name: _split(entry, count) for name, entry in inputs.items()}
    each = [{name: column[number] for name, column in columns.items()} for number in range(count)]
    return [(micro, len(micro["target"]) / images) for micro in each]


def _split(entry, count):
    if isinstance(entry, Tensor):
        return entry.tensor_split(count)
    if isinstance(entry, (list, tuple)):
        return [type(entry)(views) for views in zip(*(view.tensor_split(count) for view in entry), strict=True)]
    return [entry] * count


class Step:
    """Calls the distiller on one batch and moves its weights; owns the optimizers, the number format, the compiler.

    SOLVER.ACCUMULATE n: a full batch is split into n; a shorter one, the last of an epoch, into fewer of that size. The
    gradient is sum_i (n_i / N) grad loss(micro-batch i), which for losses that are means over images (and terms without
    images, such as drift) is the whole batch's, BN's batch statistics apart.
    """

    def __init__(self, distiller: nn.Module, cfg: Any) -> None:
        self.distiller, self.solver = distiller, cfg.SOLVER
        self.method: Contract = contract.of(distiller, cfg)
        method = self.method
        needs = method.needs(cfg)
        self.idle_parameters = IDLE_PARAMETERS in needs
        self.called = None  # what is called in training: the distiller, or DDP around it, made with the first batch
        self.device = next(distiller.parameters()).device
        self.precision = precision.precision_of(self.solver.AMP, self.device, needs.get(SECOND_STEP, ""))
        groups = method.param_groups(cfg)
        if self.solver.NO_DECAY == "norms":
            groups = optim.without_decay(groups, distiller)
        self.optimizer = optim.optimizer_of(groups, self.solver, self.device)
        self.second_parameters = method.second_parameters()
        self.second_optimizer = None
        if self.second_parameters:
            self.second_optimizer = optim.optimizer_of(self.second_parameters, self.solver, self.device)
        self.skipped = self._skipped_steps(needs)
        networks = [distiller.student, *(network.module for network in method.networks())]
        precision.keep_logits_full(networks, self.precision)
        if not method.ANY_LAYOUT:
            give_default_layout(networks)
        self.deployed = self.average = None  # the deployed part and, under SOLVER.EMA, the average of it
        if self.solver.EMA:
            self.deployed = deployed_of(method)
            self.average = average_of(self.deployed)
        self.compiled = precision.compile_method(method, self.solver.COMPILE, self.device)

    def _skipped_steps(self, needs):
        """What leaves bad steps out under SOLVER.NONFINITE skip, else None."""
        if self.solver.NONFINITE != "skip":
            return None
        if SECOND_STEP in needs:
            raise PluginError(
                f"SOLVER.NONFINITE skip cannot undo the first of two steps: {needs[SECOND_STEP]}. Use stop."
            )
        return SkippedSteps(self.distiller)

    def parameters(self) -> list[nn.Parameter]:
        """Everything the optimizer moves."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    # ---- the average ----

    def start_average(self) -> None:
        """The average begins where the method begins."""
        if self.average is not None:
            self.average.load_state_dict(self.deployed.state_dict())

    def averaged(self):
        """The block in which the distiller predicts, and is written, with the average: SOLVER.EMA."""
        return nullcontext() if self.average is None else exchanged(tensor_pairs(self.average, self.deployed))

    @property
    def with_average(self) -> nn.Module:
        """The distiller and the average beside it: all that has BN statistics."""
        return self.distiller if self.average is None else nn.ModuleList([self.distiller, self.average])

    def uncompiled(self):
        """The block in which the networks are evaluated."""
        return precision.uncompiled(self.compiled)

    def __call__(self, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor] | None]:
        """(logits, losses by name) of one batch, after the weights have moved; losses None for a step left out."""
        inputs = self.method.inputs(inputs)
        self.optimizer.zero_grad(set_to_none=True)
        if self.skipped:
            self.skipped.remember()
        with precision.compiler_errors(), one_image_errors():
            results = self._results(micro_batches(inputs, self._splits(len(inputs["target"]))))
        logits, losses = results[0] if len(results) == 1 else _together(results)
        if self.skipped and self.skipped.refuse(losses, [] if self.precision.scaler else self.parameters()):
            return logits, None
        self.precision.move(self.optimizer, self.parameters(), self.solver.CLIP_NORM)
        if self.second_parameters:
            losses |= self._second(inputs)
        self.method.after_step()
        if self.average is not None:
            update_ema(self.average, self.deployed, self.solver.EMA)
        return logits, losses

    def _splits(self, images):
        """Into how many micro-batches so many images are split: their size stays that of a full batch's."""
        return -(-images * self.solver.ACCUMULATE // max(images, self.solver.BATCH_SIZE // distributed.world()))

    def _results(self, batches):
        """(logits, losses) of each micro-batch; several ranks add their gradients up once, with the last one's."""
        if self.called is None:
            with self.precision.autocast():
                self.called = distributed.wrapped(
                    self.distiller, batches[0][0], self.parameters(), self.idle_parameters
                )
        with distributed.without_reduction(self.called):
            results = [self._backward(micro, share) for micro, share in batches[:-1]]
        return [*results, self._backward(*batches[-1])]

    def _backward(self, inputs, share):
        """(logits, losses times the share) of one micro-batch, its gradient added to the others'."""
        if self.compiled and self.solver.COMPILE in precision.RECORDS_GRAPHS:
            torch.compiler.cudagraph_mark_step_begin()
        with self.precision.autocast():
            logits, losses = self.called(**inputs)
        losses = {name: term.mean() if term.ndim else term for name, term in losses.items()}
        if share != 1.0:
            losses = {name: term * share for name, term in losses.items()}
        self.precision.backward(sum(losses.values()))
        return logits.detach(), losses

    def _second(self, inputs):
        """The second step, on parameters of its own after the first has moved them all; its losses."""
        losses = self.method.second_loss(inputs["image"], inputs["target"])
        for group in self.second_optimizer.param_groups:
            group["lr"] = self.optimizer.param_groups[0]["lr"]
        gradients = torch.autograd.grad(sum(losses.values()), self.second_parameters)
        for parameter, gradient in zip(self.second_parameters, gradients, strict=True):
            parameter.grad = gradient
        self.second_optimizer.step()
        return losses

    def state(self) -> dict[str, Any]:
        """What `latest` keeps of the optimizers and the scaler."""
        state = {"optimizer": self.optimizer.state_dict()}
        if self.second_optimizer is not None:
            state["second_optimizer"] = self.second_optimizer.state_dict()
        if self.precision.scaler is not None:
            state["scaler"] = self.precision.scaler.state_dict()
        if self.average is not None:
            state["model_ema"] = self.average.state_dict()  # what readers of checkpoints take before "model"
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        optim.load_optimizer(self.optimizer, state["optimizer"])
        if self.second_optimizer is not None:
            optim.load_optimizer(self.second_optimizer, state["second_optimizer"])
        if self.precision.scaler is not None and "scaler" in state:
            self.precision.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["model_ema"])


@contextmanager
def one_image_errors() -> Iterator[None]:
    """BN of one image and one pixel has nothing to normalise over; torch's error inside the block gets a remedy."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise PluginError(
            "A batch of one image met a BatchNorm behind a map of one pixel, which needs two. Choose SOLVER.BATCH_SIZE "
            "and ACCUMULATE so that no batch has one image, the last of an epoch included."
        ) from error


def _together(results):
    """One batch's logits and losses from its micro-batches'."""
    losses = [losses for _, losses in results]
    summed = {name: sum(each[name].detach() for each in losses) for name in losses[0]}
    return torch.cat([logits for logits, _ in results]), summed


# ---- NaN and infinity ----


def all_finite(tensors: list[Tensor]) -> Tensor:
    """Whether no entry of any tensor is NaN or infinite, as a tensor on their device: asking costs no wait."""
    tensors = [tensor.detach() for tensor in tensors if tensor.numel()]
    if not tensors:
        return torch.tensor(True)
    return torch.stack(torch._foreach_norm(tensors, math.inf)).max() < math.inf  # NaN is not


def gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


class SkippedSteps:
    """Leaves a step out when a loss term or a gradient of it is not finite: no weight and no running statistic moves.

    Costs a copy of the buffers and a wait for the device in every step. Over several ranks all skip when one must.
    """

    def __init__(self, distiller: nn.Module) -> None:
        stored = distiller.state_dict(keep_vars=True)
        self.moving = [buffer for name, buffer in distiller.named_buffers() if name in stored]
        self.reason = ""

    def remember(self) -> None:
        """Before the forward pass: what it may change."""
        self.before = [tensor.detach().clone() for tensor in self.moving]

    def refuse(self, losses: dict[str, Tensor], parameters: list[nn.Parameter]) -> bool:
        """After the backward pass: True for a step not to be made; what its forward pass moved is then as it was."""
        terms = [torch.isfinite(term.detach()) for term in losses.values()]
        good = torch.stack([*terms, all_finite(gradients(parameters)).to(terms[0].device)]).int()
        distributed.total(good, least=True)
        names = [*(f"loss term '{name}'" for name in losses), "the gradient"]
        bad = [name for name, fine in zip(names, good.tolist(), strict=True) if not fine]
        if bad:
            self.reason = f"{bad[0]} was not finite"
            with torch.no_grad():
                for tensor, before in zip(self.moving, self.before, strict=True):
                    tensor.copy_(before)
        return bool(bad)
