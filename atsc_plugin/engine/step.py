"""One training step: losses, gradients, the optimizer, and a second loss where the distiller has one.

Nothing in it waits for the device: losses stay tensors, and the meters that add them up are read now and then.
"""

import torch

from atsc_plugin import habits
from atsc_plugin.engine import compiling, distributed, optim
from atsc_plugin.engine.nonfinite import SkippedSteps
from atsc_plugin.engine.precision import keep_logits_full, precision_of
from atsc_plugin.errors import PluginError


def parts_of(inputs, count):
    """[(inputs of one part, its share of the images)]: a batch cut into `count` parts as equal as can be."""
    images = len(inputs["target"])
    count = min(count, images)
    if count == 1:
        return [(inputs, 1.0)]
    columns = {name: _cut(entry, count) for name, entry in inputs.items()}
    parts = [{name: column[number] for name, column in columns.items()} for number in range(count)]
    return [(part, len(part["target"]) / images) for part in parts]


def _cut(entry, count):
    if isinstance(entry, torch.Tensor):
        return entry.tensor_split(count)
    if isinstance(entry, (list, tuple)):
        return [type(entry)(views) for views in zip(*(view.tensor_split(count) for view in entry), strict=True)]
    return [entry] * count


class Step:
    """Calls the distiller on one batch and moves its weights; owns the optimizers, the number format, the compiler.

    SOLVER.ACCUMULATE n: the gradient is sum_i (n_i / N) grad loss(part i), which for losses that are means over images
    (and terms without images, such as drift) is the whole batch's, BN's batch statistics apart.
    """

    def __init__(self, distiller, cfg):
        self.distiller, self.solver = distiller, cfg.SOLVER
        self.called = None  # what is called in training: the distiller, or DDP around it, made with the first batch
        self.device = next(distiller.parameters()).device
        self.precision = precision_of(self.solver.AMP, self.device, hasattr(distiller, "second_loss"))
        groups = getattr(distiller, "param_groups", None)
        self.optimizer = optim.sgd(
            groups(cfg) if groups else distiller.get_learnable_parameters(), self.solver, self.device
        )
        self.second_optimizer, self.second_state = None, None
        self.skipped = self._skipped_steps()
        keep_logits_full(distiller, self.precision)
        self.compiled = compiling.compile_networks(distiller, self.solver.COMPILE, self.device)

    def _skipped_steps(self):
        """What leaves bad steps out under SOLVER.NONFINITE skip, else None."""
        if self.solver.NONFINITE != "skip":
            return None
        if hasattr(self.distiller, "second_loss"):
            raise PluginError(
                "SOLVER.NONFINITE skip cannot undo the first of two steps a batch (ATSC.UPDATE published); use stop."
            )
        return SkippedSteps(self.distiller)

    def set_rate(self, rate):
        """The epoch's rate; a group's `lr_scale` multiplies it."""
        optim.set_learning_rate(self.optimizer, rate)

    def parameters(self):
        """Everything the optimizer moves."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def scaler(self):
        """fp16's loss scaler, which tries infinite gradients and steps back by itself; else None."""
        return self.precision.scaler

    def uncompiled(self):
        """The block in which the networks are evaluated."""
        return compiling.uncompiled(self.compiled)

    def __call__(self, inputs):
        """(logits, losses by name) of one batch, after the weights have moved; losses None for a step left out."""
        inputs = habits.views_for(self.distiller, inputs)
        self.optimizer.zero_grad(set_to_none=True)
        if self.skipped:
            self.skipped.remember()
        with compiling.told():
            results = self._results(parts_of(inputs, self.solver.ACCUMULATE))
        logits, losses = results[0] if len(results) == 1 else _together(results)
        if self.skipped and self.skipped.refuse(losses, [] if self.scaler else self.parameters()):
            return logits, None
        self.precision.move(self.optimizer, self.parameters(), self.solver.CLIP_NORM)
        return logits, losses | self._second(inputs)

    def _results(self, parts):
        """(logits, losses) of each part; several ranks add their gradients up once, with the last part's."""
        if self.called is None:
            with self.precision.autocast():
                self.called = distributed.wrapped(self.distiller, parts[0][0], self.parameters())
        with distributed.quiet(self.called):
            results = [self._backward(part, share) for part, share in parts[:-1]]
        return [*results, self._backward(*parts[-1])]

    def _backward(self, inputs, share):
        """(logits, losses times the part's share) of one part, its gradient added to the others'."""
        if self.compiled and self.solver.COMPILE in compiling.RECORDS_GRAPHS:
            torch.compiler.cudagraph_mark_step_begin()
        with self.precision.autocast():
            logits, losses = self.called(**inputs)
        losses = {name: part.mean() if part.ndim else part for name, part in losses.items()}
        if share != 1.0:
            losses = {name: part * share for name, part in losses.items()}
        self.precision.backward(sum(losses.values()))
        return logits.detach(), losses

    def _second(self, inputs):
        """A second loss on parameters of its own, stepped after the first, where the distiller has one; its losses."""
        if not hasattr(self.distiller, "second_loss"):
            return {}
        parameters, losses = self.distiller.second_loss(inputs["image"], inputs["target"])
        if self.second_optimizer is None:
            self.second_optimizer = optim.sgd(parameters, self.solver, self.device)
            if self.second_state is not None:
                optim.load_optimizer(self.second_optimizer, self.second_state)
        for group in self.second_optimizer.param_groups:
            group["lr"] = self.optimizer.param_groups[0]["lr"]
        gradients = torch.autograd.grad(sum(losses.values()), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.second_optimizer.step()
        return losses

    def state(self):
        """What `latest` keeps of the optimizers and the scaler."""
        state = {"optimizer": self.optimizer.state_dict()}
        if self.second_optimizer is not None:
            state["second_optimizer"] = self.second_optimizer.state_dict()
        if self.scaler is not None:
            state["scaler"] = self.scaler.state_dict()
        return state

    def load_state(self, state):
        optim.load_optimizer(self.optimizer, state["optimizer"])
        if "second_optimizer" in state:
            self.second_state = state["second_optimizer"]  # loaded when the first second step makes its optimizer
        if self.scaler is not None and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])


def _together(results):
    """One batch's logits and losses from its parts'."""
    losses = [losses for _, losses in results]
    summed = {name: sum(each[name].detach() for each in losses) for name in losses[0]}
    return torch.cat([logits for logits, _ in results]), summed
