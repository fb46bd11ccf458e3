"""examples/*_loop.py: each is executed, and each ends with the weights of our own trainer."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from tiny import TinyNet, batch

from atsc_plugin.engine.trainer import PluginTrainer

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
METHODS = {
    "SimKD": {"method": "SIMKD"},
    "ATSC": {"drift_weight": 1.0},
    "ATSC EMA": {"teacher_learns": "task", "teacher_ema": 0.9},
}
STEPS = 20


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    yield
    for place in EXAMPLES.glob("*.py"):
        sys.modules.pop(place.stem, None)


class Images(torch.utils.data.TensorDataset):
    """20 batches of four images in double precision, in which equal arithmetic in another order stays equal."""

    def __init__(self):
        x, y = batch(4 * STEPS)
        super().__init__(x.double(), y)


def train(loop, options):
    """The distiller after 20 steps in one of the loops, from the same weights."""
    torch.manual_seed(0)
    networks = TinyNet().double(), TinyNet(width=6).double()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # for the projector
    try:
        return loop(*networks, torch.utils.data.DataLoader(Images(), 4), image_size=32, lr=0.05, **options)
    finally:
        torch.set_default_dtype(before)


def our_trainer(folder):
    """A loop like theirs around PluginTrainer: the same SGD, one epoch."""
    import atsc_plugin

    def loop(student, teacher, batches, image_size, lr, method="ATSC", **options):
        d = atsc_plugin.distiller(student, teacher, method, image_size=image_size, **options)
        cfg = d._cfg.clone()
        cfg.defrost()
        cfg.merge_from_list(["SOLVER.LR", lr, "SOLVER.EPOCHS", 1, "SOLVER.MOMENTUM", 0.9, "SOLVER.WEIGHT_DECAY", 1e-4])
        cfg.LOG.PREFIX = str(folder)
        PluginTrainer("run", d.inner, batches, [next(iter(batches))], cfg, folder=folder / "run").fit()
        return d

    return loop


def loop_of(name):
    """The function `train` of an example; skipped where its framework is absent."""
    if name != "plain":
        pytest.importorskip(name, reason=f'pip install "atsc_plugin[examples]" brings {name}')
    return importlib.import_module(f"{name}_loop").train


@pytest.fixture(scope="module")
def trained_by_us(tmp_path_factory):
    """The weights after our trainer's 20 steps, by method."""
    return {
        name: train(our_trainer(tmp_path_factory.mktemp("ours")), options).inner.state_dict()
        for name, options in METHODS.items()
    }


@pytest.mark.parametrize("name", ["plain", "accelerate", "lightning"])
@pytest.mark.filterwarnings("ignore")  # Lightning's advice, and what it uses of torch that torch has deprecated
def test_a_loop_ends_with_our_trainers_weights(name, trained_by_us, here):
    loop = loop_of(name)
    for method, options in METHODS.items():
        d, start = train(loop, options), TinyNet()
        assert not torch.equal(d.student.conv.weight.float(), start.conv.weight)
        assert d.step == STEPS
        for key, wanted in trained_by_us[method].items():
            torch.testing.assert_close(d.inner.state_dict()[key], wanted, rtol=0, atol=1e-7, msg=f"{method} {key}")


def test_accumulating_under_accelerate_counts_the_optimizers_steps(here):
    assert train(loop_of("accelerate"), {**METHODS["SimKD"], "accumulate": 4}).step == STEPS / 4


@pytest.mark.parametrize("name", ["plain", "accelerate", "lightning"])
@pytest.mark.filterwarnings("ignore")
def test_an_example_runs_as_a_script(name, here, capsys, monkeypatch):
    loop_of(name)
    digits = importlib.import_module("digits")
    monkeypatch.setattr(digits, "trained_teacher", lambda batches: digits.Net(width=32))
    text = (EXAMPLES / f"{name}_loop.py").read_text(encoding="utf-8")
    assert "epochs=5" in text
    exec(compile(text.replace("epochs=5", "epochs=1"), name, "exec"), {"__name__": "__main__"})
    said = capsys.readouterr().out
    assert "student" in said and (name != "plain" or "loaded again: (1, 10)" in said)
