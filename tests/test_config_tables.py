"""The shipped configurations: each loads, pairs have the rates of the papers, each builds and takes a step."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from recorded import load_contract
from stock import use_stock

import atsc_plugin
from atsc_plugin import build, host
from atsc_plugin.config import load_cfg
from atsc_plugin.contract import of
from atsc_plugin.methods.base import HOST_METHODS
from atsc_plugin.methods.host_methods import IMAGENET_MAPS, MAPS

ROOT = Path(__file__).resolve().parents[1] / "configs"
CLASSES = {"cifar100": 100, "tiny_imagenet": 200, "imagenet": 1000}
FILES = sorted(path.relative_to(ROOT) for name in CLASSES for path in (ROOT / name).rglob("*.yaml"))
PAIRS = sorted((ROOT / "cifar100" / "atsc").glob("*.yaml"))
SHARING = ("SIMKD", "ATSC")  # they compare numbers when they are built; of the others shapes are enough


@pytest.fixture(autouse=True)
def _registered():
    atsc_plugin.register()


def built(cfg):
    """The distiller on unfilled networks: pretrained weights are not what is tested."""
    classes, side = CLASSES[cfg.DATASET.TYPE], host.image_size(cfg.DATASET)
    return build.skeleton(cfg, SimpleNamespace(classes=classes, image_size=side, train_images=2))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_configuration_loads_and_names_its_data(path):
    assert path.parts[0] == load_cfg(ROOT / path).DATASET.TYPE


def test_the_eleven_pairs_have_the_rates_of_the_papers_tables():
    assert len(PAIRS) == 11
    for path in PAIRS:
        cfg = load_cfg(path)
        light = cfg.DISTILLER.STUDENT.startswith(("Shuffle", "Mobile"))
        assert (0.01 if light else 0.05) == cfg.SOLVER.LR, path.name


def test_the_published_configurations_carry_the_released_flags():
    published = [path for path in ROOT.rglob("*_published.yaml") if "leaderboard" not in path.parts]
    assert len(published) >= 2
    for path in published:
        cfg = load_cfg(path)
        assert cfg.ATSC.UPDATE == "published"
        assert (cfg.ATSC.LOSS.FEAT_WEIGHT, cfg.ATSC.PROJECTOR.FACTOR) == (1.0, 2)
        imagenet = cfg.DATASET.TYPE == "imagenet"
        assert (10.0 if imagenet else 1.0) == cfg.ATSC.DRIFT.WEIGHT
        if imagenet:
            assert (cfg.SOLVER.BATCH_SIZE, cfg.SOLVER.EPOCHS, cfg.SOLVER.LR) == (64, 120, 0.01)


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "cifar100"], ids=str)
def test_every_cifar100_configuration_takes_a_step_at_batch_2(path, monkeypatch):
    use_stock(monkeypatch)
    cfg = load_cfg(ROOT / path)
    distiller = built(cfg)
    of(distiller, cfg).begun = True  # no heads are trained for a step
    distiller.train()
    parameters = list(distiller.get_learnable_parameters())
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.SGD(parameters, lr=0.001)
    _, losses = distiller(image=torch.randn(2, 3, 32, 32), target=torch.tensor([0, 1]), epoch=1)
    sum(losses.values()).backward()
    optimizer.step()
    assert all(torch.isfinite(term) for term in losses.values())
    assert any(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    if path.parent.name == "atsc":
        assert all(p.grad is not None for p in parameters)


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] != "cifar100"], ids=str)
def test_every_configuration_of_larger_images_builds_a_distiller_that_fits(path, monkeypatch):
    cfg = load_cfg(ROOT / path)
    if cfg.DISTILLER.TYPE in SHARING:
        use_stock(monkeypatch)
    with torch.device("cpu" if cfg.DISTILLER.TYPE in SHARING else "meta"):
        distiller = built(cfg)
        assert of(distiller, cfg).misfits(build.host.image_size(cfg.DATASET)) == []


@pytest.mark.parametrize("method", ["DKD", "REVIEWKD"])
def test_the_published_hyper_parameters_of_a_pair_fit_its_networks(method):
    name = {"DKD": "dkd", "REVIEWKD": "reviewkd"}[method]
    hyper = HOST_METHODS[method].HYPER
    assert len(hyper) >= 11
    for path in PAIRS:
        node = yaml.safe_load(path.read_text())["DISTILLER"]
        teacher, student = node["TEACHER"], node["STUDENT"]
        words = ["DISTILLER.TEACHER", teacher, "DISTILLER.STUDENT", student]
        cfg = load_cfg(ROOT / "cifar100" / f"{name}.yaml", words)
        for key, value in hyper[teacher, student].items():
            group, leaf = key.split(".")
            assert cfg[group][leaf] == value, (path.name, key)
        with torch.device("meta"):
            assert of(built(cfg), cfg).misfits(32) == [], path.name


@pytest.mark.parametrize(("teacher", "student"), list(IMAGENET_MAPS))
def test_the_published_lists_of_an_imagenet_pair_fit_its_networks(teacher, student):
    """MobileNetV1 has no stem among its maps, so that its first is compared too: five of them with the pooled one."""
    words = ["DISTILLER.TEACHER", teacher, "DISTILLER.STUDENT", student]
    cfg = load_cfg(ROOT / "imagenet" / "reviewkd.yaml", words)
    with torch.device("meta"):
        assert of(built(cfg), cfg).misfits(224) == []


@pytest.mark.parametrize("name", list(MAPS))
def test_the_maps_that_reviewkd_is_told_of_are_the_recorded_networks(name):
    entry = load_contract()["models"][name]
    maps = entry["feats"][1:]
    channels, sides, pooled = MAPS[name]
    assert channels == [feature_map["shape"][1] for feature_map in maps]
    assert sides == [feature_map["shape"][2] for feature_map in maps]
    assert pooled == entry["pooled_feat"]["shape"][1]
