"""The contract, asked of every registered method and of the host's own: nobody needs to know which one it is."""

import ast
import inspect
from pathlib import Path

import pytest
import torch
from every_method import HOSTS, NAMES, WAYS, config, distiller_of, network, trainer_of
from runs import log_of, without_times
from tiny import batch
from torch import nn

from atsc_plugin import contract, host, students
from atsc_plugin.contract import Contract, EpochReport, HostMethod, Network
from atsc_plugin.errors import ConfigError
from atsc_plugin.methods.base import METHODS, class_of
from atsc_plugin.networks.deployed import deployed_of

PACKAGE = Path(contract.__file__).parent
CASES = [(name, ()) for name in NAMES] + [("ATSC", tuple(way)) for way in WAYS.values()]
IDS = [*NAMES, *(f"ATSC {name}" for name in WAYS)]
every_way = pytest.mark.parametrize(("name", "overrides"), CASES, ids=IDS)
every_method = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True, scope="module")
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(host.cifar_model_dict, "tiny", (network, None))
        yield


# ---- a run of ours ----


def weights(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


def moved(module, before):
    return any(not torch.equal(now, then) for now, then in zip(module.parameters(), before, strict=True))


@every_way
def test_it_trains_resumes_bit_for_bit_and_what_it_deploys_predicts_the_same_from_its_files(tmp_path, name, overrides):
    cfg = config(name, tmp_path, *overrides, "SOLVER.EPOCHS", 2)
    trainer = trainer_of(cfg, tmp_path / "whole")
    student, networks = weights(trainer.distiller.student), trainer.method.networks()
    beside = [weights(network_.module) for network_ in networks]
    result = trainer.train()
    assert (result["method"], result["method_name"]) == (name, class_of(name).TITLE)
    assert moved(trainer.distiller.student, student)
    for network_, before in zip(networks, beside, strict=True):
        assert moved(network_.module, before) == network_.moves, network_.name
    assert any(network_.moves for network_ in networks) == class_of(name).LEAVES_NETWORKS

    cfg.SOLVER.EPOCHS = 1
    trainer_of(cfg, tmp_path / "parts").fit()
    cfg.SOLVER.EPOCHS = 2
    resumed = trainer_of(cfg, tmp_path / "parts")
    with torch.no_grad():  # as if the teachers' files had changed in between: all comes from the checkpoint
        for network_ in resumed.method.networks():
            next(network_.module.parameters()).zero_()
    resumed.train(resume=True)
    for key, tensor in trainer.distiller.state_dict().items():
        assert torch.equal(tensor, resumed.distiller.state_dict()[key]), key
    for key, tensor in trainer.method.constants().items():
        assert torch.equal(tensor, resumed.method.constants()[key]), key
    logs = [[without_times(line) for line in log_of(each.folder)] for each in (trainer, resumed)]
    assert logs[0] == logs[1]

    images, _ = batch()
    with torch.no_grad():
        wanted = trainer.distiller.eval()(image=images)
        assert torch.equal(deployed_of(trainer.method).eval()(images), wanted)
        loaded = students.load_student(tmp_path / "whole")(images)
        assert torch.allclose(loaded, wanted, atol=1e-6)  # another memory layout, other kernels: the last digits


@every_way
def test_the_optimizer_has_each_learnable_parameter_once(tmp_path, name, overrides):
    cfg = config(name, tmp_path, *overrides)
    distiller = distiller_of(cfg)
    method = contract.of(distiller, cfg)
    groups = torch.optim.SGD([p if isinstance(p, dict) else {"params": [p]} for p in method.param_groups(cfg)], lr=1.0)
    listed = [id(p) for group in groups.param_groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in method.get_learnable_parameters()}


# ---- under a trainer that knows no hooks ----


@every_way
def test_a_plain_loop_over_forward_trains_it_or_it_is_refused_by_name(tmp_path, name, overrides):
    cfg = config(name, tmp_path, *overrides)
    trainer_of(cfg, tmp_path / "run")  # what is trained first, DIH's heads, lies in the cache from here on
    cfg.SOLVER.TRAINER = "base"
    if contract.OUR_TRAINER in class_of(name).needs(cfg) or contract.SECOND_STEP in class_of(name).needs(cfg):
        with pytest.raises(ConfigError, match=f"{name}[.].*Use SOLVER.TRAINER plugin"):
            distiller_of(cfg)
        return
    distiller = distiller_of(cfg)
    optimizer = torch.optim.SGD(distiller.get_learnable_parameters(), lr=0.05)
    before = distiller.student.conv.weight.detach().clone()
    images, target = batch()
    for epoch in (1, 2):
        distiller.train()
        logits, losses = distiller(image=images, target=target, epoch=epoch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        assert logits.shape == (6, 10) and all(torch.isfinite(term) for term in losses.values())
        with torch.no_grad():
            assert distiller.eval()(image=images).shape == (6, 10)
    assert not torch.equal(distiller.student.conv.weight, before)


def test_what_needs_our_trainer_is_what_the_constructor_refuses_under_another(tmp_path):
    refused = {
        name
        for name, way in WAYS.items()
        if {contract.OUR_TRAINER, contract.SECOND_STEP} & set(class_of("ATSC").needs(config("ATSC", tmp_path, *way)))
    }
    assert refused == {"published", "EMA", "LR_SCALE", "GUARD"}


@pytest.mark.skipif(host.NAME != "embedded", reason="mdistiller's base trainer needs a GPU")
@every_method
def test_the_hosts_base_trainer_trains_and_saves_it(tmp_path, name):
    cfg = config(name, tmp_path, "SOLVER.EPOCHS", 1)
    trainer_of(cfg, tmp_path / "run")
    cfg.SOLVER.TRAINER = "base"
    if contract.OUR_TRAINER in class_of(name).needs(cfg):
        pytest.skip("refused, as the test above has it")
    distiller, loader = distiller_of(cfg), [(*batch(), torch.arange(6))]
    host.trainer_dict["base"]("base", distiller, loader, [batch()], cfg).train()
    saved = torch.load(tmp_path / "base" / "latest", weights_only=False)["model"]
    assert saved.keys() == distiller.state_dict().keys()


# ---- the questions ----

QUESTIONS = [name for name, entry in vars(Contract).items() if not name.startswith("_")]


@every_method
def test_every_question_has_an_answer_of_its_kind(tmp_path, name):
    cfg = config(name, tmp_path)
    method, kind = trainer_of(cfg, tmp_path / "run").method, class_of(name)
    assert isinstance(method, Contract) and isinstance(method, kind)
    assert all(question in dir(method) for question in QUESTIONS)
    assert name == kind.NAME and kind.TITLE
    assert kind.TEACHERS in (contract.NONE, contract.ONE, contract.SEVERAL)
    assert kind.problems(cfg) == [] and method.misfits(32) == []
    known = {contract.SECOND_STEP, contract.OUR_TRAINER, contract.IDLE_PARAMETERS, contract.EAGER_STEP}
    assert known >= kind.needs(cfg).keys()
    assert kind.teacher_weights(cfg) in ("trained", "scratch")
    assert all(isinstance(network_, Network) for network_ in method.networks())
    assert all(isinstance(parameter, nn.Parameter) for parameter in method.second_parameters())
    assert all(isinstance(line, tuple) and len(line) == 2 for line in method.plan())
    method.load_constants({name: tensor.clone() for name, tensor in method.constants().items()})
    method.load_run_state(method.run_state())
    method.before_epoch(1), method.before_step(1, 0), method.after_step()
    report = method.after_epoch(1, [batch()])
    assert isinstance(report, EpochReport) and not report.stop
    assert method.forward_test(batch()[0]).shape == (6, 10)


@every_method
def test_asking_adds_no_name_to_a_checkpoint(tmp_path, name):
    cfg = config(name, tmp_path)
    distiller = distiller_of(cfg)
    before = list(distiller.state_dict())
    method = contract.of(distiller, cfg)
    assert list(distiller.state_dict()) == before
    assert isinstance(method, nn.Module) == (name not in HOSTS)
    assert (method is distiller) == (name not in HOSTS)


def test_of_two_views_a_method_of_ours_gets_the_weak_one_and_a_forks_what_its_forward_train_names():
    plain = {"image": "batch", "target": 1}
    assert Contract().inputs(plain) is plain
    assert Contract().inputs({"image": ("weak", "strong"), "target": 1}) == {"image": "weak", "target": 1}
    named = {"image_weak": "weak", "image_strong": "strong", "target": 1}
    assert Contract().inputs(named) == {"image": "weak", "target": 1}

    class Pair(nn.Module):
        student = nn.Identity()

        def forward_train(self, image, target):
            pass

    class Named(Pair):
        def forward_train(self, image_weak, image_strong, target):
            pass

    inputs = {"image": ("weak", "strong"), "target": 1}
    assert HostMethod(Pair(), None).inputs(inputs) is inputs
    assert HostMethod(Named(), None).inputs(inputs) == named


# ---- no other file knows a method ----

EXEMPT = ("methods/", "minidistiller/", "bench/", "commands/bench.py")  # the benchmark times methods by name
EVERYWHERE = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
OUTSIDE = {name: path for name, path in EVERYWHERE.items() if not name.startswith(EXEMPT)}


def strings_of(tree):
    """String literals of a file that are no documentation."""
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False)
    }
    return {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in documentation}


def test_no_file_outside_methods_names_a_method():
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in OUTSIDE.items()}
    found = {name: strings_of(tree) & set(METHODS) for name, tree in trees.items()}
    assert {name: methods for name, methods in found.items() if methods} == {}


def test_nobody_probes_a_distiller_or_a_method():
    probes = []
    for name, path in EVERYWHERE.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("hasattr", "getattr"):
                asked = ast.unparse(node.args[0]).rpartition(".")[2]
                probes += [(name, ast.unparse(node))] if asked in ("distiller", "method") else []
    assert probes == []


def test_every_question_says_what_it_asks():
    for name, entry in vars(Contract).items():
        function = entry.__func__ if isinstance(entry, classmethod) else entry
        if inspect.isfunction(function):
            assert inspect.getdoc(function), name
