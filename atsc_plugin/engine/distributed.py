"""Several ranks, started by torchrun: one process a device, gradients averaged by DDP, files written by rank 0 alone.

Every function does the plain thing in a process that torchrun did not start, so that callers need no case of their own.
"""

import copy
import inspect
import os
import sys
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import reduce
from itertools import islice, zip_longest

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader

from atsc_plugin.errors import PluginError

NEEDED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun puts into the environment
WAIT = timedelta(minutes=30)  # a rank that lives but is busy, writing a checkpoint; a dead one is noticed by torchrun
_alone = False
_side = None  # the ranks' group on the CPU, for what must not wait for a device


# ---- beginning and end ----


@contextmanager
def session(wanted="auto"):
    """Join the other ranks for the length of a block; nothing happens where WORLD_SIZE is 1 or absent.

    After an error the group is not destroyed: NCCL's teardown can wait 30 minutes for ranks that do not come. Whoever
    reports the error ends the process by `leave`.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    _join(wanted)
    try:
        yield
        dist.destroy_process_group()
    except RuntimeError as error:
        if not _lost_the_others(error):
            raise
        raise PluginError(
            f"rank {rank()} lost the other ranks ({str(error).splitlines()[0][:120]}); the reason stands with the rank "
            "that ended first."
        ) from error


def leave(status):
    """End this process at once where it failed among several ranks; else return, so that it ends as usual."""
    if status and dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _join(wanted):
    missing = [name for name in NEEDED if name not in os.environ]
    if missing:
        raise PluginError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set, so the ranks cannot meet. "
            "Start with torchrun --nproc_per_node=N tools/train.py ..., or unset WORLD_SIZE."
        )
    gpu = wanted != "cpu" and torch.cuda.is_available()
    if gpu:
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there:
            raise PluginError(f"torchrun started {local + 1} ranks or more here; expected at most {there}, one a GPU.")
        torch.cuda.set_device(local)
    global _side
    try:
        dist.init_process_group("nccl" if gpu else "gloo", timeout=WAIT)
        _side = dist.new_group(backend="gloo", timeout=WAIT)
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise PluginError(
            f"The ranks could not meet at {place} ({str(error).splitlines()[0][:160]}). Check that every node reaches "
            "that address (torchrun --rdzv-endpoint HOST:PORT)."
        ) from error


def _lost_the_others(error):
    phrases = ("Connection closed", "Connection reset", "NCCL", "gloo", "process group", "recvFullyOrTimeout")
    return isinstance(error, dist.DistError) or any(phrase in str(error) for phrase in phrases)


@contextmanager
def alone():
    """Within the block this process works by itself, as in training a teacher that the others wait for."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


# ---- who is who ----


def world():
    """How many ranks work together here."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def rank():
    return dist.get_rank() if world() > 1 else 0


def first():
    """Whether this rank writes the files and speaks."""
    return rank() == 0


# ---- values of all ranks ----


def from_first(make):
    """What make() gives on rank 0, on every rank; a PluginError of it too."""
    if world() == 1:
        return make()
    answer = [None]
    if first():
        try:
            answer = [(make(), None)]
        except PluginError as error:
            answer = [(None, str(error))]
    dist.broadcast_object_list(answer, src=0)
    value, message = answer[0]
    if message is not None:
        raise PluginError(message)
    return value


def in_turns(entries):
    """The ranks' lists merged as share_of dealt the batches out: rank 0's first, rank 1's first, ..., their second."""
    if world() == 1:
        return entries
    lists = [None] * world()
    dist.all_gather_object(lists, entries)
    return [entry for row in zip_longest(*lists) for entry in row if entry is not None]


def total(tensor, least=False):
    """The sum (or the least) over ranks, in place."""
    if world() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MIN if least else dist.ReduceOp.SUM)
    return tensor


def share_of(loader):
    """This rank's batches of an evaluation loader: every world()-th. A DataLoader decodes no others."""
    if world() == 1:
        return loader
    if not isinstance(loader, DataLoader):
        return islice(loader, rank(), None, world())
    batches = list(loader.batch_sampler)[rank() :: world()]
    return DataLoader(
        loader.dataset, batch_sampler=batches, num_workers=loader.num_workers, collate_fn=loader.collate_fn
    )


def sum_of(*counts):
    """Whole numbers summed over ranks, on every rank."""
    if world() == 1:
        return [int(count) for count in counts]
    numbers = torch.tensor([int(count) for count in counts])
    dist.all_reduce(numbers, group=_side)
    return numbers.tolist()


def on_the_first(*counts):
    """Rank 0 keeps the totals, the other ranks zeros, so that the next sum does not count twice."""
    return counts if first() else [0] * len(counts)


def gathered(state):
    """The states of all ranks on the first, in the ranks' order; elsewhere its own. Tensors must lie on the CPU."""
    if world() == 1:
        return [state]
    states = [None] * world() if first() else None
    dist.gather_object(state, states, dst=0, group=_side)
    return states or [state]


def wait_for_all():
    """Until every rank is here."""
    if world() > 1:
        dist.barrier(group=_side)


class MaxOfRanks:
    """Small numbers whose maximum over ranks is known without waiting: sent now, read in the next call.

    The ranks must send and read equally often, in the same places. In a training loop the answer has arrived by then:
    the gradients of the step in between could not be added up before every rank had sent.
    """

    def __init__(self):
        self.sent = None  # (the operation under way, the tensor in which the maxima arrive)

    def read(self, count):
        """The maxima of what was sent in the call before: `count` zeros at first."""
        if self.sent is None:
            return [0] * count
        (work, numbers), self.sent = self.sent, None
        work.wait()
        return numbers.tolist()

    def send(self, *numbers):
        """Send this rank's numbers; `read` has the maxima next time."""
        numbers = torch.tensor(numbers)
        work = dist.all_reduce(numbers, dist.ReduceOp.MAX, group=_side, async_op=True)
        self.sent = work, numbers


# ---- batch norm ----


def _bn_statistics(module):
    """[(name, buffer)] of BN's running statistics; buffers that no checkpoint has are none of them."""
    stored = module.state_dict(keep_vars=True)
    return [(name, each) for name, each in module.named_buffers() if name in stored and each.is_floating_point()]


@torch.no_grad()
def average_bn(module):
    """After an epoch, BN's running statistics become their mean over ranks; inside it each rank keeps its own."""
    if world() > 1:
        for _, buffer in _bn_statistics(module):
            total(buffer).div_(world())


def own_bn(module):
    """{name: copy on the CPU} of what differs from rank to rank inside an epoch; empty where one process works."""
    return {name: buffer.to("cpu", copy=True) for name, buffer in _bn_statistics(module)} if world() > 1 else {}


@torch.no_grad()
def load_bn(module, ranks):
    """Put back what own_bn gave, of several ranks the mean; of one process the module's state has it."""
    for name, buffer in _bn_statistics(module):
        if name in ranks[0]:
            buffer.copy_(torch.stack([each[name] for each in ranks]).mean(0))


# ---- gradients ----


def wrapped(distiller, inputs, moving, idle_later=False):
    """The distiller in DDP, through whose forward it must be called; itself where there is one rank.

    Buffers that no checkpoint has (theta_0) are neither broadcast nor reduced, nor is a parameter that is not among the
    `moving` ones: the host's KD and others leave their teacher's gradients on. Parameters that may get no gradient (a
    teacher during warm-up) stay in DDP with find_unused_parameters, only if the first batch shows some or `idle_later`.
    """
    if world() == 1:
        return distiller
    stored = distiller.state_dict(keep_vars=True)
    moves = {id(parameter) for parameter in moving}
    still = [name for name, parameter in distiller.named_parameters() if id(parameter) not in moves]
    ignored = still + [name for name, _ in distiller.named_buffers() if name not in stored]
    ddp = nn.parallel.DistributedDataParallel
    ddp._set_params_and_buffers_to_ignore_for_model(distiller, ignored)
    idle = idle_later or bool(set(idle_parameters(distiller, inputs)) - set(still))
    kept = [buffer.clone() for buffer in distiller.buffers()]
    module = ddp(distiller, **{_buffers_key(ddp): False}, find_unused_parameters=idle)
    for buffer, own in zip(distiller.buffers(), kept, strict=True):
        buffer.copy_(own)  # DDP begins with rank 0's; a run that goes on inside an epoch has each rank's own
    if world() > 2 and next(distiller.parameters()).device.type == "cpu":
        module.register_comm_hook(None, _mean_in_order)
    return module


def _mean_in_order(_, bucket):
    """((g_0 + g_1) + g_2 + ...) / ranks, whatever bucket a gradient lies in.

    gloo adds three numbers in an order that depends on their place, and DDP places them anew after its first step: a
    continuation would differ in the last digit. On a CPU that is worth sending ranks - 1 gradients in place of 2.
    """
    own = bucket.buffer()
    each = [torch.empty_like(own) for _ in range(world())]
    sent = dist.all_gather(each, own, async_op=True).get_future()
    return sent.then(lambda _: reduce(torch.add, each).div_(world()))


def _buffers_key(ddp):
    """DDP's name for sending rank 0's buffers around before every forward pass; torch renamed it."""
    names = inspect.signature(ddp.__init__).parameters
    return "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"


def idle_parameters(distiller, inputs):
    """Names of learning parameters that get no gradient from this batch; tried on a copy, which is thrown away."""
    trial = copy.deepcopy(distiller).train()
    with torch.random.fork_rng(devices=[]):
        losses = trial(**inputs)[1]
    learning = {name: p for name, p in trial.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(
        sum(term.mean() for term in losses.values()), list(learning.values()), allow_unused=True
    )
    return [name for name, gradient in zip(learning, gradients, strict=True) if gradient is None]


def without_reduction(module):
    """The block in which DDP does not reduce yet: all micro-batches but the last."""
    return module.no_sync() if hasattr(module, "no_sync") else nullcontext()


def with_sync_bn(distiller, wanted, device):
    """SOLVER.SYNC_BN: batch norm over all ranks' images, in place of each rank's own."""
    if not wanted or world() == 1:
        return distiller
    if device.type != "cuda":
        raise PluginError(f"SOLVER.SYNC_BN needs GPUs; these ranks run on {device.type}. Use SOLVER.SYNC_BN False.")
    return nn.SyncBatchNorm.convert_sync_batchnorm(distiller)
