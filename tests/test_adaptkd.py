"""ADAPTKD: KD at its first step and at rate 0, who is moved by which, BN modes, and what the teacher is afterwards."""

import pytest
import torch
from runs import log_of, tiny_loader, without_bn
from small_runs import refused, train
from tiny import TinyNet, batch
from tiny_stages import TinyStages
from torch import nn

import atsc_plugin
from atsc_plugin.__main__ import main
from atsc_plugin.engine import checkpoint
from atsc_plugin.engine.step import Step
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.errors import ConfigError, ModelRefused
from atsc_plugin.host import CFG, cifar_model_dict, distiller_dict
from atsc_plugin.methods.adaptkd import ADAPTKD
from atsc_plugin.methods.averkd import AverKD
from atsc_plugin.networks.deployed import deployed_of, tensors_of

MODULES = ("logit_adapter", "fc", "last_stage_lora", "all")
EVAL = MODULES[:3]  # their teachers stay in eval mode
KEYS = ["ADAPTKD.MODULE", "logit_adapter", "ADAPTKD.BOTTLENECK", 5, "ADAPTKD.RANK", 2]
LAST_STAGE = "stages.1.0.weight"  # of TinyStages(width=4): 8 x 4 x 3 x 3


@pytest.fixture
def cfg(tmp_path):
    atsc_plugin.register()
    cfg = CFG.clone()
    cfg.merge_from_list(["DISTILLER.TYPE", "ADAPTKD", "DISTILLER.TEACHER", "tiny", "DISTILLER.STUDENT", "small"])
    cfg.merge_from_list(["LOG.PREFIX", str(tmp_path), "EXPERIMENT.NAME", "run", "SOLVER.LR", 0.05])
    cfg.merge_from_list(["SOLVER.TRAINER", "plugin", *KEYS])
    return cfg


def tiny(cfg, module, *overrides, kind=ADAPTKD, plain=False):
    """The distiller of such a configuration after `start`, its networks the same every time."""
    cfg.merge_from_list(["ADAPTKD.MODULE", module, *overrides])
    torch.manual_seed(0)
    networks = [TinyStages(width=2), TinyStages()]
    if plain:
        networks = [without_bn(network) for network in networks]
    distiller = kind(*networks, cfg)
    if kind is ADAPTKD:
        distiller.begin()
    return distiller


def losses_of(distiller):
    images, target = batch()
    return distiller.train()(image=images.to(distiller.student.fc.weight.dtype), target=target)[1]


def reached(distiller, loss):
    """Names of the parameters that a loss gives a gradient to."""
    distiller.zero_grad(set_to_none=True)
    loss.backward(retain_graph=True)
    return {name for name, p in distiller.named_parameters() if p.grad is not None}


def of(distiller, part):
    return {name for name, _ in distiller.named_parameters() if name.startswith(part)}


def steps(distiller, cfg, count=3):
    """`count` steps of our engine on different batches; it moves all that it should."""
    step = Step(distiller.train(), cfg)
    distiller.driven = True
    for number in range(count):
        images, target = batch(seed=number)
        step({"image": images, "target": target})
    return distiller


# ---- KD ----


@pytest.mark.parametrize("module", EVAL)
def test_before_anything_is_learnt_the_students_losses_are_kds_to_the_bit(cfg, module):
    frozen, learning = (losses_of(tiny(cfg, each)) for each in ("none", module))
    assert frozen.keys() == {"loss_ce", "loss_kd"}
    assert all(torch.equal(learning[name], term) for name, term in frozen.items())


def test_frozen_it_is_averkd_of_one_teacher_to_the_bit_and_the_hosts_kd_to_rounding(cfg):
    own = losses_of(tiny(cfg, "none"))
    cfg.merge_from_list(["AVERKD.LOSS.CE_WEIGHT", 0.1, "AVERKD.LOSS.KD_WEIGHT", 0.9])
    assert all(torch.equal(own[name], term) for name, term in losses_of(tiny(cfg, "none", kind=AverKD)).items())
    own, host = (losses_of(tiny(cfg, "none", kind=kind).double()) for kind in (ADAPTKD, distiller_dict["KD"]))
    assert {name: term.item() for name, term in own.items()} == pytest.approx(
        {name: term.item() for name, term in host.items()}, rel=1e-12
    )


@pytest.mark.parametrize("module", MODULES)
def test_at_rate_0_it_stays_kd_for_ever(cfg, module):
    frozen, still = (
        steps(tiny(cfg, each, "ADAPTKD.TEACHER.LR_SCALE", 0.0), cfg).state_dict() for each in ("none", module)
    )
    assert frozen.keys() == still.keys()
    assert all(torch.equal(still[name], tensor) for name, tensor in frozen.items())


def test_a_whole_teacher_uses_batch_statistics_and_else_begins_as_kd(cfg):
    frozen, learning = (losses_of(tiny(cfg, each)) for each in ("none", "all"))
    assert not torch.equal(learning["loss_kd"], frozen["loss_kd"])
    frozen, learning = (losses_of(tiny(cfg, each, plain=True)) for each in ("none", "all"))
    assert all(torch.equal(learning[name], term) for name, term in frozen.items())


# ---- the formulas ----


def test_the_four_losses_are_the_formulas_with_their_weights(cfg):
    weights = ["ADAPTKD.LOSS.CE_WEIGHT", 2.0, "ADAPTKD.LOSS.KD_WEIGHT", 3.0, "ADAPTKD.TEACHER.CE_WEIGHT", 5.0]
    distiller = tiny(cfg, "fc", *weights, "ADAPTKD.TEACHER.KD_WEIGHT", 7.0, "ADAPTKD.TEMPERATURE", 2.0).train()
    images, target = batch()
    logits, losses = distiller(image=images, target=target)
    with torch.no_grad():
        own, wanted = distiller.student(images)[0], distiller.teacher(images)[0]
    torch.testing.assert_close(logits, own)
    p_s, p_t = (torch.softmax(each / 2, 1) for each in (own, wanted))
    rows = torch.arange(6)
    by_hand = {
        "loss_ce": -2 * torch.log_softmax(own, 1)[rows, target].mean(),
        "loss_kd": 3 * 4 * (p_t * (p_t / p_s).log()).sum() / 6,
        "loss_teacher_ce": -5 * torch.log_softmax(wanted, 1)[rows, target].mean(),
        "loss_teacher_kd": 7 * 4 * (p_s * (p_s / p_t).log()).sum() / 6,
    }
    assert {name: term.item() for name, term in losses.items()} == pytest.approx(
        {name: term.item() for name, term in by_hand.items()}, rel=1e-4
    )


def test_the_adapter_adds_an_mlp_of_the_classifiers_input_to_the_logits(cfg):
    distiller = steps(tiny(cfg, "logit_adapter"), cfg).eval()
    images, (first, _, second) = batch()[0], distiller.adapter.layers
    logits, feats = distiller.teacher(images)
    hidden = (feats["pooled_feat"] @ first.weight.T + first.bias).clamp(min=0)
    by_hand = logits + hidden @ second.weight.T + second.bias
    torch.testing.assert_close(distiller.teacher_logits(images), by_hand)
    assert not torch.equal(by_hand, logits)


def test_the_last_stages_kernels_get_a_low_rank_term_which_the_teacher_carries(cfg):
    before = tiny(cfg, "last_stage_lora").teacher.get_parameter(LAST_STAGE).detach().clone()
    distiller = steps(tiny(cfg, "last_stage_lora"), cfg)
    assert distiller.adapter.names == [LAST_STAGE]
    (up,), (down,) = distiller.adapter.up, distiller.adapter.down
    kernel = distiller.teacher.get_parameter(LAST_STAGE)
    torch.testing.assert_close(kernel, before + (up @ down).view(8, 4, 3, 3))
    assert torch.linalg.matrix_rank((kernel - before).flatten(1), atol=1e-6) == 2
    images = batch()[0]
    torch.testing.assert_close(distiller.teacher_logits(images), distiller.eval().teacher(images)[0])


@pytest.mark.parametrize(
    ("module", "count"),
    [
        ("none", 0),
        ("logit_adapter", 5 * (8 + 10 + 1) + 10),
        ("fc", 8 * 10 + 10),
        ("last_stage_lora", 2 * (8 + 4 * 9)),
        ("all", 3 * 3 * 9 + 6 + 3 * 4 * 9 + 8 + 4 * 8 * 9 + 16 + 8 * 10 + 10),
    ],
)
def test_what_learns_has_this_many_parameters(cfg, module, count):
    assert tiny(cfg, module).get_extra_parameters() == count


def test_the_last_stage_of_a_resnet_is_its_layer3(cfg):
    networks = [cifar_model_dict[name][0](num_classes=100) for name in ("resnet8", "resnet20")]
    cfg.merge_from_list(["ADAPTKD.MODULE", "last_stage_lora"])
    distiller = ADAPTKD(*networks, cfg)
    convolutions = [
        f"{name}.weight"
        for name, layer in networks[1].layer3.named_modules(prefix="layer3")
        if isinstance(layer, nn.Conv2d)
    ]
    assert distiller.adapter.names == convolutions and len(convolutions) == 7  # 3 blocks of 2, and a shortcut


# ---- who is moved by what ----


@pytest.mark.parametrize("module", MODULES)
def test_each_side_is_reached_by_its_own_losses_alone(cfg, module):
    distiller = tiny(cfg, module)
    losses = losses_of(distiller)
    teacher = {"fc": "teacher.fc", "all": "teacher."}.get(module, "adapter.")
    for name, loss in losses.items():
        assert reached(distiller, loss) == of(distiller, teacher if "teacher" in name else "student."), name


@pytest.mark.parametrize("module", MODULES)
def test_no_graph_is_kept_below_what_learns(cfg, module):
    distiller = tiny(cfg, module).train()
    seen = []
    distiller.teacher.stages[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    losses_of(distiller)
    assert seen[0].requires_grad == (module == "all")


@pytest.mark.parametrize("module", MODULES)
def test_which_of_the_teachers_numbers_a_step_moves(cfg, module):
    distiller = tiny(cfg, module)
    before = {name: tensor.clone() for name, tensor in distiller.teacher.state_dict().items()}
    steps(distiller, cfg, 2)  # the first moves B alone, which is zero before it
    moved = {name for name, tensor in distiller.teacher.state_dict().items() if not torch.equal(tensor, before[name])}
    wanted = {"logit_adapter": set(), "fc": {"fc.weight", "fc.bias"}, "last_stage_lora": {LAST_STAGE}}
    assert moved == wanted.get(module, set(before))
    assert any(layer.training for layer in distiller.teacher.modules()) == (module == "all")


def test_its_rate_is_a_tenth_of_the_students(cfg):
    student, adapter = tiny(cfg, "logit_adapter").param_groups(cfg)
    assert "lr_scale" not in student and adapter["lr_scale"] == 0.1


@pytest.mark.parametrize("module", MODULES)
def test_without_its_cross_entropy_the_teacher_moves_onto_the_student(cfg, module):
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    distiller = tiny(cfg, module, "ADAPTKD.TEACHER.CE_WEIGHT", 0.0, "ADAPTKD.TEACHER.KD_WEIGHT", 0.1).double()
    optimizer = torch.optim.SGD(distiller.adapted_parameters(), lr=0.05)
    distances = []
    for _ in range(8):
        distance = losses_of(distiller)["loss_teacher_kd"]
        optimizer.zero_grad()
        distance.backward()
        optimizer.step()
        distances.append(distance.item())
    assert distances == sorted(distances, reverse=True) and distances[-1] < distances[0]


# ---- the run ----


@pytest.mark.parametrize("module", ["none", *MODULES])
def test_a_run_resumes_bit_for_bit_and_measures_what_learnt(cfg, tmp_path, module):
    def trainer(folder, epochs):
        cfg.SOLVER.EPOCHS = epochs
        loaders = tiny_loader(seed=5), tiny_loader(start=1)
        return PluginTrainer("run", tiny(cfg, module), *loaders, cfg, folder=tmp_path / folder)

    whole = trainer("whole", 2)
    result = whole.train()
    trainer("parts", 1).fit()
    resumed = trainer("parts", 2)
    with torch.no_grad():
        next(resumed.distiller.teacher.parameters()).zero_()
        resumed.distiller.teacher.get_parameter(LAST_STAGE).zero_()
    resumed.train(resume=True)
    for name, tensor in whole.distiller.state_dict().items():
        assert torch.equal(tensor, resumed.distiller.state_dict()[name]), name
    moved = {network["name"]: network for network in result["networks"] if network["moved"]}
    names = {"none": [], "logit_adapter": ["adapter"]}.get(module, ["teacher"])
    assert list(moved) == names
    for name in names:
        assert log_of(whole.folder)[-1][f"{name}_top1"] == moved[name]["top1_after"]
    assert result["params_deployed"] == result["params_student"]
    if names == ["teacher"]:  # its own weights, the low-rank terms among them
        assert main(["adapted", str(whole.folder), "--out", str(tmp_path / "adapted.pth")]) == 0
        left, teacher = checkpoint.load(tmp_path / "adapted.pth")["model"], whole.distiller.teacher.state_dict()
        assert left.keys() == teacher.keys()
        assert all(torch.equal(left[name], tensor) for name, tensor in teacher.items())


@pytest.mark.parametrize("module", MODULES)
def test_the_student_leaves_alone(cfg, module):
    distiller = steps(tiny(cfg, module), cfg).eval()
    deployed, images = deployed_of(distiller), batch()[0]
    assert tensors_of(deployed).keys() == {f"backbone.{name}" for name in distiller.student.state_dict()}
    assert torch.equal(deployed(images), distiller.student(images)[0])


# ---- refusals ----


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        ([], "LR_SCALE 0.1 wants a second rate"),
        (["ADAPTKD.MODULE", "last_stage_lora", "ADAPTKD.TEACHER.LR_SCALE", 1.0], "puts the sums into the teacher"),
        (["ADAPTKD.TEACHER.LR_SCALE", 1.0], None),
        (["ADAPTKD.MODULE", "none"], None),
    ],
)
def test_a_hosts_trainer_is_refused_by_name_where_it_does_not_do(cfg, overrides, why):
    cfg.merge_from_list(["SOLVER.TRAINER", "base", *overrides])
    if why is None:
        assert ADAPTKD(TinyStages(width=2), TinyStages(), cfg)
        return
    with pytest.raises(ConfigError, match=f"{why}.*Use SOLVER.TRAINER plugin"):
        ADAPTKD(TinyStages(width=2), TinyStages(), cfg)


def test_networks_that_do_not_fit_are_refused_by_name(cfg, here, capsys):
    cfg.merge_from_list(["ADAPTKD.MODULE", "last_stage_lora"])
    with pytest.raises(ModelRefused, match="teacher tiny has a single map in feats"):
        ADAPTKD(TinyNet(), TinyNet(), cfg)
    with pytest.raises(ModelRefused, match="student small has 10 classes, teacher tiny 7"):
        ADAPTKD(TinyStages(), TinyStages(7), cfg)
    refused(capsys, train("adaptkd", "ADAPTKD.MODULE", "lora"), "ADAPTKD.MODULE: got 'lora', expected one of none")
