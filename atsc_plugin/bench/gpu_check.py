"""The parts of `gpu-check`, each run in a process of its own: environment, correctness, speed, accuracy, two processes.

A part is a function of a `Check`. It goes item by item; an item that fails is written down with its reason, and the
next one begins. Between items the part looks at the clock. All sizes have a small form for a CPU, so that every line
runs before there is a GPU.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from atsc_plugin import build, host
from atsc_plugin.bench.gpu_page import VERDICTS
from atsc_plugin.bench.loading import NoiseLoaders, device_loader, trained_epoch
from atsc_plugin.bench.roofline import measured_peak
from atsc_plugin.bench.steps import CLASSES, DTYPES, Arm, PreparedStep, begun_step, row_of
from atsc_plugin.bench.timing import environment, interleaved
from atsc_plugin.config import load_cfg
from atsc_plugin.contract import SEVERAL
from atsc_plugin.engine import graph
from atsc_plugin.errors import PluginError, wrapped
from atsc_plugin.files import write_json
from atsc_plugin.methods.base import load_methods
from atsc_plugin.shipped import config_file
from atsc_plugin.students import load_student

QUICK = "configs/quickstart"
FEW_TO_EVALUATE = ["DATASET.DIGITS100.VAL_IMAGES", "100", "DATASET.DIGITS100.TEST_IMAGES", "100"]
CLOSE = 1e-4  # relative difference of losses and weights: fp32 on two kinds of processors, three steps
# Lowest mean top-1 over seeds that passes: seven points below docs/results/quick, fp32 on a CPU. KD's spread is 5.
FLOORS = {"kd": 0.0, "simkd": 75.0, "atsc": 75.0}


class OutOfTime(Exception):
    """The part's share of the minutes is used up."""


class Skipped(Exception):
    """Nothing is wrong, but this item does not run here; the message says why."""


@dataclass
class Check:
    """What a part works with, and the rows it leaves in `file`."""

    device: torch.device
    folder: Path  # for runs and caches; they stay, so that a failure can be looked at
    file: Path
    until: float  # time.time() at which the part's share ends
    small: bool
    teacher: str = ""  # the shipped teacher's file, for runs on digits100
    rows: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def item(self, name: str) -> Iterator[dict[str, Any]]:
        """One item: the block fills in figures, "text" and "passed"; what it prints goes to a log."""
        if time.time() > self.until:
            raise OutOfTime(name)
        found: dict[str, Any] = {"name": name, "passed": True, "text": ""}
        started = time.perf_counter()
        with open(self.folder / "log.txt", "a", encoding="utf-8") as log, redirect_stdout(log):
            try:
                yield found
            except (OutOfTime, KeyboardInterrupt):
                raise
            except Skipped as reason:
                found |= {"passed": None, "text": str(reason)}
            except Exception as error:  # whatever it is, it is this item's
                traceback.print_exc(file=log)
                reason = (str(error).splitlines() or [""])[0][:200]
                found |= {"passed": False, "text": f"{type(error).__name__}: {reason}"}
        found["seconds"] = round(time.perf_counter() - started, 2)
        self.rows.append(found)
        self.write()
        line = f"  {name:<38} {VERDICTS[found['passed']]:<8}{found['seconds']:>7.1f} s  {found['text']}"
        print(wrapped(line, indent=6), flush=True)

    def write(self, ended: str = "") -> None:
        write_json({"ended": ended, "rows": self.rows}, self.file)


def run(name: str, check: Check) -> None:
    """Run one part to its end, or to the end of its share; what it found lies in check.file."""
    check.folder.mkdir(parents=True, exist_ok=True)
    check.write()
    try:
        with graph.plain_calls_on(check.device):
            PARTS[name](check)
        check.write("done")
    except OutOfTime as item:
        check.write("out of time")
        print(f"  out of time before: {item}", flush=True)


# ---- environment ----


def surroundings(check: Check) -> None:
    with check.item("machine") as found:
        own = environment(check.device)
        found["facts"] = {"python": platform.python_version(), "system": platform.platform(), **own}
        found["facts"]["host"] = host.TITLE
        found["text"] = f"{own['device']}; torch {own['torch']}; load {own['load']} on {own['cores']} cores"
    with check.item("GPU") as found:
        if check.device.type != "cuda":
            raise Skipped("this check runs on a CPU")
        facts = torch.cuda.get_device_properties(check.device)
        free, total = (amount / 2**30 for amount in torch.cuda.mem_get_info(check.device))
        capability = f"{facts.major}.{facts.minor}"
        found["facts"] = {
            "GPUs": torch.cuda.device_count(), "CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version(),
            "capability": capability, "multiprocessors": facts.multi_processor_count, "memory, GiB": total,
            "free, GiB": free, "bf16": str(_has_bf16(check.device)),
        }  # fmt: skip
        found["text"] = f"{facts.name}, capability {capability}, {free:.0f} of {total:.0f} GiB free"
        if free < 0.8 * total:
            found["text"] += "; something else is on this GPU: times are not to be quoted"
    with check.item("matrix products and copies") as found:
        full, half = (measured_peak(check.device, DTYPES[amp]) for amp in ("none", "bf16"))
        found["facts"] = {
            "TFLOP/s, fp32": full["flops_per_second"] / 1e12, "TFLOP/s, bf16": half["flops_per_second"] / 1e12,
            "GB/s": full["bytes_per_second"] / 1e9,
        }  # fmt: skip
        found["text"] = ", ".join(f"{value:.3g} {name}" for name, value in found["facts"].items())


def _has_bf16(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


# ---- correctness ----


def correctness(check: Check) -> None:
    """Three steps of every method on both processors; a whole run, resumed, recorded and deployed."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    for name, (file, overrides) in method_configs().items():
        with check.item(f"three steps: {name}") as found:
            cache = ["TEACHER.CACHE", str(check.folder / "cache"), "SOLVER.LR", "0.01", "SOLVER.AMP", "none"]
            there = three_steps(load_cfg(file, [*overrides, *cache]), check.device)
            found |= {"difference": there, "passed": there <= CLOSE, "text": f"largest difference {there:.1g}"}
    runs = {}
    for name, pairs in {"eager": ["SOLVER.GRAPH", "none"], "graph": []}.items():
        with check.item(f"a run of two epochs: {name}") as found:
            runs[name] = small_run(check, name, *pairs)
            found["text"] = f"top-1 {runs[name].train()['top1_last']:.2f}"
    with check.item("graph == eager") as found:
        if reason := runs["graph"].no_graph or runs["graph"].recorded.failure:
            raise PluginError(f"nothing was recorded: {reason}")
        _compare(found, runs["graph"], runs["eager"])
    with check.item("resume == whole run") as found:
        small_run(check, "parts", "SOLVER.GRAPH", "none", "SOLVER.EPOCHS", "1").train()
        resumed = small_run(check, "parts", "SOLVER.GRAPH", "none")
        resumed.train(resume=True)
        _compare(found, resumed, runs["eager"])
    with check.item("deployed == trained") as found:
        trainer, student = runs["eager"], load_student(runs["eager"].folder)
        images = next(iter(trainer.val_loader))[0][:64]
        with torch.no_grad():
            wanted = trainer.distiller.eval()(image=images).cpu()
            there = (student(images.cpu()) - wanted).norm().item() / wanted.norm().item()
        found |= {"difference": there, "passed": there <= CLOSE, "text": f"largest difference {there:.1g}"}


def method_configs() -> dict[str, tuple[Path, list[str]]]:
    """{name: (file, overrides)}: the quickstart's files, and every other registered method in place of KD or AVERKD."""
    files = {path.stem: (path, []) for path in sorted(config_file(QUICK).glob("*.yaml"))}
    shown = {load_cfg(path).DISTILLER.TYPE for path, _ in files.values()}
    for name, kind in load_methods().items():
        if name not in shown:
            base = files["averkd" if kind.TEACHERS == SEVERAL else "kd"][0]
            files[name.lower()] = base, ["DISTILLER.TYPE", name]
    return files


def three_steps(cfg: Any, device: torch.device, batch: int = 16) -> float:
    """The largest relative difference of losses and of all weights, between three steps on a CPU and on `device`."""
    draw = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(batch, 3, 32, 32, generator=draw), torch.randint(CLASSES, (batch,), generator=draw))
        for _ in range(3)
    ]
    reference, here = _started(cfg, torch.device("cpu")), None
    here = _started(cfg, device, reference.distiller.state_dict())
    largest = 0.0
    for number, (image, target) in enumerate(batches):
        totals = []
        for step in (reference, here):
            step.method.before_step(1, number)
            inputs = {"image": image, "target": target, "index": torch.arange(batch)}
            placed = {name: tensor.to(step.device) for name, tensor in inputs.items()}
            totals.append({name: term.item() for name, term in step({**placed, "epoch": 1})[1].items()})
        scale = sum(map(abs, totals[0].values()))
        largest = max(largest, *(abs(totals[0][name] - totals[1][name]) / scale for name in totals[0]))
    return max(largest, difference(here.distiller, reference.distiller))


def _started(cfg, device, weights=None):
    """A step on networks of random weights, or of `weights`, whose method has begun."""
    torch.manual_seed(0)
    loaders = NoiseLoaders(device_loader(64, 64, device))
    distiller = build.skeleton(cfg, loaders.data).to(device)
    if weights:
        distiller.load_state_dict(weights)
    return begun_step(distiller, cfg, loaders)


def quick_run(check: Check, arm: str, name: str, *pairs: str) -> Any:
    """The trainer of one of the quickstart's runs on digits100, with these keys."""
    overrides = ["LOG.PREFIX", str(check.folder), "EXPERIMENT.NAME", name, "EXPERIMENT.DEVICE", str(check.device)]
    overrides += ["DISTILLER.TEACHER_CKPT", check.teacher, *pairs]
    return build.trainer_of(build.prepare(load_cfg(f"{QUICK}/{arm}.yaml", overrides)))


def small_run(check: Check, name: str, *pairs: str) -> Any:
    """A trainer of ATSC in fp32: two epochs, the second at a tenth of the rate."""
    shape = ["SOLVER.AMP", "none", "SOLVER.EPOCHS", "2", "SOLVER.LR_DECAY_STAGES", "[1]", "SOLVER.BATCH_SIZE", "32"]
    images = ["DATASET.DIGITS100.TRAIN_IMAGES", "160" if check.small else "1024", *FEW_TO_EVALUATE]
    return quick_run(check, "atsc", name, *shape, *images, *pairs)


def difference(module: torch.nn.Module, other: torch.nn.Module) -> float:
    """||theta - theta'|| / ||theta'|| over all weights and running statistics."""
    mine, theirs = (
        torch.cat([t.detach().double().cpu().flatten() for t in each.state_dict().values() if t.is_floating_point()])
        for each in (module, other)
    )
    return ((mine - theirs).norm() / theirs.norm()).item()


def _compare(found, trainer, other):
    there = difference(trainer.distiller, other.distiller)
    text = "bit for bit" if there == 0 else f"relative difference {there:.1g}"
    found |= {"difference": there, "passed": there <= CLOSE, "text": text}


# ---- speed ----


def speed(check: Check) -> None:
    """Steps in turns, then epochs, at CIFAR-100's shape on random images."""
    torch.backends.cudnn.allow_tf32 = True
    teacher, student = ("resnet20", "resnet8") if check.small else ("resnet32x4", "resnet8x4")
    amp = "bf16" if _has_bf16(check.device) else "none"
    peaks = {own: measured_peak(check.device, DTYPES[own]) for own in {"none", amp}}
    for batch in (8,) if check.small else (64, 512):
        pair = teacher, student, batch
        plain = [Arm(method, *pair, *kind) for method in ("KD", "SIMKD", "fused") for kind in (("none",), (amp,))]
        recorded = [Arm(method, *pair, own, graph=True) for method in ("KD", "SIMKD", "fused") for own in (amp, "none")]
        _time_steps(check, [Arm("released", *pair, layout="contiguous"), *plain, *recorded], peaks)
    for batch in (8,) if check.small else (64, 512):
        pair = teacher, student, batch
        arms = [Arm(method, *pair, amp, graph=True) for method in ("fused", "SIMKD", "KD")]
        for arm in [*arms, Arm("fused", *pair), Arm("released", *pair, layout="contiguous")]:
            with check.item(f"epoch, batch {batch}: {arm.name}") as found:
                count = 32 if check.small else 50000
                line = trained_epoch(arm, count, check.device)
                whole = line["seconds"] * 50000 / count
                found |= {"table": "epochs", "batch": batch, "s_per_50000_images": whole}
                found |= {"images_per_second": line["images_per_second"], "text": f"{whole:,.1f} s for 50,000 images"}
    compiled = Arm("fused", teacher, student, 8 if check.small else 64, amp, "default")
    _time_steps(check, [compiled], peaks)  # last: compiling takes a minute or more


def _time_steps(check: Check, arms: list[Arm], peaks: dict[str, dict]) -> None:
    """An item an arm: prepared each by itself, so that one that fails is named; then timed in turns."""
    steps, batch, rounds, calls = {}, arms[0].batch, 1 if check.small else 5, 1 if check.small else 10
    for arm in arms:
        with check.item(f"prepare, batch {batch}: {arm.name}") as found:
            found["minor"] = True
            try:
                steps[arm.name] = PreparedStep(arm, check.device)
            except PluginError as error:
                if "COMPILE cannot compile here" in str(error):
                    raise Skipped(str(error)[:160]) from error
                raise
    times: dict[str, list[float]] = {}
    if steps:
        with check.item(f"timing in turns, batch {batch}: {len(steps)} arms") as found:
            found["minor"] = True
            times = interleaved(steps, check.device, rounds, calls, warm_up=calls)
    rows: dict[str, dict] = {}
    for name in times:
        with check.item(f"step, batch {batch}: {name}") as found:
            own = rows[name] = row_of(steps[name], times[name], peaks[steps[name].arm.amp])
            arm = steps[name].arm
            kd = rows.get(Arm("KD", arm.teacher, arm.student, batch, arm.amp, graph=arm.graph).name)
            released = rows.get("released contiguous")
            own["times_kd"] = own["ms"] / kd["ms"] if kd else None
            own["times_released"] = own["ms"] / released["ms"] if released else None
            found |= {"table": "steps", **{key: value for key, value in own.items() if key not in ("arm", "pair")}}
            ratios = [(own["times_kd"], "KD's in the same format"), (own["times_released"], "the released step")]
            said = [f"{value:.2f} times {what}" for value, what in ratios if value and value != 1]
            found["text"] = "; ".join([f"{own['ms']:.3g} ms", *said, f"{own['share_of_roofline']:.2f} of the roofline"])


# ---- accuracy ----


def accuracy(check: Check) -> None:
    """The quickstart's methods on digits100, in bf16 and recorded, three seeds each."""
    seeds, keys = (1,) if check.small else (1, 2, 3), ["SOLVER.AMP", "bf16" if _has_bf16(check.device) else "none"]
    if check.small:
        keys += ["SOLVER.EPOCHS", "1", "SOLVER.LR_DECAY_STAGES", "[]", "DATASET.DIGITS100.TRAIN_IMAGES", "256"]
        keys += FEW_TO_EVALUATE
    tops: dict[str, list[float]] = {arm: [] for arm in FLOORS}
    for seed in seeds:
        for arm, own in tops.items():
            with check.item(f"{arm}, seed {seed}") as found:
                trainer = quick_run(check, arm, arm, "EXPERIMENT.SEED", str(seed), *keys)
                result = trainer.train()
                own.append(result["top1_last"])
                found |= {"table": "runs", "top1": result["top1_last"], "precision": result["precision"]}
                found |= {"run_seconds": result["seconds"], "graph": trainer.no_graph or "the whole step"}
                found["text"] = f"top-1 {result['top1_last']:.2f}, {result['precision']}, graph: {found['graph']}"
                found["passed"] = not trainer.no_graph and not trainer.recorded.failure
    for arm, own in tops.items():
        with check.item(f"{arm}, all seeds") as found:
            if not own:
                raise Skipped("no run ended")
            spread = f" ± {stdev(own):.2f}" if len(own) > 1 else ""
            found |= {"mean": mean(own), "text": f"{mean(own):.2f}{spread}, n = {len(own)}"}
            if not check.small:
                found["passed"] = mean(own) >= FLOORS[arm]
                found["text"] += f"; at least {FLOORS[arm]:g} wanted"


# ---- two processes ----


def two_processes(check: Check) -> None:
    """Two ranks on one device by gloo, and by NCCL where there are two GPUs: after three steps their weights agree."""
    cuda = check.device.type == "cuda"
    for backend in ("gloo", "nccl"):
        with check.item(f"two processes by {backend}") as found:
            if backend == "nccl" and (not cuda or torch.cuda.device_count() < 2):
                raise Skipped("NCCL wants a GPU for each process")
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
            command += ["atsc_plugin.bench.two_ranks", backend, check.device.type]
            for attempt in (1, 2):  # on a busy machine two ranks may fail to meet
                status, said, wrong = _ended_in_time(command, {**os.environ, "OMP_NUM_THREADS": "1"}, check.until)
                print(said, wrong)
                figures = [line for line in said.splitlines() if line.startswith("{")]
                if not status and figures:
                    break
                if attempt == 2:
                    raise PluginError(f"torchrun ended with status {status}: {_first_error(wrong)}")
                found["first_try"] = _first_error(wrong)
            found |= json.loads(figures[-1])
            found["passed"] = found["difference"] == 0 and found["moved"] > 0
            found["text"] = f"weights of the two differ by {found['difference']:g} after 3 steps"


def _first_error(wrong):
    """The line of torchrun's stderr that names an error: the first is a rank's, the last line is a ruler."""
    lines = [line for line in wrong.splitlines() if line.strip(" =-")]
    errors = [line for line in lines if re.search(r"\w(Error|Exception): ", line)]
    return (errors or lines[-1:] or ["nothing said"])[0]


def _ended_in_time(command, settings, until):
    """(exit status, stdout, stderr) of torchrun, which on SIGTERM ends its ranks too; KILL would leave them behind."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=settings, **pipes) as process:
        try:
            said, wrong = process.communicate(timeout=max(1.0, until - time.time()))
            return process.returncode, said, wrong
        except subprocess.TimeoutExpired:
            raise OutOfTime("the end of the two processes") from None
        finally:
            process.terminate()


PARTS = {
    "environment": surroundings,
    "correctness": correctness,
    "speed": speed,
    "accuracy": accuracy,
    "two processes": two_processes,
}
