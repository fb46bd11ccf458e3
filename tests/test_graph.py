"""The recorded step: when it is used, and that it makes the steps of the trainer that runs them one by one.

No GPU is at hand. A tape stands in for the CUDA graph: it records operations with the numbers and addresses of that
time and plays them again, so that whatever is no tensor and changes between steps would show.
"""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from every_method import NAMES, WAYS, Loaders, distiller_of, network
from every_method import config as config_of
from runs import EMA, MODERN, Before, assert_the_same_run, config, dying, latest_of, log_of, tiny_loader, without_times
from tape import Tape
from tiny import TinyNet, batch

from atsc_plugin import contract, host
from atsc_plugin.contract import HostMethod
from atsc_plugin.engine import graph, optim
from atsc_plugin.engine.precision import Precision
from atsc_plugin.engine.step import Step
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.methods.atsc import ATSC

CPU = torch.device("cpu")
SGD = torch.optim.SGD


@pytest.fixture
def tape(monkeypatch):
    """CPU steps recorded by a tape, and SGD fused as on a GPU: the other kinds read their rate."""
    monkeypatch.setitem(graph.RECORDERS, "cpu", Tape)
    monkeypatch.setattr(torch.optim, "SGD", lambda *args, **kwargs: SGD(*args, **{**kwargs, "fused": True}))
    monkeypatch.setattr(Tape, "recorded", 0)
    monkeypatch.setattr(Tape, "replayed", 0)


def trainer_of(cfg, folder, kind=ATSC):
    """60 images in batches of 8: seven whole ones and one of 4."""
    torch.manual_seed(1)
    distiller = kind(TinyNet(width=4), TinyNet(width=6), cfg)
    return PluginTrainer("run", distiller, tiny_loader(seed=5, count=60), tiny_loader(start=1), cfg, folder=folder)


SETTINGS = {
    "its averaged teacher": EMA,
    "a teacher that warms up at a rate of its own": ["ATSC.TEACHER.WARMUP_EPOCHS", 1, "ATSC.TEACHER.LR_SCALE", 0.5],
    "AdamW, cosine, warm-up and an average": MODERN,
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_recorded_run_with_a_falling_rate_is_the_eager_one_bit_for_bit(tmp_path, tape, settings):
    cfg = config(tmp_path, "SOLVER.EPOCHS", 2, "SOLVER.LR_DECAY_STAGES", [1], *settings)
    recorded = trainer_of(cfg, tmp_path / "recorded")
    recorded.train()
    phases = 2 if "ATSC.TEACHER.WARMUP_EPOCHS" in settings else 1
    # Two epochs of 7 whole batches, of which the first three of each phase warm it up.
    assert (Tape.recorded, Tape.replayed) == (phases, 14 - graph.WARM_UP * phases)
    assert json.loads((recorded.folder / "about.json").read_text())["graph"] == "the whole step"
    cfg.SOLVER.GRAPH = "none"
    eager = trainer_of(cfg, tmp_path / "eager")
    if settings is MODERN:  # AdamW computes with the rate in 64 bits, of which a tensor of a GPU's has 32
        optim.rates_on_device(eager.step.optimizer, CPU)
    eager.train()
    for name, tensor in eager.step.with_average.state_dict().items():
        assert torch.equal(tensor, recorded.step.with_average.state_dict()[name]), name
    assert list(map(without_times, log_of(eager.folder))) == list(map(without_times, log_of(recorded.folder)))
    states = [latest_of(trainer.folder)["optimizer"]["state"] for trainer in (eager, recorded)]
    for number, entry in states[0].items():
        assert all(torch.equal(tensor, states[1][number][name]) for name, tensor in entry.items())


@pytest.mark.parametrize(
    ("first", "keys"),
    [("auto", EMA), ("none", EMA), ("auto", [*MODERN, "SOLVER.SCHEDULE", "steps"])],
    ids=["recorded", "run one by one", "AdamW"],
)
def test_a_recorded_run_resumes_bit_for_bit_wherever_its_first_part_was_left(tmp_path, tape, first, keys):
    cfg = config(tmp_path, "SOLVER.EPOCHS", 3, "SOLVER.LR_DECAY_STAGES", [1, 2], "LOG.CHECKPOINT_STEPS", 5, *keys)
    whole = trainer_of(cfg, tmp_path / "whole")
    whole.train()
    cfg.SOLVER.EPOCHS, cfg.SOLVER.GRAPH = 1, first
    trainer_of(cfg, tmp_path / "run").train()
    cfg.SOLVER.EPOCHS, cfg.SOLVER.GRAPH = 3, "auto"
    dies = trainer_of(cfg, tmp_path / "run")
    dies.recorded = Before(dies.recorded, dying(7))  # in epoch 2, behind the checkpoint of its fifth step
    with pytest.raises(KeyboardInterrupt):
        dies.train(resume=True)
    resumed = trainer_of(cfg, tmp_path / "run")
    resumed.train(resume=True)
    assert_the_same_run(whole, resumed)


# ---- every method ----


@pytest.fixture(autouse=True, scope="module")
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(host.cifar_model_dict, "tiny", (network, None))
        yield


CASES = {name: (name, ()) for name in NAMES} | {f"ATSC {key}": ("ATSC", tuple(way)) for key, way in WAYS.items()}
CASES["micro-batches, clipped"] = "ATSC", ("SOLVER.ACCUMULATE", 2, "SOLVER.CLIP_NORM", 0.5)
CASES["AdamW, micro-batches, clipped"] = "ATSC", (*MODERN, "SOLVER.ACCUMULATE", 2, "SOLVER.CLIP_NORM", 0.5)
CASES["bf16"] = "ATSC", ("SOLVER.AMP", "bf16")


def ready(cfg):
    """The step of a method that has begun."""
    distiller = distiller_of(cfg)
    step = Step(distiller, cfg)
    step.method.driven = True
    step.method.begin(Loaders())
    step.method.before_epoch(1)
    distiller.train()
    return step


@pytest.mark.parametrize(("name", "overrides"), CASES.values(), ids=CASES)
def test_every_method_makes_the_same_steps_recorded_or_is_refused_by_name(tmp_path, tape, name, overrides):
    cfg, loader = config_of(name, tmp_path, *overrides), tiny_loader(seed=5, count=44)  # five whole batches, one of 4
    recorded = ready(cfg)
    reason = graph.refusal(recorded, loader, cfg)
    if "published" in overrides or "ATSC.TEACHER.EVERY" in overrides:
        assert re.fullmatch("ATSC.(UPDATE published makes two|TEACHER.EVERY 2 makes two kinds of) steps .*", reason)
        return
    if name == "SWITOKD":
        assert reason.startswith("SWITOKD pauses its teacher in some steps")
        return
    assert reason == ""
    whole, eager, losses = graph.RecordedStep(recorded, loader), ready(cfg), []
    for drawn in loader.draws_from(0):
        logits, terms, target, finite = whole(drawn, 1)
        assert finite and len(logits) == len(target) == len(drawn[0])
        losses.append(sum(terms.values()).clone())
    loader.set_epoch(0)
    for number, (image, target, index) in enumerate(loader):
        _, terms = eager({"image": image, "target": target, "index": index, "epoch": 1})
        assert torch.allclose(sum(terms.values()), losses[number], atol=1e-6)
    assert Tape.replayed == 5 - graph.WARM_UP
    wanted = eager.distiller.state_dict()
    for key, tensor in recorded.distiller.state_dict().items():
        # The tape keeps maps of one pixel in another layout: the last digits of ReviewKD.
        assert torch.allclose(tensor, wanted[key], rtol=0, atol=1e-6), key


@pytest.mark.parametrize("name", ["DKD", "DKD_MULTI", "REVIEWKD"])
def test_a_weight_that_grows_by_epochs_has_a_recording_for_each_until_it_stands(tmp_path, name):
    cfg = config_of(name, tmp_path, "DKD.WARMUP", 3, "REVIEWKD.WARMUP_EPOCHS", 3)
    method = contract.of(distiller_of(cfg), cfg)
    phases = [method.phase(epoch) for epoch in (1, 2, 3, 4, 5)]
    assert len(set(phases)) == 3 and phases[2] == phases[3] == phases[4]


def test_a_run_that_goes_on_with_an_epochs_last_smaller_batch_is_recorded_in_the_next_epoch(tmp_path, tape):
    loader = tiny_loader(seed=5, count=44)
    whole, sizes = graph.RecordedStep(ready(config_of("KD", tmp_path)), loader), []
    for drawn in [*loader.draws_from(5), *loader.draws_from(0)]:
        sizes.append(len(whole(drawn, 1)[0]))
    assert sizes == [4, 8, 8, 8, 8, 8, 4] and Tape.replayed == 5 - graph.WARM_UP


# ---- when ----


def refused(loader, *pairs, scaler=None):
    cfg = config("nowhere", *pairs)
    step = SimpleNamespace(method=ATSC, device=CPU, precision=Precision(CPU, scaler=scaler))
    return graph.refusal(step, loader, cfg)


def test_a_cpu_records_nothing_of_itself(tmp_path):
    trainer = trainer_of(config(tmp_path, "SOLVER.EPOCHS", 1), tmp_path / "run")
    trainer.train()
    about = json.loads((trainer.folder / "about.json").read_text())
    assert trainer.recorded is None and about["graph"] == "none: a cpu launches no kernels"


def test_what_cannot_be_recorded_is_refused_with_its_reason(tape, monkeypatch):
    images = tiny_loader(seed=5)
    assert refused(images) == ""
    assert refused(images, "SOLVER.GRAPH", "none") == "SOLVER.GRAPH is none"
    assert refused(images, "SOLVER.NONFINITE", "skip") == "SOLVER.NONFINITE skip reads every step's losses"
    assert refused(images, scaler=torch.amp.GradScaler("cpu")) == "fp16's loss scaler leaves steps out"
    assert refused([batch()]).startswith("the training images do not lie on the device")
    with monkeypatch.context() as patch:
        patch.setattr(graph.distributed, "world", lambda: 2)
        assert refused(images) == "several ranks add their gradients up within a step"
    images.batch_size = 513  # of 32 x 32 pixels: one more than is small
    assert refused(images) == "513 images of 32 x 32 pixels keep a GPU busy without it"
    images.batch_size = 512
    assert refused(images) == ""


def test_a_method_of_the_host_that_is_not_known_runs_as_it_is_written(tmp_path):
    cfg = config(tmp_path, "DISTILLER.TYPE", "SP")
    assert HostMethod.needs(cfg) == {contract.EAGER_STEP: "what SP does in a step is not known"}


def test_a_recording_that_fails_ends_in_a_note_and_the_steps_run_one_by_one(tmp_path, tape, capsys):
    class Reads(ATSC):
        def after_step(self):
            assert torch.isfinite(next(self.student.parameters()).sum()).item()

    cfg = config(tmp_path, "SOLVER.EPOCHS", 1)
    trainer = trainer_of(cfg, tmp_path / "reads", Reads)
    trainer.train()
    assert Tape.recorded == 1 and Tape.replayed == 0
    note = "note: no CUDA graph, recording failed (a recorded step read the device); steps run one by one"
    assert capsys.readouterr().out.count(note) == 1
    cfg.SOLVER.GRAPH = "none"
    eager = trainer_of(cfg, tmp_path / "eager")
    eager.train()
    for name, tensor in eager.distiller.state_dict().items():
        assert torch.equal(tensor, trainer.distiller.state_dict()[name]), name


def test_a_loaded_rate_goes_into_the_tensor_that_a_recorded_step_reads():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = SGD([weight], lr=0.5)
    stored = optimizer.state_dict()
    optim.rates_on_device(optimizer, CPU)
    rate = optimizer.param_groups[0]["lr"]
    rate.fill_(0.25)
    optim.load_optimizer(optimizer, stored)
    assert optimizer.param_groups[0]["lr"] is rate and rate.item() == 0.5
    optim.set_learning_rate(optimizer, 0.125)
    assert rate.item() == 0.125
    plain = SGD([weight], lr=1.0)  # and back: a checkpoint of a recorded run in one that is not
    optim.load_optimizer(plain, optimizer.state_dict())
    assert plain.param_groups[0]["lr"] == 0.125 and isinstance(plain.param_groups[0]["lr"], float)
