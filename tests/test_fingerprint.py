"""A checkpoint knows what its run was trained, validated and tested on; other data is reported or refused."""

from __future__ import annotations

import json
import shutil
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
import torch
from PIL import Image

from genlab import cli
from genlab.core import RequestError
from genlab.data import MNISTMini, folder_data
from genlab.data.fingerprint import card, check_same, differences, fingerprint, hashes, sentence
from genlab.data.module import ImageData
from genlab.train.checkpoint import read


def pictures(folder, count, seed=0):
    random = np.random.RandomState(seed)
    for number in range(count):
        path = folder / ("cat" if number % 2 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.randint(0, 256, (6, 6)).astype(np.uint8)).save(path)


def data(folder, **options):
    return folder_data(folder, 6, 1, False, **{"validation": 0.2, **options})


def of(folder, split):
    """The files of a split."""
    split = data(folder).split(split)
    wanted = {image.tobytes() for image in split.images[:, 0].numpy()}
    return [path for path in folder.rglob("*.png") if np.asarray(Image.open(path)).tobytes() in wanted]


def test_a_fingerprint_is_of_images_and_labels_in_whatever_order():
    x = torch.randint(256, (50, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(50) % 3
    first = fingerprint(hashes(x), y)
    order = torch.randperm(50)
    assert fingerprint(hashes(x[order]), y[order]) == first
    assert fingerprint(hashes(x), y.roll(1)) != first
    assert fingerprint(hashes(x[1:]), y[1:]) != first
    twice = torch.arange(50).clamp(min=1)
    assert fingerprint(hashes(x[twice]), y[twice]) != fingerprint(hashes(x[1:]), y[1:])
    changed = x.clone()
    changed[7, 0, 3, 3] ^= 1
    assert (hashes(changed) != hashes(x)).nonzero().flatten().tolist() == [7]
    assert len(hashes(x).unique()) == 50


@pytest.mark.slow
def test_binarising_seeds_and_contexts_do_not_change_what_the_data_is():
    plain = ImageData(MNISTMini(), validation=1000)
    for options in ({"binarize": "static"}, {"binarize": "dynamic"}, {"seed": 5}):
        assert ImageData(MNISTMini(), validation=1000, **options).fingerprints == plain.fingerprints
    assert len(set(plain.fingerprints.values())) == 3
    assert ImageData(MNISTMini(), validation=999).fingerprints["test"] == plain.fingerprints["test"]
    assert ImageData(MNISTMini(), validation=999).fingerprints["train"] != plain.fingerprints["train"]


def test_what_differs_is_counted(tmp_path):
    pictures(tmp_path / "a", 80)
    kept = card(data(tmp_path / "a"))
    assert differences(kept, data(tmp_path / "a"), ("train", "valid", "test")) == {}
    check_same(kept, data(tmp_path / "a"))
    assert differences({}, data(tmp_path / "a"), ("test",)) == {}  # a checkpoint without fingerprints
    tested, trained = of(tmp_path / "a", "test"), of(tmp_path / "a", "train")
    total = len(tested)
    tested[0].unlink()
    changed = data(tmp_path / "a")
    counts = differences(kept, changed, ("train", "valid", "test"))
    assert list(counts) == ["test"]
    assert counts["test"] == {
        "images": total - 1, "other": 0, "train": 0, "valid": 0, "test": total - 1, "new": 0, "missing": 1,
    }  # fmt: skip
    assert differences(kept, data(tmp_path / "a", limit=3), ("test",), fewer=True) == {}
    shutil.copy(trained[0], tested[0])  # what was trained on, under the name of a test image
    counts = differences(kept, data(tmp_path / "a"), ("test",))["test"]
    assert (counts["train"], counts["missing"], counts["other"]) == (1, 1, 1)
    assert "1 were trained on" in sentence("test", counts)
    with pytest.raises(RequestError, match=r"the data has changed .*1 were trained on"):
        check_same(kept, data(tmp_path / "a"))
    pictures(tmp_path / "b", 30, seed=1)
    counts = differences(kept, data(tmp_path / "b"), ("test",))["test"]
    assert counts["new"] == counts["images"]
    relabelled = tmp_path / "c"
    pictures(relabelled, 80)
    (relabelled / "cat").rename(relabelled / "x")
    (relabelled / "dog").rename(relabelled / "cat")
    assert "labels" in sentence("test", {**counts, "other": 0, "missing": 0})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a run, the photos that it was trained on, and what it printed."""
    top = tmp_path_factory.mktemp("fingerprint")
    pictures(top / "photos", 60)
    (top / "photos" / "cat" / "notes.txt").write_text("x")
    words = [f"data.path={top}/photos", "data.size=6", "data.channels=1", "data.validation=0.2", "trainer=smoke"]
    words += ["model=gaussian_mixture", "model.components=2", f"hydra.run.dir={top}/run"]
    with open(top / "stdout", "w") as out, open(top / "stderr", "w") as err, redirect_stdout(out), redirect_stderr(err):
        assert cli.run(["train", "data=folder", *words]) == 0
    return top


def copied(run, tmp_path):
    for name in ("photos", "run"):
        shutil.copytree(run / name, tmp_path / name)
    return tmp_path


def evaluate(top, *words):
    photos = [] if any(word.startswith("data.path") for word in words) else [f"data.path={top}/photos"]
    assert cli.run(["eval", f"ckpt={top}/run", f"out={top}/eval.json", "overwrite=true", *photos, *words]) == 0
    return json.loads((top / "eval.json").read_text())


@pytest.mark.slow
def test_the_card_has_fingerprints_and_class_names_in_primitives(run):
    kept = read(run / "run" / "checkpoints" / "last.ckpt")["genlab"]
    assert kept["class_names"] == ["cat", "dog"]
    assert kept["fingerprints"] == data(run / "photos").fingerprints
    assert torch.equal(kept["images"]["test"], data(run / "photos").hashes["test"])


def test_eval_of_the_same_data_is_silent_wherever_it_lies(run, tmp_path, capsys):
    top = copied(run, tmp_path)
    (top / "photos").rename(top / "moved")
    result = evaluate(top, f"data.path={top}/moved")
    captured = capsys.readouterr()
    assert "CAREFUL" not in captured.out
    assert captured.err == ""
    assert result["other_data"] is None
    assert result["fingerprint"] == data(top / "moved").fingerprints["test"]
    assert evaluate(top, f"data.path={top}/moved", "data.limit=2")["other_data"] is None


@pytest.mark.slow
def test_removing_a_training_image_leaves_the_test_silent_and_a_test_image_is_said(run, tmp_path, capsys):
    top = copied(run, tmp_path)
    trained, tested = of(top / "photos", "train"), of(top / "photos", "test")
    trained[0].unlink()
    assert evaluate(top)["other_data"] is None
    assert "CAREFUL" not in capsys.readouterr().out
    tested[0].unlink()
    assert evaluate(top)["other_data"]["missing"] == 1
    assert "CAREFUL: these are not the test images of the run" in capsys.readouterr().out


def test_testing_on_training_images_is_loud_in_the_line_and_in_the_file(run, tmp_path, capsys):
    top = copied(run, tmp_path)
    trained, tested = of(top / "photos", "train"), of(top / "photos", "test")
    for number, path in enumerate(tested):
        shutil.copy(trained[number], path)
    result = evaluate(top)
    out = capsys.readouterr().out
    assert result["other_data"]["train"] == result["other_data"]["images"] == len(tested)
    assert f"{len(tested)} were trained on" in out
    assert len(out.splitlines()) == 1


def test_other_verbs_say_it_on_standard_error(run, tmp_path, capsys):
    top = copied(run, tmp_path)
    pictures(tmp_path / "other", 30, seed=3)
    words = [f"ckpt={top}/run", f"data.path={tmp_path}/other", f"out={top}/x.npz"]
    assert cli.run(["features", *words]) == 0
    assert "warning: these are not the test images of the run" in capsys.readouterr().err


def test_a_checkpoint_without_fingerprints_goes_on_working(run, tmp_path, capsys):
    top = copied(run, tmp_path)
    for path in (top / "run" / "checkpoints").glob("*.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        for key in ("fingerprints", "images", "class_names"):
            del checkpoint["genlab"][key]
        torch.save(checkpoint, path)
    of(top / "photos", "test")[0].unlink()
    assert evaluate(top)["other_data"] is None
    assert "CAREFUL" not in capsys.readouterr().out


def test_resume_refuses_changed_data(run, tmp_path, capsys):
    top = copied(run, tmp_path)
    config = top / "run" / "config.yaml"
    config.write_text(config.read_text().replace(f"{run}/photos", f"{top}/photos"))
    before = {path: path.read_bytes() for path in (top / "run").rglob("*") if path.is_file()}
    of(top / "photos", "train")[0].unlink()
    assert cli.run(["resume", f"run={top}/run", "trainer.max_steps=50"]) == 2
    assert "the data has changed since the run began" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in (top / "run").rglob("*") if path.is_file()}


def test_what_was_found_is_said_once_before_training(run):
    stderr = (run / "stderr").read_text()
    assert stderr.count("60 images in 2 classes (cat, dog)") == 1
    first, few = stderr.splitlines()[:2]
    for part in (" parameters; ", "60 images", "skipped 1 .txt", " steps; "):
        assert part in first
    assert first.endswith(f"; {run / 'run'}")
    assert "training images are few" in few
    assert stderr.index("60 images") < stderr.index("step")
    assert "classes" not in (run / "stdout").read_text()
