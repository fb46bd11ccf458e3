"""DIH's heads: trained on a trunk that does not move, and kept in a cache that knows its teacher."""

import copy
import math
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from bombs import plant_bomb
from runs import tiny_loader
from small_dih import begun, dih_config, tiny_data, tiny_dih
from tiny import batch
from tiny_stages import TinyStages

from atsc_plugin.engine.checkpoint import digest
from atsc_plugin.errors import PluginError
from atsc_plugin.methods import dih
from atsc_plugin.methods.dih import DIH, Heads, facts_of, train_heads

RECIPE = {"epochs": 2, "lr": 0.01, "weight_decay": 0.0}


@pytest.fixture
def cfg(tmp_path):
    return dih_config(tmp_path)


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


def test_heads_take_soft_labels_of_a_loop_of_somebodys_own(cfg):
    images, target = batch(6)
    soft = torch.nn.functional.one_hot(target, 10).float()
    hard, same = (
        train_heads(each.teacher, each.heads, [(images, labels)], {**RECIPE, "epochs": 20, "lr": 0.1})[-1]
        for labels in (target, soft)
        for each in [tiny_dih(cfg, trained=False)]
    )
    assert hard["train_top1"] == same["train_top1"] != [0.0, 0.0]
    assert hard["loss"] == pytest.approx(same["loss"], rel=1e-4)


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
    first = begun(tiny_dih(cfg, trained=False))
    assert "training 2 for 2 epochs" in capsys.readouterr().out
    monkeypatch.setattr(dih, "train_heads", None)  # a second training would fail
    again = begun(tiny_dih(cfg, trained=False))
    for name, tensor in first.heads.state_dict().items():
        assert torch.equal(tensor, again.heads.state_dict()[name])
    assert again.heads.trained.item() == 1
    assert len(cached(cfg)) == 1
    facts = facts_of(cached(cfg)[0])
    assert facts["recipe"]["teacher"] == digest(first.teacher.state_dict())
    assert len(facts["val_top1"]) == len(facts["train_top1"]) == 2


@pytest.mark.parametrize("change", ["one weight", "one statistic", "epochs", "data", "normalisation"])
def test_another_teacher_recipe_or_data_is_another_file(cfg, change):
    begun(tiny_dih(cfg, trained=False))
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
    begun(distiller, data)
    assert len(cached(cfg)) == 2


def test_without_a_validation_split_the_training_figures_are_told_and_no_test_image_read(cfg, capsys):
    begun(tiny_dih(cfg, trained=False), tiny_data(val=False))
    assert "(train top-1" in capsys.readouterr().out
    assert facts_of(cached(cfg)[0])["val_top1"] is None


@pytest.mark.parametrize("harm", ["cut", "text", "pickle", "other heads", "no facts"])
def test_a_file_that_is_no_cache_of_these_heads_is_refused_left_and_never_run(cfg, tmp_path, harm):
    begun(tiny_dih(cfg, trained=False))
    path = cached(cfg)[0]
    whole = path.read_bytes()
    if harm == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif harm == "text":
        path.write_text("not a safetensors file")
    elif harm == "pickle":
        plant_bomb(path, tmp_path / "ran")
    elif harm == "other heads":
        dih.save_heads(Heads([(2, 3, 3)], [0], 10, 32), path, {})
    else:
        path.write_bytes(safetensors.torch.save(safetensors.torch.load(whole)))
    damaged = path.read_bytes()
    with pytest.raises(PluginError, match=r"heads-\w+\.safetensors holds no heads of this teacher.*Delete it"):
        begun(tiny_dih(cfg, trained=False))
    assert path.read_bytes() == damaged
    assert not (tmp_path / "ran").exists()


def test_a_cache_that_cannot_be_written_is_told(cfg, tmp_path):
    (tmp_path / "file").write_text("")
    cfg.TEACHER.CACHE = str(tmp_path / "file" / "below")
    with pytest.raises(PluginError, match="TEACHER.CACHE .* cannot be written"):
        begun(tiny_dih(cfg, trained=False))


def test_whoever_waited_for_the_lock_takes_what_the_other_trained(cfg, monkeypatch):
    begun(tiny_dih(cfg, trained=False))
    path = cached(cfg)[0]
    content = path.read_bytes()
    path.unlink()

    @contextmanager
    def after_the_other(waited_for, key):
        assert waited_for == path
        path.write_bytes(content)
        yield

    monkeypatch.setattr(dih, "only_writer", after_the_other)
    monkeypatch.setattr(dih, "train_heads", None)
    assert begun(tiny_dih(cfg, trained=False)).heads.trained.item() == 1


def test_an_interrupted_training_leaves_no_file(cfg, monkeypatch):
    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(dih, "train_heads", die)
    with pytest.raises(KeyboardInterrupt):
        begun(tiny_dih(cfg, trained=False))
    assert cached(cfg) == []


# ---- under a host's own script, which hands over no data ----


def test_under_a_hosts_script_cached_heads_are_used_and_missing_ones_asked_for(cfg):
    cfg.DATASET.TYPE = "toy"
    images, target = batch()
    distiller = tiny_dih(cfg, trained=False)
    with pytest.raises(PluginError, match="no heads for this .*atsc_plugin prepare --cfg FILE"):
        distiller.train()(image=images, target=target)
    distiller.eval()(image=images)  # to evaluate needs no heads
    begun(tiny_dih(cfg, trained=False), tiny_data(identity="toy-20-x", train_images=20))
    most_images = begun(tiny_dih(cfg, trained=False), tiny_data())
    begun(tiny_dih(cfg, trained=False, seed=1), tiny_data(train_images=99))  # another teacher's
    (cached(cfg)[0].parent / f"{cfg.DISTILLER.TEACHER}-toy-heads-0.safetensors").write_text("broken")
    distiller = tiny_dih(cfg, trained=False).train()
    distiller(image=images, target=target)
    assert distiller.heads_from == most_images.heads_from
    for name, tensor in most_images.heads.state_dict().items():
        assert torch.equal(tensor, distiller.heads.state_dict()[name])
