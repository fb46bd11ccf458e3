"""Our trainer, registry key "plugin": any distiller of mdistiller's contract, on any device, with a run directory.

It takes the host's five arguments, so that a host's own script can build it; `build` adds what only it knows (a test
split beside the validation split, facts for the cards). What it asks of a method stands in contract.py. It reads from
top to bottom: the run, an epoch, the training steps of an epoch, evaluation, the result.
"""

from __future__ import annotations

import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from atsc_plugin import __version__, contract, host, untrusted
from atsc_plugin.engine import checkpoint, distributed, graph, precision, run_dir
from atsc_plugin.engine.batches import batches_from, inputs_of, place_module, progress, set_epoch
from atsc_plugin.engine.devices import device_name, processor_name
from atsc_plugin.engine.evaluate import LogitsFile, evaluate, in_eval_mode
from atsc_plugin.engine.meters import Meters, NotFinite, peak_memory_mb
from atsc_plugin.engine.mixing import mixing_of
from atsc_plugin.engine.optim import learning_rate, set_learning_rate
from atsc_plugin.engine.resume import Checkpoints, random_states, restore, seed_all
from atsc_plugin.engine.signals import StopAsked, StopSignals, launcher_argv, resuming_argv
from atsc_plugin.engine.step import Step, all_finite, gradients
from atsc_plugin.errors import Interrupted, PluginError, RunStopped, wrapped
from atsc_plugin.files import key_of, write_json
from atsc_plugin.networks import named
from atsc_plugin.networks.deployed import deployed_of, tensors_of
from atsc_plugin.seeds import stream

WRAPPERS = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)  # in which a host's script hands it over
FRESH = "fresh"  # random states of ranks that were not there
READ_EVERY = 50  # steps between two looks at the meters, each of which waits for the device


def parameter_count(parameters) -> int:
    return sum(p.numel() for p in parameters)


def _measured(file: Path) -> float | None:
    """The accuracy in a file of `_measured_file`; None where it is absent or damaged."""
    try:
        content = untrusted.read_json(file, "an accuracy measured by a run")
    except (OSError, PluginError):
        return None
    top1 = content.get("top1") if isinstance(content, dict) else None
    return top1 if isinstance(top1, float) else None


def say(text: str, **where: Any) -> None:
    """A line for people; several ranks say it once."""
    if distributed.first():
        print(wrapped(text, where.get("file")), flush=True, **where)


class PluginTrainer:
    """Train, evaluate every epoch, keep the best and the last, write the run directory. The result is written last."""

    def __init__(
        self, experiment_name, distiller, train_loader, val_loader, cfg, *, test_loader=None, facts=None, folder=None
    ):
        self.cfg, self.distiller = cfg, distiller.module if isinstance(distiller, WRAPPERS) else distiller
        self.train_loader, self.val_loader, self.test_loader = train_loader, val_loader, test_loader
        self.device = next(self.distiller.parameters()).device
        self.distiller = distributed.with_sync_bn(self.distiller, cfg.SOLVER.SYNC_BN, self.device)
        place_module(self.distiller, self.device)
        self.step = Step(self.distiller, cfg)
        self.method = self.step.method
        self.method.driven = True
        self.mixing = mixing_of(cfg, self.method, (facts or {}).get("classes"))
        self.no_graph = graph.refusal(self.step, train_loader, cfg)
        self.recorded = None if self.no_graph else graph.RecordedStep(self.step, train_loader, self.mixing)
        self.settings = precision.chosen(self.step.precision)
        self.facts = {**self._own_facts(), **(facts or {})}
        self.folder = Path(folder or run_dir.run_directory(cfg, Path(experiment_name).name))
        self.checkpoints = Checkpoints(self.folder, cfg, self.step, self.facts)
        self.signals, self.work = StopSignals(), None  # `work`: the epoch that is running
        self.logged_checkpoint_seconds = 0.0

    def _own_facts(self) -> dict[str, Any]:
        """What goes into the card of a deployed student."""
        cfg, titles = self.cfg, [network.title for network in self._teachers()]
        return {
            **host.IDENTITY,
            "method": cfg.DISTILLER.TYPE,
            "method_name": self.method.TITLE or cfg.DISTILLER.TYPE,
            **named.card_facts(cfg.DISTILLER),
            "dataset": cfg.DATASET.TYPE,
            "teacher": self._one_or_list(titles),
            "seed": cfg.EXPERIMENT.SEED,
            "epochs": cfg.SOLVER.EPOCHS,
        }

    def _teachers(self):
        return [network for network in self.method.networks() if network.name.startswith("teacher")]

    def _one_or_list(self, values):
        """None without a teacher, a list where the method takes several."""
        if not values:
            return None
        return values if self.method.TEACHERS == contract.SEVERAL else values[0]

    @property
    def progress(self):
        """How far the run has come."""
        return self.checkpoints.progress

    # ---- the run ----

    def train(self, resume: bool = False) -> dict[str, Any]:
        """Run all steps that are missing; returns the content of result.json."""
        with self._run_directory(resume) as inside:
            if self.progress.epoch == 0 and not inside:
                self.progress.top1_before = self._top1_before()
            self._epochs(inside)
            result = self._result()
            if distributed.first():
                write_json(result, self.folder / "result.json")
        accuracy = f"test top-1 {result['top1_last']:.2f} last, {result['top1_best']:.2f} best epoch"
        say(f"done: {accuracy}; ECE {result['ece']:.4f}, NLL {result['nll']:.4f}; {self.folder}")
        return result

    def fit(self) -> None:
        """The epochs alone, without measuring networks or writing a result: for a network trained on the way.

        Resumes from the directory's checkpoint if there is one.
        """
        with self._run_directory(run_dir.has_checkpoint(self.folder)) as inside:
            self._epochs(inside)

    @contextmanager
    def _run_directory(self, resume: bool) -> Iterator[dict[str, Any] | None]:
        """The directory held and its logs open for a block, which gets the state inside an epoch, or None."""
        held = run_dir.held(self.folder) if distributed.first() else nullcontext()  # by the first rank for all
        with held, self.signals:
            self.method.begin()
            self.step.start_average()
            inside = self.checkpoints.begin(resume, self._about())
            self.logs = run_dir.Logs(self.folder, self.progress.epoch + 1) if distributed.first() else None
            try:
                with self._ended_by_signal():
                    yield inside
            except OSError as error:
                raise PluginError(
                    f"{error.strerror or error} ({error.filename or self.folder}): the run cannot go on. In "
                    f"{self.folder} {self.checkpoints.last_good()}. Mend that, then resume with: {self._resuming()}"
                ) from error
            finally:
                if self.logs:
                    self.logs.close()

    @contextmanager
    def _ended_by_signal(self) -> Iterator[None]:
        """On a signal: save the state of the epoch that is running, say how to resume, end with the signal's status."""
        try:
            yield
        except StopAsked:
            if self.work:
                self.work.save()
            message = f"Ended by a signal; {self.checkpoints.last_good()}. Resume with:\n  {self._resuming()}"
            say(message, file=sys.stderr)
            distributed.wait_for_all()  # torchrun ends all ranks as soon as one has left
            raise Interrupted(128 + self.signals.ending) from None

    @staticmethod
    def _resuming() -> str:
        return shlex.join(resuming_argv(sys.argv, launcher_argv()))

    def _about(self) -> dict[str, Any]:
        """Where and how a run was started."""
        return {
            "plugin": __version__,
            "python": platform.python_version(),
            **host.IDENTITY,
            "torch": torch.__version__,
            "device": device_name(self.device),
            "processor": processor_name(),
            "world_size": distributed.world(),
            "loader": type(self.train_loader).__name__,
            "precision": self.step.precision.name,
            "graph": f"none: {self.no_graph}" if self.no_graph else "the whole step",
            "settings": self.settings,
            "seed": self.cfg.EXPERIMENT.SEED,
            "command": " ".join(sys.argv),
            "commit": run_dir.commit(),
            "teacher_from": self.facts.get("teacher_from"),
            "teacher_args": self.facts.get("teacher_args", []),
        }

    # ---- an epoch ----

    def _epochs(self, inside: dict[str, Any] | None) -> None:
        for epoch in range(self.progress.epoch + 1, self.cfg.SOLVER.EPOCHS + 1):
            line, report = self._epoch(epoch, inside)
            inside = None
            if self.logs:  # before `latest`: a run killed in between writes this line again, and loses none
                self.logs.write(line)
            self.checkpoints.save_epoch(line)
            self.work = None
            if report.stop:
                if distributed.first():  # a result.json would say that the run had not ended early
                    write_json({"epoch": epoch, "reason": report.warning}, self.folder / "stopped.json")
                raise RunStopped(f"epoch {epoch}: {report.warning} The run's files are in {self.folder}.")
            self.signals.check()

    def _epoch(self, epoch: int, inside: dict[str, Any] | None) -> tuple[dict[str, Any], contract.EpochReport]:
        """Train and evaluate once; (the line of the log, what the method reports)."""
        ranks = [distributed.rank()] if distributed.rank() else []  # the first draws what a single process draws
        seed_all(stream(self.cfg.EXPERIMENT.SEED, "step", epoch, *ranks))  # for loaders and layers that draw globally
        set_epoch(self.train_loader, epoch)
        self.method.before_epoch(epoch)
        self.work = TrainingPass(self, epoch, inside)
        trained = self.work.run()
        distributed.average_bn(self.step.with_average)
        scores = self._evaluate(self.val_loader)
        raw = self._evaluate(self.val_loader, "eval, raw", averaged=False) if self.step.average is not None else {}
        images, seconds = trained.pop("images"), self.work.seconds
        self.progress.seconds += seconds
        self.progress.images += images
        line = {
            "epoch": epoch,
            "lr": self.work.rate(),  # of its last step
            **trained,
            "top1": scores["top1"],
            "top5": scores["top5"],
            **({"raw_top1": raw["top1"]} if raw else {}),  # of the student that the average follows
            "test_loss": scores["loss"],
            "ece": scores["ece"],
            "seconds": seconds,
            # of all checkpoints since the line before
            "checkpoint_seconds": self.progress.checkpoint_seconds - self.logged_checkpoint_seconds,
            "images_per_second": images / seconds,
            "memory_mb": peak_memory_mb(self.device),
        }
        self.logged_checkpoint_seconds = self.progress.checkpoint_seconds
        say(run_dir.epoch_text(line, self.cfg.SOLVER.EPOCHS, max(self.progress.best_top1, scores["top1"])))
        with self.step.uncompiled():
            report = self.method.after_epoch(epoch, self.val_loader)
        report = distributed.from_first(lambda: report)  # one verdict for all ranks
        line |= report.figures
        if report.warning:
            line["guard"] = report.warning
            say(f"WARNING epoch {epoch}: {report.warning}")
        return line, report

    # ---- evaluation ----

    def _evaluate(self, loader, label="eval", keep=None, averaged=True) -> dict[str, float]:
        self.distiller.eval()
        with self.step.uncompiled(), self.step.averaged() if averaged else nullcontext():
            return evaluate(
                lambda image: self.distiller(image=image), loader, self.device, label, keep, self.signals.watched
            )

    def _top1_before(self) -> dict[str, float]:
        """`_network_top1` of all networks; a teacher is measured once for all runs of a project folder.

        The folder keeps a file for these weights on these images, measured by this torch on this kind of device.
        """
        found = {}
        for network in self.method.networks():
            file = self._measured_file(network)
            top1 = distributed.from_first(lambda file=file: _measured(file)) if file else None
            if top1 is not None:
                say(f"{network.title}: top-1 {top1:.2f}, measured by another run of {file.parent}")
            else:
                top1 = self._network_top1(network)
                if file and distributed.first():
                    write_json({"top1": top1}, file)
            found[network.name] = top1
        return found

    def _measured_file(self, network) -> Path | None:
        """None where a network is no teacher, or the images are known by name only."""
        images = {name: self.facts.get(name) for name in ("test_data", "mean", "std")}
        if not network.name.startswith("teacher") or images["test_data"] is None:
            return None
        by = {"torch": torch.__version__, "device": device_name(self.device), "plugin": __version__}
        key = key_of({"weights": checkpoint.digest_of(network.module), **images, **by})
        return self.folder.parent.parent / f"measured-{key}.json"

    def _network_top1(self, network) -> float:
        """Top-1 of a network beside the student."""
        predict, loader = in_eval_mode(network.module), self.test_loader or self.val_loader
        with self.step.uncompiled():
            top1 = evaluate(predict, loader, self.device, network.name, watched=self.signals.watched)["top1"]
        say(f"{network.name.partition('.')[0]} {network.title}: top-1 {top1:.2f}")
        return top1

    # ---- the result ----

    def _result(self) -> dict[str, Any]:
        """The content of result.json: accuracies in percent, sizes in parameters."""
        cfg, progress, networks = self.cfg, self.progress, self.method.networks()
        before = progress.top1_before
        after = before | {network.name: self._network_top1(network) for network in networks if network.moves}
        logits = LogitsFile() if cfg.LOG.KEEP_LOGITS == "last" else None
        last = self._evaluate(self.test_loader or self.val_loader, "test, last", logits)
        if logits:
            logits.save(self.folder)
        module = deployed_of(self.method)
        stored = tensors_of(module)
        teachers = [network.name for network in self._teachers()]
        names = "method", "method_name", "teacher", "student", "dataset", "data", "test_data", "image_size", "classes"
        return {
            **{name: self.facts.get(name) for name in names},
            "seed": cfg.EXPERIMENT.SEED,
            "epochs": cfg.SOLVER.EPOCHS,
            "batch_size": cfg.SOLVER.BATCH_SIZE,  # of all ranks together
            "world_size": distributed.world(),
            "precision": self.step.precision.name,
            "settings": self.settings,
            "top1_last": last["top1"],
            "top1_best": self._best(last["top1"]),
            "top5_last": last["top5"],
            "ece": last["ece"],
            "nll": last["loss"],
            "selected_on": "test" if self.test_loader is None else "val",
            "best_epoch": progress.best_epoch,
            "teacher_top1_before": self._one_or_list([before[name] for name in teachers if name in before]),
            "teacher_top1_after": self._one_or_list([after[name] for name in teachers if name in after]),
            "networks": [
                {"name": n.name, "title": n.title, "moved": n.moves, "top1_before": before.get(n.name),
                 "top1_after": after.get(n.name)}
                for n in networks
            ],
            "seconds": progress.seconds,
            "checkpoint_seconds": progress.checkpoint_seconds,
            "images_per_second": progress.images / max(progress.seconds, 1e-9),
            "peak_memory_mb": peak_memory_mb(self.device),
            "params_student": parameter_count(self.distiller.student.parameters()),
            "params_deployed": parameter_count(p for name, p in module.named_parameters() if name in stored),
            "params_trained": parameter_count(self.step.parameters()),
            **host.IDENTITY,
            "torch": torch.__version__,
            "device": device_name(self.device),
        }  # fmt: skip

    def _best(self, last: float) -> float:
        """Top-1 of the best epoch on the images that `top1_last` was measured on."""
        if self.test_loader is None:
            return self.progress.best_top1  # mdistiller's habit: the same images choose the epoch and report it
        if self.progress.best_epoch == self.cfg.SOLVER.EPOCHS:
            return last
        now = {name: tensor.clone() for name, tensor in self.distiller.state_dict().items()}
        best = distributed.from_first(lambda: checkpoint.load(self.folder / "best")["model"])
        self.distiller.load_state_dict(best)
        top1 = self._evaluate(self.test_loader, "test, best", averaged=False)["top1"]  # `best` holds the average
        self.distiller.load_state_dict(now)
        return top1


class TrainingPass:
    """One pass over the training images, which can be left after any step and resumed there, bit for bit."""

    def __init__(self, trainer: PluginTrainer, epoch: int, saved: dict[str, Any] | None = None) -> None:
        self.trainer, self.epoch = trainer, epoch
        self.meters = Meters(trainer.device)
        self.seconds = 0.0
        self.random = None  # the random states to continue with
        self.finished = None  # this rank's state at the end of the pass
        if saved:
            self.seconds = saved["seconds"]
            self._load([saved, *saved["others"]])

    def _load(self, ranks):
        """This rank's state of what the ranks left; where fewer or more resume, its share of their sums."""
        mine = ranks[distributed.rank() :: distributed.world()]
        self.meters.load_state((mine or ranks)[0]["meters"])
        if not mine:
            self.meters.forget()
        for more in mine[1:]:
            self.meters.load_more(more["meters"])
        as_many = len(ranks) == distributed.world()
        distributed.load_bn(self.trainer.step.with_average, [rank["buffers"] for rank in (mine if as_many else ranks)])
        self.random = mine[0]["random"] if as_many else FRESH

    def save(self) -> None:
        """`latest` in the middle of the pass. Every rank calls it, and the first gets the others' states."""
        self.check()
        ranks = distributed.gathered(self.finished or self._own_state())
        state = {"epoch": self.epoch, "seconds": self.seconds, **ranks[0], "others": ranks[1:]}
        self.trainer.checkpoints.save_inside(state)

    def _own_state(self):
        """What only this rank knows: its sums, its generators, the batch norm of its images."""
        return {
            "meters": self.meters.state(),
            "random": random_states(self.trainer.device),
            "buffers": distributed.own_bn(self.trainer.step.with_average),
        }

    # ---- the loop ----

    def run(self) -> dict[str, Any]:
        """Make the missing steps; mean losses by name, training top-1 and counts of the whole pass."""
        trainer, meters, total = self.trainer, self.meters, len(self.trainer.train_loader)
        trainer.distiller.train()
        before, started = self.seconds, time.perf_counter()
        loader, done = trainer.train_loader, meters.steps
        batches = loader.draws_from(done) if trainer.recorded else batches_from(loader, done)
        bar = progress(batches, f"epoch {self.epoch}/{trainer.cfg.SOLVER.EPOCHS}", total, meters.steps)
        self._restore_random_states()
        waiting, rate = time.perf_counter(), None
        for batch in bar:
            if not trainer.recorded:
                batch = {**inputs_of(batch, trainer.device), "epoch": self.epoch}
            meters.data_seconds += time.perf_counter() - waiting
            if (now := self.rate(meters.steps)) != rate:  # where steps are recorded, setting it is a launch
                rate = now
                set_learning_rate(trainer.step.optimizer, rate)
            trainer.method.before_step(self.epoch, meters.steps)
            self._step(batch)
            if meters.steps % READ_EVERY == 0 or meters.steps == total:
                bar.set_postfix(self._read(meters.postfix), refresh=False)
            self.seconds = before + time.perf_counter() - started
            if meters.steps < total:
                self._checkpoint_if_due()
            waiting = time.perf_counter()
        self.finished = self._own_state()  # should a signal come in the evaluation, the pass ended like this
        meters.add_up()
        summary = self._summary()
        self.check()
        trainer.signals.check()
        return summary

    def rate(self, step: int = -1) -> float:
        """The learning rate of a step, -1 for the last one."""
        steps = len(self.trainer.train_loader)
        return learning_rate(self.trainer.cfg, self.epoch, step % steps, steps)

    def _restore_random_states(self):
        if self.random == FRESH:
            seed = self.trainer.cfg.EXPERIMENT.SEED
            seed_all(stream(seed, "step", self.epoch, distributed.rank(), self.meters.steps))
        elif self.random:
            restore(self.random, self.trainer.device)

    def _step(self, batch):
        """One step: `batch` is what the loader drew where the step is recorded, else the inputs by name."""
        trainer, step, mixing = self.trainer, self.trainer.step, self.trainer.mixing
        count = len(batch[0] if trainer.recorded else batch["target"])
        drawn = mixing.draw(self.epoch, self.meters.steps, count, trainer.device) if mixing else ()
        if trainer.recorded:
            logits, losses, target, finite = trainer.recorded((*batch, *drawn), self.epoch)
        else:
            batch = mixing(batch, drawn) if mixing else batch
            target = batch["target"]
            logits, losses = step(batch)
            # A loss scaler tries infinite gradients and halves its scale; `overflows_always` watches that.
            finite = None if step.precision.scaler or losses is None else all_finite(gradients(step.parameters()))
        trainer.facts.setdefault("classes", logits.shape[1])
        if losses is None:
            self.meters.skip()
            say(f"epoch {self.epoch}: step {self.meters.steps} left out, {step.skipped.reason}")
            return
        self.meters.add(losses, logits.detach(), target, finite)

    def _checkpoint_if_due(self):
        """A state inside the epoch when it is due, the end of the run when a signal asked for it."""
        trainer, steps = self.trainer, self.meters.steps
        by_steps, minutes = trainer.cfg.LOG.CHECKPOINT_STEPS, trainer.cfg.LOG.CHECKPOINT_MINUTES
        late = minutes and time.monotonic() - trainer.checkpoints.saved_at >= 60 * minutes
        if trainer.signals.check(late) or (by_steps and steps % by_steps == 0):
            self.save()

    # ---- bad numbers ----

    def _summary(self):
        if not self.meters.images:
            raise PluginError(
                f"Training stopped in epoch {self.epoch}: all {self.meters.steps} steps were left out "
                "(SOLVER.NONFINITE skip); expected finite losses and gradients. Look at the data, or lower SOLVER.LR."
            )
        return self._read(self.meters.summary)

    def check(self) -> None:
        """Refuse to go on, or to write a checkpoint, when a number is NaN or infinite."""
        self._read(self.meters.check)
        if not all_finite(self.trainer.step.parameters()):
            self._refuse("a weight is not finite")

    def _read(self, figures):
        """The meters on the host side, read rarely because it waits for the device."""
        if self.trainer.step.precision.overflows_always():
            self._refuse("the gradient is not finite: fp16's loss scale fell below 1")
        try:
            return figures()
        except NotFinite as error:
            self._refuse(error)

    def _refuse(self, what):
        raise PluginError(
            f"Training stopped in epoch {self.epoch}: {what}; expected finite numbers. In {self.trainer.folder} "
            f"{self.trainer.checkpoints.last_good()}. Lower SOLVER.LR or the weight of that term, or set "
            "SOLVER.NONFINITE skip where it is a rare batch."
        )
