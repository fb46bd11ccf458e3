"""The floors of the house: a file imports only from lower floors or its own room, and only host.py names a host."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "atsc_plugin"
# Lowest first. A room is a module or a folder; the longest match decides.
FLOORS = [
    ["errors", "files", "seeds", "shipped", "collapse"],
    ["untrusted"],
    ["schema"],
    ["cards"],
    ["key_table"],
    [
        "data",
        "networks",
        "methods.teacher_list",
    ],  # fmt: skip
    ["engine"],
    ["keys", "methods"],
    ["students"],
    ["config", "registration"],
    ["teachers"],
    ["build"],
    ["reporting", "bench"],
    ["report"],
    ["export", "suites"],
    ["commands", "leaderboard", "__main__"],
]
FREE_OF_TORCH = [
    "report",
    "reporting.comparisons",
    "leaderboard.slurm",
    "leaderboard.plan",
    "commands.leaderboard",
    "__main__",
    "engine.run_dir",
    "errors",
    "seeds",
]
SOURCES = sorted(path for path in PACKAGE.rglob("*.py"))


def module_name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def room_of(module):
    rooms = [
        (len(room), room, floor)
        for floor, members in enumerate(FLOORS)
        for room in members
        if module == room or module.startswith(f"{room}.")
    ]
    assert rooms, f"{module} stands on no floor: give it one in FLOORS"
    return module.partition(".")[0], max(rooms)[2]


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
                parents = here[: len(here) - node.level]
                base = ".".join([*parents, *([node.module] if node.module else [])])
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


@pytest.mark.parametrize("path", [p for p in SOURCES if module_name(p)], ids=module_name)
def test_a_file_imports_only_from_lower_floors_or_its_own_room(path):
    room, floor = room_of(module_name(path))
    for name in imports_of(path):
        target = own_module(name)
        if target:
            other, below = room_of(target)
            assert below < floor or other == room, (
                f"{module_name(path)} (floor {floor}) imports {target} (floor {below})"
            )


def test_only_the_door_names_a_host():
    for path in SOURCES:
        module = module_name(path)
        if module == "host" or module.startswith("minidistiller"):
            continue
        for name in imports_of(path):
            assert name.split(".")[0] != "mdistiller", f"{module} imports {name}"
            assert not name.startswith("atsc_plugin.minidistiller"), f"{module} imports {name}"


def test_the_init_files_of_the_packages_import_nothing():
    for room in ("engine", "data", "methods", "networks"):
        assert imports_of(PACKAGE / room / "__init__.py") == []


def test_importing_the_package_and_what_reads_run_directories_loads_no_torch():
    modules = ["atsc_plugin", *(f"atsc_plugin.{name}" for name in FREE_OF_TORCH)]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent).returncode == 0


def test_no_module_of_ours_loads_itself_in_a_circle():
    graph = {module_name(p): {own_module(n) for n in imports_of(p, top_level_only=True)} - {None} for p in SOURCES}

    def walk(module, path):
        assert module not in path, f"circle: {' -> '.join([*path, module])}"
        for target in graph.get(module, ()):
            if target != module:
                walk(target, [*path, module])

    for module in graph:
        if not module.startswith("minidistiller"):
            walk(module, [])
