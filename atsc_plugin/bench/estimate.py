"""How long an epoch of a run takes here, estimated before any has run: FLOPs of its networks over a measured rate.

    seconds = images * (3 S + k T) / rate,    k = 3 where the teacher learns too, 1 where it stays

S and T are the FLOPs of one image's forward pass; several T are added up. A backward pass costs as much as two forward
ones. The rate is that of a training step of REFERENCE, by the same rule. Projectors, losses, loading and evaluation
are left out. Depthwise convolutions reach a lower rate, so that networks made of them take longer than estimated.
"""

import time
from functools import cache

import torch

from atsc_plugin import host
from atsc_plugin.bench.roofline import CountedOperations
from atsc_plugin.bench.steps import CLASSES, Arm, PreparedStep
from atsc_plugin.bench.timing import milliseconds
from atsc_plugin.data.datasets import train_images
from atsc_plugin.engine.batches import device_of
from atsc_plugin.engine.devices import device_name
from atsc_plugin.errors import PluginError
from atsc_plugin.methods.base import class_of, teacher_names
from atsc_plugin.networks import named
from atsc_plugin.teachers import pretrained_elsewhere

REFERENCE = "resnet8x4"  # its FLOPs lie in the middle of the CIFAR networks'


@cache
def forward_flops(dataset: str, name: str, size: int, args: tuple = ()) -> int:
    """FLOPs of one image through a network; how many classes it tells apart hardly counts."""
    network = named.new_network(dataset, name, CLASSES, size, args).eval()
    with torch.no_grad(), CountedOperations() as counted:
        network(torch.zeros(1, 3, size, size))
    return counted.flops()


def training_flops(cfg) -> int:
    """FLOPs of one image in a training step: 3 S + k T."""
    node, dataset, size = cfg.DISTILLER, cfg.DATASET.TYPE, host.image_size(cfg.DATASET)
    elsewhere = pretrained_elsewhere(cfg)  # such a teacher sees images of its weights' size
    teachers = [
        forward_flops(dataset, name, named.weights_of(name).size if elsewhere else size, tuple(node.TEACHER_ARGS))
        for name in teacher_names(cfg)
    ]
    passes = 3 if class_of(node.TYPE).LEAVES_NETWORKS else 1
    return 3 * forward_flops(dataset, node.STUDENT, size, tuple(node.STUDENT_ARGS)) + passes * sum(teachers)


@cache
def measured_rate(device: torch.device, network: str = REFERENCE) -> float:
    """FLOPs a second, by the rule above, of a training step as the engine makes it; a second or so.

    On a CPU its time on the cores counts, so that other work there does not.
    """
    on_gpu = device.type == "cuda"
    batch, calls = (64, 10) if on_gpu else (8, 1)
    step = PreparedStep(Arm("NONE", network, network, batch, amp="auto", graph=on_gpu), device)
    seconds = []
    for _ in range(2):
        started = time.process_time()
        elapsed = milliseconds(step, device, calls) / 1000
        seconds.append(elapsed if on_gpu else (time.process_time() - started) / torch.get_num_threads())
    return 3 * batch * forward_flops("cifar100", network, 32) / min(seconds)


def epoch(cfg) -> dict | None:
    """{"seconds", "how"} of an epoch, None where its images cannot be counted or no step can be timed."""
    images, device = train_images(cfg.DATASET), device_of(cfg)
    if images is None:
        return None
    try:
        rate = measured_rate(device)
    except (PluginError, RuntimeError):  # a GPU that others fill, a fork without REFERENCE: no reason to refuse a plan
        return None
    how = f"estimated for {device_name(device)}: FLOPs at the {rate / 1e9:,.0f} GFLOP/s of a {REFERENCE} training step"
    return {"seconds": images * training_flops(cfg) / rate, "how": how}
