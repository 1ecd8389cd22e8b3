"""What the shell offers to complete: verbs, groups, choices, keys and files; and the script for bash."""

from __future__ import annotations

import subprocess
import sys

import pytest

from genlab import cli
from genlab.verbs.completion import completions


def offered(line):
    """What follows a line."""
    return completions(line, list(cli.VERBS))


@pytest.mark.parametrize(
    ("line", "among"),
    [
        ("genlab ", ["train", "sample", "completion", "--help"]),
        ("genlab tr", ["train"]),
        ("genlab train mod", ["model=", "model.", "model/head="]),
        ("genlab train model=", ["model=pixelcnn", "model=gan"]),
        ("genlab train model=gan,pixelc", ["model=gan,pixelcnn"]),
        ("genlab train model.", ["model.net.", "model.neighbours="]),
        ("genlab train model=pixel_transformer model.net.attention_h", ["model.net.attention_heads="]),
        ("genlab train trainer.max", ["trainer.max_steps="]),
        ("genlab train compile=", ["compile=true", "compile=false"]),
        ("genlab train --c", ["--cfg", "--config-dir"]),
        ("genlab train --cfg ", ["job"]),
        ("genlab sample temp", ["temperature="]),
        ("genlab eval trainer=", ["trainer=ddp_cpu"]),
        ("genlab resume ", ["run="]),
        ("genlab list mo", ["model", "model/head"]),
        ("genlab completion ", ["bash", "zsh", "fish"]),
    ],
)
def test_what_follows_a_line(line, among):
    found = offered(line)
    assert set(among) <= set(found)
    word = line.rpartition(" ")[2]
    assert all(each.startswith(word) for each in found)


def test_nothing_is_offered_that_the_verb_does_not_take():
    assert not offered("genlab sample mod")
    assert not offered("genlab nonsense ")
    assert not offered("genlab train model=nonsens")
    keys = offered("genlab train data.")
    assert not [key for key in keys if "_target_" in key]


def test_files_and_the_users_own_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "run").mkdir(parents=True)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "ours.yaml").write_text("defaults: [pixelcnn, _self_]\nnet: {special: 3}\n")
    (tmp_path / "conf" / "model" / "broken.yaml").write_text("a: [\n")
    assert offered("genlab sample ckpt=out") == ["ckpt=outputs/"]
    assert offered("genlab sample ckpt=outputs/") == ["ckpt=outputs/run/"]
    assert offered("genlab sample ckpt=nowhere/") == []
    for option in ("--config-dir conf", "--config-dir=conf"):
        assert "model=ours" in offered(f"genlab train {option} model=o")
        assert {"model.net.special=", "model.net.width="} <= set(
            offered(f"genlab train {option} model=ours model.net.")
        )
    assert offered("genlab train --config-dir=conf model=broken see") == ["seed="]
    assert offered("genlab train --config-dir co") == ["conf/"]


@pytest.mark.parametrize(("line", "replies"), [
    ("genlab samp", ["sample"]),
    ("genlab train model=pixelcnnp", ["pixelcnnpp"]),  # without model=: bash splits words at =
    ("genlab sample ckpt=a", [r"a\ b/"]),
])  # fmt: skip
def test_the_function_of_the_script_for_bash(line, replies, tmp_path):
    (tmp_path / "a b").mkdir()
    genlab = f'genlab() {{ {sys.executable} -m genlab "$@"; }}'
    ask = f"COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; _genlab; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    script = f'{genlab}\neval "$(genlab completion bash)"\n{ask}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines() == replies
    assert not done.stderr


def test_an_unknown_shell_is_refused(capsys):
    assert cli.run(["completion", "tcsh"]) == 2
    assert "bash, zsh, fish" in capsys.readouterr().err
