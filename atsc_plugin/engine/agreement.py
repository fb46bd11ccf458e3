"""What ranks tell each other beside the gradients: whether to stop, whether to save, their counts and their states.

It goes through a group of its own on the CPU (gloo), whatever carries the gradients, and never waits for a device.
"""

import torch
import torch.distributed as dist

from atsc_plugin.engine import distributed


class Agreement:
    """Small numbers on which all ranks agree without waiting: what they tell now is answered the next time they ask.

    The ranks must ask and tell equally often, in the same places. In a training loop the answer has arrived by then:
    the gradients of the step in between could not be added up before every rank had told.
    """

    def __init__(self):
        self.sent = None  # (the operation under way, the tensor in which the maxima arrive)

    def answer(self, count):
        """The maxima over ranks of what was told in the call before: `count` zeros at first."""
        if self.sent is None:
            return [0] * count
        (work, numbers), self.sent = self.sent, None
        work.wait()
        return numbers.tolist()

    def tell(self, *numbers):
        """Send this rank's numbers; `answer` has the maxima next time."""
        numbers = torch.tensor(numbers)
        work = dist.all_reduce(numbers, dist.ReduceOp.MAX, group=distributed.side_group(), async_op=True)
        self.sent = work, numbers


def sum_of(*counts):
    """Whole numbers summed over ranks, on every rank."""
    if distributed.world() == 1:
        return [int(count) for count in counts]
    numbers = torch.tensor([int(count) for count in counts])
    dist.all_reduce(numbers, group=distributed.side_group())
    return numbers.tolist()


def on_the_first(*counts):
    """The ranks' sums as the first rank's counts, and zeros as every other's: added up, they are the sums again."""
    return counts if distributed.first() else [0] * len(counts)


def gathered(state):
    """The states of all ranks on the first, in the ranks' order; elsewhere its own. Tensors must lie on the CPU."""
    if distributed.world() == 1:
        return [state]
    states = [None] * distributed.world() if distributed.first() else None
    dist.gather_object(state, states, dst=0, group=distributed.side_group())
    return states or [state]


def wait_for_all():
    """Until every rank is here."""
    if distributed.world() > 1:
        dist.barrier(group=distributed.side_group())
