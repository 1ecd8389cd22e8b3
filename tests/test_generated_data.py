"""Fewer levels, and the data sets that are generated: shapes, coloured MNIST, toy densities."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from genlab.core import ImageSpec, RequestError
from genlab.data import ImageData, Shapes, Split, Splits, Toy, toy_data
from genlab.data.levels import reduce_levels
from genlab.data.mnist_colour import coloured
from genlab.data.shapes import KINDS, LARGEST, SIDE, SMALLEST, stencil
from genlab.data.toy import SHAPES
from genlab.viz.grids import to_uint8


class Ramp:
    """Two images with all values of 256 levels."""

    name = "ramp"

    def load(self, root):
        images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(4, 1, 1, 1)
        split = Split(images, torch.zeros(4, dtype=torch.int64))
        return Splits(split, split)


@pytest.mark.parametrize("levels", [2, 3, 4, 16, 255, 256])
def test_levels_have_equal_shares_in_order(levels):
    values = reduce_levels(torch.arange(256, dtype=torch.uint8), levels, 256)
    counts = values.bincount(minlength=levels)
    assert values.dtype == torch.uint8
    assert torch.equal(values, values.sort().values)
    assert len(counts) == levels
    assert counts.max() - counts.min() <= 1


def test_levels_are_another_data_set():
    data = ImageData(Ramp(), validation=1, levels=4)
    assert data.spec == ImageSpec(1, 16, 16, 4)
    assert data.name == "ramp_4levels"
    for images in (data.split("test").images, data.training_batch(0).images):
        assert torch.equal(images.flatten(1)[0].bincount(), torch.full((4,), 64))
    assert ImageData(Ramp(), validation=1, levels=256).name == "ramp"


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"levels": 1}, "data.levels=1"),
        ({"levels": 257}, "2 to 256"),
        ({"levels": 2.5}, "data.levels=2.5"),
        ({"levels": 4, "binarize": "static"}, "leave out data.levels=4"),
    ],
)
def test_levels_that_cannot_be_are_one_sentence(options, answer):
    with pytest.raises(RequestError, match=answer):
        ImageData(Ramp(), validation=1, **options)


def test_generated_images_cannot_get_more_levels_or_be_binarised():
    with pytest.raises(RequestError, match="these images have 2"):
        ImageData(Shapes(), validation=1, levels=4).split("test")
    with pytest.raises(RequestError, match="needs images of 256 levels"):
        ImageData(Shapes(), validation=1, binarize="static").split("test")


@pytest.mark.parametrize("levels", [2, 3, 4, 64, 256])
def test_pictures_show_every_level_as_its_share_of_white(levels):
    values = torch.arange(levels, dtype=torch.uint8).view(1, 1, 1, levels)
    shown = to_uint8(values, ImageSpec(1, 1, levels, levels)).flatten()
    assert torch.equal(shown.long(), (torch.arange(levels) * 255 / (levels - 1)).round().long())


def test_every_shape_at_every_place_is_another_image_and_the_entropy_counts_them():
    sizes = range(SMALLEST, LARGEST + 1)
    seen, nats = set(), 0.0
    for kind in KINDS:
        for height in sizes:
            for width in sizes:
                shape = stencil(kind, height, width)
                places = (SIDE - height + 1) * (SIDE - width + 1)
                p = 1 / (len(KINDS) * len(sizes) ** 2 * places)
                nats -= places * p * np.log(p)
                assert shape[[0, -1]].any(1).all()
                assert shape[:, [0, -1]].any(0).all()
                seen.add((height, width, shape.tobytes()))
    assert len(seen) == len(KINDS) * len(sizes) ** 2
    assert Shapes().entropy == pytest.approx(nats)
    assert Shapes(colour=True).entropy == pytest.approx(nats + np.log(64 * 63))


def test_shapes_are_whole_two_coloured_and_the_same_at_every_call():
    for colour, channels in ((False, 1), (True, 3)):
        splits = Shapes(colour).load(None)
        images = splits.test.images
        assert images.shape[1:] == (channels, SIDE, SIDE)
        assert images.max() == splits.levels - 1
        packed = images.long().mul(torch.tensor([16, 4, 1][:channels]).view(-1, 1, 1)).sum(1).flatten(1)
        assert all(len(each.unique()) == 2 for each in packed[:200])
        assert torch.equal(images, Shapes(colour).load(None).test.images)
    white = Shapes().load(None)
    for kind, image in zip(white.test.labels[:100], white.test.images[:100, 0], strict=True):
        rows, columns = image.any(1).nonzero().flatten(), image.any(0).nonzero().flatten()
        box = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert np.array_equal(box, stencil(KINDS[kind], *box.shape))


def test_coloured_digits_go_from_the_ground_to_the_digit():
    ramp = Split(torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(50, 1, 1, 1), torch.zeros(50))
    images = coloured(ramp, seed=1).images.flatten(2).long()
    ends = images[:, :, [0, -1]]
    expected = ends[..., :1] + (ends[..., 1:] - ends[..., :1]) * torch.arange(256) / 255
    assert images.max() == 3
    assert ((images - expected).abs() <= 0.5).all()
    assert (ends[..., 0] != ends[..., 1]).any(1).all()
    assert not torch.equal(images, coloured(ramp, seed=2).images.flatten(2).long())


@pytest.mark.parametrize(("dims", "shape"), [(dims, shape) for dims in SHAPES for shape in SHAPES[dims]])
def test_points_follow_their_table(dims, shape):
    toy = Toy(dims, shape, 16)
    assert toy.table.shape == (16,) * dims
    assert toy.table.sum() == pytest.approx(1)
    points = toy.load(None).train.images
    assert points.shape == (50_000, 1, 1, dims)
    counts = np.zeros_like(toy.table)
    np.add.at(counts, tuple(points.view(-1, dims).numpy().T), 1)
    assert not counts[toy.table == 0].any()
    spread = np.sqrt(len(points) * toy.table * (1 - toy.table))
    assert (abs(counts - len(points) * toy.table) <= 5 * spread + 1).all()


def test_toys_have_the_levels_and_the_name_that_were_asked_for():
    config = OmegaConf.create({"batch_size": 8})
    data = toy_data(2, "rings", 32, **config)
    assert (data.spec, data.name) == (ImageSpec(1, 1, 2, 32), "toy2d_rings_32levels")
    for words in ({"shape": "ring", "levels": 32}, {"shape": "rings", "levels": 1}, {"shape": "rings", "levels": 257}):
        with pytest.raises(RequestError, match=r"data\.(shape|levels)="):
            toy_data(2, **words)
