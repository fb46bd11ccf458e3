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
_side = None  # the ranks' group on the CPU


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
    words = ("Connection closed", "Connection reset", "NCCL", "gloo", "process group", "recvFullyOrTimeout")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


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


def side_group():
    """All ranks' group on the CPU, for what must not wait for a device."""
    return _side


def device_of(wanted):
    """EXPERIMENT.DEVICE of this rank: its own GPU where several ranks work, one a GPU."""
    if not dist.is_initialized() or wanted == "cpu" or not torch.cuda.is_available():
        return wanted
    if wanted not in ("auto", "cuda"):
        raise PluginError(
            f"EXPERIMENT.DEVICE is '{wanted}' under torchrun; expected auto, cuda or cpu: one rank a GPU."
        )
    return f"cuda:{os.environ['LOCAL_RANK']}"


# ---- telling and adding up ----


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
    value, told = answer[0]
    if told is not None:
        raise PluginError(told)
    return value


def in_turns(parts):
    """The ranks' lists merged as part_of dealt the batches out: rank 0's first, rank 1's first, ..., their second."""
    if world() == 1:
        return parts
    lists = [None] * world()
    dist.all_gather_object(lists, parts)
    return [part for row in zip_longest(*lists) for part in row if part is not None]


def total(tensor, least=False):
    """The sum (or the least) over ranks, in place."""
    if world() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MIN if least else dist.ReduceOp.SUM)
    return tensor


def part_of(loader):
    """This rank's batches of an evaluation loader: every world()-th. A DataLoader decodes no others."""
    if world() == 1:
        return loader
    if hasattr(loader, "of_part"):
        return loader.of_part(part_of)
    if not isinstance(loader, DataLoader):
        return islice(loader, rank(), None, world())
    batches = list(loader.batch_sampler)[rank() :: world()]
    return DataLoader(
        loader.dataset, batch_sampler=batches, num_workers=loader.num_workers, collate_fn=loader.collate_fn
    )


# ---- gradients ----


def wrapped(distiller, inputs, moving):
    """The distiller in DDP, through whose forward it must be called; itself where there is one rank.

    theta_0 (buffers that no checkpoint has) is neither broadcast nor reduced, nor is a parameter that is not among the
    `moving` ones: the host's KD and others leave their teacher's gradients on. What may rest, such as a teacher that
    warms up, keeps its place: DDP looks for it in every step, which is paid for only where the first batch shows it or
    the distiller says that something `rests_later`.
    """
    if world() == 1:
        return distiller
    stored = distiller.state_dict(keep_vars=True)
    moves = {id(parameter) for parameter in moving}
    still = [name for name, parameter in distiller.named_parameters() if id(parameter) not in moves]
    ignored = still + [name for name, _ in distiller.named_buffers() if name not in stored]
    ddp = nn.parallel.DistributedDataParallel
    ddp._set_params_and_buffers_to_ignore_for_model(distiller, ignored)
    rests = getattr(distiller, "rests_later", False) or bool(set(resting(distiller, inputs)) - set(still))
    kept = [buffer.clone() for buffer in distiller.buffers()]
    module = ddp(distiller, **{_buffers_key(ddp): False}, find_unused_parameters=rests)
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
    parts = [torch.empty_like(own) for _ in range(world())]
    sent = dist.all_gather(parts, own, async_op=True).get_future()
    return sent.then(lambda _: reduce(torch.add, parts).div_(world()))


def _buffers_key(ddp):
    """DDP's word for sending rank 0's buffers around before every forward pass; torch renamed it."""
    words = inspect.signature(ddp.__init__).parameters
    return "forward_sync_buffers" if "forward_sync_buffers" in words else "broadcast_buffers"


def resting(distiller, inputs):
    """Names of learning parameters that get no gradient from this batch; tried on a copy, which is thrown away."""
    trial = copy.deepcopy(distiller).train()
    with torch.random.fork_rng(devices=[]):
        losses = trial(**inputs)[1]
    learning = {name: p for name, p in trial.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(
        sum(part.mean() for part in losses.values()), list(learning.values()), allow_unused=True
    )
    return [name for name, gradient in zip(learning, gradients, strict=True) if gradient is None]


def quiet(module):
    """The block in which DDP does not reduce yet: all parts of a batch but the last."""
    return module.no_sync() if hasattr(module, "no_sync") else nullcontext()


def with_sync_bn(distiller, wanted, device):
    """SOLVER.SYNC_BN: batch norm over all ranks' images, in place of each rank's own."""
    if not wanted or world() == 1:
        return distiller
    if device.type != "cuda":
        raise PluginError(f"SOLVER.SYNC_BN needs GPUs; these ranks run on {device.type}. Use SOLVER.SYNC_BN False.")
    return nn.SyncBatchNorm.convert_sync_batchnorm(distiller)
