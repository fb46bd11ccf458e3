"""README and docs: links lead somewhere, commands and keys are ones that exist, generated parts are up to date.

tests/test_tutorial.py runs the tutorial's commands, and tests/test_quickstart.py a small quickstart.
"""

import csv
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from command_lines import command_of, lines_of, module_of, parsed
from forks import python_run

import atsc_plugin
from atsc_plugin.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "docs/results/finished_teacher/README.md"])
TODAY = [page for page in PAGES if page.name != "CHANGELOG.md"]  # the changelog names files that are gone


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(page):
    prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose)
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", TODAY, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_configuration_file_and_tool_that_is_named_exists(page):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"\b((?:configs|tools)/[\w/.-]+\.(?:yaml|py))\b", text))
    made_by_the_reader = {"configs/quickstart/logitmse.yaml"}
    assert [path for path in sorted(named - made_by_the_reader) if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("page", TODAY, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_is_named_exists(page):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:python3? -m atsc_plugin|atsc-plugin) ([a-z][\w-]*)", text))
    assert named <= set(COMMANDS)


# Lines of shell blocks that start no command of ours.
OTHER_PROGRAMS = re.compile(r"(?:\S*/)?(?:python3? -m (?:venv|pytest)|pip install|pre-commit|ruff|mypy)\b")


def commands_in(text):
    """[(command, arguments)] of every line of ours in shell blocks and inline code; an unknown line of a block fails.

    The tutorial's marked blocks are run by a test of their own. A table shortens `python tools/train.py` to dots.
    """
    found = []
    for block in re.findall(r"(?<!<!-- walk -->\n)```bash\n(.*?)```", text, flags=re.DOTALL):
        for line in lines_of(block):
            assert command_of(line) or OTHER_PROGRAMS.match(line), f"nothing checks this line: {line}"
            found.append(command_of(line))
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    found += [command_of(re.sub(r"^\.\.\. (?=--cfg)", "python tools/train.py ", code)) for code in inline]
    return list(filter(None, found))


@pytest.mark.parametrize("page", TODAY, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_line_is_one_that_its_command_takes(page, monkeypatch):
    """Options by the command's parser; configuration files and keys by load_cfg; a suite by its reader."""
    from atsc_plugin.commands import registered_cfg
    from atsc_plugin.commands.leaderboard import _runs
    from atsc_plugin.leaderboard.suite import read_suite

    monkeypatch.chdir(ROOT)
    for command, words in commands_in(page.read_text(encoding="utf-8")):
        args = parsed(command, words)
        needs_timm = any(word.startswith("timm/") for word in words) and not find_spec("timm")
        if command == "train" and Path(args.cfg).is_file() and not needs_timm:
            registered_cfg(args.cfg, args.opts)
        if command == "leaderboard" and Path(args.suite).is_file():
            assert _runs(read_suite(args.suite), args)


@pytest.mark.parametrize("page", TODAY, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_option_of_a_command_that_prose_shortens_exists(page):
    """`export RUN --benchmark`, `leaderboard --suite FILE`: neither a whole command line nor one that could be run."""
    for command, rest in re.findall(rf"`({'|'.join(COMMANDS)}) ([^`\n]*--[^`\n]*)`", page.read_text(encoding="utf-8")):
        known = module_of(command).parser()._option_string_actions
        assert [word for word in rest.split() if word.startswith("--") and word not in known] == []


@pytest.mark.parametrize("page", [ROOT / "README.md", *(ROOT / "docs").glob("*.md")], ids=lambda page: page.name)
def test_every_configuration_key_that_is_named_exists(page):
    from atsc_plugin.host import CFG, FORKS_COSINE
    from atsc_plugin.keys import flatten

    atsc_plugin.register()
    known = [*flatten(CFG), f"SOLVER.{FORKS_COSINE}"]
    keys = [f".{key}." for key in known]  # prose may leave out the group: TEACHER.EMA
    named = set(re.findall(r"\b[A-Z][A-Z0-9_]*(?:\.[A-Z][A-Z0-9_]*)+\b", page.read_text(encoding="utf-8")))
    assert [name for name in sorted(named) if not any(f".{name}." in key for key in keys)] == []


@pytest.mark.parametrize("page", [ROOT / "README.md", *(ROOT / "docs").glob("*.md")], ids=lambda page: page.name)
def test_what_is_written_by_hand_is_read_in_one_go(page):
    written = re.split(r"<!-- Below this line tools/\w+\.py writes. -->", page.read_text(encoding="utf-8"))[0]
    assert len(written.splitlines()) <= 120


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert (len(text.splitlines()) <= 120, len(text.encode()) <= 16_000) == (True, True)


def test_the_index_names_every_page_and_every_study():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "README.md"]
    studies = [f"results/{page.parent.name}/README.md" for page in (ROOT / "docs/results").glob("*/README.md")]
    assert [name for name in [*pages, *studies] if f"({name})" not in index] == []


def test_the_pages_of_keys_and_methods_are_up_to_date():
    done = python_run([sys.executable, ROOT / "tools" / "pages.py", "--check"], cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("page", "heading"), [("README.md", "Results"), ("docs/atsc.md", "What is known")])
def test_every_result_that_prose_quotes_stands_on_the_page_of_a_recorded_study(page, heading):
    """Figures of two decimals; other tests hold the studies' pages to their runs.csv."""

    def figures(text):
        return set(re.findall(r"(?<![\d.])\d+\.\d\d(?!\d)", text))

    prose = (ROOT / page).read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    quoted = figures(prose.partition("<!-- results")[0])
    recorded = figures(
        "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs/results").glob("*/README.md"))
    )
    assert quoted and quoted - recorded == set()


def test_recorded_runs_have_the_display_names_of_their_suites():
    """A method's name has one spelling where a person reads; arms whose keys are gone are recorded alone."""
    for folder in sorted((ROOT / "docs/results").glob("*/")):
        if (folder / "runs.csv").is_file():
            suite = yaml.safe_load((ROOT / json.loads((folder / "suite.json").read_text())["suite_file"]).read_text())
            with open(folder / "runs.csv", newline="", encoding="utf-8") as file:
                shown = {line["arm"]: line["display"] for line in csv.DictReader(file)}
            own = {arm: suite["arms"][arm]["display"] if arm in suite["arms"] else name for arm, name in shown.items()}
            assert (folder.name, shown) == (folder.name, own)
            assert [name for name in shown.values() if not name or "_" in name] == []


@pytest.mark.parametrize("suite", sorted((ROOT / "configs/leaderboard").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_arm_has_a_display_name_that_a_legend_has_room_for(suite):
    arms = yaml.safe_load(suite.read_text(encoding="utf-8"))["arms"]
    shown = {name: arm.get("display", "") for name, arm in arms.items()}
    assert [name for name, text in shown.items() if not 0 < len(text) <= 34 or "_" in text] == []
    assert len(set(shown.values())) == len(shown)
