"""SOLVER.COMPILE: in place, with clean names, the same numbers, and a told failure. Backends that need no C++."""

import pytest
import torch
from tiny import TinyNet, batch

import atsc_plugin
from atsc_plugin.contract import compile_children
from atsc_plugin.engine import precision
from atsc_plugin.engine.optim import set_learning_rate
from atsc_plugin.engine.precision import compile_method, compiler_errors
from atsc_plugin.engine.step import Step
from atsc_plugin.errors import PluginError
from atsc_plugin.host import CFG, distiller_dict
from atsc_plugin.methods.atsc import ATSC
from atsc_plugin.methods.simkd import SimKD
from atsc_plugin.networks.maps import MapSource

CPU = torch.device("cpu")


@pytest.fixture
def cfg():
    atsc_plugin.register()
    cfg = CFG.clone()
    cfg.merge_from_list(["SOLVER.TRAINER", "plugin", "SOLVER.LR", 0.02])
    yield cfg
    torch._dynamo.reset()


def inputs(seed=0):
    image, target = batch(8, seed=seed)
    return {"image": image, "target": target, "epoch": 1}


def pair(method, cfg):
    torch.manual_seed(1)
    return method(TinyNet(width=4), TinyNet(width=6), cfg).train()


@pytest.mark.parametrize("method", [SimKD, ATSC])
def test_a_compiled_distiller_has_the_same_names_and_makes_the_same_steps(cfg, method):
    plain, compiled = pair(method, cfg), pair(method, cfg)
    names = list(compiled.state_dict())
    one, other = Step(plain, cfg), Step(compiled, cfg)
    other.compiled = compile_method(compiled, "default", CPU, backend="aot_eager")
    assert other.compiled == ["student", "teacher", "projector"]
    for seed in range(3):
        one(inputs(seed))
        other(inputs(seed))
    assert list(compiled.state_dict()) == names
    for name, tensor in plain.state_dict().items():
        assert torch.allclose(tensor, compiled.state_dict()[name], atol=1e-5), name


@pytest.mark.skipif(torch.__version__ < torch.torch_version.TorchVersion("2.14"), reason="torch 2.9 makes fewer graphs")
def test_the_networks_did_go_through_the_compiler_in_training_and_not_in_evaluation(cfg):
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    distiller = pair(SimKD, cfg)
    step = Step(distiller, cfg)
    step.compiled = compile_method(distiller, "default", CPU, backend=backend)
    step(inputs())
    trained = len(graphs)
    assert trained >= 3  # student, projector, teacher
    distiller.eval()
    with step.uncompiled(), torch.no_grad():
        distiller(image=inputs()["image"])
    assert len(graphs) == trained
    with torch.no_grad():
        distiller(image=inputs()["image"])
    assert len(graphs) > trained  # outside the block evaluation would have compiled


def test_modes_that_record_cuda_graphs_are_refused_on_a_cpu(cfg):
    for mode in ("reduce-overhead", "max-autotune"):
        cfg.SOLVER.COMPILE = mode
        with pytest.raises(PluginError, match=f"SOLVER.COMPILE {mode} records CUDA graphs; this run is on cpu"):
            Step(pair(SimKD, cfg), cfg)


def test_a_network_read_by_a_hook_stays_uncompiled_and_it_is_said(cfg, capsys):
    distiller = pair(SimKD, cfg)
    distiller.readers[0].source = MapSource("bn", relu=True)
    assert compile_method(distiller, "default", CPU, backend="eager") == ["student", "projector"]
    assert "not compiled: the teacher" in capsys.readouterr().out
    Step(distiller, cfg)(inputs())


def test_a_compiler_that_fails_is_told_with_the_way_out_and_other_errors_pass(cfg):
    def broken(_graph, _inputs):
        raise RuntimeError("no g++ here")

    distiller = pair(SimKD, cfg)
    step = Step(distiller, cfg)
    step.compiled = compile_method(distiller, "default", CPU, backend=broken)
    with pytest.raises(PluginError, match=r"SOLVER.COMPILE cannot compile here: .*no g\+\+ here.*SOLVER.COMPILE none"):
        step(inputs())
    with pytest.raises(ZeroDivisionError), compiler_errors():
        raise ZeroDivisionError


def test_networks_that_stand_in_a_list_or_under_names_are_compiled_one_by_one():
    """PEERS' students and DCM's heads stand under names, several teachers in a list."""
    parts = {"student": TinyNet(), "peers": torch.nn.ModuleDict({"2": TinyNet()}), "empty": torch.nn.ModuleDict()}
    distiller = torch.nn.ModuleDict({**parts, "teacher": torch.nn.ModuleList([TinyNet(), TinyNet()])})
    assert compile_children(distiller, backend="eager") == ["student", "peers.2", "teacher.0", "teacher.1"]
    assert distiller["peers"]["2"]._compiled_call_impl is not None


def test_mode_none_compiles_nothing(cfg):
    distiller = pair(SimKD, cfg)
    assert compile_method(distiller, "none", CPU) == []
    assert distiller.student._compiled_call_impl is None
    assert precision.uncompiled([]).__enter__() is None


class Flat(torch.nn.Module):
    """The cheapest network to compile: C++ kernels are what this costs."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 10)

    def forward(self, image):
        return self.fc(image.mean(dim=(2, 3))), {"feats": []}


def test_default_on_this_cpu_trains_through_the_real_compiler(cfg):
    cfg.SOLVER.COMPILE = "default"
    torch.manual_seed(1)
    step = Step(distiller_dict["NONE"](Flat()).train(), cfg)
    set_learning_rate(step.optimizer, 0.1)
    losses = [step(inputs())[1]["ce"].item() for _ in range(20)]
    assert step.compiled == ["student"]
    assert losses[-1] < losses[0]
