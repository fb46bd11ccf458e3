"""Every method's epoch on a fake CUDA device: where tensors lie, what is read back, what is drawn, in which format."""

import json
import math
from pathlib import Path

import pytest
import torch
from every_method import NAMES, WAYS, Loaders, config, distiller_of, network
from fake_cuda import fake_cuda, moved
from runs import MODERN
from torch import nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException

import atsc_plugin
from atsc_plugin import contract, host
from atsc_plugin.__main__ import main
from atsc_plugin.bench.launches import IMAGES, PARTS, Marking, step_of
from atsc_plugin.bench.steps import Arm
from atsc_plugin.data.device_loader import DeviceLoader
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.methods.base import class_of

pytestmark = pytest.mark.skipif(
    torch.__version__ < torch.torch_version.TorchVersion("2.14"), reason="torch 2.9 asks a driver in factories"
)
DOCS = Path(__file__).resolve().parents[1] / "docs" / "gpu.md"
OTHER_STEPS = ("published", "EMA")  # of ATSC's ways those whose step is another than the default's
CASES = [(name, ()) for name in NAMES] + [("ATSC", tuple(WAYS[name])) for name in OTHER_STEPS]
IDS = [*NAMES, *OTHER_STEPS]
# Operations of one step of these small networks under bf16: a change that adds some has to say so here. A method that
# is not listed has no budget.
LAUNCHES = {
    "NONE": 76, "KD": 122, "DKD": 162, "REVIEWKD": 308, "ATSC": 185, "ATSC_MULTI": 313, "AVERKD": 164, "COTEACH": 253,
    "DIH": 179, "DKD_MULTI": 244, "PROJECTED_VANILLA": 108, "PROJECTED_KD": 154, "SIMKD": 123, "SIMKD_MULTI": 189,
    "ADAPTKD": 178, "DML": 186, "BDKD": 239, "DCM": 448, "PEERS": 348, "SHAKE": 211, "SWITOKD": 180, "published": 234,
    "EMA": 211,
}  # fmt: skip
every_step = pytest.mark.parametrize(
    ("name", "keys", "budget"),
    [(*case, LAUNCHES.get(i, math.inf)) for case, i in zip(CASES, IDS, strict=True)],
    ids=IDS,
)


@pytest.fixture(autouse=True, scope="module")
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(host.cifar_model_dict, "tiny", (network, None))
        yield


def loader(batches, seed=None):
    images, labels = torch.zeros(8 * batches, 3, 32, 32, dtype=torch.uint8), torch.zeros(8 * batches).long()
    return DeviceLoader(images, labels, 8, [0.5] * 3, [0.25] * 3, device="cuda", seed=seed, padding=2, flip=True)


class Watched:
    """An epoch of three steps of a method on the fake device: its counts, and the formats that it computed in."""

    def __init__(self, name, folder, *keys, change=lambda distiller: None):
        cfg = config(name, folder, "SOLVER.GRAPH", "none", *keys)  # a recording would need a GPU
        real = distiller_of(cfg)
        contract.of(real, cfg).begin(Loaders())
        with fake_cuda() as (fake, recorded):
            distiller = moved(real, fake)
            change(distiller)
            with fake:
                train, val = Marking(loader(3, seed=5), recorded), loader(1)
                self.trainer = PluginTrainer("run", distiller, train, val, cfg, folder=folder / "run")
                self.losses, self.maps, self.statistics = {}, set(), set()
                self.trainer.distiller.register_forward_hook(self._outputs)
                for layer in distiller.modules():
                    if isinstance(layer, nn.BatchNorm2d):
                        layer.register_forward_hook(self._norm)
                with recorded:
                    self.line, self.report = self.trainer._epoch(1, None)
                self.gradients = {p.grad.dtype for p in self.trainer.step.parameters() if p.grad is not None}
        self.before, _, self.step, *_ = recorded.events
        self.launches = recorded.steps[2]

    def _outputs(self, distiller, _inputs, outputs):
        if distiller.training:
            logits, losses = outputs
            self.losses = {"logits": logits.dtype} | {name: term.dtype for name, term in losses.items()}

    def _norm(self, layer, inputs, output):
        if layer.training and torch.is_grad_enabled():
            self.maps |= {inputs[0].dtype, output.dtype}
            self.statistics |= {layer.running_mean.dtype, layer.weight.dtype}


@every_step
def test_an_epoch_stays_on_the_device_reads_and_draws_what_it_says_and_sums_in_32_bits(tmp_path, name, keys, budget):
    """Training, evaluation and the monitor run; the second step is looked at. Its launches are within the budget."""
    watched = Watched(name, tmp_path, *keys)
    assert watched.before == {"drawn by a generator of its own": 3, "sent": 3}  # order, windows and flips, on the CPU
    assert watched.step == ({"reads": class_of(name).HOST_READS} if class_of(name).HOST_READS else {})
    assert watched.losses.pop("logits") is torch.float32
    assert set(watched.losses.values()) == watched.gradients == watched.statistics == {torch.float32}
    assert watched.maps == {torch.float32 if "published" in keys else torch.bfloat16}
    assert ("loss_drift" in watched.losses) == (name == "ATSC")
    assert watched.launches.total() <= budget, dict(watched.launches)


def test_todays_recipe_stays_on_the_device_too_and_an_average_costs_two_launches(tmp_path):
    """One for weights and statistics, one for the counts of BN."""
    watched = Watched("ATSC", tmp_path, *MODERN)
    assert watched.step == {}
    assert {tensor.device.type for tensor in watched.trainer.step.average.state_dict().values()} == {"cuda"}
    assert {each.device.type for state in watched.trainer.step.optimizer.state.values() for each in state.values()} == {
        "cuda"
    }
    without = Watched("ATSC", tmp_path / "without", *MODERN, "SOLVER.EMA", 0.0).launches
    assert watched.launches - without == {"optimizer": 2}


def test_launches_of_the_engine_counted_on_a_cpu_are_those_of_the_fake_device(tmp_path, capsys):
    fake = Watched("ATSC", tmp_path, "SOLVER.AMP", "none").launches
    small = ["--teacher", "tiny", "--student", "tiny", "--methods", "ATSC", "--json", str(tmp_path / "counts.json")]
    assert main(["bench", "launches", "--device", "cpu", *small]) == 0
    assert "drift  backward  optimizer  meters  all  gflops" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "counts.json").read_text())["rows"]
    same = ("loader", "drift", "optimizer", "meters")  # memory layouts, and a graph walked in Python, change the others
    assert {part: row[part] for part in same} == {part: fake[part] for part in same}
    assert row["all"] == sum(row[part] for part in PARTS)


def test_the_table_of_launches_in_the_docs_is_what_is_counted():
    """resnet32x4 -> resnet8x4, one row of the table; the others come from the same command."""
    atsc_plugin.register()
    counted, gflops = step_of(Arm("SIMKD", "resnet32x4", "resnet8x4", IMAGES), torch.device("cpu"))
    cells = {}
    for line in DOCS.read_text(encoding="utf-8").splitlines():
        name, *numbers = (cell.strip().replace(",", "") for cell in line.strip("|").split("|"))
        cells[name] = numbers
    *launches, flops, to_kd = cells["SimKD"]
    assert [int(cell) for cell in launches] == [*(counted[part] for part in PARTS), counted.total()]
    assert flops == f"{gflops:.1f}" and to_kd == f"{gflops / float(cells['KD'][-2]):.2f}"


def added_to_the_loss(make):
    """A change of a distiller: its loss gets a term, make(image), that comes from elsewhere."""

    def change(distiller):
        inner = distiller.forward_train

        def forward_train(image, target, **kwargs):
            logits, losses = inner(image, target, **kwargs)
            return logits, losses | {"other": make(image)}

        distiller.forward_train = forward_train

    return change


def test_what_leaves_the_device_is_seen(tmp_path):
    def make(image):
        read = image.sum() * image.max().item()
        there_and_back = image.sum().cpu().to(image.device)
        met = image.sum() * torch.ones(())
        drawn = image * torch.rand(image.shape).to(image.device) + image * torch.rand_like(image)
        return read + there_and_back + met + drawn.sum()

    watched = Watched("NONE", tmp_path, change=added_to_the_loss(make))
    assert watched.step == {"reads": 2, "sent": 2, "met": 1, "drawn on cpu": 1, "drawn on cuda": 1}


@pytest.mark.parametrize(
    "make", [lambda image: (image[0, 0, 0] * torch.ones(32)).sum(), lambda image: image[image > 0].sum()]
)
def test_a_cpu_tensor_among_cuda_ones_and_a_shape_that_must_be_read_are_errors(tmp_path, make):
    with pytest.raises((RuntimeError, DynamicOutputShapeException), match="device|nonzero"):
        Watched("NONE", tmp_path, change=added_to_the_loss(make))
