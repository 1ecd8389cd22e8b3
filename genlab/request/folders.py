"""Folders of configs: where genlab's own are, and which choices folders offer.

Only the standard library is imported here, because `genlab VERB --help` should not have to wait for torch.
"""

from __future__ import annotations

from pathlib import Path


def configs_folder() -> Path:
    """The folder of genlab's configs: in the package if it is installed, beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())


def groups(folders: list[Path]) -> dict[str, list[str]]:
    """Config groups and their choices: {"model": ["pixelcnn", …], "model/head": …}.

    Experiments may be in sub-folders, which are part of their names: "homework/made_shapes".
    """
    choices: dict[str, set[str]] = {}
    for folder in folders:
        for file in folder.rglob("*.yaml"):
            path = file.relative_to(folder).with_suffix("")
            group = path.parent if path.parts[0] != "experiment" else path.parents[-2]
            if len(path.parts) > 1:
                choices.setdefault(group.as_posix(), set()).add(path.relative_to(group).as_posix())
    return {group: sorted(names) for group, names in choices.items()}


def description(text: str) -> str:
    """The comment that a config begins with, as one line and without Hydra's package directive."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            lines.append(line.lstrip("# ").strip())
    return " ".join(lines)
