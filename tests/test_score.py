"""`genlab score`, `genlab neighbours`, and eval's per_image= and classify=: an odd and a copied picture are found."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from genlab import cli
from genlab.measure.bayes import classify
from genlab.measure.nearest import nearest, nearest_others, share_nearer
from genlab.measure.oddness import auroc

FAST = ["trainer=smoke", "trainer.accelerator=cpu", "train.sample_every=0"]
NET = ["model=gated_pixelcnn", "model.net.width=12", "model.net.depth=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has learnt that digits are mostly black."""
    folder = tmp_path_factory.mktemp("runs") / "grey"
    words = [*NET, *FAST, "trainer.max_steps=40", "optim.warmup=5", "data.batch_size=8"]
    assert cli.run(["train", *words, f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """A smoke run given the digit."""
    folder = tmp_path_factory.mktemp("runs") / "label"
    words = [*NET, *FAST, "data/context=label", "model/context=label", "trainer.max_steps=2"]
    assert cli.run(["train", *words, f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def digits(split="test", n=30):
    """Images of mnist_mini (n, 28, 28)."""
    from genlab.build import build_data
    from genlab.request.compose import Request

    return build_data(Request("train", [], command="").config().data).split(split).images[:n, 0].numpy()


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_planted_odd_picture_is_the_most_surprising(run, here, capsys):
    (here / "photos").mkdir()
    for i, image in enumerate(digits()):
        Image.fromarray(image).save(here / "photos" / f"{i:02}.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)).save("photos/odd.png")
    assert cli.run(["score", f"ckpt={run}", "out=scores.csv", "images=photos", "maps=maps", "reference=20"]) == 0
    found = rows("scores.csv")
    assert len(found) == 31
    assert max(found, key=lambda row: float(row["bits"]))["image"] == "photos/odd.png"
    for row in found:
        assert float(row["complexity_corrected"]) == pytest.approx(float(row["bits"]) - float(row["png_bits"]), abs=1)
        assert float(row["typicality"]) >= 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("most surprising: photos/odd.png (") for line in lines)
    for name in ("complexity_corrected", "typicality"):  # each names its own highest
        highest = max(found, key=lambda row: float(row[name]))["image"]
        assert any(line.startswith(f"highest {name}: {highest} (") for line in lines)
    assert len(list((here / "maps").iterdir())) == 31
    assert (here / "scores.png").exists()


def test_scores_of_a_split_are_those_of_its_evaluation(run, here):
    words = ["split=valid", "data.limit=20"]
    assert cli.run(["eval", f"ckpt={run}", "out=eval.json", *words, "per_image=true"]) == 0
    mean = np.mean([float(row["bits_per_dim"]) for row in rows("eval.csv")])
    assert mean == pytest.approx(json.loads((here / "eval.json").read_text())["bits_per_dim"], rel=1e-4)
    assert (
        cli.run(
            ["score", f"ckpt={run}", "out=scores.csv", "images=data:mnist_mini/valid", "data.limit=20", "reference=0"]
        )
        == 0
    )
    for a, b in zip(rows("eval.csv"), rows("scores.csv"), strict=True):
        assert float(a["bits"]) == pytest.approx(float(b["bits"]), rel=1e-4)


@torch.no_grad()
def test_bits_of_pixels_add_up_to_the_bits_of_an_image():
    import zoo

    for param in zoo.nets({"grey": zoo.GREY, "rgb": zoo.RGB}):
        case = param.values[0]
        made, x = case.tiny(), zoo.random_images(case.spec, 3)
        assert torch.allclose(made.pixel_log_prob(x).flatten(1).sum(1), made.log_prob(x))


def test_other_images_are_told_apart(run, here, capsys):
    words = [
        "images=data:mnist_mini/test",
        "data.limit=20",
        "reference=20",
        "against=[noise,constant,rotated,inverted]",
    ]
    assert cli.run(["score", f"ckpt={run}", "out=scores.csv", *words]) == 0
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("bits:"))
    assert "1.000 noise" in line
    assert "constant" in line


def test_auroc_is_one_where_scores_separate_and_low_where_they_are_wrong():
    own, other = {"bits": np.arange(10.0)}, {"bits": np.arange(10.0) + 20}
    assert auroc(own, other) == {"bits": 1.0}
    assert auroc(other, own) == {"bits": 0.0}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["images=data:mnist_mini/tst"], "data:mnist_mini/test"),
        (["images=none/*.png"], "no pictures"),
        (["images=data:mnist_mini/test", "against=[nothing]"], "no pictures"),
        (["images=data:mnist_mini/test", "background=nowhere"], "background=nowhere"),
        (["images=data:mnist_mini/test", "out=x.txt"], ".csv"),
        (["images=data:mnist_mini/test", "maps=a/b/c"], "does not exist"),
    ],
    ids=lambda each: each[-1] if isinstance(each, list) else "",
)
def test_wrong_requests_are_refused(run, here, capsys, words, part):
    assert cli.run(["score", f"ckpt={run}", *words]) == 2
    said = capsys.readouterr().err
    assert part in said
    assert said.count("\n") == 1
    assert not any(here.iterdir())


def test_a_copy_of_a_training_image_is_found(run, here, capsys):
    images = digits("valid", 30).copy()
    images[7] = digits("train", 5)[4]
    np.save("samples.npy", images)
    assert cli.run(["neighbours", f"ckpt={run}", "out=neighbours.csv", "of=samples.npy", "held_out=30"]) == 0
    found = rows("neighbours.csv")
    assert (found[7]["pixels_nearest"], float(found[7]["pixels_distance"])) == ("4", pytest.approx(0, abs=1e-5))
    assert float(found[7]["pixels_share_nearer"]) == 0
    assert "7 (train 4," in capsys.readouterr().out


def test_a_planted_near_copy_in_a_folder_is_found(run, here, capsys):
    (here / "photos").mkdir()
    for i, image in enumerate(digits()):
        Image.fromarray(image).save(here / "photos" / f"{i:02}.png")
    near = digits()[11].copy()
    near[14, 14] ^= 8
    Image.fromarray(near).save("photos/copy.png")
    assert cli.run(["neighbours", f"ckpt={run}", "out=neighbours.csv", "of=photos/*.png", "within=true"]) == 0
    said = capsys.readouterr().out
    assert "photos/11.png and photos/copy.png" in said


def test_nearest_is_the_exhaustive_search():
    rng = np.random.default_rng(0)
    queries, candidates = rng.normal(size=(7, 5)), rng.normal(size=(20, 5))
    distances = np.linalg.norm(queries[:, None] - candidates, axis=2)
    found = nearest(queries, candidates, 3)
    assert (found.numbers == distances.argsort(1)[:, :3]).all()
    assert np.allclose(found.distances, np.sort(distances, 1)[:, :3])
    itself = np.linalg.norm(candidates[:, None] - candidates, axis=2) + 1e9 * np.eye(20)
    assert (nearest_others(candidates, 1).numbers[:, 0] == itself.argmin(1)).all()
    assert share_nearer(np.array([0.0, 1.0, 1.5, 9.0]), np.array([1.0, 2.0])).tolist() == [0, 0, 0.5, 1]


def test_bayes_rule_and_calibration():
    """Two classes, four images: by hand."""
    log_likelihoods = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]]).double().log()
    labels, counts = torch.tensor([0, 1, 1, 0]), torch.tensor([5, 5])
    result = classify(log_likelihoods, labels, counts)
    assert result.accuracy == 0.75
    assert result.cross_entropy == pytest.approx(-np.log([0.9, 0.4, 0.8, 0.7]).mean())
    assert result.calibration_error == pytest.approx((0.1 + 0.6 + 0.2 + 0.3) / 4)
    assert sum(b.count for b in result.bins) == 4
    skewed = classify(log_likelihoods, labels, torch.tensor([90, 10]))
    assert skewed.accuracy == 0.5  # the prior outweighs the third image


def test_eval_classifies_by_bayes_rule(conditional, here, capsys):
    assert (
        cli.run(["eval", f"ckpt={conditional}", "out=eval.json", "data.limit=20", "split=valid", "classify=true"]) == 0
    )
    result = json.loads((here / "eval.json").read_text())["classification"]
    assert result["n"] == 20
    assert (here / "eval.png").exists()
    assert "as a classifier: accuracy" in capsys.readouterr().out


def test_an_unconditional_model_is_no_classifier(run, here, capsys):
    assert cli.run(["eval", f"ckpt={run}", "classify=true"]) == 2
    assert "data/context=label" in capsys.readouterr().err
    assert not any(here.iterdir())
