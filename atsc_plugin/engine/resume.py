"""The checkpoints of a run: what is written after every epoch and inside one, and how a run continues from `latest`.

`latest` and `best` hold the whole distiller, `student_*` the bare student in mdistiller's shape, `deploy_*` all that
inference needs and nothing else. Under SOLVER.EMA all of them hold the average but `latest` and `epoch_N`, which have
it as "model_ema" beside the student that is trained. `latest` has besides all that an exact continuation needs;
`start.safetensors` holds the method's constants and is written once. At every moment one of `latest` and
`latest_previous` is whole.
"""

from __future__ import annotations

import os
import random
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atsc_plugin.engine import checkpoint, distributed, run_dir
from atsc_plugin.engine.run_dir import LATEST, PREVIOUS
from atsc_plugin.engine.step import Step
from atsc_plugin.errors import PluginError, out_of_memory
from atsc_plugin.files import PART, flush_folder, remove_parts, write_json, write_text
from atsc_plugin.keys import changed, flatten
from atsc_plugin.networks.deployed import deployed_of, tensors_of
from atsc_plugin.untrusted import first_line

EDITION = 2  # of `latest`; the first edition's had none
REFUSED = "latest_refused"  # where a damaged `latest` is kept, for whoever wants to know why
CONSTANTS = "start.safetensors"


@dataclass
class Progress:
    """How far a run has come; `latest` keeps it."""

    epoch: int = 0  # the last finished one
    best_top1: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0  # of training
    checkpoint_seconds: float = 0.0  # of writing checkpoints
    images: int = 0
    top1_before: dict[str, float] = field(default_factory=dict)  # of the networks beside the student


class Checkpoints:
    """Writes the checkpoints of one run, and brings it back from them."""

    def __init__(self, folder: Path, cfg: Any, step: Step, facts: dict) -> None:
        self.folder, self.cfg, self.facts = folder, cfg, facts
        self.step, self.distiller, self.method = step, step.distiller, step.method
        self.progress = Progress()
        self.saved = ""  # where in the run `latest` was written, in words
        self.saved_at = 0.0

    # ---- starting ----

    def begin(self, resume: bool, about: dict[str, Any]) -> dict[str, Any] | None:
        """Start, or continue from `latest`; the state inside an epoch, or None. Rank 0 reads and writes for all."""
        state = distributed.from_first(lambda: self._begin(resume, about))
        if state is not None and not distributed.first():
            self._load(state)
        self.saved_at = time.monotonic()
        return state["inside"] if state else None

    def _begin(self, resume, about):
        """The state that is continued, or None."""
        remove_parts(self.folder)
        (self.folder / "stopped.json").unlink(missing_ok=True)
        if resume:
            return self._continue(about)
        for name in (LATEST, PREVIOUS, CONSTANTS, "result.json"):  # of another run: never to continue from
            (self.folder / name).unlink(missing_ok=True)
        write_text(self.cfg.dump(), self.folder / "cfg.yaml")
        write_json({**about, "resumed": []}, self.folder / "about.json")
        if constants := self.method.constants():
            checkpoint.write_tensors(constants, self.folder / CONSTANTS)
        return None

    # ---- writing ----

    def save_epoch(self, line: dict[str, Any]) -> None:
        """All files of an epoch; `latest` is written last, so that it never runs ahead of the others."""
        started = time.perf_counter()
        progress, better = self.progress, line["top1"] > self.progress.best_top1
        progress.epoch = line["epoch"]
        if better:
            progress.best_top1, progress.best_epoch = line["top1"], line["epoch"]
        state = self._state(None)
        if distributed.first():
            self._write_epoch(line, state, better)
        self._note_saved(state, started)

    def _write_epoch(self, line, state, better):
        epoch, folder = line["epoch"], self.folder
        with self.step.averaged():
            student = {"model": self.distiller.student.state_dict()}
            for name in ["last", "best"] if better else ["last"]:
                self._save_deployed(folder / f"deploy_{name}", line)
            if better:
                best = {"epoch": epoch, "model": self.distiller.state_dict(), "best_acc": self.progress.best_top1}
                checkpoint.save(best, folder / "best")
                checkpoint.save(student, folder / "student_best")
            checkpoint.save(student, folder / "student_latest")
        if epoch % self.cfg.LOG.SAVE_CHECKPOINT_FREQ == 0:
            checkpoint.save(state, folder / f"epoch_{epoch}")
        self._write_latest(state)
        run_dir.prune(folder, self.cfg.LOG.KEEP_CHECKPOINTS)

    def save_inside(self, inside: dict[str, Any]) -> None:
        """`latest` in the middle of an epoch, from which the run continues exactly there."""
        started = time.perf_counter()
        state = self._state(inside)
        if distributed.first():
            self._write_latest(state)
        self._note_saved(state, started)

    def _state(self, inside):
        """All that a continuation needs; `inside` is the state of an epoch that is not finished.

        Every rank calls it, since the method may add up what the ranks counted.
        """
        return {
            "edition": EDITION,
            "epoch": self.progress.epoch,
            "inside": inside,
            "model": self.distiller.state_dict(),
            **self.step.state(),
            "best_acc": self.progress.best_top1,
            "progress": asdict(self.progress),
            "method": self.method.run_state(),
            "classes": self.facts.get("classes"),
            "data": self.facts.get("data"),
        }

    def _write_latest(self, state):
        """The new state is written and flushed beside the others; then `latest` becomes `latest_previous`."""
        new = self.folder / f".{LATEST}.next{PART}"
        checkpoint.save(state, new)
        if (self.folder / LATEST).exists():
            os.replace(self.folder / LATEST, self.folder / PREVIOUS)
        os.replace(new, self.folder / LATEST)
        flush_folder(self.folder)

    def _save_deployed(self, path, line):
        module = deployed_of(self.method)
        card = {**self.facts, "epoch": line["epoch"], "top1_when_saved": line["top1"], **module.facts()}
        checkpoint.save_tensors(tensors_of(module), path, card)

    def _note_saved(self, state, started):
        self.saved, self.saved_at = place_of(state), time.monotonic()
        self.progress.checkpoint_seconds += time.perf_counter() - started

    def last_good(self) -> str:
        """Which checkpoint is left to a person whose run has ended, in words."""
        if not self.saved:
            return "no checkpoint was written"
        return f"the last good checkpoint is `latest`, written {self.saved}"

    # ---- continuing ----

    def _continue(self, about):
        state, path = self._read_latest()
        if state.get("edition") != EDITION:
            raise PluginError(
                f"{path} was written by the first edition of atsc_plugin (0.1), whose runs this one does not continue. "
                "Finish the run with that edition, or start anew with --overwrite."
            )
        try:
            self._refuse_misfit(state, path)
            if self.method.constants():
                state["constants"] = checkpoint.load_tensors(self.folder / CONSTANTS)
            self._load(state)
        except (KeyError, IndexError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            if out_of_memory(error):
                raise
            raise PluginError(
                f"{path} does not continue this run ({type(error).__name__}: {first_line(error)}); expected "
                "the checkpoint of the same configuration. Start anew with --overwrite."
            ) from error
        self._write_continuation(about)
        print(f"resuming {self.folder} {self.saved}", flush=True)
        return state

    def _read_latest(self):
        """(the newest whole state, its path); what is wrong with a newer one is printed and that file is set aside."""
        damaged = []
        for path in (self.folder / LATEST, self.folder / PREVIOUS):
            if not path.exists():
                continue
            try:
                state = checkpoint.load(path, checked=True)
            except PluginError as error:
                damaged.append((path, error))
                continue
            for other, error in damaged:
                os.replace(other, self.folder / REFUSED)
                print(f"WARNING: {error}\nIt is kept as {REFUSED}; continuing from {path.name}.", flush=True)
            return state, path
        if not damaged:
            raise PluginError(
                f"There is no checkpoint {LATEST} or {PREVIOUS} in {self.folder}; start without --resume."
            )
        reasons = "\n".join(f"  - {error}" for _, error in damaged)
        raise PluginError(
            f"No checkpoint of {self.folder} can be used, and none was changed:\n{reasons}\nStart with --overwrite."
        )

    def _load(self, state):
        self.distiller.load_state_dict(state["model"])
        self.step.load_state(state)
        self.progress = Progress(**state["progress"])
        if state["classes"]:
            self.facts.setdefault("classes", state["classes"])
        self.method.load_constants(state.get("constants", {}))
        self.method.load_run_state(state["method"])
        self.saved = place_of(state)

    def _refuse_misfit(self, state, path):
        """What no configuration key says: other images, fewer epochs than are done."""
        there, asked = state["data"], self.facts.get("data")
        if there and asked and there != asked:
            loader = " (a folder that streams has another name: put DATASET.LOADER device or host into the file)"
            raise PluginError(
                f"{path} was trained on {there}; these data are {asked}. Name the same data to resume"
                f"{loader if there.startswith('folder-') else ''}."
            )
        done = state["epoch"] + bool(state["inside"])
        if done > self.cfg.SOLVER.EPOCHS:
            raise PluginError(
                f"{path} is in epoch {done}; SOLVER.EPOCHS asks for {self.cfg.SOLVER.EPOCHS}. Ask for as many or more."
            )

    def _write_continuation(self, about):
        """cfg.yaml with the values that now hold, about.json with an entry for this continuation."""
        first = run_dir.read_json(self.folder, "about.json") or {**about, "resumed": []}
        now = {name: about[name] for name in run_dir.SURROUNDINGS}
        for name, value in now.items():
            if first.get(name, value) != value:
                print(f"note: {name} was {first[name]}, is {value}: the last digits may differ from now on", flush=True)
        entry = {"from": self.saved, "command": " ".join(sys.argv), **now}
        first["resumed"] = [*first.get("resumed", []), entry]
        path, cfg = self.folder / "cfg.yaml", self.cfg
        if path.is_file():
            stored = flatten(run_dir.read_tree(path))
            cfg = changed(cfg, {name: stored[name] for name in run_dir.KEPT if name in stored})
        write_text(cfg.dump(), path)
        write_json(first, self.folder / "about.json")


def place_of(state: dict[str, Any]) -> str:
    """Where in the run a state was written, in words."""
    inside = state["inside"]
    if inside:
        return f"after step {inside['meters']['steps']} of epoch {inside['epoch']}"
    return f"after epoch {state['epoch']}"


# ---- the random states of a process: Python's, NumPy's, torch's and the device's ----


def seed_all(seed: int) -> None:
    """Start every generator that layers, loaders and transforms draw from globally."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # the devices' too


def random_states(device: torch.device) -> dict[str, Any]:
    """All states as tensors, numbers and text, so that they load without executing anything."""
    name, keys, *rest = np.random.get_state()
    states = {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore(states: dict[str, Any], device: torch.device) -> None:
    """Put back what `random_states` gave; a device that was not there then keeps its seed."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
