"""A folder of the user's own images: classes, splits, conversions, and messages about files that cannot be read."""

import os
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
    assert len(splits.train.labels) + len(splits.test.labels) == 20
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
    values_read = torch.cat([splits.train.images, splits.test.images]).permute(0, 2, 3, 1).flatten(1).tolist()
    assert sorted(values_read) == sorted(pixels.reshape(5, -1).tolist())


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


def test_unreadable_files_are_named_and_counted(tmp_path):
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
    assert "5 of 9" in " ".join(splits.remarks)


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
    assert sum(len(data.split(name).labels) for name in SPLITS) == 30
    assert data.source.max_pixels == config.data.max_pixels
    assert data.name == f"folder-{tmp_path.name}"


# ---------------------------------------------------------------- which split an image falls into


def values(data, name):
    """The images of a split by their first pixel, which is the number of the file."""
    return set(data.split(name).images[:, 0, 0, 0].tolist())


def numbered(path, count, prefix=""):
    for number in range(count):
        picture(path / f"{prefix}{number}.png", number, mode="L")


@pytest.mark.parametrize("validation", [0.1, 0.3])
def test_a_split_depends_on_the_name_of_the_file_alone(tmp_path, validation):
    numbered(tmp_path, 200)
    whole = folder_data(tmp_path, 8, 1, False, validation=validation)
    before = {name: values(whole, name) for name in SPLITS}
    assert 8 <= len(before["test"]) <= 34
    assert 0.5 * validation * 180 < len(before["valid"]) < 1.6 * validation * 180
    for gone in (0, 57, 58, 59, 123, 199):
        (tmp_path / f"{gone}.png").unlink()
        for name in SPLITS:
            before[name].discard(gone)
    numbered(tmp_path, 100, "new")  # of the same pixels: in whatever split, they add no number but 0 to 99
    after = folder_data(tmp_path, 8, 1, False, validation=validation)
    for name in SPLITS:
        assert {n for n in values(after, name) if n >= 100} == {n for n in before[name] if n >= 100}
    picture(tmp_path / "150.png", 250, mode="L")  # other pixels, the same name
    mended = folder_data(tmp_path, 8, 1, False, validation=validation)
    assert [250 in values(mended, name) for name in SPLITS] == [150 in before[name] for name in SPLITS]


def test_a_split_does_not_depend_on_where_the_folder_lies_or_how_unicode_is_written(tmp_path):
    for place, accent in (("here", "\u00e9"), ("there/and/deeper", "e\u0301")):
        numbered(tmp_path / place, 40, f"caf{accent}")
    here, there = (folder_data(tmp_path / place, 8, 1, False, validation=0.2) for place in ("here", "there/and/deeper"))
    assert all(values(here, name) == values(there, name) for name in SPLITS)
    assert here.fingerprints == there.fingerprints


@pytest.mark.slow
@pytest.mark.parametrize("count", range(3, 12))
def test_no_split_is_ever_empty(tmp_path, count):
    for attempt in range(4):
        numbered(tmp_path / str(attempt), count, f"{attempt}-")
        for validation in (0.001, 0.1, 0.999, 1, count - 2):
            data = folder_data(tmp_path / str(attempt), 8, 1, False, validation=validation)
            if validation == count - 2 and len(data.source.load(None).train.labels) <= validation:
                continue  # more test images than a tenth, so that many are not there
            sizes = [len(data.split(name).labels) for name in SPLITS]
            assert min(sizes) >= 1
            assert sum(sizes) == count


def test_a_number_of_validation_images_moves_one_at_most(tmp_path):
    numbered(tmp_path, 60)
    before = values(folder_data(tmp_path, 8, 1, False, validation=7), "valid")
    assert len(before) == 7
    (tmp_path / f"{min(before)}.png").unlink()
    after = values(folder_data(tmp_path, 8, 1, False, validation=7), "valid")
    assert len(after) == 7
    assert len(before - after) == 1


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Train", "VALID"), ("TRAIN", "Validation", "Test")])
def test_folders_for_the_splits_in_any_case_of_the_letters(tmp_path, names):
    for offset, name in enumerate(names):
        for number in range(12):
            picture(tmp_path / name / "ab"[number % 2] / f"{number}.png", 50 * offset + number, mode="L")
    picture(tmp_path / "elsewhere" / "x.png")
    for binarize in ("none", "static"):
        data = folder_data(tmp_path, 8, 1, False, validation=0.1, binarize=binarize)
        assert all(int(data.split(name).images.max()) < data.spec.levels for name in SPLITS)
    data = folder_data(tmp_path, 8, 1, False, validation=0.1)
    assert data.class_names == ("a", "b")
    assert values(data, "valid") == set(range(50, 62))
    if len(names) == 3:
        assert values(data, "test") == set(range(100, 112))
        assert values(data, "train") == set(range(12))
    else:
        assert values(data, "test") | values(data, "train") == set(range(12))
    assert "1 images outside" in data.summary


def test_a_train_folder_alone_is_a_split_but_not_beside_classes(tmp_path):
    for number in range(4):
        picture(tmp_path / "train" / "cat" / f"{number}.png", number, mode="L")
    assert load(tmp_path, channels=1).class_names == ("cat",)
    picture(tmp_path / "plane" / "0.png")
    assert load(tmp_path, channels=1).class_names == ("plane", "train")
    (tmp_path / "plane").rename(tmp_path / "Train")
    with pytest.raises(RequestError, match="two folders for one split: Train, train"):
        load(tmp_path)


# ---------------------------------------------------------------- nothing vanishes


def test_links_are_followed_once(tmp_path):
    top, away = tmp_path / "top", tmp_path / "away"
    numbered(away / "deep", 4)
    numbered(top / "own", 4)
    (top / "cats").symlink_to(away)
    (away / "back").symlink_to(top)  # a circle
    (away / "self").symlink_to(away)
    (top / "a_alias").symlink_to(top / "own")  # comes first in the alphabet
    (top / "own" / "file.png").symlink_to(away / "deep" / "3.png")
    splits = load(top, channels=1)
    assert splits.class_names == ("cats", "own")
    assert sorted(torch.cat([splits.train.labels, splits.test.labels]).tolist()) == [0] * 4 + [1] * 5
    assert "3 links to folders that are read anyway" in " ".join(splits.remarks)


def test_what_cannot_be_read_is_said_and_what_is_no_picture_is_counted(tmp_path, monkeypatch):
    numbered(tmp_path / "a", 3)
    numbered(tmp_path / "locked", 3)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a" / "b.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a" / "x.heic").write_bytes(b"x")
    (tmp_path / "a" / ".hidden.png").write_bytes(b"x")
    really = os.scandir

    def scandir(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return really(path)

    monkeypatch.setattr("os.scandir", scandir)
    with pytest.raises(RequestError, match=r"3 of 6 images or folders.*data.skip_bad=true") as error:
        load(tmp_path, channels=1)
    for part in ("locked (Permission denied)", "gone (a link that leads nowhere", "b.png (a link that leads nowhere"):
        assert part in str(error.value)
    data = folder_data(tmp_path, 8, 1, True, validation=0.5)
    assert "3 images in 1 classes (a)" in data.summary
    for part in ("1 hidden", "1 .heic", "3 of 6 images or folders", "locked"):
        assert part in data.summary
    assert "\n" not in data.summary


def test_the_summary_counts_images_that_are_in_two_splits_and_what_readers_note(tmp_path):
    for name in ("train", "test"):
        numbered(tmp_path / name, 6)
    frames = [Image.new("L", (8, 8), value) for value in (77, 200)]
    frames[0].save(tmp_path / "train" / "two.gif", save_all=True, append_images=frames[1:])
    summary = folder_data(tmp_path, 8, 1, False, validation=2).summary
    assert "13 images, no classes: 5 train, 2 valid, 6 test" in summary
    assert "valid and test images equal training images" in summary
    assert "1 images have several frames" in summary


def test_names_that_are_not_utf_8(tmp_path):
    cafe = os.fsdecode(b"caf\xe9")
    for number in range(4):
        picture(tmp_path / cafe / cafe / f"{number}{cafe}.jfif", format="JPEG")
    (tmp_path / "link").symlink_to(tmp_path / cafe)
    data = folder_data(tmp_path / "link", 8, 3, False, validation=1)
    assert data.name == "folder-caf\\xe9"
    assert data.class_names == ("caf\\xe9",)
    data.summary.encode("utf-8")
    with pytest.raises(RequestError, match=r"caf\\xe9 is not UTF-8") as error:
        folder_data(tmp_path / cafe, 8, 3, False, validation=1)
    str(error.value).encode("utf-8")
