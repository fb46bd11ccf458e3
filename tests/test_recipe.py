"""Today's recipe: AdamW, cosine, warm-up, the average of the weights, no decay of norms."""

from types import SimpleNamespace

import pytest
import torch
from every_method import NAMES, Loaders, distiller_of, network
from every_method import config as config_of
from runs import MODERN, config, latest_of, log_of, tiny_loader, trainer_of
from runs import Before as BeforeStep
from safetensors.torch import load_file
from tiny import TinyNet, batch
from torch import nn
from torch.optim import lr_scheduler

from atsc_plugin import host, students, teachers
from atsc_plugin.commands import earlier_run
from atsc_plugin.config import load_cfg
from atsc_plugin.engine import checkpoint, precision
from atsc_plugin.engine.evaluate import evaluate
from atsc_plugin.engine.layouts import state_of_network
from atsc_plugin.engine.optim import learning_rate, set_learning_rate, without_decay
from atsc_plugin.engine.step import Step
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.errors import ConfigError, PluginError
from atsc_plugin.host import distiller_dict
from atsc_plugin.networks.deployed import tensors_of
from atsc_plugin.registration import register

CPU = torch.device("cpu")
KD = "configs/quickstart/kd.yaml"


@pytest.fixture(autouse=True, scope="module")
def tiny():
    register()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(host.cifar_model_dict, "tiny", (network, None))
        yield


def vanilla_step(folder, *keys):
    """The step of a tiny network that learns alone, and its inputs."""
    cfg = config(folder, "DISTILLER.TYPE", "NONE", *keys)
    torch.manual_seed(0)
    step = Step(distiller_dict["NONE"](TinyNet()).train(), cfg)
    image, target = batch()
    return step, {"image": image, "target": target, "epoch": 1}


# ---- the rate ----


def torchs_scheduler(cfg, optimizer, steps):
    """torch's own, advanced once a step."""
    solver, warmup = cfg.SOLVER, cfg.SOLVER.WARMUP_EPOCHS * steps
    rising = lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup) if warmup else None
    if solver.SCHEDULE == "steps":
        stages = [stage * steps for stage in solver.LR_DECAY_STAGES]
        falling = lr_scheduler.MultiStepLR(optimizer, stages, solver.LR_DECAY_RATE)
        return lr_scheduler.ChainedScheduler([rising, falling]) if rising else falling
    falling = lr_scheduler.CosineAnnealingLR(optimizer, solver.EPOCHS * steps - warmup, solver.MIN_LR)
    return lr_scheduler.SequentialLR(optimizer, [rising, falling], [warmup]) if rising else falling


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")
@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize("schedule", ["steps", "cosine"])
@pytest.mark.parametrize("steps", [1, 13])
def test_the_rate_of_every_step_is_that_of_torchs_schedulers(tmp_path, schedule, warmup, steps):
    cfg = config(tmp_path, "SOLVER.EPOCHS", 20, "SOLVER.LR", 0.3, "SOLVER.SCHEDULE", schedule)
    cfg.merge_from_list(["SOLVER.WARMUP_EPOCHS", warmup, "SOLVER.LR_DECAY_STAGES", [3, 9, 15]])
    cfg.SOLVER.MIN_LR = 1e-3 if schedule == "cosine" else 0.0
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.LR)
    scheduler, rates = torchs_scheduler(cfg, optimizer, steps), []
    for epoch in range(1, 21):
        for step in range(steps):
            rates.append(learning_rate(cfg, epoch, step, steps))
            assert rates[-1] == pytest.approx(optimizer.param_groups[0]["lr"], rel=0, abs=1e-12)
            scheduler.step()
    assert (len(set(rates)) == 4) == (schedule == "steps" and not warmup)  # it moves by the step in all other cases


def test_a_run_makes_its_steps_at_those_rates_and_logs_the_last_of_each_epoch(tmp_path):
    """3 epochs of 3 steps; warm-up of one: 1/4, 2/4, 3/4, then the cosine's 6 steps; the teacher at half of it."""
    cfg = config(tmp_path, "SOLVER.LR", 0.08, "SOLVER.SCHEDULE", "cosine", "SOLVER.WARMUP_EPOCHS", 1)
    cfg.merge_from_list(["SOLVER.MIN_LR", 0.02, "ATSC.TEACHER.LR_SCALE", 0.5])
    trainer, seen = trainer_of(cfg, tmp_path / "run"), []
    groups = trainer.step.optimizer.param_groups
    trainer.step = BeforeStep(trainer.step, lambda number: seen.append([group["lr"] for group in groups]))
    trainer.fit()
    cosines = [1, 0.9330127018922193, 0.75, 0.5, 0.25, 0.0669872981077807]  # (1 + cos(pi t / 6)) / 2
    wanted = [0.02, 0.04, 0.06, *(0.02 + 0.06 * height for height in cosines)]
    assert [rate for rate, _ in seen] == pytest.approx(wanted, rel=1e-12)
    assert [half for _, half in seen] == pytest.approx([rate / 2 for rate in wanted], rel=1e-12)
    assert [line["lr"] for line in log_of(trainer.folder)] == pytest.approx(wanted[2::3], rel=1e-12)


def test_the_released_second_step_has_the_firsts_rate_and_the_average_comes_after_it(tmp_path):
    cfg = config(tmp_path, "SOLVER.SCHEDULE", "cosine", "SOLVER.EMA", 0.5)
    step, (image, target) = trainer_of(cfg, tmp_path / "run", "published").step, batch()
    step.method.begin()
    step.distiller.train()
    set_learning_rate(step.optimizer, 0.0123)
    before = step.distiller.teacher.fc.bias.detach().clone()
    step({"image": image, "target": target, "epoch": 1})
    assert step.second_optimizer.param_groups[0]["lr"] == 0.0123
    after = step.distiller.teacher.fc.bias
    assert not torch.equal(after, before)
    assert torch.allclose(step.average.classifier.bias, (before + after) / 2, atol=1e-7)


# ---- the optimizer ----


def test_adamw_makes_the_steps_of_torchs_plain_one(tmp_path):
    step, inputs = vanilla_step(tmp_path, "SOLVER.TYPE", "AdamW", "SOLVER.LR", 0.01, "SOLVER.WEIGHT_DECAY", 0.1)
    other, _ = vanilla_step(tmp_path)
    plain = torch.optim.AdamW(other.distiller.parameters(), lr=0.01, weight_decay=0.1, fused=False)
    for _ in range(4):
        step(inputs)
        plain.zero_grad()
        sum(other.distiller(**inputs)[1].values()).backward()
        plain.step()
    for one, two in zip(step.distiller.parameters(), other.distiller.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


def test_norms_and_biases_have_no_decay_and_each_group_keeps_its_rate(tmp_path):
    trainer = trainer_of(config(tmp_path, "SOLVER.NO_DECAY", "norms", "ATSC.TEACHER.LR_SCALE", 0.5), tmp_path / "run")
    names = {id(p): name for name, p in trainer.distiller.named_parameters()}
    found = [
        ({names[id(p)] for p in group["params"]}, group["weight_decay"], group.get("lr_scale", 1.0))
        for group in trainer.step.optimizer.param_groups
    ]
    convolutions = {"student.conv.weight", "projector.0.weight", "projector.3.weight", "projector.6.weight"}
    decay = trainer.cfg.SOLVER.WEIGHT_DECAY
    assert found[0] == (convolutions, decay, 1.0)
    assert found[1][0] >= {"student.bn.weight", "student.bn.bias"} and found[1][1:] == (0.0, 1.0)
    assert found[2] == ({"teacher.conv.weight", "teacher.fc.weight"}, decay, 0.5)
    assert found[3] == ({"teacher.bn.weight", "teacher.bn.bias", "teacher.fc.bias"}, 0.0, 0.5)
    assert sum(len(group[0]) for group in found) == len(trainer.distiller.get_learnable_parameters())


def test_norms_over_more_dimensions_and_wide_biases_have_no_decay_either():
    network = nn.Sequential(nn.LayerNorm((2, 3)), nn.Linear(3, 3), nn.GroupNorm(1, 3))
    network.position = nn.Parameter(torch.zeros(1, 2, 3))
    network.relative_bias = nn.Parameter(torch.zeros(2, 3))
    names = {id(p): name for name, p in network.named_parameters()}
    decayed, spared = without_decay(list(network.parameters()), network)
    assert {names[id(p)] for p in decayed["params"]} == {"position", "1.weight"}
    assert spared["weight_decay"] == 0 and len(spared["params"]) == 6
    (only,) = without_decay([{"params": [network.position], "lr_scale": 2.0}], network)
    assert only == {"params": [network.position], "lr_scale": 2.0}


def test_a_step_that_is_left_out_moves_nothing_of_adamw_and_of_the_average(tmp_path):
    step, inputs = vanilla_step(tmp_path, *MODERN, "SOLVER.NONFINITE", "skip")
    step(inputs)
    before = checkpoint.digest(step.state())
    assert step({**inputs, "image": inputs["image"] * float("nan")})[1] is None
    assert checkpoint.digest(step.state()) == before
    step(inputs)
    assert checkpoint.digest(step.state()) != before


def test_fp16s_overflow_in_the_first_step_leaves_adamw_where_it_was(tmp_path):
    step, inputs = vanilla_step(tmp_path, *MODERN)
    step.precision = precision.Precision(CPU, None, torch.amp.GradScaler("cpu"))
    classifier = step.distiller.student.fc
    overflow = classifier.bias.register_hook(lambda gradient: gradient * float("inf"))
    before = checkpoint.digest(classifier.state_dict())
    step(inputs)
    assert checkpoint.digest(classifier.state_dict()) == before
    state = step.optimizer.state[classifier.weight]
    assert state["step"] == 0 and not state["exp_avg"].any()
    overflow.remove()
    step(inputs)
    assert state["step"] == 1 and checkpoint.digest(classifier.state_dict()) != before


def test_a_paused_teacher_rests_under_adamw_too(tmp_path):
    cfg = config_of("SWITOKD", tmp_path, *MODERN)
    step = Step(distiller_of(cfg).train(), cfg)
    image, target = batch()
    inputs = {"image": image, "target": target, "epoch": 1}
    step(inputs)
    teacher = list(step.distiller.teacher.parameters())

    def state():
        return checkpoint.digest([[p.detach(), dict(step.optimizer.state[p])] for p in teacher])

    before, step.distiller.pauses = state(), lambda *_: True
    step(inputs)
    assert state() == before
    step.distiller.pauses = lambda *_: False
    step(inputs)
    assert state() != before


# ---- the average ----


def test_the_average_follows_weights_and_bn_statistics_by_its_decay_and_copies_counts(tmp_path):
    step, inputs = vanilla_step(tmp_path, "SOLVER.EMA", 0.75)
    average = {name: tensor.clone() for name, tensor in step.average.state_dict().items()}
    for _ in range(3):
        step(inputs)
        for name, now in step.distiller.student.state_dict().items():
            mine = average[f"backbone.{name}"]
            average[f"backbone.{name}"] = 0.75 * mine + 0.25 * now if now.is_floating_point() else now.clone()
    assert average["backbone.bn.num_batches_tracked"] == 3
    for name, tensor in step.average.state_dict().items():
        assert torch.allclose(tensor, average[name], atol=1e-6), name
    assert not torch.allclose(step.average.backbone.bn.running_mean, step.distiller.student.bn.running_mean, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_what_every_method_deploys_has_an_average_that_follows_it(tmp_path, name):
    cfg = config_of(name, tmp_path, *MODERN)
    distiller = distiller_of(cfg)
    step = Step(distiller, cfg)
    step.method.driven = True
    step.method.begin(Loaders())
    step.start_average()
    step.method.before_epoch(1)
    distiller.train()
    own = {id(tensor) for tensor in [*distiller.parameters(), *distiller.buffers()]}
    assert {id(tensor) for tensor in [*step.deployed.parameters(), *step.deployed.buffers()]} <= own
    before = {name: tensor.clone() for name, tensor in step.deployed.state_dict().items()}
    image, target = batch(8)
    step({"image": image, "target": target, "epoch": 1, "index": torch.arange(8)})
    now, average = step.deployed.state_dict(), step.average.state_dict()
    assert any(not torch.equal(now[name], before[name]) for name in now)
    for key, tensor in average.items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, before[key].lerp(now[key], 1 - cfg.SOLVER.EMA)), key
    distiller.eval()
    raw = distiller(image=image)
    with step.averaged():
        averaged = distiller(image=image)
    assert torch.equal(averaged, step.average.eval()(image)) and not torch.equal(averaged, raw)
    assert torch.equal(distiller(image=image), raw)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of an ATSC whose teacher learns, with an average, and the same without."""
    runs = []
    for decay in (0.9, 0.0):
        top = tmp_path_factory.mktemp("finished")
        cfg = config(top, *MODERN, "SOLVER.EMA", decay)
        torch.manual_seed(1)
        distiller, loaders = atsc(cfg), (tiny_loader(seed=5), tiny_loader(start=1))
        trainer = PluginTrainer("run", distiller, *loaders, cfg, test_loader=tiny_loader(start=2), folder=top / "run")
        runs.append((trainer, trainer.train()))
    return runs


def atsc(cfg, data=None):
    return distiller_dict["ATSC"](TinyNet(width=4), TinyNet(width=6), cfg)


def test_an_average_leaves_the_numbers_of_training_as_they_are(finished):
    (with_average, _), (without, _) = finished
    for name, tensor in without.distiller.state_dict().items():
        assert torch.equal(tensor, with_average.distiller.state_dict()[name]), name
    kept = ("train_top1", "loss_feat", "loss_teacher_ce", "teacher_top1", "feature_scale", "lr")
    lines = [[{name: line[name] for name in kept} for line in log_of(trainer.folder)] for trainer, _ in finished]
    assert lines[0] == lines[1]
    raw, plain = ([line[name] for line in log_of(trainer.folder)]
                  for (trainer, _), name in zip(finished, ("raw_top1", "top1"), strict=True))  # fmt: skip
    assert raw == plain
    assert "raw_top1" not in log_of(without.folder)[0]


def test_every_file_holds_the_average_and_latest_both(finished):
    trainer, folder = finished[0][0], finished[0][0].folder
    average = trainer.step.average.state_dict()
    deployed = checkpoint.load_tensors(folder / "deploy_last.safetensors")
    assert deployed.keys() == tensors_of(trainer.step.average).keys()
    assert all(torch.equal(tensor, average[name]) for name, tensor in deployed.items())
    student = checkpoint.load(folder / "student_latest")["model"]
    assert all(torch.equal(tensor, average[f"backbone.{name}"]) for name, tensor in student.items())
    raw = latest_of(folder)["model"]
    assert torch.equal(raw["student.conv.weight"], trainer.distiller.student.conv.weight)
    assert not torch.equal(raw["student.conv.weight"], student["conv.weight"])
    best = checkpoint.load(folder / "best")["model"]
    of_best = checkpoint.load_tensors(folder / "deploy_best.safetensors")
    assert torch.equal(best["student.conv.weight"], of_best["backbone.conv.weight"])
    assert torch.equal(best["teacher.fc.weight"], of_best["classifier.weight"])
    assert torch.equal(checkpoint.load(folder / "student_best")["model"]["conv.weight"], best["student.conv.weight"])


def test_top1_is_the_averages_in_log_result_and_kept_logits(finished):
    trainer, result = finished[0]
    scores = evaluate(trainer.step.average.eval(), trainer.val_loader, CPU)
    last = log_of(trainer.folder)[-1]
    assert (last["top1"], last["test_loss"]) == (scores["top1"], scores["loss"])
    with torch.no_grad():
        logits = torch.cat([trainer.step.average(images) for images, *_ in tiny_loader(start=2)])
    assert torch.equal(load_file(trainer.folder / "logits_last.safetensors")["logits"], logits.half())
    assert result["nll"] == evaluate(trainer.step.average, tiny_loader(start=2), CPU)["loss"]
    trainer.distiller.load_state_dict(checkpoint.load(trainer.folder / "best")["model"])
    trainer.distiller.eval()
    best = evaluate(lambda image: trainer.distiller(image=image), tiny_loader(start=2), CPU)["top1"]
    assert result["top1_best"] == best
    last = latest_of(trainer.folder)["model"]
    trainer.distiller.load_state_dict(last)  # as the other tests of this run expect it


def test_a_student_opened_from_latest_is_the_average(finished):
    trainer = finished[0][0]
    data = SimpleNamespace(classes=10, image_size=32, name="toy", facts=lambda: {"dataset": "cifar100", "classes": 10})
    module = students.open_student(trainer.folder / "latest", cfg=trainer.cfg, data=data, skeleton=atsc).module
    images, _ = batch()
    with torch.no_grad():
        assert torch.allclose(module(images), trainer.step.average.eval()(images), atol=1e-6)


def test_a_network_loaded_from_latest_is_the_average(tmp_path):
    step, inputs = vanilla_step(tmp_path, "SOLVER.EMA", 0.5)
    step(inputs)
    state = state_of_network({"model": step.distiller.state_dict(), **step.state()}, "latest")
    assert state.keys() == step.distiller.student.state_dict().keys()
    assert torch.equal(state["conv.weight"], step.average.backbone.conv.weight)


# ---- a teacher trained here ----


def test_a_teacher_of_todays_recipe_is_another_file_and_every_other_keeps_its_name(tmp_path):
    cfg = config_of("KD", tmp_path)
    data = SimpleNamespace(identity="toy-24-ab", name="toy")
    plain = teachers.recipe(cfg, data)
    assert set(plain) == {"model", "data", "seed", "epochs", "batch_size", "lr", "lr_decay_stages", "lr_decay_rate",
                          "weight_decay", "momentum"}  # fmt: skip
    cfg.merge_from_list(["SOLVER.EMA", 0.9, "SOLVER.TYPE", "AdamW"])  # the student's own
    assert teachers.recipe(cfg, data) == plain
    cfg.merge_from_list(["TEACHER.TYPE", "AdamW", "TEACHER.WARMUP_EPOCHS", 1])
    assert teachers.recipe(cfg, data) == {**plain, "type": "AdamW", "warmup_epochs": 1}


def test_a_teacher_with_an_average_is_the_average(tmp_path, monkeypatch):
    keys = ["TEACHER.EPOCHS", 1, "TEACHER.LR", 0.01, "TEACHER.TYPE", "AdamW", "TEACHER.EMA", 0.5, "SOLVER.EMA", 0.9]
    cfg = config_of("KD", tmp_path, *keys, "EXPERIMENT.DEVICE", "cpu")
    made = []

    class Watched(PluginTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(teachers, "PluginTrainer", Watched)
    data = SimpleNamespace(train=tiny_loader(seed=1), val=tiny_loader(), test=None, classes=10, image_size=32)
    state = teachers._run(cfg, lambda own: data, tmp_path / "scratch", fine_tune=False)
    step = made[0].step
    assert isinstance(step.optimizer, torch.optim.AdamW) and step.solver.EMA == 0.5
    average = step.average.backbone.state_dict()
    assert all(torch.equal(tensor, average[name]) for name, tensor in state.items())
    assert not torch.equal(state["conv.weight"], step.distiller.student.conv.weight)


# ---- refusals ----


def problems_of(*overrides):
    with pytest.raises(ConfigError) as error:
        load_cfg(KD, overrides)
    return "\n".join(error.value.problems)


def test_what_does_not_go_together_is_told_at_once():
    told = problems_of(
        "SOLVER.EMA", "1", "SOLVER.SCHEDULE", "steps", "SOLVER.MIN_LR", "0.001", "SOLVER.WARMUP_EPOCHS", "6",
        "SOLVER.TYPE", "AdamW", "SOLVER.MOMENTUM", "1", "TEACHER.SCHEDULE", "cosine", "TEACHER.MIN_LR", "1",
        "SOLVER.NO_DECAY", "bias",
    )  # fmt: skip
    for part in (
        "SOLVER.EMA is 1; expected below 1",
        "SOLVER.WARMUP_EPOCHS is 6 and SOLVER.EPOCHS 6, so the rate would never reach SOLVER.LR",
        "SOLVER.MIN_LR is 0.001, where SCHEDULE cosine ends; SOLVER.SCHEDULE is steps. Use cosine, or 0.",
        "SOLVER.MOMENTUM is 1, AdamW's beta 1; expected below 1",
        "TEACHER.MIN_LR is 1; expected at most TEACHER.LR, 0.05",
        "SOLVER.NO_DECAY: got 'bias', expected one of none, norms",
    ):
        assert part in told, told


@pytest.mark.parametrize(
    ("key", "value"),
    [("TYPE", "AdamW"), ("SCHEDULE", "cosine"), ("WARMUP_EPOCHS", "1"), ("EMA", "0.9"), ("NONFINITE", "skip")],
)
def test_a_hosts_trainer_is_told_not_to_read_it(key, value):
    told = problems_of("SOLVER.TRAINER", "base", f"SOLVER.{key}", value)
    assert f"SOLVER.{key} is {value}; SOLVER.TRAINER base does not read it. Use SOLVER.TRAINER plugin, or " in told


def test_a_fork_with_a_cosine_of_its_own_keeps_its_keys_to_itself(monkeypatch):
    """DeepKD's: WARMUP_EPOCHS 20 and MIN_LR 0.00005, which its trainer reads where LR_COS is True."""
    register()
    for key, value in {"LR_COS": False, "WARMUP_EPOCHS": 20, "MIN_LR": 5e-5}.items():
        monkeypatch.setitem(host.CFG.SOLVER, key, value)
    stages = load_cfg(KD)  # 6 epochs
    assert learning_rate(stages, 1, 0, 100) == stages.SOLVER.LR  # no warm-up
    cosine = load_cfg(KD, ["SOLVER.SCHEDULE", "cosine", "SOLVER.EPOCHS", "40"])
    assert learning_rate(cosine, 1, 0, 100) == cosine.SOLVER.LR / 2001
    load_cfg(KD, ["SOLVER.TRAINER", "base", "SOLVER.LR_COS", "True"])
    assert "SOLVER.LR_COS is True, which SOLVER.TRAINER plugin does not read" in problems_of("SOLVER.LR_COS", "True")


def test_methods_that_are_defined_with_sgd_refuse_by_name(tmp_path):
    def refusal(name, *keys):
        with pytest.raises(ConfigError) as error:
            distiller_of(config_of(name, tmp_path, *keys))
        return str(error.value)

    drift = ["ATSC.DRIFT.WEIGHT", 1.0, "SOLVER.TYPE", "AdamW"]
    assert "ATSC.DRIFT.WEIGHT is 1 with SOLVER.TYPE AdamW, which divides" in refusal("ATSC", *drift)
    assert "ATSC.DRIFT.WEIGHT is 1 with SOLVER.TYPE AdamW" in refusal("ATSC_MULTI", *drift)
    published = ["ATSC.UPDATE", "published", "ATSC.DRIFT.WEIGHT", 0.0]
    assert "SOLVER.TYPE is AdamW; the released step is SGD's" in refusal("ATSC", *published, "SOLVER.TYPE", "AdamW")
    assert "SOLVER.NO_DECAY is norms; the released" in refusal("ATSC", *published, "SOLVER.NO_DECAY", "norms")
    best = ["PEERS.DEPLOY", "best", "EXPERIMENT.SELECT_ON", "val", "SOLVER.EMA", 0.9]
    assert "PEERS.DEPLOY best may deploy another student in every epoch" in refusal("PEERS", *best)


def test_a_cosine_run_is_not_continued_to_another_end(tmp_path):
    cfg = config(tmp_path, "SOLVER.SCHEDULE", "cosine")
    (tmp_path / "cfg.yaml").write_text(cfg.dump())
    earlier_run.say_changes(tmp_path, cfg)
    cfg.SOLVER.EPOCHS = 4
    with pytest.raises(PluginError, match="SOLVER.EPOCHS was 3, asked 4"):
        earlier_run.say_changes(tmp_path, cfg)
