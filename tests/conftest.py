"""Settings every test shares. On two cores, threads that spin while they wait cost ten times what they gain."""

import os
import signal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported, hence first
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job: its children would ignore Ctrl-C too
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(2)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory):
    """What the package caches for its user goes to a folder of the tests; child processes inherit it."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


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
def teacher_file(tmp_path):
    """Random weights of the quickstart's teacher, so that no test waits for one to be trained."""
    from atsc_plugin.host import cifar_model_dict

    torch.manual_seed(0)
    torch.save({"model": cifar_model_dict["resnet20"][0](num_classes=100).state_dict()}, tmp_path / "teacher.pth")
    return tmp_path / "teacher.pth"
