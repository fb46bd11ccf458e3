"""Our trainer, registry key "plugin": any distiller of mdistiller's contract, on any device, with a run directory.

It takes the host's five arguments, so that a host's own script can build it; `build` adds what only it knows (a test
split beside the validation split, facts for the cards). A distiller needs no more than the host's contract. It may
offer `param_groups(cfg)` for its own rates, `second_loss(image, target)` for a second step a batch, `after_epoch(epoch,
loader)` for figures and a verdict, `moved_without_gradient()` for weights that its forward pass moves, `run_state()`
and `load_run_state(state)` for what a resumed run needs beside the weights (every rank calls both), `deployed()` and
`unused_modules()` for what leaves the run.
"""

import shlex
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from atsc_plugin.engine import checkpoint, distributed, rank_buffers, run_files, run_lock, run_state
from atsc_plugin.engine.agreement import wait_for_all
from atsc_plugin.engine.evaluate import evaluate, in_eval_mode
from atsc_plugin.engine.kept_logits import KeptLogits
from atsc_plugin.engine.meters import peak_memory_mb
from atsc_plugin.engine.placement import place_module
from atsc_plugin.engine.random_states import seed_all
from atsc_plugin.engine.records import NoRecords, Records, result_of, say
from atsc_plugin.engine.signals import StopAsked, StopSignals, continuing_words, launched_by
from atsc_plugin.engine.optim import learning_rate
from atsc_plugin.engine.step import Step
from atsc_plugin.engine.training_pass import TrainingPass
from atsc_plugin.errors import Interrupted, PluginError, RunStopped
from atsc_plugin.files import write_json
from atsc_plugin.methods.teacher_list import names_of, networks_of
from atsc_plugin.seeds import stream


def unwrap(distiller):
    """The distiller itself, out of DataParallel or its like."""
    return getattr(distiller, "module", distiller)


def parameter_count(parameters):
    return sum(p.numel() for p in parameters)


class PluginTrainer:
    """Train, evaluate every epoch, keep the best and the last, write the run directory. The result is written last."""

    host_facts = {}  # name and version of the host, put here by the registration that joined it

    def __init__(
        self, experiment_name, distiller, train_loader, val_loader, cfg, *, test_loader=None, facts=None, folder=None
    ):
        self.cfg = cfg
        own = {"method": cfg.DISTILLER.TYPE, "student": cfg.DISTILLER.STUDENT, "dataset": cfg.DATASET.TYPE}
        own["teacher"] = None if cfg.DISTILLER.TYPE == "NONE" else cfg.DISTILLER.TEACHER
        own |= {"seed": cfg.EXPERIMENT.SEED, "epochs": cfg.SOLVER.EPOCHS}
        self.facts = {**self.host_facts, **own, **(facts or {})}
        self.distiller = unwrap(distiller)
        self.train_loader, self.val_loader, self.test_loader = train_loader, val_loader, test_loader
        self.device = next(self.distiller.parameters()).device
        self.distiller = distributed.with_sync_bn(self.distiller, cfg.SOLVER.SYNC_BN, self.device)
        place_module(self.distiller, self.device)
        self.folder = Path(folder or run_files.run_directory(cfg, Path(experiment_name).name))
        self.step = Step(self.distiller, cfg)
        self.best_top1, self.best_epoch = -1.0, 0
        self.trained_seconds, self.trained_images = 0.0, 0
        self.teacher_before = None
        self.signals, self.work = StopSignals(), None  # `work`: the epoch that is running
        self.saved, self.saved_at = None, 0.0  # which state `latest` holds in words, and when it was written

    # ---- the run ----

    def train(self, resume=False):
        """Run all steps that are missing; returns the content of result.json."""
        with self._run_directory(resume) as (first, inside):
            if first == 1 and not inside:
                self.teacher_before = self._teacher_top1()
            self._epochs(first, inside)
            result = self._result()
            if distributed.first():
                write_json(result, self.folder / "result.json")
        say(f"done: test top-1 {result['top1_last']:.2f} last, {result['top1_best']:.2f} best epoch; {self.folder}")
        return result

    def fit(self):
        """The epochs alone, without measuring a teacher or writing a result: for a network trained on the way.

        What an earlier process left in the directory is gone on with.
        """
        with self._run_directory(run_files.has_checkpoint(self.folder)) as start:
            self._epochs(*start)

    @contextmanager
    def _run_directory(self, resume):
        """The directory held and its logs open for a block, which gets (first epoch, state inside it)."""
        with self._held(), self.signals:
            start = run_state.begin(self, resume)
            self.records = Records(self.folder, start[0]) if distributed.first() else NoRecords()
            try:
                with self._leaving_well():
                    yield start
            except OSError as error:
                raise PluginError(
                    f"{error.strerror or error} ({error.filename or self.folder}): the run cannot go on. In "
                    f"{self.folder} {run_state.last_good(self)}. Mend that, then go on with: {self._continuation()}"
                ) from error
            finally:
                self.records.close()

    def _held(self):
        """The lock on the directory, held by the first rank for all."""
        if not distributed.first():
            return nullcontext()
        run_files.create(self.folder)
        return run_lock.held(self.folder)

    @contextmanager
    def _leaving_well(self):
        """On a signal: keep the state of the epoch that is running, say how to go on, end with the signal's status."""
        try:
            yield
        except StopAsked:
            if self.work:
                run_state.save_inside(self)
            told = f"Ended by a signal; {run_state.last_good(self)}. Go on with:\n  {self._continuation()}"
            say(told, file=sys.stderr)
            wait_for_all()  # torchrun ends all ranks as soon as one has left
            raise Interrupted(128 + self.signals.ending) from None

    @staticmethod
    def _continuation():
        return shlex.join(continuing_words(sys.argv, launched_by()))

    def _epochs(self, first, inside=None):
        for epoch in range(first, self.cfg.SOLVER.EPOCHS + 1):
            line = self._epoch(epoch, inside if epoch == first else None)
            report = self._report(epoch, line)
            self.records.write(line)  # before `latest`: a run killed in between writes this line again, and loses none
            run_state.save_epoch(self, line)
            self.work = None
            if report["stop"]:
                if distributed.first():
                    run_state.write_stop(self, epoch, report["warning"])
                raise RunStopped(f"epoch {epoch}: {report['warning']} The run's files are in {self.folder}.")
            self.signals.check()

    def _epoch(self, epoch, inside=None):
        rate = learning_rate(self.cfg, epoch)
        self.step.set_rate(rate)
        ranks = [distributed.rank()] if distributed.rank() else []  # the first draws what a single process draws
        seed_all(stream(self.cfg.EXPERIMENT.SEED, "step", epoch, *ranks))  # for loaders and layers that draw globally
        if hasattr(self.train_loader, "set_epoch"):
            self.train_loader.set_epoch(epoch)
        self.work = TrainingPass(self, epoch, inside)
        trained = self.work.run()
        rank_buffers.average(self.distiller)
        scores = self._evaluate(self.val_loader)
        images, seconds = trained.pop("images"), self.work.seconds
        self.trained_seconds += seconds
        self.trained_images += images
        line = {
            "epoch": epoch,
            "lr": rate,
            **trained,
            "top1": scores["top1"],
            "top5": scores["top5"],
            "test_loss": scores["loss"],
            "seconds": seconds,
            "images_per_second": images / seconds,
            "memory_mb": peak_memory_mb(self.device),
        }
        say(Records.epoch_text(line, self.cfg.SOLVER.EPOCHS, max(self.best_top1, scores["top1"])))
        return line

    def _report(self, epoch, line):
        """What the distiller has to say of the epoch: figures for the log, a warning, whether to stop."""
        if not hasattr(self.distiller, "after_epoch"):
            return {"stop": False}
        with self.step.uncompiled():
            report = self.distiller.after_epoch(epoch, self.val_loader)
        report = distributed.from_first(lambda: report)  # one verdict for all ranks
        line |= report["figures"]
        if report["warning"]:
            line["guard"] = report["warning"]
            say(f"WARNING epoch {epoch}: {report['warning']}")
        return report

    # ---- evaluation ----

    def _evaluate(self, loader, label="eval", keep=None):
        self.distiller.eval()
        watched = self.signals.watched(loader)
        with self.step.uncompiled():
            return evaluate(lambda image: self.distiller(image=image), watched, self.device, label, keep)

    def _teacher_top1(self):
        """Top-1 of the teacher, a list where the method has several, None where there is none."""
        teacher = getattr(self.distiller, "teacher", None)
        if not isinstance(teacher, torch.nn.Module):
            return None
        networks, each = networks_of(teacher), []
        for network, name in zip(networks, names_of(networks, self.cfg), strict=True):
            watched = self.signals.watched(self.test_loader or self.val_loader)
            each.append(evaluate(in_eval_mode(network), watched, self.device, "teacher")["top1"])
            say(f"teacher {name}: top-1 {each[-1]:.2f}")
        return each if isinstance(teacher, torch.nn.ModuleList) else each[0]

    def _teacher_is_trained(self):
        moving = {id(p) for p in getattr(self.distiller, "learning", self.distiller.teacher).parameters()}
        return any(id(p) in moving for p in self.step.parameters())

    def _result(self):
        teacher_after = self.teacher_before
        if teacher_after is not None and self._teacher_is_trained():
            teacher_after = self._teacher_top1()
        kept = KeptLogits() if self.cfg.LOG.KEEP_LOGITS == "last" else None
        last = self._evaluate(self.test_loader or self.val_loader, "test, last", kept)
        if kept:
            kept.save(self.folder)
        if self.test_loader is None:
            best = self.best_top1  # mdistiller's habit: the same images choose the epoch and report it
        elif self.best_epoch == self.cfg.SOLVER.EPOCHS:
            best = last["top1"]
        else:
            best = self._top1_of_best()
        return result_of(self, last=last, best=best, teacher_after=teacher_after)

    def _top1_of_best(self):
        kept = {name: tensor.clone() for name, tensor in self.distiller.state_dict().items()}
        best = distributed.from_first(lambda: checkpoint.load(self.folder / "best")["model"])
        self.distiller.load_state_dict(best)
        top1 = self._evaluate(self.test_loader, "test, best")["top1"]
        self.distiller.load_state_dict(kept)
        return top1
