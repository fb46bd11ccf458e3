"""BN's running statistics under several ranks: each keeps those of its images, and an epoch ends with their mean."""

import torch

from atsc_plugin.engine import distributed


def _statistics(module):
    """[(name, buffer)] of BN's running statistics; theta_0, which no checkpoint has, is none of them."""
    stored = module.state_dict(keep_vars=True)
    return [(name, each) for name, each in module.named_buffers() if name in stored and each.is_floating_point()]


@torch.no_grad()
def average(module):
    """BN's running statistics as the mean over ranks, after an epoch."""
    if distributed.world() > 1:
        for _, buffer in _statistics(module):
            distributed.total(buffer).div_(distributed.world())


def own(module):
    """{name: copy on the CPU} of what differs from rank to rank inside an epoch; empty where one process works."""
    return (
        {name: buffer.to("cpu", copy=True) for name, buffer in _statistics(module)} if distributed.world() > 1 else {}
    )


@torch.no_grad()
def load(module, ranks):
    """Put back what own gave, of several ranks the mean; of one process the module's state has it."""
    for name, buffer in _statistics(module):
        if name in ranks[0]:
            buffer.copy_(torch.stack([each[name] for each in ranks]).mean(0))
