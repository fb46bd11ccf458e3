"""The shipped configs: equal to their tables, the tables equal to the recorded networks, and every one takes a step."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from recorded import load_contract

import atsc_plugin
from atsc_plugin import build, host
from atsc_plugin.config import load_cfg
from atsc_plugin.contract import of

ROOT = Path(__file__).resolve().parents[1]


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLE = tool("make_configs")


def test_every_generated_config_equals_its_table():
    assert TABLE.main(check=True) == 0


def test_no_config_of_the_three_data_sets_lies_outside_the_tables():
    there = {
        path.relative_to(ROOT / "configs")
        for name in ("cifar100", "tiny_imagenet", "imagenet")
        for path in (ROOT / "configs" / name).rglob("*.yaml")
    }
    assert there == set(TABLE.files())


def test_the_page_of_the_keys_equals_the_keys():
    assert tool("make_key_page").main(check=True) == 0


@pytest.mark.parametrize("name", list(TABLE.MAPS))
def test_the_tables_maps_are_the_recorded_networks(name):
    entry = load_contract()["models"][name]
    maps = entry["feats"][1:]
    channels, sides, pooled = TABLE.MAPS[name]
    assert channels == [feature_map["shape"][1] for feature_map in maps]
    assert sides == [feature_map["shape"][2] for feature_map in maps]
    assert pooled == entry["pooled_feat"]["shape"][1]


def test_the_pairs_are_those_of_the_papers_tables_with_their_rates():
    assert len(TABLE.CIFAR_PAIRS) == 11
    for name, (_, student, rate, _, _) in TABLE.CIFAR_PAIRS.items():
        light = student.startswith(("Shuffle", "Mobile"))
        assert rate == (0.01 if light else 0.05), name


def test_the_published_configs_carry_the_released_flags():
    atsc_plugin.register()
    for path in sorted((ROOT / "configs").rglob("*_published.yaml")):
        cfg = load_cfg(path)
        assert cfg.ATSC.UPDATE == "published"
        assert (cfg.ATSC.LOSS.FEAT_WEIGHT, cfg.ATSC.PROJECTOR.FACTOR) == (1.0, 2)
        imagenet = cfg.DATASET.TYPE == "imagenet"
        assert (10.0 if imagenet else 1.0) == cfg.ATSC.DRIFT.WEIGHT
        if imagenet:
            assert (cfg.SOLVER.BATCH_SIZE, cfg.SOLVER.EPOCHS, cfg.SOLVER.LR) == (64, 120, 0.01)


@pytest.mark.parametrize("path", sorted(TABLE.files()), ids=str)
def test_every_pair_builds_and_takes_a_step_at_batch_2(path):
    atsc_plugin.register()
    cfg = load_cfg(ROOT / "configs" / path)
    classes = {"cifar100": 100, "tiny_imagenet": 200, "imagenet": 1000}[cfg.DATASET.TYPE]
    data = SimpleNamespace(classes=classes, train_images=2)
    distiller = build.skeleton(cfg, data)  # unfilled: pretrained weights are not what is tested
    of(distiller, cfg).begun = True  # no heads are trained for a step
    distiller.train()
    before = [p.detach().clone() for p in distiller.get_learnable_parameters()]
    optimizer = torch.optim.SGD(distiller.get_learnable_parameters(), lr=0.001)
    size = host.image_size(cfg.DATASET)
    _, losses = distiller(image=torch.randn(2, 3, size, size), target=torch.tensor([0, 1]), epoch=1)
    sum(losses.values()).backward()
    optimizer.step()
    assert all(torch.isfinite(part) for part in losses.values())
    assert any(not torch.equal(a, b) for a, b in zip(before, distiller.get_learnable_parameters(), strict=True))
