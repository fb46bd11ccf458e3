"""README and docs: links lead somewhere, commands and configuration files exist, generated parts are up to date."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("page", [ROOT / "README.md", *(ROOT / "docs").glob("*.md")], ids=lambda page: page.name)
def test_what_is_written_by_hand_is_read_in_one_go(page):
    written = re.split(r"<!-- Below this line tools/\w+\.py writes. -->", page.read_text(encoding="utf-8"))[0]
    assert len(written.splitlines()) <= 120


def test_the_index_names_every_page_and_every_study():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "README.md"]
    studies = [f"results/{page.parent.name}/README.md" for page in (ROOT / "docs/results").glob("*/README.md")]
    assert [name for name in [*pages, *studies] if f"({name})" not in index] == []


def test_the_pages_of_keys_and_methods_are_up_to_date():
    done = subprocess.run([sys.executable, "tools/pages.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
