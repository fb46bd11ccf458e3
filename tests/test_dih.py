"""DIH: its sum over branches written out, heads on a trunk that does not move, a cache that knows its teacher."""

import copy
import json
import math
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import yaml
from runs import assert_a_continued_run_is_the_whole_one
from test_checkpoint import plant_bomb
from test_commands import QUICK, SMALL, here, run_folder, teacher_file, train  # noqa: F401 - two are fixtures
from test_trainer import tiny_loader
from tiny import batch
from tiny_stages import TinyStages

import atsc_plugin
from atsc_plugin import host
from atsc_plugin.__main__ import main
from atsc_plugin.config import load_cfg
from atsc_plugin.distillers import dih_heads
from atsc_plugin.distillers.dih import DIH
from atsc_plugin.distillers.dih_heads import Heads, facts_of, train_heads
from atsc_plugin.engine.checkpoint import digest
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.errors import ConfigError, ModelRefused, PluginError
from atsc_plugin.host import CFG, distiller_dict

CONFIG = QUICK / "dih.yaml"
RECIPE = {"epochs": 2, "lr": 0.01, "weight_decay": 0.0}


@pytest.fixture
def cfg(tmp_path):
    atsc_plugin.register()
    cfg = CFG.clone()
    cfg.merge_from_list(["DISTILLER.TYPE", "DIH", "TEACHER.CACHE", str(tmp_path / "cache"), "DIH.HEADS.EPOCHS", 2])
    cfg.merge_from_list(["DIH.HEADS.LR", 0.01, "LOG.PREFIX", str(tmp_path), "EXPERIMENT.NAME", "run"])
    return cfg


def tiny_dih(cfg, trained=True, seed=0, **teacher):
    torch.manual_seed(seed)
    distiller = DIH(TinyStages(width=2), TinyStages(**teacher), cfg)
    if trained:
        for layer in distiller.heads.layers:
            torch.nn.init.normal_(layer.weight)
        distiller.heads.trained.fill_(1)
    return distiller


class Unread:
    """A split that must not be looked at."""

    def __iter__(self):
        raise AssertionError("the test split was read")

    __len__ = __iter__


def tiny_data(val=True, **other):
    facts = {"name": "toy", "identity": "toy-24-abc", "mean": [0.5] * 3, "std": [0.25] * 3, "train_images": 24}
    loaders = {"train": tiny_loader(seed=5), "val": tiny_loader(start=1) if val else None, "test": Unread()}
    return SimpleNamespace(**{**facts, **loaders, **other})


def prepare(distiller, data=None):
    data = data or tiny_data()
    distiller.prepare(data, lambda own: data)
    return distiller


# ---- the loss ----


def softmax(row, temperature=1.0):
    powers = [math.exp(z / temperature) for z in row]
    return [power / sum(powers) for power in powers]


def test_the_loss_is_the_sum_over_teacher_and_heads_of_kl_and_ce(cfg):
    cfg.DIH.TEMPERATURE, cfg.DIH.ALPHA = 2.0, 0.25
    distiller = tiny_dih(cfg).train()
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
    branches = [
        [[2.0, 0.0, 1.0], [1.0, 1.0, 1.0]],
        [[0.5, 0.5, 4.0], [3.0, 0.0, 0.0]],
        [[0.0, 1.0, 0.0], [1.0, 0.0, 2.0]],
    ]
    distiller.student.forward = lambda image: (logits, {})
    distiller.teacher.forward = lambda image: (torch.tensor(branches[0]), {"feats": None})
    distiller.heads.forward = lambda feats: [torch.tensor(branch) for branch in branches[1:]]
    losses = distiller(image=torch.zeros(2, 3, 32, 32), target=torch.tensor([1, 0]))[1]

    def kl(branch):
        rows = [(softmax(wanted, 2.0), softmax(own, 2.0)) for wanted, own in zip(branch, logits.tolist(), strict=True)]
        return sum(q * math.log(q / p) for wanted, own in rows for q, p in zip(wanted, own, strict=True)) / 2

    ce = -(math.log(softmax([1.0, 2.0, 0.5])[1]) + math.log(softmax([0.0, -1.0, 3.0])[0])) / 2
    by_hand = sum(0.25 * 2.0**2 * kl(branch) + (1 - 0.25) * ce for branch in branches)
    assert sum(losses.values()).item() == pytest.approx(by_hand, rel=1e-6)
    assert losses["loss_ce"].item() == pytest.approx(3 * 0.75 * ce, rel=1e-6)
    assert losses["loss_kd"].item() == pytest.approx(0.25 * 4 * kl(branches[0]), rel=1e-6)


def test_with_heads_equal_to_the_teachers_logits_it_is_kd_with_k_plus_1_times_the_weight(cfg):
    distiller = tiny_dih(cfg, stages=3).double().train()
    images, target = batch()
    images = images.double()
    teacher_logits = distiller.teacher(images)[0]
    distiller.heads.forward = lambda feats: [teacher_logits] * 3
    cfg.KD.TEMPERATURE, cfg.KD.LOSS.CE_WEIGHT, cfg.KD.LOSS.KD_WEIGHT = 5, 4 * (1 - 0.1), 4 * 0.1
    control = distiller_dict["KD"](copy.deepcopy(distiller.student), distiller.teacher, cfg).train()
    ours = sum(distiller(image=images, target=target)[1].values())
    theirs = sum(control(image=images, target=target)[1].values())
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)


def test_the_control_of_the_suite_is_that_kd():
    atsc_plugin.register()
    suite = yaml.safe_load((QUICK.parent / "leaderboard" / "sisters_quick.yaml").read_text())
    cfg = load_cfg(CONFIG)
    flags, branches = suite["arms"]["kd_times_k1"]["set"], 4  # resnet20 has three stages behind its stem
    assert flags["KD.TEMPERATURE"] == cfg.DIH.TEMPERATURE
    assert flags["KD.LOSS.CE_WEIGHT"] == pytest.approx(branches * (1 - cfg.DIH.ALPHA))
    assert flags["KD.LOSS.KD_WEIGHT"] == pytest.approx(branches * cfg.DIH.ALPHA)


def test_its_loss_moves_the_student_alone(cfg):
    distiller = tiny_dih(cfg).train()
    before = {name: tensor.clone() for name, tensor in distiller.state_dict().items()}
    images, target = batch()
    sum(distiller(image=images, target=target)[1].values()).backward()
    reached = {name.partition(".")[0] for name, p in distiller.named_parameters() if p.grad is not None}
    assert reached == {"student"}
    assert {id(p) for p in distiller.get_learnable_parameters()} == {id(p) for p in distiller.student.parameters()}
    for name, tensor in distiller.state_dict().items():
        assert name.startswith("student.") or torch.equal(tensor, before[name]), name


# ---- the heads ----


def test_a_head_is_linear_on_the_flattened_map_of_its_stage(cfg):
    distiller = tiny_dih(cfg, width=5, stages=2)
    images, _ = batch()
    feats = distiller.teacher.eval()(images)[1]["feats"]
    widths = [5 * 4 * 4, 10 * 2 * 2]  # the stem's 3 x 8 x 8 has no head
    assert [layer.in_features for layer in distiller.heads.layers] == widths
    for layer, feature_map, logits in zip(distiller.heads.layers, feats[1:], distiller.heads(feats), strict=True):
        torch.testing.assert_close(logits, feature_map.reshape(6, -1) @ layer.weight.T + layer.bias)


@pytest.mark.parametrize(("size", "pooled"), [(32, False), (64, False), (128, True), (224, True)])
def test_above_64_pixels_a_stage_is_pooled_to_8_by_8_first(size, pooled):
    shapes = [(3, size // 2, size // 2), (4, size // 4, size // 4), (5, 4, 4)]
    heads = Heads(shapes, [1, 2], 7, size)
    side = 8 if pooled else size // 4
    assert [layer.in_features for layer in heads.layers] == [4 * side * side, 5 * 4 * 4]
    torch.nn.init.normal_(heads.layers[0].weight)
    feats = [torch.randn(2, *shape) for shape in shapes]
    seen = F.adaptive_avg_pool2d(feats[1], 8) if pooled else feats[1]
    torch.testing.assert_close(heads(feats)[0], seen.flatten(1) @ heads.layers[0].weight.T)


def test_at_128_pixels_each_entry_is_the_mean_of_its_window():
    heads = Heads([(1, 32, 32)], [0], 1, 128)
    feature_map = torch.arange(1024.0).reshape(1, 1, 32, 32)
    with torch.no_grad():
        heads.layers[0].weight[0, 0] = 1.0  # reads the first of the 64 windows: rows 0..3, columns 0..3
    # mean of 32 r + c over r, c in 0..3 is 32 * 1.5 + 1.5
    assert heads([feature_map])[0].item() == pytest.approx(49.5)


def test_heads_train_on_a_trunk_that_does_not_move(cfg):
    distiller = tiny_dih(cfg, trained=False)
    teacher, heads = distiller.teacher.train(), distiller.heads
    before = copy.deepcopy(teacher.state_dict())
    lines = train_heads(teacher, heads, tiny_loader(seed=3), RECIPE)
    for name, tensor in teacher.state_dict().items():  # weights, and running statistics of BN
        assert torch.equal(tensor, before[name]), name
    assert all(p.grad is None for p in teacher.parameters())
    assert all(layer.weight.abs().max() > 0 for layer in heads.layers)
    assert lines[1]["loss"] < lines[0]["loss"]
    assert not any(p.requires_grad for p in heads.parameters())


def test_the_heads_loss_is_the_sum_of_their_cross_entropies(cfg):
    distiller = tiny_dih(cfg, trained=False, stages=3)
    line = train_heads(distiller.teacher, distiller.heads, [batch(6)], {**RECIPE, "epochs": 1})[0]
    assert line["loss"] == pytest.approx(3 * math.log(10))  # at zero every head is uniform over ten classes


def test_the_stages_that_get_a_head_can_be_named(cfg):
    cfg.DIH.STAGES = [0, 2]
    assert [layer.in_features for layer in tiny_dih(cfg).heads.layers] == [3 * 8 * 8, 8 * 2 * 2]


def test_building_it_draws_nothing_from_the_global_stream(cfg):
    student, teacher = TinyStages(), TinyStages()
    torch.manual_seed(3)
    DIH(student, teacher, cfg)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))


# ---- the cache ----


def cached(cfg):
    return sorted(Path(cfg.TEACHER.CACHE).glob("*.safetensors"))


def test_heads_are_trained_once_for_a_teacher_and_found_again(cfg, capsys, monkeypatch):
    first = prepare(tiny_dih(cfg, trained=False))
    assert "training 2 for 2 epochs" in capsys.readouterr().out
    monkeypatch.setattr(dih_heads, "train_heads", None)  # a second training would fail
    again = prepare(tiny_dih(cfg, trained=False))
    for name, tensor in first.heads.state_dict().items():
        assert torch.equal(tensor, again.heads.state_dict()[name])
    assert again.heads.trained.item() == 1
    assert len(cached(cfg)) == 1
    facts = facts_of(cached(cfg)[0])
    assert facts["recipe"]["teacher"] == digest(first.teacher.state_dict())
    assert len(facts["val_top1"]) == len(facts["train_top1"]) == 2


@pytest.mark.parametrize("change", ["one weight", "one statistic", "epochs", "data", "normalisation"])
def test_another_teacher_recipe_or_data_is_another_file(cfg, change):
    prepare(tiny_dih(cfg, trained=False))
    data = tiny_data()
    if change == "epochs":
        cfg.DIH.HEADS.EPOCHS = 1
    distiller = tiny_dih(cfg, trained=False)
    if change == "one weight":
        distiller.teacher.fc.bias.data[3] += 1e-6
    elif change == "one statistic":
        distiller.teacher.bn.running_mean[0] += 1e-6
    elif change == "data":
        data.identity = "toy-24-abd"
    elif change == "normalisation":
        data.mean = [0.4, 0.5, 0.5]
    prepare(distiller, data)
    assert len(cached(cfg)) == 2


def test_without_a_validation_split_the_training_figures_are_told_and_no_test_image_read(cfg, capsys):
    prepare(tiny_dih(cfg, trained=False), tiny_data(val=False))
    assert "(train top-1" in capsys.readouterr().out
    assert facts_of(cached(cfg)[0])["val_top1"] is None


@pytest.mark.parametrize("harm", ["cut", "text", "pickle", "other heads", "no facts"])
def test_a_file_that_is_no_cache_of_these_heads_is_refused_left_and_never_run(cfg, tmp_path, harm):
    prepare(tiny_dih(cfg, trained=False))
    path = cached(cfg)[0]
    whole = path.read_bytes()
    if harm == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif harm == "text":
        path.write_text("not a safetensors file")
    elif harm == "pickle":
        plant_bomb(path, tmp_path / "ran")
    elif harm == "other heads":
        dih_heads.save_heads(Heads([(2, 3, 3)], [0], 10, 32), path, {})
    else:
        path.write_bytes(safetensors.torch.save(safetensors.torch.load(whole)))
    damaged = path.read_bytes()
    with pytest.raises(PluginError, match=r"heads-\w+\.safetensors holds no heads of this teacher.*Delete it"):
        prepare(tiny_dih(cfg, trained=False))
    assert path.read_bytes() == damaged
    assert not (tmp_path / "ran").exists()


def test_a_cache_that_cannot_be_written_is_told(cfg, tmp_path):
    (tmp_path / "file").write_text("")
    cfg.TEACHER.CACHE = str(tmp_path / "file" / "below")
    with pytest.raises(PluginError, match="TEACHER.CACHE .* cannot be written"):
        prepare(tiny_dih(cfg, trained=False))


def test_whoever_waited_for_the_lock_takes_what_the_other_trained(cfg, monkeypatch):
    prepare(tiny_dih(cfg, trained=False))
    path = cached(cfg)[0]
    content = path.read_bytes()
    path.unlink()

    @contextmanager
    def after_the_other(waited_for):
        assert waited_for == path
        path.write_bytes(content)
        yield

    monkeypatch.setattr(dih_heads, "only_writer", after_the_other)
    monkeypatch.setattr(dih_heads, "train_heads", None)
    assert prepare(tiny_dih(cfg, trained=False)).heads.trained.item() == 1


def test_an_interrupted_training_leaves_no_file(cfg, monkeypatch):
    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(dih_heads, "train_heads", die)
    with pytest.raises(KeyboardInterrupt):
        prepare(tiny_dih(cfg, trained=False))
    assert cached(cfg) == []


# ---- under a host's own script, which hands over no data ----


def test_under_a_hosts_script_cached_heads_are_used_and_missing_ones_asked_for(cfg):
    cfg.DATASET.TYPE = "toy"
    distiller = tiny_dih(cfg, trained=False)
    with pytest.raises(PluginError, match="no heads for this .*atsc_plugin heads --cfg FILE"):
        distiller.train()
    distiller.eval()
    distiller(image=batch()[0])  # to evaluate needs no heads
    prepare(tiny_dih(cfg, trained=False), tiny_data(identity="toy-20-x", train_images=20))
    prepared = prepare(tiny_dih(cfg, trained=False), tiny_data())
    prepare(tiny_dih(cfg, trained=False, seed=1), tiny_data(train_images=99))  # another teacher's
    (cached(cfg)[0].parent / f"{cfg.DISTILLER.TEACHER}-toy-heads-0.safetensors").write_text("broken")
    distiller.train()
    assert distiller.heads_from == prepared.heads_from
    for name, tensor in prepared.heads.state_dict().items():
        assert torch.equal(tensor, distiller.heads.state_dict()[name])


# ---- bad input ----


def test_mistakes_of_its_keys_are_told_together():
    atsc_plugin.register()
    words = ["DIH.ALPHA", "1.5", "DIH.TEMPERATURE", "0", "DIH.STAGES", "[1, -1]", "DIH.HEADS.LR", "0"]
    with pytest.raises(ConfigError) as error:
        load_cfg(CONFIG, words)
    told = "\n".join(error.value.problems)
    for key in words[::2]:
        assert f"{key}: got" in told
    with pytest.raises(ConfigError, match="DIH.ALPHA: got -0.1"):
        load_cfg(CONFIG, ["DIH.ALPHA", "-0.1"])


def test_a_stage_that_is_not_there_and_other_classes_are_refused_by_name(cfg):
    cfg.DISTILLER.TEACHER, cfg.DISTILLER.STUDENT = "oldnet", "newnet"
    with pytest.raises(ModelRefused, match="student newnet has 10 classes, teacher oldnet 7"):
        tiny_dih(cfg, num_classes=7)
    cfg.DIH.STAGES = [1, 5]
    with pytest.raises(ModelRefused, match=r"DIH.STAGES names 5; teacher oldnet has maps 0 \(the stem\) to 2"):
        tiny_dih(cfg)


# ---- whole runs ----


def trainer(cfg, folder):
    distiller = prepare(tiny_dih(cfg, trained=False))
    return PluginTrainer("run", distiller, tiny_loader(seed=5), tiny_loader(start=1), cfg, folder=folder)


def test_a_resumed_run_ends_as_the_uninterrupted_one(cfg, tmp_path):
    assert_a_continued_run_is_the_whole_one(cfg, tmp_path, trainer)


@pytest.mark.skipif(host.NAME != "embedded", reason="mdistiller's base trainer needs a GPU")
def test_the_hosts_base_trainer_runs_it(here, teacher_file):  # noqa: F811
    words = ["DISTILLER.TEACHER_CKPT", str(teacher_file), "DIH.HEADS.EPOCHS", "1"]
    assert train("dih", *words, "SOLVER.TRAINER", "base") == 0
    state = torch.load(run_folder(here) / "latest", weights_only=False)["model"]
    assert any(name.startswith("module.heads.") for name in state)


def test_the_quickstart_trains_its_evaluation_agrees_and_the_student_leaves_alone(here, capsys, teacher_file):  # noqa: F811
    words = ["DISTILLER.TEACHER_CKPT", str(teacher_file), "DIH.HEADS.EPOCHS", "1"]
    assert main(["heads", "--cfg", str(CONFIG), *words, *SMALL]) == 0
    assert "training 3 for 1 epochs" in capsys.readouterr().out
    assert train("dih", *words) == 0
    said = capsys.readouterr().out
    assert "training 3" not in said
    assert "heads  3, 2,867,500 parameters" in said
    folder = run_folder(here)
    result = json.loads((folder / "result.json").read_text())
    assert result["params_deployed"] == result["params_trained"] == result["params_student"]
    for what in (folder, folder / "latest"):
        assert main(["eval", str(what), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["top1"] == result["top1_last"]


def test_a_dry_run_tells_of_the_heads_and_writes_nothing(here, capsys):  # noqa: F811
    assert train("dih", "--dry-run") == 0
    assert "heads  3, 2,867,500 parameters, from ./output/teachers, else trained first" in capsys.readouterr().out
    assert list(here.iterdir()) == []


def test_the_heads_command_wants_a_dih_configuration(capsys):
    assert main(["heads", "--cfg", str(QUICK / "kd.yaml")]) == 2
    assert "is a configuration of KD; heads belong to DISTILLER.TYPE DIH" in capsys.readouterr().err
