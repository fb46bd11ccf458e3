"""The optimizer, its parameter groups, and the learning rate of each step."""

import math
import warnings

import torch
from torch import nn

from atsc_plugin.host import warmup_epochs

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def optimizer_of(parameters, solver, device):
    """SOLVER.TYPE over parameters or groups, with SGD's momentum there from the start.

    fused: one kernel for all weights on a GPU, and fp16's scaler need not wait. SGD's loop is faster on a CPU. Its
    fused kernel wants a momentum for every weight of a group or for none, but a teacher that warms up has no gradient
    yet; and where fp16 overflows in the first step it would leave the momentum uninitialised. A momentum of zero gives
    the numbers of none. AdamW makes its state with a weight's first gradient, and is fused on a CPU too: its other
    kernels read a rate that lies in a tensor.
    """
    shared = {"lr": solver.LR, "weight_decay": solver.WEIGHT_DECAY}
    if solver.TYPE == "AdamW":
        return torch.optim.AdamW(parameters, betas=(solver.MOMENTUM, 0.999), fused=True, **shared)
    fused = True if device.type == "cuda" else None
    optimizer = torch.optim.SGD(parameters, momentum=solver.MOMENTUM, fused=fused, **shared)
    complete_state(optimizer)
    return optimizer


def complete_state(optimizer):
    """Every weight that SGD moves with momentum has one, zeros at first; what was loaded gets its weight's layout.

    Fused kernels run through a weight and its state in the order of memory.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if group.get("momentum") and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            state = optimizer.state.get(parameter, {})
            for name, tensor in state.items():
                if tensor is not None and tensor.shape == parameter.shape and tensor.stride() != parameter.stride():
                    state[name] = torch.empty_like(parameter).copy_(tensor)


def load_optimizer(optimizer, state):
    """Load a checkpoint's state; whether kernels are fused and recorded, and where the rates lie, is this run's."""
    names = ("fused", "lr", "capturable")
    own = [{name: group[name] for name in names if name in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, mine in zip(optimizer.param_groups, own, strict=True):
        loaded = float(group["lr"])
        group |= mine
        _set_rate(group, loaded)
    complete_state(optimizer)


def without_decay(groups, network):
    """SOLVER.NO_DECAY norms: of each group norms, biases and all that has one dimension apart, at a decay of zero."""
    norms = {
        id(p) for module in network.modules() if isinstance(module, NORMS) for p in module.parameters(recurse=False)
    }
    spared = norms | {id(p) for name, p in network.named_parameters() if p.ndim <= 1 or name.endswith("bias")}
    split = []
    for group in groups if groups and isinstance(groups[0], dict) else [{"params": groups}]:
        decayed = [p for p in group["params"] if id(p) not in spared]
        rest = [p for p in group["params"] if id(p) in spared]
        split += [{**group, "params": decayed}, {**group, "params": rest, "weight_decay": 0.0}]
    return [group for group in split if group["params"]]


# ---- the rate ----


def learning_rate(cfg, epoch, step=0, steps=1):
    """The rate of step `step` (from 0) of an epoch (from 1) that has `steps`; to rounding, that of torch's schedulers.

    steps:  LR * LR_DECAY_RATE^(number of LR_DECAY_STAGES that lie before this epoch), mdistiller's law
    cosine: MIN_LR + (LR - MIN_LR) * (1 + cos(pi * (t - w) / (n - w))) / 2 in step t of the run's n, CosineAnnealingLR
    In the first w steps, those of WARMUP_EPOCHS: LR * (t + 1) / (w + 1), LinearLR; stages count there too.
    """
    solver = cfg.SOLVER
    now, warmup, end = (epochs * steps for epochs in (epoch - 1, warmup_epochs(solver), solver.EPOCHS))
    now += step
    if solver.SCHEDULE == "cosine" and now >= warmup:
        height = (1 + math.cos(math.pi * (now - warmup) / (end - warmup))) / 2
        return solver.MIN_LR + (solver.LR - solver.MIN_LR) * height
    rate = solver.LR
    if solver.SCHEDULE == "steps":
        rate = solver.LR * solver.LR_DECAY_RATE ** sum(epoch > stage for stage in solver.LR_DECAY_STAGES)
    return rate if now >= warmup else rate * (now + 1) / (warmup + 1)


def set_learning_rate(optimizer, rate):
    """The step's rate; a group's `lr_scale` multiplies it."""
    for group in optimizer.param_groups:
        _set_rate(group, rate * group.get("lr_scale", 1.0))


def rates_on_device(optimizer, device):
    """Every group's rate as a tensor, whose number a recorded step reads anew each time it runs."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)
        if "capturable" in group:  # torch's word for: may be recorded; it warns that not every step is
            group["capturable"] = True
            warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")


def _set_rate(group, rate):
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
