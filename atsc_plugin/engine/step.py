"""One training step: losses, gradients, the optimizer, and a second loss where the distiller has one."""

import torch

from atsc_plugin.engine.nonfinite import SkippedSteps
from atsc_plugin.errors import PluginError


def learning_rate(cfg, epoch):
    """SOLVER.LR * LR_DECAY_RATE^(number of LR_DECAY_STAGES that lie before this epoch), mdistiller's law."""
    return cfg.SOLVER.LR * cfg.SOLVER.LR_DECAY_RATE ** sum(epoch > stage for stage in cfg.SOLVER.LR_DECAY_STAGES)


class Step:
    """Calls the distiller on one batch and moves its weights; owns the optimizers and nothing else."""

    def __init__(self, distiller, cfg):
        self.distiller, self.solver = distiller, cfg.SOLVER
        groups = getattr(distiller, "param_groups", None)
        self.optimizer = self._sgd(groups(cfg) if groups else distiller.get_learnable_parameters())
        self.second_optimizer, self.second_state = None, None
        self.skipped = self._skipped_steps()

    def _sgd(self, parameters):
        solver = self.solver
        return torch.optim.SGD(parameters, lr=solver.LR, momentum=solver.MOMENTUM, weight_decay=solver.WEIGHT_DECAY)

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
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)

    def parameters(self):
        """Everything the optimizer moves."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def __call__(self, inputs):
        """(logits, losses by name) of one batch, after the weights have moved; losses None for a step left out."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.skipped:
            self.skipped.remember()
        logits, losses = self.distiller(**inputs)
        losses = {name: part.mean() for name, part in losses.items()}
        sum(losses.values()).backward()
        if self.skipped and self.skipped.refuse(losses, self.parameters()):
            return logits, None
        self.optimizer.step()
        return logits, losses | self._second(inputs)

    def _second(self, inputs):
        """A second loss on parameters of its own, stepped after the first, where the distiller has one; its losses."""
        if not hasattr(self.distiller, "second_loss"):
            return {}
        parameters, losses = self.distiller.second_loss(inputs["image"], inputs["target"])
        if self.second_optimizer is None:
            self.second_optimizer = self._sgd(parameters)
            if self.second_state is not None:
                self.second_optimizer.load_state_dict(self.second_state)
        for group in self.second_optimizer.param_groups:
            group["lr"] = self.optimizer.param_groups[0]["lr"]
        gradients = torch.autograd.grad(sum(losses.values()), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.second_optimizer.step()
        return losses

    def state(self):
        """What `latest` keeps of the optimizers."""
        state = {"optimizer": self.optimizer.state_dict()}
        if self.second_optimizer is not None:
            state["second_optimizer"] = self.second_optimizer.state_dict()
        return state

    def load_state(self, state):
        self.optimizer.load_state_dict(state["optimizer"])
        if "second_optimizer" in state:
            self.second_state = state["second_optimizer"]  # loaded when the first second step makes its optimizer
