"""The optimizer, and the learning rate of an epoch."""

import torch


def sgd(parameters, solver, device):
    """SGD over parameters or groups, with its momentum there from the start.

    fused: one kernel for all weights on a GPU, and fp16's scaler need not wait. On a CPU the loop is faster. The fused
    kernel wants a momentum for every weight of a group or for none, but a teacher that warms up has no gradient yet;
    and where fp16 overflows in the first step it would leave the momentum uninitialised. A momentum of zero gives the
    numbers of none.
    """
    optimizer = torch.optim.SGD(
        parameters,
        lr=solver.LR,
        momentum=solver.MOMENTUM,
        weight_decay=solver.WEIGHT_DECAY,
        fused=True if device.type == "cuda" else None,
    )
    complete_momentum(optimizer)
    return optimizer


def complete_momentum(optimizer):
    """Every weight gets a momentum in its own memory layout: a loaded one, else zeros.

    Fused kernels run through a weight and its momentum in the order of memory.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            momentum = optimizer.state[parameter].get("momentum_buffer")
            if momentum is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            elif momentum.stride() != parameter.stride():
                optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)


def load_optimizer(optimizer, state):
    """Load a checkpoint's state; whether kernels are fused, and where the rates lie, is this run's."""
    own = [{name: group[name] for name in ("fused", "lr")} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, mine in zip(optimizer.param_groups, own, strict=True):
        loaded = float(group["lr"])
        group |= mine
        _set_rate(group, loaded)
    complete_momentum(optimizer)


def rates_on_device(optimizer, device):
    """Every group's rate as a tensor, whose number a recorded step reads anew each time it runs."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)


def _set_rate(group, rate):
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def learning_rate(cfg, epoch):
    """SOLVER.LR * LR_DECAY_RATE^(number of LR_DECAY_STAGES that lie before this epoch), mdistiller's law."""
    return cfg.SOLVER.LR * cfg.SOLVER.LR_DECAY_RATE ** sum(epoch > stage for stage in cfg.SOLVER.LR_DECAY_STAGES)


def set_learning_rate(optimizer, rate):
    """The epoch's rate; a group's `lr_scale` multiplies it."""
    for group in optimizer.param_groups:
        _set_rate(group, rate * group.get("lr_scale", 1.0))
