"""The Markdown files: links lead somewhere, tests that are named exist, lines are short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_exist(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (page.parent / link).exists(), link
    for name in re.findall(r"`((?:genlab|scripts|tests)/[\w/]+\.(?:py|sh))`", text):
        assert (ROOT / name).exists() or name.endswith("/foo.py"), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_line_of_prose_is_longer_than_120_characters(page):
    assert not [line for line in page.read_text().splitlines() if len(line) > 120 and not line.startswith("|")]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_the_tests_that_hold_the_promises_exist():
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"::(test_\w+)", (ROOT / "docs" / "robustness.md").read_text())
    assert len(named) > 100
    assert not [name for name in named if f"def {name}(" not in sources]
