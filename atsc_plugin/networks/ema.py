"""A teacher that is the average over time of a copy that learns: it moves smoothly where the copy's steps are large."""

import copy

import torch


def learner_of(teacher):
    """A copy that goes on learning in the teacher's place; the teacher itself gets no gradient any more."""
    learner = copy.deepcopy(teacher)
    teacher.requires_grad_(False)
    return learner


@torch.no_grad()
def follow(average, learner, keep):
    """theta_bar <- keep * theta_bar + (1 - keep) * theta, of weights and BN statistics alike; counts are copied."""
    pairs = [*zip(average.parameters(), learner.parameters(), strict=True)]
    pairs += zip(average.buffers(), learner.buffers(), strict=True)
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_(*map(list, zip(*floats, strict=True)), 1 - keep)
    for mine, current in pairs:
        if not mine.is_floating_point():
            mine.copy_(current)
