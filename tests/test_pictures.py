"""Pictures and masks that users give, and the grids that genlab writes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from genlab.core import ImageSpec, RequestError
from genlab.request.masks import known_mask
from genlab.request.pictures import partial_image
from genlab.viz import grid, save_grid, to_uint8

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
