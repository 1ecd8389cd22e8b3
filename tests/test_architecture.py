"""The house rules of CONTRIBUTING.md, read off the source: who may import whom, no circles, short files."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import genlab

ROOT = Path(genlab.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

FOREIGN = {"torch", "torchvision", "torchmetrics", "pytorch_lightning", "hydra", "omegaconf", "yaml", "pooch"}
FOREIGN |= {"numpy", "PIL", "rich", "scipy", "sklearn", "matplotlib", "constriction", "jinja2", "plotly"}
# Every room may import core, system and itself; below, the other rooms and the foreign packages of each. A room of
# nets stands for itself. `verbs`, `cli` and the package's front may import everything.
MAY = {
    "core": (set(), {"torch"}),
    "system": (set(), {"torch"}),
    "heads": (set(), {"torch"}),
    "flows": (set(), {"torch"}),
    "codes": (set(), {"torch"}),
    "nets": ({"nets.causal", "nets.cached", "nets.layers", "nets.coders"}, set()),
    "nets.layers": (set(), {"torch"}),
    "nets.causal": ({"nets.layers"}, {"torch"}),
    "nets.cached": ({"nets.layers", "nets.causal"}, {"torch"}),
    "nets.coders": ({"nets.layers"}, {"torch"}),
    "models": (set(), {"torch", "numpy", "sklearn"}),
    "data": (set(), {"torch", "torchvision", "numpy", "PIL", "rich", "scipy", "pooch"}),
    "build": (set(), {"torch", "omegaconf", "yaml"}),
    "coding": ({"build", "flows", "models"}, {"torch", "numpy", "scipy", "constriction"}),
    "measure": ({"data", "build"}, {"torch", "numpy", "sklearn", "torchmetrics", "PIL"}),
    "viz": ({"data", "build", "measure"}, {"torch", "torchvision", "PIL", "matplotlib", "numpy"}),
    "train": ({"build", "data", "measure"}, {"torch", "pytorch_lightning", "rich", "numpy", "omegaconf", "PIL"}),
    "request": ({"build", "data", "viz", "models", "codes"}, {"torch", "numpy", "PIL", "hydra", "omegaconf", "rich"}),
    "results": ({"build", "train", "request", "viz"}, {"rich", "jinja2", "plotly", "PIL"}),
    # A run ends with its test and its pictures; resuming reports YAML that somebody has edited.
    "processes": (
        {"build", "data", "request", "train", "measure", "viz", "results"},
        {"torch", "pytorch_lightning", "hydra", "omegaconf", "rich", "yaml"},
    ),
}


def room(path: Path) -> str:
    """core, heads, nets.causal, …: where a file is."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:2]) if parts[0] == "nets" and len(parts) > 2 else parts[0]


def module(path: Path) -> str:
    """The dotted name of a file."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in FILES}


def imports(path: Path, lazy: bool = True) -> set[str]:
    """Every module that a file imports, also for type checking; with `lazy` also inside functions."""
    tree = ast.parse(path.read_text())
    within = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for child in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if not lazy and id(node) in within:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in MODULES else str(node.module))
    return found


def part(name: str) -> str:
    """The room that a dotted name of genlab is in."""
    return room(MODULES[name]) if name in MODULES else name


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_stay_within_the_house_rules(path):
    own = room(path)
    if own not in MAY:  # verbs, cli and the package's front may import everything
        return
    rooms, packages = MAY[own]
    if path == ROOT / "data" / "module.py":
        packages = packages | {"pytorch_lightning"}
    for name in imports(path):
        top = name.split(".")[0]
        if top == "genlab":
            assert part(name) in rooms | {own, "core", "system"}, f"{own} may not import {name}"
        elif top in FOREIGN:
            assert top in packages, f"{own} may not import {top}"


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_imports_verbs_or_the_command_line(path):
    if path.relative_to(ROOT).parts[0] in ("cli.py", "__main__.py"):
        return
    assert not {name for name in imports(path) if name.startswith(("genlab.verbs", "genlab.cli"))}


@pytest.mark.slow
def test_no_two_files_import_each_other_in_a_circle():
    """Imports for type checking and inside functions count as well; a package's front counts as a file."""
    graph = {module(path): {name for name in imports(path) if name in MODULES} for path in FILES}
    graph["genlab"] = set()  # its `load` is imported when it is asked for
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(" imports ".join(reversed(error.args[1]))) from None


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_says_what_it_is_and_stays_short(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "a file opens with what it is"
    assert len(text.splitlines()) <= 350


def test_only_bits_divides_by_dims_and_ln2():
    guilty = [p for p in FILES if p.name != "bits.py" and "log(2)" in p.read_text()]
    assert not guilty
