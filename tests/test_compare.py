"""`genlab compare` and `train.repeat`: seeds are averaged, settings are not, and what cannot be compared is marked."""

from __future__ import annotations

import csv
import json
import statistics

import pytest
from finished import run_folder
from PIL import Image
from rich.console import Console

from genlab import cli
from genlab.results import settings, table
from genlab.results.groups import grouped
from genlab.results.run_folders import read_runs

SMALL = [
    "trainer=smoke", "trainer.max_steps=2", "trainer.accelerator=cpu", "model.net.width=8", "model.net.depth=1",
    "data.limit=32", "train.sample_every=0",
]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def groups_of(folder):
    return grouped(read_runs("runs", [str(folder)])[0])


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_seeds_are_one_row_and_settings_are_several(here, capsys):
    bits = {16: [1.1, 1.2, 1.3], 48: [1.0, 0.8, 0.9]}
    for width, values in bits.items():
        for seed, value in enumerate(values):
            run_folder(here / "runs" / f"{width}-{seed}", f"seed={seed}", f"model.net.width={width}", bits=value)
    assert cli.run(["compare", "runs", "out=t.csv"]) == 0
    found = rows_of("t.csv")
    assert [row["model.net.width"] for row in found] == ["48", "16"]  # the best first
    for row in found:
        values = bits[int(row["model.net.width"])]
        assert float(row["test"]) == pytest.approx(statistics.mean(values))
        assert float(row["test_sd"]) == pytest.approx(statistics.stdev(values))
        assert float(row["test_standard_error"]) == pytest.approx(0.01)
        assert (row["runs"], row["minutes"], row["kind"]) == ("3", "2.0", "exact")
    assert "data.seed" not in found[0]
    assert "0.9000 ± 0.1000" in capsys.readouterr().out
    assert Image.open("t.png").size[0] > 100


def test_the_same_setting_is_one_group_however_it_is_written(here):
    run_folder(here / "runs" / "a", "seed=0", "optim.weight_decay=0")
    run_folder(here / "runs" / "b", "seed=1", "optim.weight_decay=0.0", "train.samples=9", "logger=none")
    config = here / "runs" / "b" / "config.yaml"
    config.write_text(config.read_text().replace("  repeat: null\n", ""))  # an older run has fewer keys
    assert [len(group.counted) for group in groups_of("runs")] == [2]


def test_a_run_that_chose_its_length_is_grouped_by_its_minutes(here):
    for seed, steps in enumerate((80, 90)):
        run = run_folder(here / "runs" / str(seed), f"seed={seed}", "trainer.max_steps=null", "train.minutes=1")
        file = run / "config.yaml"
        file.write_text(file.read_text().replace("max_steps: null", f"max_steps: {steps}"))
    run_folder(here / "runs" / "fixed", "seed=0", "trainer.max_steps=80")
    assert sorted(len(group.counted) for group in groups_of("runs")) == [1, 2]


def test_what_follows_from_the_name_of_the_model_is_no_column():
    base = {"names.model": "a", "names.data": "d", "model": "A", "model.width": 1, "optim.lr": 0.1}
    other = {"names.model": "b", "names.data": "d", "model": "B", "model.depth": 1, "optim.lr": 0.1}
    assert settings.differing([base, other]) == ["names.model"]
    assert settings.differing([base, other, {**base, "model.width": 2}]) == ["names.model", "model.width"]
    assert settings.differing([base, {**base, "optim.lr": 0.2}]) == ["optim.lr"]
    assert settings.differing([base, base]) == []


def test_numbers_that_cannot_be_compared_are_in_different_sets(here, capsys):
    run_folder(here / "runs" / "mini", "seed=0")
    run_folder(here / "runs" / "vae", "model=latent_gaussian", bits=1.5, test={"kind": "bound"})
    run_folder(here / "runs" / "mnist", "data=mnist", bits=0.5, test={"data": "mnist"})
    run_folder(here / "runs" / "label", "data/context=label", "model/context=label", test={"conditioning": "label"})
    run_folder(here / "runs" / "gan", "model=gan", test={"kind": "adversarial"}, curve=())
    nats = {"kind": "reconstruction", "reconstruction": 9.0, "measured_in": "nats"}
    run_folder(here / "runs" / "ae", "model=sparse_ae", test=nats)
    assert cli.run(["compare", "runs"]) == 0
    found = {(row["model"], row["data"], row["data.context"]): row for row in rows_of("compare.csv")}
    sets = {key: row["set"] for key, row in found.items()}
    assert sets["pixelcnn", "mnist_mini", "null"] == sets["latent_gaussian", "mnist_mini", "null"]
    assert len(set(sets.values())) == 5
    assert sets["gan", "mnist_mini", "null"] == ""
    assert found["gan", "mnist_mini", "null"]["test"] == ""
    assert found["sparse_ae", "mnist_mini", "null"]["test"] == "9.0"
    said = capsys.readouterr().out
    assert "≤ 1.5000" in said
    assert "cannot be compared" in said
    assert "these runs have no number to compare" in said
    assert "mnist_mini given the label" in said


def test_images_of_a_folder_that_has_changed_are_another_set(here, monkeypatch):
    for seed in (0, 1):
        run_folder(here / "runs" / str(seed), "data=folder", "data.path=photos", "data.size=8", f"seed={seed}")
    cards = {"0": "aa", "1": "aa"}
    monkeypatch.setattr(
        "genlab.results.groups.read_checkpoint",
        lambda folder: ({"genlab": {"fingerprints": {"test": cards[folder.name]}}}, {}),
    )
    assert len(groups_of("runs")) == 1
    cards["1"] = "bb"
    assert len({group.measured for group in groups_of("runs")}) == 2


def test_numbers_out_of_range_are_no_numbers(here):
    run_folder(here / "runs" / "a", test={"bits_per_dim": 10**400, "n": True, "draws": [1]})
    assert cli.run(["compare", "runs"]) == 0
    assert rows_of("compare.csv")[0]["test"] == ""


def test_unfinished_failed_and_repeated_runs_are_named_and_not_counted(here, capsys):
    run_folder(here / "runs" / "a", "seed=0", bits=1.0)
    run_folder(here / "runs" / "again", "seed=0", bits=5.0)
    run_folder(here / "runs" / "open", "seed=1", bits=None)
    (run_folder(here / "runs" / "broken", "seed=2", bits=None) / "error.txt").write_text("the disk was full\n")
    (here / "runs" / "early").mkdir()
    (here / "runs" / "early" / "error.txt").write_text("an odd kernel\n")
    assert cli.run(["compare", "runs"]) == 0
    said = capsys.readouterr().out
    for words in ("runs/again (another run of seed 0", "runs/open (unfinished", "the disk was full", "an odd kernel"):
        assert words in said
    (row,) = rows_of("compare.csv")
    assert (row["runs"], row["not_counted"], row["test"], row["test_sd"]) == ("1", "3", "1.0", "")


def test_words_name_runs_in_every_way(here):
    for name in ("a", "seed=1", "it's, [odd]"):
        run_folder(here / "runs" / name, f"seed={len(name)}")
    for words in (["runs"], ["runs/*"], ["runs/a", "runs/seed=1", "runs/it's, [odd]"], ["runs=[runs,runs/a]"]):
        assert cli.run(["compare", *words]) == 0
        assert rows_of("compare.csv")[0]["runs"] == "3"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "needs run folders"),
        (["nowhere"], "does not exist"),
        (["no*where"], "no folder matches"),
        (["empty"], "holds no config.yaml"),
        (["runs", "out=t.pdf"], ".csv or .tex"),
        (["runs", "runs=[runs]"], "not both"),
        (["runs", "oot=t.csv"], "did you mean 'out'"),
        (["alien"], "not the config of a run"),
        (["damaged"], "results.json is damaged"),
    ],
    ids=" ".join,
)
def test_wrong_requests_are_one_sentence_and_write_nothing(words, sentence, here, capfd):
    run_folder(here / "runs" / "a")
    (here / "empty").mkdir()
    (here / "alien").mkdir()
    (here / "alien" / "config.yaml").write_text("key: value\n")
    (run_folder(here / "damaged") / "results.json").write_text('{"test": 3}')
    before = sorted(here.iterdir())
    assert cli.run(["compare", *words]) == 2
    said = capfd.readouterr().err.strip()
    assert sentence in said
    assert said.count("\n") == 0
    assert sorted(here.iterdir()) == before


def test_latex_is_escaped_and_complete(here):
    run_folder(here / "runs" / "a", "train.ema=0.9", bits=1.5, test={"kind": "bound", "data": "50%_{off}\n\\input{x}"})
    run_folder(here / "runs" / "b", "train.max_bad_steps=5", bits=1.0)
    assert cli.run(["compare", "runs", "out=t.tex"]) == 0
    code = [line for line in (here / "t.tex").read_text().splitlines() if not line.startswith("%")]
    assert code[0].startswith(r"\begin{tabular}{")
    assert code[-1] == r"\end{tabular}"
    assert not any("input" in line for line in code)
    assert r"max\_bad\_steps" in "".join(code)
    assert r"$\leq$ 1.5000" in "".join(code)
    assert len({line.count(" & ") for line in code if line.endswith(r"\\")}) == 1


def test_nothing_of_a_run_controls_the_terminal(here, capsys, monkeypatch):
    for i, word in enumerate(("[red]", "\x1b[31m")):
        run_folder(here / "runs" / f"{word}{i}", f"train.ema=0.{i}", bits=None)
        file = here / "runs" / f"{word}{i}" / "config.yaml"
        file.write_text(file.read_text().replace("fused: true", f"fused: {json.dumps(word)}"))
    monkeypatch.setattr(table, "Console", lambda: Console(force_terminal=True, width=200, color_system=None))
    assert cli.run(["compare", "runs"]) == 0
    said = capsys.readouterr().out
    assert "[red]" in said
    assert "?[31m" in said
    assert "\x1b[31m" not in said


@pytest.mark.slow
def test_repeat_is_a_sweep_over_seeds_that_ends_with_the_table(here, capsys):
    words = [*SMALL, "model.net.kernel=3,5", "seed=3", "train.repeat=2", "hydra.sweep.dir=sweep"]
    assert cli.run(["train", "-m", *words]) == 0
    said = capsys.readouterr().out
    groups = groups_of("sweep")
    assert [[run.seed for run in group.counted] for group in groups] == [[3, 4], [3, 4]]
    table_of_seeds = said.partition("sweep.csv")[2]
    assert f"{groups[0].value('test').mean:.4f} ± {groups[0].value('test').deviation:.4f}" in table_of_seeds
    commands = {(run / "command.txt").read_text() for run in (here / "sweep").glob("?")}
    assert all("repeat" not in command for command in commands)
    capsys.readouterr()
    assert cli.run(["train", *SMALL, "train.repeat=1", "hydra.sweep.dir=once"]) == 0
    assert "±" not in capsys.readouterr().out.partition("sweep.csv")[2]  # one seed has no deviation


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train.repeat=0"], "from 1 to"),
        (["train.repeat=x"], "from 1 to"),
        (["-m", "train.repeat=1,2"], "from 1 to"),
        (["-m", "train.repeat=2", "seed=0,1"], "several seeds already"),
        (["train.repeat=2", "hydra.run.dir=x"], "hydra.sweep.dir"),
        (["train.repeat=2", "modle=a"], "did you mean 'model'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_repeats_are_one_sentence(words, sentence, here, capfd):
    assert cli.run(["train", *words]) == 2
    assert sentence in capfd.readouterr().err
    assert not list(here.iterdir())


def test_a_file_cannot_repeat_a_run(here, capfd):
    (here / "conf" / "experiment").mkdir(parents=True)
    (here / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_\ntrain: {repeat: 3}\n")
    assert cli.run(["train", "--config-dir", "conf", "experiment=mine", *SMALL]) == 2
    assert "command line" in capfd.readouterr().err
