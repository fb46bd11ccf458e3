"""Settings every test shares. On two cores, threads that spin while they wait cost ten times what they gain."""

import os
import shutil
import signal
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported, hence first
os.environ.setdefault("TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS", "0")  # 25 s of g++, for the two kernels of one test
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "0")  # nor 10 s of it for six probes of what vectors this CPU has
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job: its children would ignore Ctrl-C too
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
os.fsync = lambda file: None  # a power cut is not tested, and each of thousands of writes would wait for the disk


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory):
    """What the package caches for its user goes to a folder of the tests; child processes inherit it."""
    base = tmp_path_factory.getbasetemp()
    os.environ["XDG_CACHE_HOME"] = str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache")


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The trainer of runs.trainer_of after its run: what a run that was broken off has to end as. Not to be changed."""
    from runs import config, trainer_of

    top = tmp_path_factory.mktemp("whole")
    trainer = trainer_of(config(top), top / "run")
    trainer.train()
    return trainer


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a run of `small_runs.tiny("vanilla")` that is over, for tests that copy it."""
    from small_runs import tiny
    from tiny import add_tiny_networks

    top = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        add_tiny_networks(patch)
        assert tiny("vanilla", "LOG.PREFIX", str(top)) == 0
    return next(top.glob("quickstart/run*/seed_1"))


@pytest.fixture
def run(here, finished, tiny_networks):
    """A copy of it where `small_runs.tiny("vanilla")` in the working directory would write it."""
    return Path(shutil.copytree(finished, here / "output" / "quickstart" / finished.parent.name / "seed_1"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory; output goes below it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tiny_networks(monkeypatch):
    """TinyNets under the names `tiny` and `tiny_teacher` among the host's networks."""
    from tiny import add_tiny_networks

    add_tiny_networks(monkeypatch)


@pytest.fixture
def narrow_vgg(monkeypatch):
    """The embedded host's VGGs with a 16th of their channels or so: the same layers, names and map sizes."""
    from atsc_plugin.minidistiller.models.cifar import vgg

    monkeypatch.setattr(vgg, "_WIDTHS", (8, 8, 16, 16, 16))


@pytest.fixture
def tiny_teacher_file(tmp_path, tiny_networks):
    """Random weights of `tiny_teacher`."""
    from tiny import TinyNet

    torch.manual_seed(0)
    torch.save({"model": TinyNet(num_classes=100, width=8).state_dict()}, tmp_path / "teacher.pth")
    return tmp_path / "teacher.pth"


@pytest.fixture
def teacher_file(tmp_path):
    """Random weights of the quickstart's teacher, so that no test waits for one to be trained."""
    from atsc_plugin.host import cifar_model_dict

    torch.manual_seed(0)
    torch.save({"model": cifar_model_dict["resnet20"][0](num_classes=100).state_dict()}, tmp_path / "teacher.pth")
    return tmp_path / "teacher.pth"


@pytest.fixture
def staged(tmp_path, monkeypatch):
    """Overrides for a student and a teacher of a stem and three stages, with random weights of the teacher."""
    from functools import partial

    from tiny_stages import TinyStages

    from atsc_plugin.host import cifar_model_dict

    for name, width in (("staged", 2), ("staged_teacher", 4)):
        monkeypatch.setitem(cifar_model_dict, name, (partial(TinyStages, width=width, stages=3), None))
    torch.manual_seed(0)
    torch.save({"model": TinyStages(100, stages=3).state_dict()}, tmp_path / "staged.pth")
    words = ["DISTILLER.STUDENT", "staged", "DISTILLER.TEACHER", "staged_teacher"]
    return [*words, "DISTILLER.TEACHER_CKPT", str(tmp_path / "staged.pth")]


@pytest.fixture
def without_plots(monkeypatch):
    """Reports as they are without matplotlib: drawing takes longest."""
    monkeypatch.setattr("atsc_plugin.report.plots.available", lambda: False)


@pytest.fixture
def without_cuda(tmp_path):
    """A PYTHONPATH under which what mdistiller's trainer calls on a GPU is the identity."""
    from launching import ROOT, WITHOUT_CUDA

    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WITHOUT_CUDA)
    return f"{tmp_path / 'site'}{os.pathsep}{ROOT}"
