"""The user's own images: classes, conversions, and what is said about files that cannot be read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from genlab.core import ImageSpec, RequestError
from genlab.data import Folder, folder_data

CONFIG = Path(__file__).parents[1] / "configs" / "data" / "folder.yaml"
SPLITS = ("train", "valid", "test")


def picture(path, color=(255, 0, 0), size=(8, 8), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **options)


def load(path, size=8, channels=3, skip_bad=False):
    return Folder(path, size=size, channels=channels, skip_bad=skip_bad).load(None)


def test_sub_folders_are_classes_in_alphabetical_order(tmp_path):
    for number in range(10):
        picture(tmp_path / "zebra" / f"{number}.png", (number, 0, 0))
        picture(tmp_path / "ant" / "deep" / f"{number}.png", (100 + number, 0, 0))
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("not an image")
    picture(tmp_path / ".hidden" / "0.png")
    splits = load(tmp_path)
    assert splits.class_names == ("ant", "zebra")
    assert (len(splits.train.labels), len(splits.test.labels)) == (18, 2)
    for split in (splits.train, splits.test):
        assert split.images.dtype == torch.uint8
        assert torch.equal(split.labels == 1, split.images[:, 0, 0, 0] < 100)
    again = load(tmp_path)
    assert torch.equal(splits.test.images, again.test.images)
    assert len({image[0, 0, 0].item() for s in (splits.train, splits.test) for image in s.images}) == 20


def test_without_sub_folders_there_are_no_classes(tmp_path):
    for number in range(3):
        picture(tmp_path / f"{number}.png", (number, 0, 0))
    data = folder_data(tmp_path, 8, 3, False, validation=0.1)
    assert data.spec == ImageSpec(3, 8, 8, 256, 0)
    assert [len(data.split(name).labels) for name in SPLITS] == [1, 1, 1]
    assert data.split("train").labels.tolist() == [0]


def test_train_and_test_folders_are_the_splits(tmp_path):
    for number in range(4):
        picture(tmp_path / "train" / "a" / f"{number}.png", (number, 0, 0))
    picture(tmp_path / "test" / "b" / "0.png", (9, 0, 0))
    picture(tmp_path / "loose.png")
    splits = load(tmp_path)
    assert splits.class_names == ("a", "b")
    assert splits.train.labels.tolist() == [0] * 4
    assert splits.test.labels.tolist() == [1]
    assert splits.test.images[0, 0, 0, 0] == 9


def test_pixels_of_the_right_size_are_untouched(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (5, 8, 8, 3)).astype(np.uint8)
    for number, values in enumerate(pixels):
        Image.fromarray(values).save(tmp_path / f"{number}.{('png', 'bmp', 'tiff', 'ppm', 'png')[number]}")
    splits = load(tmp_path)
    found = torch.cat([splits.train.images, splits.test.images]).permute(0, 2, 3, 1).flatten(1).tolist()
    assert sorted(found) == sorted(pixels.reshape(5, -1).tolist())


@pytest.mark.parametrize(
    ("mode", "color", "rgb"),
    [
        ("RGBA", (200, 100, 50, 255), (200, 100, 50)),
        ("RGBA", (200, 100, 50, 0), (255, 255, 255)),
        ("LA", (40, 255), (40, 40, 40)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("P", 0, (0, 0, 0)),
        ("I;16", 0x8123, (0x81, 0x81, 0x81)),
    ],
)
def test_colours_become_the_channels(tmp_path, mode, color, rgb):
    for number in range(3):
        picture(tmp_path / f"{number}.png", color, mode=mode)
    assert load(tmp_path).train.images[0, :, 3, 3].tolist() == list(rgb)
    grey = load(tmp_path, channels=1).train.images
    assert grey.shape[1:] == (1, 8, 8)
    luma = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
    assert abs(grey[0, 0, 3, 3].item() - luma) <= 1


def test_a_palette_keeps_its_colours(tmp_path):
    for number in range(3):
        picture_ = Image.new("RGB", (8, 8), (10, 20, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
        picture_.save(tmp_path / f"{number}.gif")
    assert load(tmp_path).train.images[0, :, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("wide", [True, False])
def test_other_shapes_are_cut_to_the_central_square(tmp_path, wide):
    values = np.zeros((16, 48, 3), np.uint8)
    values[:, 16:32] = (0, 255, 0)  # the central square is green
    for number in range(3):
        Image.fromarray(values if wide else values.transpose(1, 0, 2).copy()).save(tmp_path / f"{number}.png")
    image = load(tmp_path).train.images[0]
    assert image.shape == (3, 8, 8)
    assert image[:, 4, 4].tolist() == [0, 255, 0]
    assert image[1].min() > 200


def test_resizing_averages(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    for number in range(3):
        Image.fromarray(stripes).save(tmp_path / f"{number}.png")
    image = load(tmp_path).train.images[0].int()
    assert image.sub(128).abs().max() < 12


def test_unreadable_files_are_named_and_counted(tmp_path, capsys):
    for number in range(5):
        picture(tmp_path / f"{number}.png", (number, 0, 0))
    for number in range(4):
        (tmp_path / f"bad{number}.jpg").write_bytes(b"not a jpeg")
    whole = (tmp_path / "4.png").read_bytes()
    (tmp_path / "4.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RequestError) as error:
        load(tmp_path)
    message = str(error.value)
    assert "\n" not in message
    assert "5 of 9 images" in message
    assert str(tmp_path / "4.png") in message
    assert str(tmp_path / "bad0.jpg") in message
    assert "data.skip_bad=true" in message
    splits = load(tmp_path, skip_bad=True)
    assert len(splits.train.labels) + len(splits.test.labels) == 4
    captured = capsys.readouterr()
    assert "5 of 9" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda path: None, "is not a folder"),
        (lambda path: path.mkdir(), "holds no images"),
        (lambda path: [picture(path / f"{n}.png") for n in range(2)], "at least 2 and 1"),
        (lambda path: [picture(path / name) for name in ("0.png", "a/1.png")], "0.png"),
        (lambda path: [picture(path / name) for name in ("train/a/0.png", "test/1.png")], "1.png"),
        (lambda path: [path.mkdir(), (path / "0.png").write_text("x")], "1 of 1 images"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(tmp_path, make, match):
    make(tmp_path / "mine")
    with pytest.raises(RequestError, match=match) as error:
        load(tmp_path / "mine")
    assert "\n" not in str(error.value)
    assert str(tmp_path / "mine") in str(error.value)


def test_nothing_but_bad_images_with_skip_bad(tmp_path):
    (tmp_path / "0.png").write_text("x")
    with pytest.raises(RequestError, match="at least 2 and 1"):
        load(tmp_path, skip_bad=True)


@pytest.mark.parametrize(
    ("options", "match"),
    [({"channels": 2}, "data.channels=2"), ({"size": 0}, "data.size=0"), ({"path": None}, "data.path=")],
)
def test_wrong_options_are_one_sentence(tmp_path, options, match):
    with pytest.raises(RequestError, match=match):
        Folder(**{"path": tmp_path, "size": 8, "channels": 3, "skip_bad": False} | options)


def test_the_config_passes_its_keys_on(tmp_path):
    for number in range(30):
        picture(tmp_path / f"{number}.jpg", (8 * number, 0, 0), size=(20, 10))
    config = OmegaConf.create({"seed": 0, "data": OmegaConf.load(CONFIG)})
    config.data.update(path=str(tmp_path), size=6, channels=1)
    data = instantiate(config.data)
    assert data.spec == ImageSpec(1, 6, 6, 256, 0)
    assert [len(data.split(name).labels) for name in SPLITS] == [24, 3, 3]
    assert data.name == f"folder-{tmp_path.name}"
