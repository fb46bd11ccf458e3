"""The door: which host is chosen, what happens with a broken one, and what a fork may lack."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from forks import python_run

from atsc_plugin import host
from atsc_plugin.errors import HostError

ROOT = Path(__file__).resolve().parents[1]
WHOLE = {
    "__init__.py": "",
    "distillers/__init__.py": "distiller_dict = {}",
    "distillers/_base.py": "class Distiller: pass",
    "engine/__init__.py": "trainer_dict = {}",
    "engine/cfg.py": "CFG = {}",
    "models/__init__.py": "cifar_model_dict = {}\ntiny_imagenet_model_dict = {}\nimagenet_model_dict = {}",
    "dataset/__init__.py": "def get_dataset(cfg): return cfg",
}


@pytest.fixture
def stand_in(tmp_path, monkeypatch, request):
    """Write a package that plays mdistiller's part, under a name of its own, and let the door look for it."""

    def write(**changes):
        name = f"stand_in_{abs(hash(request.node.name)) % 10**8}"
        for file, text in {**WHOLE, **changes}.items():
            if text is not None:
                path = tmp_path / name / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(host, "REAL", name)
        monkeypatch.delenv("ATSC_HOST", raising=False)
        return name

    return write


def test_a_whole_mdistiller_is_taken_and_the_embedded_host_is_taken_without_it(stand_in, monkeypatch):
    name = stand_in()
    assert host.choose() == name
    assert host.choose("embedded") == host.EMBEDDED
    monkeypatch.setattr(host, "REAL", "no_such_package_anywhere")
    assert host.choose() == host.EMBEDDED
    with pytest.raises(HostError, match="PYTHONPATH"):
        host.choose("mdistiller")


def test_an_unknown_host_name_is_told_with_the_known_ones():
    with pytest.raises(HostError, match="ATSC_HOST is 'pytorch'; expected mdistiller, embedded or auto"):
        host.choose("pytorch")


def test_a_fork_without_an_init_file_is_a_host_all_the_same(stand_in, tmp_path):
    name = stand_in(**{"__init__.py": None})
    assert host.choose() == name
    assert host.load(name)["CFG"] == {}
    assert host._folder(name) == tmp_path / name


def test_the_version_is_the_commit_of_a_checkout_its_refs_packed_or_not(stand_in, tmp_path):
    name, git = stand_in(), tmp_path / ".git"
    assert host._version(name, tmp_path / name) == "version unknown"
    (git / "refs/heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "packed-refs").write_text(f"# pack-refs with: peeled\n{'a' * 40} refs/heads/main\n")
    assert host._version(name, tmp_path / name) == "commit aaaaaaaaaaaa"
    (git / "refs/heads/main").write_text(f"{'b' * 40}\n")
    assert host._version(name, tmp_path / name) == "commit bbbbbbbbbbbb"


def test_a_bare_folder_of_the_name_is_no_host(stand_in, tmp_path):
    name = stand_in(**{"__init__.py": None, "engine/cfg.py": None})
    with pytest.raises(HostError, match="has no __init__.py") as error:
        host.choose()
    assert str(tmp_path / name) in str(error.value)


def test_a_broken_host_names_the_part_the_cause_and_the_way_out(stand_in):
    name = stand_in(**{"distillers/__init__.py": "import scipyy"})
    with pytest.raises(HostError) as error:
        host.load(name)
    assert f"{name}.distillers does not import" in str(error.value)
    assert "No module named 'scipyy'" in str(error.value)
    assert "ATSC_HOST=embedded" in str(error.value)


def test_a_broken_optional_part_is_an_error_too_and_an_absent_one_is_not(stand_in):
    name = stand_in(**{"engine/__init__.py": "", "dataset/__init__.py": None})
    surface = host.load(name)
    assert surface["trainer_dict"] is None
    assert surface["get_dataset"] is None
    assert surface["Distiller"].__name__ == "Distiller"


def test_an_optional_part_that_does_not_import_is_told(stand_in):
    name = stand_in(**{"models/__init__.py": "raise RuntimeError('no weights')"})
    with pytest.raises(HostError, match="models does not import: RuntimeError: no weights"):
        host.load(name)


def test_a_fork_without_the_registry_is_refused(stand_in):
    name = stand_in(**{"distillers/__init__.py": ""})
    with pytest.raises(HostError, match="no distiller_dict"):
        host.load(name)


def test_a_broken_mdistiller_ends_a_command_with_status_2_and_no_traceback(tmp_path):
    package = tmp_path / "mdistiller"
    (package / "distillers").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "distillers" / "__init__.py").write_text("import a_package_that_is_not_there")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    environment.pop("ATSC_HOST", None)
    words = ["train", "--cfg", str(ROOT / "configs/quickstart/kd.yaml"), "--dry-run"]
    done = python_run([sys.executable, "-m", "atsc_plugin", *words], env=environment, cwd=tmp_path)
    assert done.returncode == 2
    assert "a_package_that_is_not_there" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [package]


@pytest.mark.skipif("MDISTILLER_PATH" not in os.environ, reason="MDISTILLER_PATH names no mdistiller checkout")
def test_the_real_mdistiller_trains_a_step_of_every_shared_method_through_its_registry(tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": f"{os.environ['MDISTILLER_PATH']}{os.pathsep}{ROOT}",
        "ATSC_HOST": "auto",
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("real_host_script.py"))],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "mdistiller" in done.stdout
