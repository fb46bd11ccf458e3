"""The layers of the package: a file imports only from lower layers or its own folder, and only host.py names a host."""

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from forks import python_run

PACKAGE = Path(__file__).resolve().parents[1] / "atsc_plugin"
# Lowest first; whole folders only, so that no file is on another layer than its folder.
LAYERS = [
    ["errors", "files", "seeds", "shipped", "keys", "losses", "contract", "collapse", "untrusted", "schema", "cards"],
    ["minidistiller"],
    ["host"],
    ["networks", "data"],
    ["engine"],
    ["methods"],
    ["registration"],
    ["config"],
    ["students"],
    ["teachers"],
    ["build"],
    ["report"],
    ["bench"],
    ["export", "leaderboard", "library"],
    ["quickstart"],
    ["commands", "__main__"],
]
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
FREE_OF_TORCH = ["report", "leaderboard", "quickstart.progress", "quickstart.teacher", "commands.leaderboard",
                 "commands.quickstart", "__main__", "engine.run_dir", "errors", "seeds"]  # fmt: skip
SOURCES = sorted(PACKAGE.rglob("*.py"))
OWN = [path for path in SOURCES if path != PACKAGE / "__init__.py" and "minidistiller" not in path.parts]


def module_name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def top(module):
    return module.partition(".")[0]


@cache
def imports_of(path, top_level_only=False):
    """Dotted names of what a file imports, relative imports resolved."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    here = ["atsc_plugin", *path.relative_to(PACKAGE).with_suffix("").parts]
    found = []
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*here[: len(here) - node.level], *([node.module] if node.module else [])])
            found += [f"{base}.{alias.name}" for alias in node.names]
    return found


def own_module(name):
    """The module of ours that an imported name leads to, None for anything else."""
    parts = name.split(".")[1:] if name.split(".")[0] == "atsc_plugin" else []
    while parts:
        place = PACKAGE.joinpath(*parts)
        if place.with_suffix(".py").exists() or place.is_dir():
            return ".".join(parts)
        parts.pop()
    return None


def test_every_file_and_folder_of_the_package_has_its_layer():
    there = {top(module_name(path)) for path in OWN} | {"minidistiller"}
    assert there - LAYER_OF.keys() == set(), "give it a layer in LAYERS"


@pytest.mark.parametrize("path", OWN, ids=module_name)
def test_a_file_imports_only_from_lower_layers_or_its_own_folder(path):
    module = module_name(path)
    for name in imports_of(path):
        target = own_module(name)
        if target is None or top(target) == top(module):
            continue
        layer, below = LAYER_OF[top(module)], LAYER_OF[top(target)]
        # files of the ground may use each other; the test of circles holds them
        assert below < layer or below == layer == 0, f"{module} imports {target}, which is not on a lower layer"


def test_only_host_py_names_a_host():
    for path in OWN:
        if module_name(path) == "host":
            continue
        for name in imports_of(path):
            assert name.split(".")[0] != "mdistiller", f"{module_name(path)} imports {name}"
            assert not name.startswith("atsc_plugin.minidistiller"), f"{module_name(path)} imports {name}"


def test_the_init_files_of_folders_import_nothing_of_ours():
    """A file that needs one of their modules must not load the others with it."""
    for folder in ("engine", "data", "methods", "networks", "export", "bench"):
        assert not [name for name in imports_of(PACKAGE / folder / "__init__.py") if own_module(name)], folder


def test_importing_the_package_and_what_reads_run_directories_loads_no_torch():
    modules = ["atsc_plugin", *(f"atsc_plugin.{name}" for name in FREE_OF_TORCH)]
    for folder in ("report", "leaderboard"):
        modules += [f"atsc_plugin.{module_name(path)}" for path in sorted((PACKAGE / folder).glob("[a-z]*.py"))]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent).returncode == 0


def test_no_module_loads_itself_in_a_circle():
    graph = {module_name(p): {own_module(n) for n in imports_of(p, top_level_only=True)} - {None} for p in SOURCES}
    done = set()

    def walk(module, path):
        assert module not in path, f"circle: {' -> '.join([*path, module])}"
        if module not in done:
            for target in graph.get(module, set()) - {module}:
                walk(target, [*path, module])
            done.add(module)

    for module in graph:
        if not module.startswith("minidistiller"):
            walk(module, [])


def test_no_test_imports_another_test():
    """What two of them need is a helper."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith("test_")], path.name


def test_building_a_run_imports_no_torchvision():
    """It takes two seconds and 200 MB, which images that lie in memory do not need."""
    code = (
        "import sys, atsc_plugin; atsc_plugin.register(); import atsc_plugin.build; print('torchvision' in sys.modules)"
    )
    done = python_run([sys.executable, "-c", code], cwd=PACKAGE.parent, env={**os.environ, "ATSC_HOST": "embedded"})
    assert done.stdout == "False\n", done.stderr
