"""The tables of models hold what their files say, and the files hold no folder of the machine they come from."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from trainees import trained

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import models_table  # noqa: E402


def test_the_pages_have_the_tables_of_the_files():
    page, readme = models_table.PAGE.read_text(), models_table.README.read_text()
    assert models_table.written(page, models_table.table()) == page, "run: python scripts/models_table.py"
    assert models_table.written(readme, models_table.best_table(), "best") == readme, (
        "run: python scripts/models_table.py"
    )


def test_the_readme_names_the_best_run_of_every_model_and_the_best_model_first():
    rows = [row.split(" | ") for row in models_table.best_table().splitlines()[2:]]
    values = [
        float(row[2].removeprefix("≤ ").partition(" ")[0]) for row in rows if row[2][0].isdigit() or "≤" in row[2]
    ]
    assert values == sorted(values)
    runs = [json.loads(path.read_text()) for path in models_table.RESULTS.glob("*.json")]
    fewest = min(run["test"]["bits_per_dim"] for run in runs if run["data"] == "mnist")
    assert f"{fewest:.3f}" in " | ".join(rows[0])


def test_every_file_is_named_after_what_it_holds_and_names_no_folder():
    for path in models_table.RESULTS.glob("*.json"):
        entry = json.loads(path.read_text())
        assert models_table.name(entry) == path.name
        assert entry["test"]["split"] == "test"
        assert entry["command"].startswith("genlab train")
        for word in entry["command"].split():
            assert not word.partition("=")[2].startswith(("/", "~"))


def test_a_run_becomes_a_row(tmp_path):
    run = trained(tmp_path / "run")
    entry = models_table.collect(run, "two cores")
    assert str(tmp_path) not in json.dumps(entry)
    assert models_table.name(entry) == "tiny-dots.json"
    (tmp_path / "tiny-dots.json").write_text(json.dumps(entry))
    row = models_table.table(tmp_path).splitlines()[-1]
    value = json.loads((run / "results.json").read_text())["test"]["bits_per_dim"]
    for part in (f"{value:.4f} ±", "(exact, 20 images)", "12 steps, 0.", "two cores", "`genlab train`"):
        assert part in row


def test_runs_that_are_not_finished_or_not_whole_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="finished"):
        models_table.collect(tmp_path, None)
    with pytest.raises(SystemExit, match="limit"):
        models_table.collect(trained(tmp_path / "run", data__limit=30), None)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("genlab train seed=1 hydra.run.dir=/tmp/x data.root='/my data'", "genlab train seed=1"),
        ("genlab train data=folder data.path=photos", "genlab train data=folder data.path=FOLDER"),
        ("genlab train --config-dir /home/me/conf", "genlab train --config-dir FOLDER"),
        ("genlab train model=pixelcnn data/context=half", "genlab train model=pixelcnn data/context=half"),
        (
            "genlab train seed=1 trainer.max_steps=9\ngenlab resume run=/tmp/x\n"
            "genlab resume run=/tmp/x trainer.max_steps=20",
            "genlab train seed=1 trainer.max_steps=20",
        ),
    ],
)
def test_commands_lose_their_folders(text, kept):
    assert models_table.command(text) == kept


def test_minutes_and_hours_are_told_apart():
    entry = {"steps": 1200, "precision": "bf16-mixed", "note": None}
    assert models_table._effort(entry | {"minutes": 105.2}) == "1,200 steps, 105 minutes, bf16-mixed"
    assert models_table._effort(entry | {"minutes": 300, "note": "one GPU"}).endswith("5.0 hours, bf16-mixed; one GPU")
    assert models_table._effort(entry | {"minutes": 1.26, "precision": None}) == "1,200 steps, 1.3 minutes"
