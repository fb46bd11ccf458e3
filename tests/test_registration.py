"""Joining a host's registries and leaving them; a third party's distiller through our trainer."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from forks import python_run
from small_runs import QUICK
from tiny import TinyNet, batch

import atsc_plugin
from atsc_plugin import host
from atsc_plugin.config import load_cfg
from atsc_plugin.contract import HostMethod, of
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.errors import PluginError
from atsc_plugin.host import CFG, Distiller, distiller_dict, trainer_dict
from atsc_plugin.methods.base import class_of, load_methods
from atsc_plugin.methods.simkd import SimKD

METHODS = load_methods()
gives_way = pytest.mark.parametrize("name", [name for name, kind in METHODS.items() if kind.GIVES_WAY])


@pytest.fixture(autouse=True)
def _registered_afterwards():
    atsc_plugin.register()
    yield
    atsc_plugin.register()


def test_importing_the_package_registers_nothing():
    code = (
        "import atsc_plugin; from atsc_plugin import host; "
        "assert 'SIMKD' not in host.distiller_dict and 'plugin' not in host.trainer_dict and 'SIMKD' not in host.CFG; "
        "atsc_plugin.register(); "
        "assert 'SIMKD' in host.distiller_dict and 'plugin' in host.trainer_dict and 'SIMKD' in host.CFG; "
        "assert callable(atsc_plugin.register) and atsc_plugin.register() is None"
    )
    root = Path(__file__).resolve().parents[1]
    done = python_run([sys.executable, "-c", code], cwd=root)
    assert done.returncode == 0, done.stderr


def test_registering_twice_also_after_a_merge_and_on_a_frozen_tree_changes_nothing():
    CFG.defrost()
    CFG.merge_from_list(["SIMKD.LOSS.FEAT_WEIGHT", 7.0])
    CFG.freeze()
    try:
        atsc_plugin.register()
        assert CFG.is_frozen()
        assert CFG.SIMKD.LOSS.FEAT_WEIGHT == 7.0
        assert distiller_dict["SIMKD"] is SimKD
    finally:
        CFG.defrost()
        CFG.SIMKD.LOSS.FEAT_WEIGHT = 1.0


def test_unregister_takes_ours_and_nothing_else():
    others = {name: entry for name, entry in distiller_dict.items() if name not in METHODS}
    atsc_plugin.unregister()
    assert distiller_dict == others
    assert "plugin" not in trainer_dict
    assert "base" in trainer_dict
    assert "SIMKD" not in CFG
    assert "SEED" not in CFG.EXPERIMENT
    assert "KD" in CFG


class Theirs(Distiller):
    """A fork's own method under one of our names."""


@pytest.fixture
def taken(monkeypatch):
    """taken(name): the host has that name before we come, with a node of keys of its own."""
    atsc_plugin.unregister()
    nodes = []

    def take(name):
        monkeypatch.setitem(distiller_dict, name, Theirs)
        CFG.defrost()
        CFG[name] = type(CFG)({"THEIR_KEY": 1})
        nodes.append(name)

    yield take
    atsc_plugin.unregister()
    for name in nodes:
        assert distiller_dict[name] is Theirs
        assert dict(CFG.pop(name)) == {"THEIR_KEY": 1}  # nothing of ours was left in it


@pytest.mark.parametrize("name", ["SIMKD", "SIMKD_MULTI", "ATSC", "ATSC_MULTI"])
def test_somebody_elses_simkd_or_atsc_is_an_error_that_names_both_and_changes_nothing(taken, name):
    taken(name)
    with pytest.raises(PluginError) as error:
        atsc_plugin.register()
    assert f"already has {name}: test_registration.Theirs" in str(error.value)
    assert f"ours would be {METHODS[name].__module__}.{METHODS[name].__qualname__}" in str(error.value)
    assert f"launch --leave {name}" in str(error.value)
    assert "plugin" not in trainer_dict
    assert "SEED" not in CFG.EXPERIMENT


@gives_way
def test_any_other_method_of_ours_gives_way_and_one_line_says_so(taken, capsys, name):
    taken(name)
    atsc_plugin.register()
    atsc_plugin.register()
    assert distiller_dict[name] is Theirs
    if METHODS[name].KEYS:
        assert list(CFG[name]) == ["THEIR_KEY"]
    assert distiller_dict["SIMKD"] is SimKD
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("atsc_plugin:")]
    assert told == [f"atsc_plugin: {name} stays the host's (test_registration.Theirs); ours is not added"]


@gives_way
def test_a_method_that_stayed_the_hosts_is_configured_as_one_of_the_hosts(taken, name):
    taken(name)
    atsc_plugin.register()
    cfg = load_cfg(QUICK / "kd.yaml", ["DISTILLER.TYPE", name, f"{name}.THEIR_KEY", "2"])
    assert cfg[name].THEIR_KEY == 2
    assert class_of(name) is HostMethod
    method = of(Theirs(TinyNet(), TinyNet()), cfg)
    assert type(method) is HostMethod and method.param_groups(cfg)


def test_a_left_name_is_not_ours_and_an_unknown_one_is_an_error(taken):
    taken("SIMKD")
    atsc_plugin.register(leave=["SIMKD"])
    assert distiller_dict["SIMKD"] is Theirs
    assert "ATSC" in distiller_dict
    with pytest.raises(PluginError, match="leave names SIMDK; expected names of ours: .*SIMKD"):
        atsc_plugin.register(leave=["SIMDK"])


def test_a_fork_without_a_trainer_registry_gets_the_distillers(monkeypatch):
    atsc_plugin.unregister()
    monkeypatch.setattr(host, "trainer_dict", None)
    atsc_plugin.register()
    assert distiller_dict["SIMKD"] is SimKD
    assert "plugin" not in trainer_dict


class MatchLogits(Distiller):
    """A third party's method, written against the host's registry API and nothing of ours."""

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def get_learnable_parameters(self):
        return [*super().get_learnable_parameters(), self.scale]

    def get_extra_parameters(self):
        return 1

    def forward_train(self, image, target, **kwargs):
        logits, _ = self.student(image)
        with torch.no_grad():
            wanted, _ = self.teacher(image)
        return logits, {
            "loss_match": F.mse_loss(self.scale * logits, wanted),
            "loss_ce": F.cross_entropy(logits, target),
        }


def test_a_third_partys_distiller_runs_through_our_trainer_unchanged(tmp_path):
    cfg = CFG.clone()
    cfg.merge_from_list(["LOG.PREFIX", str(tmp_path), "SOLVER.EPOCHS", 2, "EXPERIMENT.NAME", "third"])
    distiller = MatchLogits(TinyNet(), TinyNet(), cfg)
    start = distiller.student.fc.weight.detach().clone()
    images, target = batch()
    train = [(images, target, torch.arange(6))]
    trainer = PluginTrainer("third", torch.nn.DataParallel(distiller), train, [(images, target)], cfg)
    result = trainer.train()
    assert trainer.distiller is distiller
    assert not torch.equal(distiller.student.fc.weight, start)
    assert distiller.scale.item() != 1.0
    assert result["params_trained"] == sum(p.numel() for p in distiller.student.parameters()) + 1
    assert (tmp_path / "distill" / "third" / "seed_1" / "result.json").is_file()
