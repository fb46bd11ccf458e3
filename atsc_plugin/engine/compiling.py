"""SOLVER.COMPILE: the networks of a distiller compiled in place, so that names in checkpoints stay as they are."""

import sys
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from atsc_plugin.errors import PluginError

RECORDS_GRAPHS = ("reduce-overhead", "max-autotune")


def networks_of(distiller):
    """(name, module) of what computes on images: students, teachers, projectors; not the losses around them."""
    for name, child in distiller.named_children():
        if isinstance(child, nn.ModuleList):
            yield from ((f"{name}.{number}", entry) for number, entry in enumerate(child))
        elif type(child).forward is not nn.Module.forward and any(True for _ in child.parameters()):
            yield name, child


def compile_networks(distiller, mode, device, **options):
    """Compile each network in place; the names of those that were, [] for mode none. What cannot be is refused.

    A network whose map is read by a hook on one of its modules stays as it is: a compiled forward passes hooks by.
    """
    if mode == "none":
        return []
    if mode in RECORDS_GRAPHS and device.type != "cuda":
        raise PluginError(f"SOLVER.COMPILE {mode} records CUDA graphs; this run is on {device}. Use default or none.")
    hooked = {name for name, facts in _maps(distiller) if facts.source.place not in ("feats", "preact")}
    compiled = []
    for name, network in networks_of(distiller):
        if name in hooked:
            print(f"not compiled: the {name}, whose map is read at a module inside it", flush=True)
            continue
        network.compile(mode=None if mode == "default" else mode, **options)
        compiled.append(name)
    return compiled


def _maps(distiller):
    """(name of a network as `networks_of` has it, what is known of its map) where the distiller reads maps."""
    if hasattr(distiller, "student_facts"):
        yield "student", distiller.student_facts
    for name in ("teacher", "learner"):
        network = getattr(distiller, name, None)
        for number, facts in enumerate(getattr(distiller, "maps", ()) if network is not None else ()):
            yield f"{name}.{number}" if isinstance(network, nn.ModuleList) else name, facts


@contextmanager
def told():
    """A compiler that fails inside the block is told as a mistake of the surroundings, with the way out."""
    try:
        yield
    except Exception as error:
        # The first compilation has loaded this module; until then nothing of the compiler can have failed.
        failures = sys.modules.get("torch._dynamo.exc")
        if failures is None or not isinstance(error, failures.TorchDynamoException):
            raise
        reason = " ".join(str(error).split())[:200]
        raise PluginError(
            f"SOLVER.COMPILE cannot compile here: {reason} ... It needs a C++ compiler (CPU) or Triton "
            "(GPU). Use SOLVER.COMPILE none."
        ) from error


def uncompiled(compiled):
    """The block in which compiled networks run as they were written: evaluation, whose shapes and modes differ."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
