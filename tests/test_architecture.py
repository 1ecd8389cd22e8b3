"""Who may import whom (the house rules in CONTRIBUTING.md), read off the source; and no file grows out of one idea."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import genlab

ROOT = Path(genlab.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

FOREIGN = {"torch", "torchvision", "pytorch_lightning", "hydra", "omegaconf", "yaml"}
FOREIGN |= {"numpy", "PIL", "rich", "scipy", "sklearn", "matplotlib"}
# For each part: the parts of genlab and the foreign packages that it may import.
MAY = {
    "core": (set(), {"torch"}),
    "device": (set(), {"torch"}),
    "signals": (set(), set()),
    "output": (set(), set()),
    "heads": ({"core", "heads"}, {"torch"}),
    "nets": ({"core", "nets"}, {"torch"}),
    "flows": ({"core", "flows"}, {"torch"}),
    "codes": ({"core", "codes"}, {"torch"}),
    "models": ({"core", "models", "densities"}, {"torch"}),
    "bits": ({"core"}, {"torch"}),
    "reader": (set(), {"numpy", "PIL"}),
    "masks": ({"core", "pictures", "reader"}, {"torch"}),
    "pictures": ({"core", "reader"}, {"torch", "numpy"}),
    "whole": ({"core"}, set()),
    "viz": ({"core", "viz", "whole"}, {"torch", "PIL", "matplotlib", "numpy"}),
    "densities": ({"core"}, {"torch", "numpy", "sklearn"}),
    "probe": ({"core"}, {"torch", "numpy", "sklearn"}),
    "quality": (set(), {"numpy"}),
    "data": ({"core", "data", "reader", "whole"}, {"torch", "torchvision", "numpy", "PIL", "rich", "scipy"}),
    "train": (
        {"core", "bits", "foreign", "signals", "train", "whole"},
        {"torch", "pytorch_lightning", "rich", "numpy"},
    ),
    "foreign": ({"core"}, {"torch", "yaml"}),
    "gate": ({"core"}, set()),
    "build": ({"core", "failures", "foreign", "gate"}, {"torch", "omegaconf"}),
    "folders": ({"core", "foreign"}, set()),
    "compose": ({"core", "folders", "foreign", "gate", "values"}, {"hydra", "omegaconf"}),
    "values": ({"core"}, set()),
    "failures": ({"core"}, {"torch"}),
}
COMMON = {"core", "device"}  # who may import the one may import the other
MAY = {part: (ours | COMMON if "core" in ours else ours, foreign) for part, (ours, foreign) in MAY.items()}


def part(path: Path) -> str:
    """core, heads, … : the first level below genlab."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Dotted names of everything a file imports, inside functions too, type checking aside."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {
                f"{node.module}.{alias.name}" if node.module == "genlab" else str(node.module) for alias in node.names
            }
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_stay_within_the_house_rules(path):
    own = part(path)
    if own not in MAY:  # tasks, cli and the package's front may import everything
        return
    inside, outside = MAY[own]
    if path == ROOT / "data" / "module.py":
        outside = outside | {"pytorch_lightning"}
    for name in imports(path):
        top = name.split(".")[0]
        if top == "genlab":
            wanted = name.split(".")[1]
            assert wanted in inside, f"{own} may not import genlab.{wanted}"
        elif top in FOREIGN:
            assert top in outside, f"{own} may not import {top}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_imports_tasks_or_the_command_line(path):
    if part(path) in ("tasks", "cli", "__main__"):
        return
    assert not {name for name in imports(path) if name.startswith(("genlab.tasks", "genlab.cli"))}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_says_what_it_is_and_stays_short(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "a file opens with what it is"
    assert len(text.splitlines()) <= 350


def test_only_bits_divides_by_dims_and_ln2():
    guilty = [p for p in FILES if part(p) != "bits" and "log(2)" in p.read_text()]
    assert not guilty
