"""The notebook in docs/ runs from top to bottom, and its outputs are those of a run."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import run_notebook  # noqa: E402


def outputs(notebook):
    """Every code cell's kinds of output."""
    kinds = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            kinds.append([output.get("name") or "/".join(output["data"]) for output in cell.outputs])
    return kinds


@pytest.mark.slow
def test_the_tutorial_runs_and_gives_the_kinds_of_output_that_are_stored(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    again = run_notebook.executed(run_notebook.TUTORIAL)
    stored = nbformat.read(run_notebook.TUTORIAL, as_version=4)
    assert outputs(again) == outputs(stored)
    printed = " ".join(output.get("text", "") for cell in again.cells for output in cell.get("outputs", []))
    assert "inverted digits" in printed
    assert "KL divergence" in printed


def test_the_stored_outputs_name_no_folder_of_a_machine():
    text = run_notebook.TUTORIAL.read_text()
    for place in ("site-packages", "/home/", sys.prefix, str(ROOT)):
        assert place not in text
