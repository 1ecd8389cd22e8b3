"""Contexts: integers computed from the image that is used, kept by checkpoints, chosen by name."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from trainees import Crash, config, outcome, same, trained

import genlab
from genlab import cli
from genlab.build import build_data, restore
from genlab.core import ImageSpec, RequestError
from genlab.data import Grey, Half, ImageData, Label, LowRes, MNISTMini, Split, Splits, module
from genlab.processes import resume
from genlab.request.folders import configs_folder
from genlab.request.pictures import context_image

RGB, DIGIT, BINARY = ImageSpec(3, 8, 12, classes=2), ImageSpec(1, 7, 9), ImageSpec(1, 8, 12, 2)
LEGAL = [(Grey(), RGB), (LowRes(), RGB), (LowRes(2), BINARY), (Half(), RGB), (Half(), DIGIT), (Half(), BINARY)]
WIDTHS = {"grey": 12, "lowres4": 12, "half": 6}  # of what is modelled of 8 x 12


def images(spec, n=5):
    """Random images (n, C, H, W)."""
    return torch.randint(spec.levels, (n, *spec.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Colours:
    """40 + 9 images of 3 x 8 x 12 in two classes."""

    name = "colours"

    def load(self, root):
        """Random pixels."""
        x, labels = images(RGB, 49), torch.arange(49) % 2
        return Splits(Split(x[:40], labels[:40]), Split(x[40:], labels[40:]), ("a", "b"))


def colours(**options):
    return ImageData(Colours(), **{"validation": 10, "batch_size": 4, "eval_batch_size": 4} | options)


# ---- one context at a time


def test_grey_is_the_luminance_that_pillow_computes():
    x = images(RGB)
    same_x, grey = Grey()(x, RGB)
    assert same_x is x
    for ours, image in zip(grey, x, strict=True):
        pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")
        assert (ours[0].numpy() == np.asarray(pillow)).all()
    level = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 12)
    assert torch.equal(Grey()(level, RGB)[1], level[:, :1])


@pytest.mark.parametrize(("spec", "factor"), [(RGB, 4), (RGB, 2), (BINARY, 4), (ImageSpec(2, 6, 9, 7), 3)])
def test_lowres_is_the_rounded_mean_of_blocks_in_256_levels(spec, factor):
    x = images(spec)
    _, small = LowRes(factor)(x, spec)
    means = torch.nn.functional.avg_pool2d(x.double(), factor) * 255 / (spec.levels - 1)
    assert torch.equal(small, (means + 0.5 + 1e-9).floor().to(torch.uint8))
    assert small.shape[1:] == LowRes(factor).spec(spec).context.shape
    assert LowRes(factor).spec(spec).context.levels == 256


@pytest.mark.parametrize("spec", [RGB, DIGIT, BINARY])
def test_halves_join_to_the_whole(spec):
    x = images(spec)
    right, left = Half()(x, spec)
    assert torch.equal(torch.cat([left, right], -1), x)
    assert left.shape[-1] == spec.width // 2
    given, drawn = Half().pictures(right, left, spec)
    assert torch.equal(drawn, x if spec.levels == 256 else x * 255)
    assert torch.equal(given[..., : spec.width // 2], drawn[..., : spec.width // 2])


@pytest.mark.parametrize(("context", "whole"), LEGAL, ids=lambda v: getattr(v, "name", ""))
def test_specs_describe_what_is_made_and_lead_back(context, whole):
    spec = context.spec(whole)
    assert context.whole(spec) == whole
    assert ImageSpec(**json.loads(json.dumps(asdict(spec)))) == spec
    x, second = context(images(whole), whole)
    assert torch.equal(x, context.modelled(images(whole)))
    for tensor, its_spec in ((x, spec), (second, spec.context)):
        its_spec.check(tensor)
        assert tensor.dtype == torch.uint8
        assert int(tensor.max()) < its_spec.levels
    for picture in context.pictures(x, second, whole):
        assert picture.shape == (5, *whole.shape)
        assert picture.dtype == torch.uint8


@pytest.mark.parametrize(
    ("make", "answer"),
    [
        (lambda: Grey().spec(DIGIT), "colour images"),
        (lambda: LowRes(4).spec(DIGIT), "7x9"),
        (lambda: LowRes(1), "at least 2"),
        (lambda: LowRes(2.0), "integer"),
        (lambda: Half().spec(ImageSpec(1, 4, 1)), "2 pixels wide"),
        (lambda: Label().spec(DIGIT), "no"),
        (lambda: colours(context="grey"), "data/context="),
    ],
)
def test_what_cannot_be_is_one_sentence(make, answer):
    with pytest.raises(RequestError, match=answer) as error:
        make()
    assert "\n" not in str(error.value)


# ---- in the data module


@pytest.mark.parametrize("context", [Grey(), LowRes(), Half()], ids=lambda c: c.name)
def test_every_way_to_read_gives_the_same_images_and_contexts(context):
    plain, data = colours(), colours(context=context)
    assert data.name == f"colours_{context.name}"
    assert data.whole == plain.spec
    assert data.spec == context.spec(plain.spec)
    for name in ("train", "valid", "test"):
        x, second = context(plain.split(name).images, data.whole)
        assert torch.equal(data.split(name).images, x)
        assert torch.equal(data.split(name).labels, plain.split(name).labels)
        batches = list(data.batches(name))
        assert torch.equal(torch.cat([b.images for b in batches]), x)
        assert torch.equal(torch.cat([b.context for b in batches]), second)
        first = data.first(name, 3)
        assert torch.equal(first.images, x[:3])
        assert torch.equal(first.context, second[:3])
    assert data.split("train").images.shape[-1] == WIDTHS[context.name]
    for number in range(9):
        batch = data.training_batch(number)
        assert torch.equal(batch.images, data.split("train").images[batch.index])
        assert torch.equal(batch.context, context(plain.split("train").images, data.whole)[1][batch.index])


@pytest.mark.parametrize("context", [LowRes(), Half()], ids=lambda c: c.name)
def test_contexts_are_of_the_image_that_is_shown(context):
    """Drawn and mirrored first: the context of a training batch follows from its images alone."""
    options = {"binarize": "dynamic", "augment": "hflip"}
    data = ImageData(MNISTMini(), validation=1000, limit=50, context=context, **options)
    plain = ImageData(MNISTMini(), validation=1000, limit=50, **options)
    for number in range(3):
        shown, batch = plain.training_batch(number), data.training_batch(number)
        x, second = context(shown.images, plain.spec)
        assert torch.equal(batch.images, x)
        assert torch.equal(batch.context, second)
    assert data.name == f"mnist_mini_binary-dynamic_{context.name}"


def test_the_label_changes_no_data():
    plain, data = colours(), colours(context=Label())
    assert (data.name, data.spec) == (plain.name, plain.spec)
    same(tuple(data.training_batch(4)), tuple(plain.training_batch(4)))


def test_ranks_share_the_same_contexts(monkeypatch):
    whole = list(colours(context=Half()).batches("test"))
    batches = {}
    for rank in (0, 1):
        monkeypatch.setattr("genlab.data.batches.rank_and_world", lambda rank=rank: (rank, 2))
        monkeypatch.setattr(module, "rank_and_world", lambda rank=rank: (rank, 2))
        data = colours(context=Half())
        batches |= {rank + 2 * i: batch for i, batch in enumerate(data.batches("test"))}
        index = data.training_batch(3).index
        whole_x = colours().split("train").images[index]
        assert torch.equal(data.training_batch(3).context, Half()(whole_x, RGB)[1])
    same([tuple(batches[i]) for i in range(len(whole))], [tuple(batch) for batch in whole])


def test_configs_name_them_through_the_gate():
    for name, kind in (("grey", Grey), ("lowres", LowRes), ("half", Half), ("label", Label)):
        context = build_data(OmegaConf.load(configs_folder() / "data" / "context" / f"{name}.yaml"), role="context")
        assert isinstance(context, kind)
        assert context.name.startswith(name)


# ---- pictures of the user


def test_a_picture_is_a_context_or_a_whole_image_by_its_size(tmp_path):
    x = images(RGB, 1)[0]
    pixels = x.permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(tmp_path / "whole.png")
    Image.fromarray(pixels).convert("L").save(tmp_path / "grey.png")
    Image.fromarray(pixels[:, :6]).save(tmp_path / "left.png")
    grey, left = Grey().spec(RGB).context, Half().spec(RGB).context
    image, is_whole = context_image(tmp_path / "whole.png", grey, RGB)
    assert is_whole
    assert torch.equal(image, x.long())
    image, is_whole = context_image(tmp_path / "grey.png", grey, RGB)
    assert not is_whole
    assert torch.equal(image, Grey()(x[None], RGB)[1][0].long())
    image, is_whole = context_image(tmp_path / "left.png", left, RGB)
    assert not is_whole
    assert torch.equal(image, x[..., :6].long())
    with pytest.raises(RequestError, match=r"8x6 .*8x12"):
        context_image(tmp_path / "left.png", grey, RGB)


# ---- from training to drawing


LOWRES_RUN = {
    "model": {
        "_target_": "genlab.models.Autoregressive",
        "net": {"_target_": "genlab.nets.PixelCNN", "_partial_": True, "width": 4, "depth": 1, "feature_width": 4},
        "head": {"_target_": "genlab.heads.Categorical", "_partial_": True},
        "context": {"_target_": "genlab.nets.ImageContext", "_partial_": True, "width": 4, "depth": 1},
    },
    "data__context": {"_target_": "genlab.data.LowRes", "factor": 2},
}


@pytest.mark.slow
def test_a_conditional_run_resumes_to_the_bit(tmp_path):
    trained(tmp_path / "whole", **LOWRES_RUN)
    with pytest.raises(Crash):
        trained(tmp_path / "run", data__crash_at=9, **LOWRES_RUN)
    (tmp_path / "run" / "config.yaml").write_text(OmegaConf.to_yaml(config(**LOWRES_RUN)))
    resume.run(tmp_path / "run", ["trust=[trainees]"], "genlab resume")
    same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["test"]["data"] == "dots_lowres2"
    assert results["test"]["conditioning"] == "image"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pictures of 8 x 8 in two folders."""
    folder = tmp_path_factory.mktemp("photos")
    x = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    for i, pixels in enumerate(x):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def runs(photos, tmp_path_factory):
    """A run of three steps for every conditioning: {name: folder}."""
    folders = {}
    for name, model in {"none": "none", "label": "label", "grey": "image", "lowres": "image", "half": "image"}.items():
        folders[name] = tmp_path_factory.mktemp("runs") / name
        words = [
            "train", "trainer=smoke", "trainer.max_steps=3", "trainer.accelerator=cpu", "trainer.precision=32",
            "data=folder", f"data.path={photos}", "data.size=8", f"data/context={name}", f"model/context={model}",
            "model.net.width=6", "model.net.depth=1", "train.ema=0", "optim.lr=0.05", f"hydra.run.dir={folders[name]}",
        ]  # fmt: skip
        assert cli.run(words) == 0
    return folders


@pytest.fixture
def here(tmp_path, monkeypatch, photos):
    """A working directory with a whole picture, its grey version, its small one, its left half, one of another size."""
    monkeypatch.chdir(tmp_path)
    image = Image.open(photos / "a" / "0.png")
    image.save("whole.png")
    image.convert("L").save("grey.png")
    image.crop((0, 0, 4, 8)).save("half.png")
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    small = LowRes(4)(x, ImageSpec(3, 8, 8))[1][0]
    Image.fromarray(small.permute(1, 2, 0).numpy()).save("lowres.png")
    image.resize((5, 5)).save("odd.png")
    image.putalpha(100)
    image.save("glass.png")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grey", "lowres", "half", "label"])
def test_a_checkpoint_knows_its_context(name, runs, here, capsys):
    model = genlab.load(runs[name])
    context = build_data(restore(runs[name])[1]["data"]["context"], role="context")
    assert model.spec == context.spec(ImageSpec(3, 8, 8, 256, 2))
    assert cli.run(["eval", f"ckpt={runs[name]}", "out=eval.json", "trainer=cpu", "batch_size=1"]) == 0
    assert f"given the {'label' if name == 'label' else 'second image'}" in capsys.readouterr().out
    again = json.loads((here / "eval.json").read_text())
    first = json.loads((runs[name] / "results.json").read_text())["test"]
    assert again["bits_per_dim"] == pytest.approx(first["bits_per_dim"], abs=1e-6)
    assert (again["data"], again["conditioning"]) == (first["data"], first["conditioning"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grey", "lowres", "half"])
def test_whole_pictures_and_ready_contexts_draw_the_same(name, runs, here):
    for out, picture in (("a", "whole.png"), ("b", f"{name}.png")):
        assert cli.run(["sample", f"ckpt={runs[name]}", "n=3", f"context={picture}", f"out={out}.png"]) == 0
    assert (here / "a.npy").read_bytes() == (here / "b.npy").read_bytes()
    assert np.load(here / "a.npy").shape == (3, 3, 8, 4 if name == "half" else 8)
    # The grid: four cells, two a row; the context comes first, the left half stays beside what was drawn.
    scale, cell = 8, 10
    sheet = np.asarray(Image.open(here / "a.png"))[::scale, ::scale]
    whole = np.asarray(Image.open(here / "whole.png"))
    first, second = sheet[2:10, 2:10], sheet[2:10, 2 + cell : 10 + cell]
    if name == "half":
        assert (first[:, :4] == whole[:, :4]).all()
        assert (first[:, 4:] == 128).all()
        assert (second[:, :4] == whole[:, :4]).all()
        assert (second[:, 4:] == np.load(here / "a.npy")[0].transpose(1, 2, 0)).all()
    else:
        assert (second == np.load(here / "a.npy")[0].transpose(1, 2, 0)).all()
        given = np.asarray(Image.open(here / f"{name}.png").convert("RGB"))
        assert (first[:: 4 if name == "lowres" else 1, :: 4 if name == "lowres" else 1] == given).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grey", "lowres", "half", "label"])
def test_another_context_draws_other_images(name, runs, here, photos):
    choices = ["label=0", "label=1"] if name == "label" else ["context=whole.png", f"context={photos / 'b' / '1.png'}"]
    for out, choice in zip("ab", choices, strict=True):
        assert cli.run(["sample", f"ckpt={runs[name]}", "n=2", choice, f"out={out}.png"]) == 0
    assert (np.load(here / "a.npy") != np.load(here / "b.npy")).any()


@pytest.mark.slow
def test_labels_in_turn_all_or_one(runs, here, capsys):
    model = genlab.load(runs["label"])

    def drawn(n, labels):
        return model.sample(n, context=labels, generator=torch.Generator().manual_seed(0)).numpy()

    assert cli.run(["sample", f"ckpt={runs['label']}", "n=5", "out=turn.png"]) == 0
    assert "5 images, classes a, b in turn" in capsys.readouterr().out
    assert (np.load("turn.npy") == drawn(5, torch.tensor([0, 1, 0, 1, 0]))).all()
    assert cli.run(["sample", f"ckpt={runs['label']}", "n=5", "label=all", "out=all.png"]) == 0
    assert "6 images, 3 of each of a, b," in capsys.readouterr().out
    assert (np.load("all.npy") == drawn(6, torch.tensor([0, 0, 0, 1, 1, 1]))).all()
    sheet, height, width = np.asarray(Image.open("all.png")), (2 * 10 + 2) * 8, (3 * 10 + 2) * 8
    assert (sheet[:height, width - 16 : width] == 128).all()  # the border: three columns, two rows
    assert (sheet[height - 16 : height, :width] == 128).all()
    assert (sheet[height:, :2] == 255).all()  # the caption
    assert cli.run(["sample", f"ckpt={runs['label']}", "n=2", "label=1", "batch_size=1", "out=one.png"]) == 0
    assert "2 images of class b in" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words", "n"),
    [("label", ["label=1"], 3), ("label", ["label=all"], 4), ("grey", ["context=whole.png"], 3)],
)
def test_completion_takes_them_too(name, words, n, runs, here):
    words = ["complete", f"ckpt={runs[name]}", "image=whole.png", "known=top:0.5", "n=3", "out=completion.png", *words]
    assert cli.run(words) == 0
    x = np.asarray(Image.open("whole.png")).transpose(2, 0, 1)
    completions = np.load("completion.npy")
    assert len(completions) == n
    assert (completions[:, :, :4] == x[:, :4]).all()


WRONG = [
    ("none", ["sample", "label=1"], "unconditional"),
    ("none", ["sample", "context=whole.png"], "unconditional"),
    ("none", ["complete", "image=whole.png", "known=top:0.5", "label=1"], "unconditional"),
    ("label", ["sample", "label=2"], "label=2 is not a class: the data has classes a, b"),
    ("label", ["sample", "context=whole.png"], "class label"),
    ("label", ["complete", "image=whole.png", "known=top:0.5"], "give label=a, or label=all (classes a, b)"),
    ("grey", ["sample"], "give context=PICTURE"),
    ("grey", ["sample", "context=whole.png", "label=1"], "second image"),
    ("grey", ["sample", "context=odd.png"], "5x5"),
    ("grey", ["sample", "context=glass.png"], "transparent"),
    ("half", ["sample", "context=odd.png"], "8x4"),
    ("half", ["complete", "image=half.png", "known=top:0.5"], "give context=PICTURE"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "words", "answer"), WRONG, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_wrong_requests_are_one_sentence(name, words, answer, runs, here, capsys):
    before = sorted(here.iterdir())
    assert cli.run([words[0], f"ckpt={runs[name]}", *words[1:]]) == 2
    err = capsys.readouterr().err
    assert answer in err
    assert err.count("\n") == 1
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize("name", ["grey", "lowres", "half"])
def test_training_pictures_show_the_context_beside_the_sample(name, runs):
    (path,) = (runs[name] / "samples").glob("*.png")
    cells = 2  # one validation image: its context and what was drawn
    width, height = (8 * 10 + 2) * 8, (1 * 10 + 2) * 8
    sheet = np.asarray(Image.open(path))
    assert sheet.shape[1] == width
    assert sheet.shape[0] > height  # a caption is below it
    sheet = sheet[:height:8, ::8]
    assert not (sheet[2:10, 2 : 2 + 10 * cells] == 128).all()


@pytest.mark.slow
def test_labels_are_refused_where_there_are_none(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for context in ("none", "label"):
        words = ["data=folder", f"data.path={photos / 'a'}", f"data/context={context}", "model/context=label"]
        assert cli.run(["train", *words]) == 2
        err = capsys.readouterr().err
        assert "needs images with labels" in err
        assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
