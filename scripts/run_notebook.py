"""Execute docs/tutorial.ipynb from top to bottom and keep its outputs.

    python scripts/run_notebook.py [NOTEBOOK] [--out FILE]

Of the outputs stay what the cells print and their pictures as PNG. Progress, warnings and second formats are left out.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

TUTORIAL = Path(__file__).resolve().parent.parent / "docs" / "tutorial.ipynb"
KEPT = ("image/png", "text/plain")


def executed(path: Path) -> Any:
    """The notebook with new outputs. It runs in an empty folder. Raises CellExecutionError if a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where, coalesce_streams=True).execute()
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs = [_kept(output) for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def _kept(output: Any) -> Any:
    """One format of an output: the picture if there is one."""
    if "data" in output:
        kind = next((kind for kind in KEPT if kind in output["data"]), None)
        output["data"] = {kind: output["data"][kind]} if kind else {}
    return output


def main() -> None:
    """Execute and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("notebook", nargs="?", type=Path, default=TUTORIAL)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    nbformat.write(executed(args.notebook), args.out or args.notebook)


if __name__ == "__main__":
    main()
