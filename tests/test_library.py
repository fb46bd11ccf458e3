"""atsc_plugin.distiller: any method around any networks in a loop of somebody's own, and what it refuses."""

import copy
import pickle
import re
import warnings
from pathlib import Path

import pytest
import torch
from every_method import NAMES
from runs import without_bn
from tiny import TinyNet, batch
from tiny_stages import TinyStages
from torch import nn
from torch.utils.checkpoint import checkpoint
from yacs.config import CfgNode

import atsc_plugin
from atsc_plugin import contract, host, library, losses
from atsc_plugin.errors import ConfigError, ModelRefused, PluginError
from atsc_plugin.methods.base import class_of
from atsc_plugin.methods.host_methods import CRD

PAGE = Path(__file__).resolve().parents[1] / "docs" / "library.md"
EMA = {"teacher_learns": "task", "teacher_ema": 0.9}
TEACHERS = {contract.NONE: 0, contract.ONE: 1, contract.SEVERAL: 2}
ONE_FOR_BOTH = TinyNet()


class Plain(nn.Sequential):
    """A network that knows no maps, as anybody would write it; a norm stands between its map's mean and its logits."""

    def __init__(self, num_classes=10, width=4):
        conv = nn.Conv2d(3, width, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        super().__init__(*conv, nn.LayerNorm(width), nn.Linear(width, num_classes))


def made(method="ATSC", student=None, teacher=None, image_size=32, **options):
    torch.manual_seed(0)
    networks = student or TinyNet(), teacher or TinyNet(width=6)
    return atsc_plugin.distiller(*networks, method, image_size=image_size, **options)


def stepped(d, *batches, epoch=1, lr=0.05, optimizer=None):
    """The optimizer after a step on each batch."""
    optimizer = optimizer or torch.optim.SGD(d.param_groups(lr), momentum=0.9, weight_decay=1e-4)
    for x, y in batches:
        optimizer.zero_grad()
        d(x, y, epoch=epoch).loss.backward()
        optimizer.step()
        d.after_step()
    return optimizer


def assert_equal_states(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def test_heads_that_dih_trains_leave_the_loops_random_stream_where_it_was():
    torch.manual_seed(5)  # DIH's own is 1
    networks = TinyStages(width=4), TinyStages(width=4)
    atsc_plugin.distiller(*networks, "DIH", image_size=32, loader=[batch()], heads_epochs=1)
    assert torch.initial_seed() == 5


@pytest.mark.parametrize("method", ["DML", "BDKD", "SWITOKD", "PEERS", "AVERKD", "DKD_MULTI", "ADAPTKD"])
def test_a_method_of_logits_alone_takes_networks_without_maps(method):
    def mlp(width):
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, width), nn.ReLU(), nn.Linear(width, 10))

    several = class_of(method).TEACHERS == contract.SEVERAL
    torch.manual_seed(0)
    teacher = mlp(6)
    options = {"module": "all"} if method == "ADAPTKD" else {}
    d = atsc_plugin.distiller(mlp(4), [teacher] if several else teacher, method, image_size=32, **options)
    images, target = batch()
    d(images, target, epoch=1).loss.backward()
    assert all(parameter.grad is not None for parameter in d.student.parameters())


# ---- every method ----


@pytest.mark.parametrize("name", NAMES)
def test_every_method_takes_a_step_reports_survives_copies_and_saves_what_it_predicts(tmp_path, name):
    before = dict(host.distiller_dict), host.CFG.dump()
    torch.manual_seed(0)
    teachers = [TinyStages(width=4) for _ in range(TEACHERS[class_of(name).TEACHERS])]
    teacher = teachers if len(teachers) > 1 else (teachers or [None])[0]
    data, options = [batch()], {"loader": [batch()], "heads_epochs": 1} if name == "DIH" else {}
    d = atsc_plugin.distiller(TinyStages(width=4), teacher, name.lower(), image_size=32, **options)
    start = [parameter.detach().clone() for parameter in d.student.parameters()]
    stepped(d, *data)
    assert any(not torch.equal(*pair) for pair in zip(start, d.student.parameters(), strict=True))
    twin = copy.deepcopy(d)
    for each in (d, twin):
        stepped(each, *data)
    assert_equal_states(d.state_dict(), twin.state_dict())
    report = d.report(data)
    assert {"top1", "top5", "nll", "ece", "warning", "stop"} <= report.keys() and d.training
    beside = ["teacher"] if len(teachers) == 1 else [f"teacher_{number}" for number in range(len(teachers))]
    assert all(f"{network}_top1_{when}" in report for network in beside for when in ("before", "after"))
    wanted = d.eval()(data[0][0])
    assert torch.equal(d.deployed()(data[0][0]), wanted)
    d.save(tmp_path / "to" / "student")
    loaded = atsc_plugin.load_student(tmp_path / "to" / "student", allow=["tiny_stages"])
    assert torch.equal(loaded(data[0][0]), wanted) and loaded.card["method"] == name
    assert (dict(host.distiller_dict), host.CFG.dump()) == before


def test_networks_that_know_no_maps_are_taken_and_a_tail_of_two_layers_is_saved(tmp_path):
    d = made("SIMKD", Plain(), Plain(width=6))
    x, y = batch()
    stepped(d, (x, y))
    with pytest.raises(PluginError, match="cannot be built again from its card.* teacher=, teacher_args= where"):
        d.save(tmp_path / "student")
    d.save(tmp_path / "student", teacher_args={"width": 6})
    loaded = atsc_plugin.load_student(tmp_path / "student", allow=["test_library"])
    assert torch.equal(loaded(x), d.eval()(x))
    assert loaded.card["heads"][0]["tail"]["network"] == "test_library:Plain"


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_a_classifier_that_the_teacher_parametrizes_is_saved_as_it_is_applied(tmp_path, norm):
    teacher = TinyNet(width=6)
    norm(teacher.fc)
    d = made("ATSC", teacher=teacher)
    x, y = batch()
    stepped(d, (x, y))
    d.save(tmp_path / "student")
    loaded = atsc_plugin.load_student(tmp_path / "student", allow=["tiny"])
    assert type(loaded.classifier) is nn.Linear
    torch.testing.assert_close(loaded(x), d.eval()(x))


def test_importing_and_calling_it_registers_nothing_and_a_registered_host_is_left_as_it_is():
    atsc_plugin.register()
    before = dict(host.distiller_dict), host.CFG.dump()
    made()
    assert (dict(host.distiller_dict), host.CFG.dump()) == before


def test_a_student_of_timm_is_saved_under_its_name_there(tmp_path):
    timm = pytest.importorskip("timm")
    d = made("KD", timm.create_model("test_resnet", num_classes=10), TinyNet())
    d.save(tmp_path / "student")
    loaded = atsc_plugin.load_student(tmp_path / "student")
    x, _ = batch()
    assert loaded.card["student"] == "timm/test_resnet" and torch.equal(loaded(x), d.eval()(x))


# ---- options ----


def test_an_option_is_a_key_without_its_node_in_lower_case():
    d = made(drift_weight=3, teacher_lr_scale=0.5, loss_feat_weight=2.0)  # 3 stands for 3.0
    x, y = batch()
    groups = d.param_groups(0.1)
    assert [group["lr"] for group in groups] == [0.1, 0.05]
    assert {p for group in groups for p in group["params"]} == {p for p in d.parameters() if p.requires_grad}
    twice, once = d(x, y), made(drift_weight=3)(x, y)
    assert torch.equal(twice.losses["loss_feat"], 2 * once.losses["loss_feat"])
    assert torch.equal(twice.loss, sum(twice.losses.values()))


def test_where_two_nodes_have_a_key_its_node_is_named():
    cfg = CfgNode({"KD": {"T": 4.0, "LOSS": {"CE": 1.0}}, "AT": {"T": 1.0, "P": 2}})
    assert library.keys_of(cfg, ("KD", "AT")) == {
        "loss_ce": "KD.LOSS.CE", "p": "AT.P", "kd_t": "KD.T", "at_t": "AT.T"
    }  # fmt: skip


def test_a_method_on_another_ones_node_takes_its_options():
    assert made("PROJECTED_KD", temperature=2.0, projector_factor=1, loss_kd_weight=0.5)
    assert made("ATSC_MULTI", drift_weight=1.0) and made("DKD_MULTI", beta=2.0)


def test_all_mistakes_in_options_are_told_at_once_in_the_options_own_words():
    with pytest.raises(ConfigError) as told:
        made(drift_wieght=1.0, teacher_lr_scale="fast", loss_ce_weight=-1.0, update="slow", teacher_ema=0.9, x=1)
    text = "\n".join(told.value.problems)
    assert len(told.value.problems) == 6
    assert "drift_wieght is no option of ATSC; did you mean drift_weight?" in text
    assert "teacher_lr_scale: got 'fast' (str), expected float" in text
    assert "loss_ce_weight: got -1.0, expected at least 0" in text
    assert "update: got 'slow', expected one of fused, published" in text
    assert "teacher_ema is 0.9 with teacher_learns features" in text and "Use teacher_learns task." in text
    assert "x is no option of ATSC; expected one of update, loss_feat_weight" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "ATCS"}, "got 'ATCS', expected one of .*did you mean ATSC"),
        ({"update": "published"}, "update published makes two steps a batch, and a loop of your own makes one"),
        ({"teacher": [TinyNet(), TinyNet()]}, "ATSC got 2 teachers; expected one teacher, or use method ATSC_MULTI"),
        ({"method": "NONE"}, "NONE got 1 teachers; expected no teacher"),
        ({"student": nn.Flatten()}, "The student is a Flatten; expected an nn.Module with parameters"),
        ({"student": nn.Linear(3, 10)}, "torch.nn.modules.linear:Linear does not run on two images of 32 pixels"),
        ({"student": nn.Conv2d(3, 10, 3)}, r"Conv2d gives \(2, 10, 30, 30\) for two images; expected \(2, classes\)"),
        ({"method": "KD", "student": TinyNet(1), "teacher": TinyNet(1)}, r"gives \(2, 1\) for .* two classes or more"),
        ({"method": "KD", "student": TinyNet(5)}, "student tiny:TinyNet has 5 classes, teacher tiny:TinyNet#1 10"),
        ({"method": "SIMKD", "projector_factor": 9}, "projector_factor is 9, but the teacher's map has 6 channels"),
        ({"method": "DIH"}, "DIH trains something before the student. Hand over the training images"),
        ({"method": None}, "method: got 'None', expected one of"),
        ({"image_size": (32, 32)}, r"image_size: got \(32, 32\), expected the side of square images in pixels"),
        ({"student": ONE_FOR_BOTH, "teacher": ONE_FOR_BOTH}, "are the same network object; expected different ones"),
        ({"method": "AVERKD", "teacher": [ONE_FOR_BOTH] * 2}, "same network object twice among 2 teachers"),
        ({"student": TinyNet().requires_grad_(False)}, "All parameters of the student are frozen; expected some"),
        ({"method": "KD", "temperature": 0.0}, "temperature: got 0.0, expected a number above 0"),
        ({"method": "DKD", "t": -1.0}, "t: got -1.0, expected a number above 0"),
        ({"teacher": TinyNet().double()}, "are torch.float32, torch.float64; expected one number format"),
        ({"student": TinyNet().double(), "teacher": TinyNet().double()}, "torch.float64; expected one number format"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_a_step(arguments, message):
    with pytest.raises(PluginError, match=message):
        made(**arguments)


@pytest.mark.parametrize(
    ("method", "options"),
    [("ATSC", {}), ("ATSC", EMA), ("DML", {"teacher_init": "pretrained"}), ("SIMKD", None), ("COTEACH", None)],
    ids=str,
)
def test_a_teacher_that_was_handed_over_frozen_learns_where_the_method_has_it_learn(method, options):
    teacher = TinyNet(width=6).requires_grad_(False)
    d = made(method, teacher=teacher, **(options or {}))
    learning = {id(p) for group in d.param_groups(0.05) for p in group["params"] if p.requires_grad}
    beside = d.inner.get_submodule("online_teacher" if options == EMA else "teacher")
    assert any(id(p) in learning for p in beside.parameters()) == (options is not None)


def test_a_network_that_a_distiller_froze_in_places_is_thawed_by_the_next_one():
    student, teacher = TinyNet(), TinyNet(width=6)
    teacher.conv.weight.requires_grad_(False)  # the loop's own wish
    made("SIMKD", student, teacher)
    assert not student.fc.weight.requires_grad  # SimKD predicts through the teacher's
    made("KD", student, TinyNet(width=6))
    assert all(parameter.requires_grad for parameter in student.parameters())
    made("DML", TinyNet(), teacher)
    assert teacher.fc.weight.requires_grad and not teacher.conv.weight.requires_grad


@pytest.mark.parametrize("compiled", [torch.compile, lambda network: network.compile() or network])
def test_a_compiled_network_is_refused_since_its_maps_cannot_be_read(compiled):
    with pytest.raises(ModelRefused, match="The student is compiled; its maps cannot be read. Compile the distiller"):
        atsc_plugin.distiller(compiled(TinyNet()), TinyNet(), "SIMKD", image_size=32)


class Checkpointed(nn.Module):
    def __init__(self, width=6, reentrant=True):
        super().__init__()
        self.reentrant = reentrant
        self.a = nn.Conv2d(3, width, 3, stride=2)
        self.b = nn.Sequential(nn.Conv2d(width, width, 3), nn.BatchNorm2d(width))
        self.fc = nn.Linear(width, 10)

    def forward(self, x):
        x = self.a(x)
        again = self.training and self.reentrant is not None
        x = checkpoint(self.block, x, use_reentrant=self.reentrant) if again else self.block(x)
        return self.fc(x.mean(dim=(2, 3)))

    def block(self, x):
        return self.b(x).relu()


def test_a_map_that_was_made_without_gradients_is_refused_and_not_taught_in_vain():
    d = made("SIMKD", Checkpointed())
    with pytest.raises(PluginError, match="The map of b.* has no gradient: .* activation checkpointing off"):
        d(*batch(), epoch=1)


@pytest.mark.parametrize("method", ["KD", "SIMKD", "ATSC"])
def test_networks_that_checkpoint_their_activations_get_the_gradients_of_those_that_do_not(method):
    def gradients(reentrant):
        torch.manual_seed(1)
        d = made(method, Checkpointed(5, reentrant), Checkpointed(6, reentrant))
        d(*batch(), epoch=1).loss.backward()
        return {name: parameter.grad for name, parameter in d.named_parameters() if parameter.grad is not None}

    plain, checkpointed = gradients(None), gradients(False)
    assert plain.keys() == checkpointed.keys() and any("b.0.weight" in name for name in plain)
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


def test_a_layer_that_a_step_skips_is_named():
    class Skipping(Checkpointed):
        def forward(self, x):
            x = self.a(x)
            return self.fc((x if self.training else self.b(x)).relu().mean(dim=(2, 3)))

    with pytest.raises(PluginError, match=r"b\S* was not run in this step"):
        made("SIMKD", Skipping())(*batch())


def test_heads_need_a_loader_that_knows_its_length():
    networks = TinyStages(width=4), TinyStages(width=4)
    with pytest.raises(PluginError, match="the loader has no length"):
        atsc_plugin.distiller(*networks, "DIH", image_size=32, loader=iter([batch()]), heads_epochs=1)


def test_under_autocast_kd_is_told_in_full():
    d = made("KD")
    x, y = batch()
    wanted = d(x, y).losses["loss_kd"].item()
    with torch.autocast("cpu", torch.bfloat16):
        got = d(x, y).losses["loss_kd"].item()
    assert got == pytest.approx(wanted, rel=0.05)


def test_heads_leave_no_gradients_behind():
    networks = TinyStages(width=4), TinyStages(width=4)
    d = atsc_plugin.distiller(*networks, "DIH", image_size=32, loader=[batch()], heads_epochs=1)
    assert all(parameter.grad is None for parameter in d.parameters())


def test_a_method_that_counts_the_training_images_is_refused(monkeypatch):
    cfg = host.CFG.clone()
    assert "asks for its number" in library._out_of_reach(CRD, cfg)[0]


def test_a_rate_at_which_the_drift_term_diverges_is_refused_where_the_rate_is_known():
    d = made(drift_weight=100.0)  # 0.01 * 2 * 100 = 2; SGD with momentum .9 diverges at 2 (1 + .9) = 3.8
    d.param_groups(0.01)
    with pytest.raises(ConfigError, match=r"lr \* teacher_lr_scale \* 2 \* drift_weight is 4; .* diverges at 3.8"):
        d.param_groups(0.02)


# ---- the step ----


def test_a_method_with_a_schedule_wants_the_epoch_and_others_do_not():
    x, y = batch()
    for d in (made("DKD"), made(teacher_warmup_epochs=2), made("REVIEWKD", TinyStages(), TinyStages())):
        assert d.scheduled and d.idle_parameters
        with pytest.raises(PluginError, match="has a schedule: expected d.x, y, epoch=...., counted from 1"):
            d(x, y)
        with pytest.raises(PluginError, match="counted from 1. Pass epoch . 1"):
            d(x, y, epoch=0)
    for d in (made("KD"), made("SIMKD"), made()):
        assert not d.scheduled and torch.equal(d(x, y).loss, d(x, y, epoch=1).loss)


def test_dkds_schedule_is_that_of_its_epochs():
    d, (x, y) = made("DKD", warmup=4), batch()
    early, late = (d(x, y, epoch=epoch).losses["loss_kd"] for epoch in (1, 8))
    torch.testing.assert_close(4 * early, late)  # 1/4 of it in epoch 1 of 4, all of it from epoch 4 on


def test_training_without_labels_is_told_and_eval_gives_the_prediction_of_a_teacher_that_stayed_in_eval_mode():
    teacher, (x, y) = TinyNet(width=6).train(), batch()
    d = made("SIMKD", teacher=teacher)
    assert d.training and not teacher.training
    with pytest.raises(PluginError, match="has no labels; expected d.x, y.. For a prediction call d.eval"):
        d(x)
    stepped(d, (x, y))
    assert not d.eval().inner.training and d(x).shape == (6, 10)
    assert torch.equal(d(x), d.deployed()(x)) and d.train().inner.training and not teacher.training


def test_images_of_another_size_are_taken_where_the_method_can_and_named_where_it_cannot():
    (x, y), wider = batch(), torch.randn(6, 3, 48, 48)
    d = atsc_plugin.distiller(TinyStages(), TinyStages(), "REVIEWKD", image_size=32)
    stepped(d, (x, y))
    with pytest.raises(PluginError, match="REVIEWKD was built for images of 32 x 32 pixels and got 48 x 48. Build"):
        d(wider, y, epoch=1)
    assert torch.isfinite(made("KD")(wider, y).loss)


def test_soft_labels_are_refused_where_they_would_make_another_method():
    x, y = batch()
    with pytest.raises(PluginError, match=r"SWITOKD got labels of shape \(6, 10\); expected a class number an image"):
        made("SWITOKD")(x, nn.functional.one_hot(y, 10).float())
    with pytest.raises(PluginError, match=r"Evaluation got labels of shape \(6, 10\); expected a class number"):
        made("KD").report([(x, nn.functional.one_hot(y, 10).float())])


def test_accumulated_gradients_are_the_batchs_and_the_average_moves_once():
    (x, y), ends = batch(8), []
    for parts in (1, 2):
        torch.manual_seed(0)
        d = without_bn(made(**EMA).double())
        optimizer, start = torch.optim.SGD(d.param_groups(0.1)), d.inner.teacher.fc.weight.detach().clone()
        for xs, ys in zip(x.double().chunk(parts), y.chunk(parts), strict=True):
            (d(xs, ys).loss / parts).backward()
        optimizer.step()
        d.after_step()
        online = d.inner.online_teacher.fc.weight
        torch.testing.assert_close(d.inner.teacher.fc.weight, 0.9 * start + 0.1 * online)
        assert d.step == 1
        ends.append(list(d.parameters()))
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_step_that_the_distiller_is_not_told_of_is_told_once_it_matters():
    x, y = batch()
    for method, count in (("SIMKD", 0), ("ATSC", 1)):
        d = made(method)
        optimizer = torch.optim.SGD(d.param_groups(0.05))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("default")
            for _ in range(3):
                d(x, y).loss.backward()
                optimizer.step()
        assert len(told) == count and all("call it after optimizer.step" in str(each.message) for each in told)


def test_the_teacher_learns_every_second_step_by_the_optimizers_steps_and_not_by_the_calls():
    d, (x, y) = made(teacher_every=2), batch()
    for learns in (True, False, True):
        for _ in range(2):  # two micro-batches
            assert ("loss_teacher_ce" in d(x, y).losses) == learns
        d.after_step()
    assert "loss_teacher_ce" in d(x, y, epoch=2).losses  # a new epoch begins with step 0


@pytest.mark.parametrize("method", ["SIMKD", "ATSC", "KD"])
def test_under_autocast_losses_are_finite_and_ours_full(method):
    d, (x, y) = made(method), batch()
    with torch.autocast("cpu", torch.bfloat16):
        out = d(x, y)
    out.loss.backward()
    assert torch.isfinite(out.loss) and all(p.grad is not None for p in d.parameters() if p.requires_grad)


def test_through_ddp_it_makes_the_same_step(tmp_path):
    plain, wrapped, data = made(), made(), [batch(seed=seed) for seed in range(2)]
    stepped(plain, *data)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        ddp = nn.parallel.DistributedDataParallel(wrapped, find_unused_parameters=wrapped.idle_parameters)
        optimizer = torch.optim.SGD(wrapped.param_groups(0.05), momentum=0.9, weight_decay=1e-4)
        for x, y in data:
            optimizer.zero_grad()
            ddp(x, y).loss.backward()
            optimizer.step()
            wrapped.after_step()
        sent = {id(tensor) for tensor in ddp.modules_buffers}
        theta_0 = list(wrapped.inner.theta_0.buffers())
        assert theta_0 and not sent & {id(tensor) for tensor in theta_0}  # once more a teacher, in every step
    finally:
        torch.distributed.destroy_process_group()
    assert_equal_states(plain.inner.state_dict(), wrapped.inner.state_dict())


def test_it_lives_where_its_student_does_and_moves_as_one():
    meta = made().to("meta")
    assert {tensor.device.type for tensor in (*meta.parameters(), *meta.buffers())} == {"meta"}
    assert made().double()(*(each.double() if each.is_floating_point() else each for each in batch())).loss.dtype


# ---- networks that a method draws itself ----


def test_a_teacher_that_starts_from_scratch_is_a_copy_drawn_anew():
    teacher = TinyNet(width=6)
    before = copy.deepcopy(teacher.state_dict())
    d = made("DML", teacher=teacher)
    assert d.inner.teacher is not teacher and not torch.equal(d.inner.teacher.fc.weight, teacher.fc.weight)
    stepped(d, batch())
    assert_equal_states(teacher.state_dict(), before)
    assert made("DML", teacher=teacher, teacher_init="pretrained").inner.teacher is teacher


def test_a_layer_that_cannot_be_drawn_anew_is_named():
    teacher = TinyNet()
    teacher.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(ModelRefused, match="tiny:TinyNet#1 cannot be drawn anew: its TinyNet has parameters and no"):
        made("DML", teacher=teacher)


# ---- continuing ----


@pytest.mark.parametrize("options", [{**EMA, "teacher_every": 2}, {"teacher_warmup_epochs": 1}], ids=str)
def test_a_loaded_state_continues_exactly(tmp_path, options):
    data = [batch(seed=seed) for seed in range(6)]
    whole = made(**options)
    optimizer = stepped(whole, *data[:3])
    torch.save([whole.state_dict(), optimizer.state_dict()], tmp_path / "state")
    assert_equal_states(whole.state_dict(), pickle.loads(pickle.dumps(whole)).state_dict())
    stepped(whole, *data[3:5], optimizer=optimizer)
    stepped(whole, data[5], optimizer=optimizer, epoch=2)

    states = torch.load(tmp_path / "state", weights_only=True)
    torch.manual_seed(1)
    again = atsc_plugin.distiller(TinyNet(), TinyNet(width=6), "ATSC", image_size=32, **options)
    again.load_state_dict(states[0])
    optimizer = torch.optim.SGD(again.param_groups(0.05), momentum=0.9, weight_decay=1e-4)
    optimizer.load_state_dict(states[1])
    stepped(again, *data[3:5], optimizer=optimizer)
    stepped(again, data[5], optimizer=optimizer, epoch=2)
    assert_equal_states(whole.state_dict(), again.state_dict())  # theta_0 and the guard's history among it
    assert whole.report(data) == again.report(data)


def test_a_state_of_another_method_is_refused_and_nothing_of_it_is_loaded():
    d, state = made("ATSC"), made("SIMKD").state_dict()  # their networks have the same names and shapes
    before = copy.deepcopy(d.state_dict())
    with pytest.raises(PluginError, match=r"This state is of method SIMKD; expected one of ATSC\."):
        d.load_state_dict(state)
    assert_equal_states(d.state_dict(), before)


# ---- what comes of it ----


def test_the_report_has_the_teacher_before_and_after_and_the_guards_words_in_options():
    # Held by nothing and with labels that say nothing of the images, the teacher soon predicts otherwise.
    d, (x, _) = made(drift_weight=0.0, teacher_lr_scale=2.0), batch(40)
    loader = [(x, made().inner.teacher.eval()(x)[0].argmax(1))]  # labels by which the first teacher is right
    stepped(d, *(batch(40, seed=seed) for seed in range(12)), lr=0.5)
    with pytest.warns(UserWarning, match="collapsed"):
        report = d.report(loader)
    assert report["teacher_top1_before"] == report["start_top1"] == 100
    assert report["teacher_top1_after"] == report["teacher_top1"] < 100
    assert "Raise drift_weight or lower teacher_lr_scale." in report["warning"]
    assert not report["stop"]
    with pytest.raises(PluginError, match="goes through its batches several times; expected a DataLoader or a list"):
        d.report(iter(loader))
    with pytest.raises(PluginError, match="Evaluation got no images; expected batches of .images, labels."):
        d.report([])


def test_what_could_not_be_built_again_is_not_written(tmp_path):
    class Local(TinyNet):
        pass

    for student, options, message in (
        (TinyNet(width=5), {}, "does not fit its card.*student_args"),
        (Local(), {}, "is defined in a script or inside a function"),
        (TinyNet(), {"student": "tiny:NoNet"}, "cannot be imported.*Say how the networks are built"),
    ):
        with pytest.raises(PluginError, match=re.compile(message, re.DOTALL)):
            made("KD", student).save(tmp_path / "student", **options)
    assert not list(tmp_path.iterdir())
    made("KD", host.new_network("cifar100", "resnet8", 10)).save(tmp_path / "hosts", student="resnet8")
    assert atsc_plugin.load_student(tmp_path / "hosts").card["student"] == "resnet8"
    names = [f"class {number}" for number in range(10)]
    made("KD", TinyNet(width=5)).save(tmp_path / "student", student_args={"width": 5}, class_names=names)
    card = atsc_plugin.load_student(tmp_path / "student", allow=["tiny"]).card
    assert (card["class_names"], card["image_size"]) == (names, 32)


# ---- the page ----


def test_the_ten_lines_of_the_page_run(here):
    (lines,) = re.findall(r"<!-- ten lines -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(lines.splitlines()) <= 12
    readme, bare = (re.sub("  +# .*", "", text) for text in ((PAGE.parents[1] / "README.md").read_text("utf-8"), lines))
    assert bare in readme
    torch.manual_seed(0)
    names = {"student": TinyNet(), "teacher": TinyNet(width=6), "loader": [batch(size=64)], "epochs": 2}
    lines = lines.replace("my_package", "tiny")
    exec(compile(lines, str(PAGE), "exec"), names)
    assert names["report"]["top1"] >= 0 and Path("student.safetensors").is_file()
    assert names["net"](batch(size=64)[0]).shape == (6, 10)


def test_the_page_lists_the_losses():
    text = PAGE.read_text(encoding="utf-8")
    functions = [name for name, entry in vars(losses).items() if getattr(entry, "__module__", "") == losses.__name__]
    assert [name for name in functions if not name.startswith("_") and f"`{name}(" not in text] == []
