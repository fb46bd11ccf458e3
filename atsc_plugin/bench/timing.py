"""Timing arms against each other in turns, so that a slow minute of the machine falls on all of them."""

import os
import time
from collections.abc import Callable
from statistics import median

import torch

from atsc_plugin.engine.devices import device_name, processor_name


def interleaved(
    arms: dict[str, Callable], device: torch.device, rounds: int, calls: int = 1, warm_up: int = 1
) -> dict[str, list[float]]:
    """{name: milliseconds a call, by round}; a round calls every arm `calls` times, and no arm is always the first."""
    for _ in range(warm_up):
        for run in arms.values():
            run()
    names, times = list(arms), {name: [] for name in arms}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(milliseconds(arms[name], device, calls))
    return times


def milliseconds(run: Callable, device: torch.device, calls: int = 1) -> float:
    """Mean of `calls` calls, with the device's queue empty before and after."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    synchronize(device)
    started = time.perf_counter()
    for _ in range(calls):
        run()
    synchronize(device)
    return 1000 * (time.perf_counter() - started) / calls


def row(arm: str, times: list[float], images: int) -> dict:
    """A row of the table: median, half the distance between the quartiles, range, and images a second."""
    times = sorted(times)
    quarter = max(0, (len(times) - 1) // 4)
    spread = (times[-1 - quarter] - times[quarter]) / 2
    own = {"arm": arm, "ms": median(times), "spread": spread, "low": times[0], "high": times[-1]}
    return own | {"images_per_second": 1000 * images / own["ms"]}


def text_table(rows: list[dict], without: tuple = ()) -> str:
    """Rows as aligned text: a column for every figure that a row has, those in `without` left out."""
    heads = list(dict.fromkeys(key for row in rows for key in row if row[key] is not None and key not in without))
    lines = [heads, *([_text(row.get(head)) for head in heads] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)


def _text(value):
    """Three significant digits, and never fewer than all before the point."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else value


def environment(device: torch.device) -> dict:
    """Device, torch, and how many processes are busy now (`load`), this one included."""
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {
        "device": device_name(device),
        "processor": processor_name(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "load": load,
    }
