"""One pass over the training images, which can be left after any step and taken up again there, bit for bit."""

import time

from atsc_plugin.engine import distributed, rank_buffers, run_state
from atsc_plugin.engine.agreement import gathered
from atsc_plugin.engine.meters import Meters
from atsc_plugin.engine.nonfinite import NotFinite, all_finite, gradients
from atsc_plugin.engine.placement import inputs_of
from atsc_plugin.engine.progress import progress
from atsc_plugin.engine.random_states import random_states, restore, seed_all
from atsc_plugin.engine.records import say
from atsc_plugin.errors import PluginError
from atsc_plugin.seeds import stream

FRESH = "fresh"  # random states of ranks that were not there
READ_EVERY = 50  # steps between two looks at the meters, each of which waits for the device


class TrainingPass:
    """Where an epoch stands: what was summed so far and how many steps are made. `run` makes the missing ones."""

    def __init__(self, trainer, epoch, saved=None):
        self.trainer, self.epoch = trainer, epoch
        self.meters = Meters(trainer.device)
        self.seconds, self.random = 0.0, None
        self.made = None  # this rank's part of the state at the end of the pass
        if saved:
            self.seconds = saved["seconds"]
            self._take_up([saved, *saved["others"]])

    def _take_up(self, ranks):
        """This rank's part of what the ranks left; where fewer or more go on, its share of their sums."""
        mine = ranks[distributed.rank() :: distributed.world()]
        self.meters.load_state((mine or ranks)[0]["meters"])
        if not mine:
            self.meters.forget()
        for more in mine[1:]:
            self.meters.load_more(more["meters"])
        as_many = len(ranks) == distributed.world()
        rank_buffers.load(self.trainer.distiller, [rank["buffers"] for rank in (mine if as_many else ranks)])
        self.random = mine[0]["random"] if as_many else FRESH

    @property
    def steps(self):
        """Steps made, those left out included."""
        return self.meters.steps

    def state(self):
        """What `latest` keeps of a pass that is not over. Every rank calls it, and the first gets the others' parts."""
        ranks = gathered(self.made or self._own())
        return {"epoch": self.epoch, "seconds": self.seconds, **ranks[0], "others": ranks[1:]}

    def _own(self):
        """What only this rank knows: its sums, its generators, the batch norm of its images."""
        return {
            "meters": self.meters.state(),
            "random": random_states(self.trainer.device),
            "buffers": rank_buffers.own(self.trainer.distiller),
        }

    # ---- the loop ----

    def run(self):
        """Make the missing steps; mean losses by name, training top-1 and counts of the whole pass."""
        trainer, total = self.trainer, len(self.trainer.train_loader)
        trainer.distiller.train()
        before, started = self.seconds, time.perf_counter()
        batches = self._batches()
        bar = progress(batches, f"epoch {self.epoch}/{trainer.cfg.SOLVER.EPOCHS}", total, self.steps)
        waiting = time.perf_counter()
        for batch in bar:
            inputs = {**inputs_of(batch, trainer.device), "epoch": self.epoch}
            self.meters.data_seconds += time.perf_counter() - waiting
            self._step(inputs)
            if self.steps % READ_EVERY == 0 or self.steps == total:
                bar.set_postfix(self._read(self.meters.postfix), refresh=False)
            self.seconds = before + time.perf_counter() - started
            if self.steps < total:
                self._after_step()
            waiting = time.perf_counter()
        self.made = self._own()  # should a signal come in the evaluation, the pass ended like this
        self.meters.add_up()
        summary = self._summary()
        self.check()
        trainer.signals.check()
        return summary

    def _batches(self):
        """The batches from the first missing step on. A loader that cannot start there draws and drops the others."""
        loader, done = self.trainer.train_loader, self.steps
        if hasattr(loader, "batches_from"):
            batches = loader.batches_from(done)
        else:
            batches = iter(loader)
            for _ in range(done):
                next(batches, None)
        if self.random == FRESH:
            seed_all(stream(self.trainer.cfg.EXPERIMENT.SEED, "step", self.epoch, distributed.rank(), done))
        elif self.random:
            restore(self.random, self.trainer.device)
        return batches

    def _step(self, inputs):
        step, trainer = self.trainer.step, self.trainer
        logits, losses = step(inputs)
        trainer.facts.setdefault("classes", logits.shape[1])
        if losses is None:
            self.meters.skip()
            say(f"epoch {self.epoch}: step {self.steps} left out, {step.skipped.reason}")
            return
        finite = None if step.scaler else all_finite(gradients(step.parameters()))  # `overflows_always` asks a scaler
        self.meters.add(losses, logits.detach(), inputs["target"], finite)

    def _after_step(self):
        """A state inside the epoch when it is due, the end of the run when a signal asked for it."""
        trainer = self.trainer
        by_steps, minutes = trainer.cfg.LOG.CHECKPOINT_STEPS, trainer.cfg.LOG.CHECKPOINT_MINUTES
        late = minutes and time.monotonic() - trainer.saved_at >= 60 * minutes
        if trainer.signals.check(late) or (by_steps and self.steps % by_steps == 0):
            run_state.save_inside(trainer)

    # ---- bad numbers ----

    def _summary(self):
        if not self.meters.images:
            raise PluginError(
                f"Training stopped in epoch {self.epoch}: all {self.steps} steps were left out (SOLVER.NONFINITE "
                "skip); expected finite losses and gradients. Look at the data, or lower SOLVER.LR."
            )
        return self._read(self.meters.summary)

    def check(self):
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
        good = run_state.last_good(self.trainer)
        raise PluginError(
            f"Training stopped in epoch {self.epoch}: {what}; expected finite numbers. In "
            f"{self.trainer.folder} {good}. Lower SOLVER.LR or the weight of that part, or set "
            "SOLVER.NONFINITE skip where it is a rare batch."
        )
