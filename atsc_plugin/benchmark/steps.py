"""`bench step`: one training step of several methods, on random images, in one run."""

from itertools import product

import torch

from atsc_plugin.benchmark.achievable import Work, ceilings
from atsc_plugin.benchmark.arms import Arm, Prepared
from atsc_plugin.benchmark.timing import interleaved, summary
from atsc_plugin.engine.precision import NAMES


def arms_of(methods, teacher, student, batch, amps, compiles):
    """Every combination; the released step in fp32 and torch's own layout, as it ran, and fused in that layout too."""
    arms = []
    for method, amp, mode in product(methods, amps, compiles):
        if method in ("released", "published") and (amp, mode) != ("none", "none"):
            continue
        arms.append(Arm(method, teacher, student, batch, amp, mode, "contiguous" if method == "released" else "own"))
        if method == "fused" and (amp, mode) == ("none", "none"):
            arms.append(Arm(method, teacher, student, batch, amp, mode, "contiguous"))
    return list(dict.fromkeys(arms))


def bench_step(arms, device, rounds, calls=1, warm_up=2):
    """(rows, factors): a row an arm, and what the fused step gains over the released one, in its two factors."""
    prepared = {arm.name: Prepared(arm, device) for arm in arms}
    times = {name: summary(values) for name, values in interleaved(prepared, device, rounds, calls, warm_up).items()}
    tops = {amp: ceilings(device, NAMES.get(amp, torch.float32)) for amp in {arm.amp for arm in arms}}
    rows = [_row(run, times, tops[run.arm.amp]) for run in prepared.values()]
    return rows, factors(times, {row["arm"]: row for row in rows})


def _row(run, times, tops):
    arm = run.arm
    with run.uncompiled(), Work() as work:
        run()
    own, ideal = times[arm.name], 1000 * work.seconds(tops)
    row = {
        "arm": arm.name,
        "pair": f"{arm.teacher} -> {arm.student}",
        "batch": arm.batch,
        **own,
        "images_per_second": 1000 * arm.batch / own["ms"],
        "gflops": work.flops() / 1e9,
        "share_of_achievable": ideal / own["ms"],
        "share_of_matmul": work.flops() / tops["flops_per_second"] * 1000 / own["ms"],
        "kept_mb": run.kept_mb(),
        "peak_mb": run.peak_mb(),
    }
    for key, name in (("times_released", "released contiguous"), ("times_kd", "KD")):
        if name in times:
            row[key] = own["ms"] / times[name]["ms"]
    return row


def factors(times, rows):
    """{"work saved", "layout", "both", "work saved by FLOPs"} of the fused step over the released one."""
    names = "released contiguous", "fused contiguous", "fused"
    if not all(name in times for name in names):
        return {}
    released, contiguous, own = (times[name]["ms"] for name in names)
    return {
        "work saved": released / contiguous,
        "layout": contiguous / own,
        "both": released / own,
        "work saved by FLOPs": rows[names[0]]["gflops"] / rows[names[2]]["gflops"],
    }


def profile(arm, device, steps=3, lines=15):
    """torch.profiler's table of the operations in which a step spends its time."""
    run = Prepared(arm, device)
    run()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as record:
        for _ in range(steps):
            run()
    order = f"self_{'device' if device.type == 'cuda' else 'cpu'}_time_total"
    return record.key_averages().table(sort_by=order, row_limit=lines, max_name_column_width=50)
