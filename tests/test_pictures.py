"""Pictures and masks that users give, and the grids that genlab writes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from trainees import Tiny

from genlab.core import ImageSpec, RequestError
from genlab.data.context import Half
from genlab.measure.captions import caption, caption_of, run_name
from genlab.request.contexts import Contexts
from genlab.request.masks import known_mask
from genlab.request.pictures import partial_image
from genlab.verbs import complete
from genlab.viz import grid, save_grid, to_uint8
from genlab.viz.grids import wrapped

GREY, RGB, BINARY = ImageSpec(1, 6, 8), ImageSpec(3, 6, 8), ImageSpec(1, 6, 8, 2)


def known(text, spec=GREY):
    """The mask of a text."""
    return known_mask(text, spec, torch.Generator().manual_seed(0))


def test_masks_are_known_where_their_text_says():
    assert known("top:0.5")[:3].all()
    assert not known("top:0.5")[3:].any()
    assert known("left:0.25").sum(1).tolist() == [2] * 6
    box = known("box:1,2,3,4")
    assert (~box).sum() == 12
    assert not box[1:4, 2:6].any()
    assert torch.equal(known("random:0.3"), known("random:0.3"))
    assert 0.1 < known("random:0.5", ImageSpec(1, 40, 40)).float().mean() < 0.9


@pytest.mark.parametrize("text", ["tpo:0.5", "top", "top:x", "top:-1", "box:0,0,9,9", "box:a,b,c,d", "nowhere.png"])
def test_texts_that_describe_no_mask_are_refused(text):
    with pytest.raises(RequestError):
        known(text)


def test_a_mask_picture_is_known_where_it_is_white(tmp_path):
    mask = np.zeros((6, 8), np.uint8)
    mask[2:, 3:] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    assert torch.equal(known(str(tmp_path / "m.png")), torch.from_numpy(mask > 0))


def test_pictures_keep_their_integers(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(x).save(tmp_path / "x.png")
    image, mask = partial_image(tmp_path / "x.png", RGB)
    assert (image.permute(1, 2, 0).numpy() == x).all()
    assert mask.all()
    Image.fromarray(x[..., 0]).save(tmp_path / "g.png")
    image, _ = partial_image(tmp_path / "g.png", BINARY)
    assert (image[0].numpy() == (x[..., 0] >= 128)).all()
    with pytest.raises(RequestError, match="grey"):
        partial_image(tmp_path / "x.png", GREY)


def test_a_grid_holds_the_images_pixel_for_pixel(tmp_path):
    x = torch.randint(256, (5, *GREY.shape))
    picture = np.asarray(grid(x, ImageSpec(1, 6, 8), columns=3))
    scale = 64 // 8
    small = picture[::scale, ::scale]
    for i in range(5):
        top, left = i // 3 * 8 + 2, i % 3 * 10 + 2  # 2 pixels lie between images
        assert (small[top : top + 6, left : left + 8] == x[i, 0].numpy()).all()
    save_grid(tmp_path / "a" / "b.png", x, GREY)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.png"]
    assert to_uint8(torch.tensor([0, 1]), BINARY).tolist() == [0, 255]


def test_a_caption_stands_below_the_unchanged_grid_whatever_its_length(tmp_path):
    x = torch.randint(256, (4, *GREY.shape))
    plain = np.asarray(grid(x, GREY))
    for text in ("a run · step 300", "word " * 40, "x" * 500, "é 文 %"):
        save_grid(tmp_path / "a.png", x, GREY, caption=text)
        sheet = np.asarray(Image.open(tmp_path / "a.png"))
        height, width = plain.shape
        assert (sheet[:height, :width] == plain).all()
        strip = sheet[height:]
        assert strip.max() == 255
        assert strip.min() < 100
        assert (sheet[:, -2:] == 255).all()  # no letter is cut off
    assert wrapped("a bb " + "c" * 7, lambda text: len(text) <= 4) == ["a bb", "cccc", "ccc"]


@pytest.mark.parametrize("levels", [2, 5, 256])
def test_unknown_pixels_are_one_grey_in_a_grid_of_completions(levels):
    """At any number of levels, and also beside a second image, of which nothing is unknown."""
    spec = ImageSpec(1, 4, 2, levels=levels)
    image, known = torch.full(spec.shape, levels - 1), torch.zeros(4, 2, dtype=torch.bool)
    known[:2] = True
    images = torch.zeros(3, *spec.shape, dtype=torch.long)
    for maker in (None, Half()):
        left = torch.zeros(3, *spec.shape, dtype=torch.uint8)
        contexts = Contexts(spec, 3, None if maker is None else left, maker=maker)
        if maker is not None:
            contexts = replace(contexts, spec=replace(spec, context=spec))
        pictures, shown, _ = complete._grid(image, known, True, images, contexts)
        given, true, *completed = pictures[len(pictures) - 5 :][..., -2:]
        assert (given[:, :2] == 255).all()
        assert (given[:, 2:] == 128).all()
        assert (true == 255).all()
        assert all((each == 0).all() for each in completed)
        assert shown.levels == 256
        if maker is not None:
            assert (pictures[1:, ..., :2] == 0).all()


def test_a_caption_says_run_step_and_score(tmp_path):
    named = run_name(tmp_path / "06-17-28-pixelcnn-mnist_mini"), run_name(tmp_path / "sweep" / "3")
    assert named == ("06-17-28-pixelcnn-mnist_mini", "sweep/3")
    model = Tiny(ImageSpec(1, 4, 4))
    assert caption("a", 1200, model, 1.06873, 1200) == "a · step 1,200 · 1.0687 bits/dim on validation"
    assert caption("a", 1200, model, 1.06873, 900).endswith("on validation at step 900")
    assert caption("a", 1200, model, float("inf"), 0) == "a · step 1,200"  # a GAN, or not validated yet
    run = {"step": 7, "validation": {"value": 1.5, "step": 7}}  # of an earlier version
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "best.ckpt").touch()
    assert caption_of(tmp_path / "run", run, model) == "run · step 7 · 1.5000 bits/dim on validation"
    assert caption_of(tmp_path / "run", {"step": None, "validation": "x"}, model) == "run"
