"""A wheel carries the configuration files, and they are found from anywhere."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from atsc_plugin.shipped import PACKAGE, config_file

ROOT = Path(__file__).resolve().parents[1]


def test_a_shipped_config_is_found_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        config_file("configs/quickstart/simkd.yaml").read_text()
        == (PACKAGE.parent / "configs/quickstart/simkd.yaml").read_text()
    )


def test_a_file_of_ones_own_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "configs/quickstart/simkd.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("SOLVER: {EPOCHS: 1}\n")
    assert config_file("configs/quickstart/simkd.yaml").resolve() == own


@pytest.mark.parametrize("name", ["configs/none.yaml", "elsewhere/simkd.yaml", "/configs/simkd.yaml"])
def test_what_is_nowhere_keeps_its_name_for_the_error(name):
    assert config_file(name) == Path(name)


def test_a_wheel_has_every_config_and_no_tests_and_looks_for_data_where_one_works(tmp_path):
    words = [sys.executable, "-c", "import setuptools.build_meta as b, sys; b.build_wheel(sys.argv[1])", str(tmp_path)]
    source = tmp_path / "source"
    for part in ("atsc_plugin", "configs", "setup.py", "README.md", "pyproject.toml"):
        copy_part(ROOT / part, source / part)
    subprocess.run(words, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"atsc_plugin/configs/{p.relative_to(ROOT / 'configs')}" for p in (ROOT / "configs").rglob("*.yaml")}
    assert wanted <= names
    assert not any(name.startswith("tests/") for name in names)
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    asked = [sys.executable, "-c", "from atsc_plugin.minidistiller import HOME; print(HOME)"]
    elsewhere = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    said = subprocess.run(asked, cwd=tmp_path, check=True, capture_output=True, text=True, env=elsewhere).stdout
    assert Path(said.strip()) == tmp_path  # the working directory, for the installed package has no checkout around it


def copy_part(origin, target):
    """Without build leftovers and caches of the checkout, which would hide what is missing."""
    files = [origin] if origin.is_file() else [p for p in origin.rglob("*") if p.is_file() and p.suffix != ".pyc"]
    for file in files:
        place = target / file.relative_to(origin) if origin.is_dir() else target
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
