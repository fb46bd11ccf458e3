"""Timing several arms against each other: in turns, so that a slow minute of the machine falls on all of them."""

import os
import time
from statistics import median

import torch


def interleaved(arms, device, rounds, calls=1, warm_up=1):
    """{name: sorted milliseconds a call}; arms is {name: function}, each called `calls` times a round, in turns."""
    for _ in range(warm_up):
        for run in arms.values():
            run()
    times = {name: [] for name in arms}
    names = list(arms)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:  # no arm is always the first
            times[name].append(milliseconds(arms[name], device, calls))
    return {name: sorted(values) for name, values in times.items()}


def milliseconds(run, device, calls=1):
    """Mean of `calls` calls, the device's queue empty before and after."""
    wait(device)
    started = time.perf_counter()
    for _ in range(calls):
        run()
    wait(device)
    return 1000 * (time.perf_counter() - started) / calls


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary(times):
    """{"ms": median, "spread": half the distance between the quartiles, "low", "high"} of sorted times."""
    quarter = max(0, (len(times) - 1) // 4)
    spread = (times[-1 - quarter] - times[quarter]) / 2
    return {"ms": median(times), "spread": spread, "low": times[0], "high": times[-1]}


def surroundings(device):
    """What a figure must be read beside; `load` is the number of busy processes at this moment, ours included."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"device": name, "torch": torch.__version__, "cores": os.cpu_count(), "load": load}
