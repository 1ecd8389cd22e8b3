"""Data sets: the right integers, splits that never change, training batches that are a function of their number."""

import gzip
import hashlib
import io
import pickle
import socket
import stat
import struct
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from genlab.core import ImageSpec, RequestError
from genlab.data import (
    CIFAR10,
    MNIST,
    SVHN,
    Batch,
    FashionMNIST,
    ImageData,
    MNISTMini,
    Split,
    Splits,
    batches,
    files,
    module,
)
from genlab.data import cifar10 as cifar10_module
from genlab.data import mnist as mnist_module
from genlab.data import svhn as svhn_module
from genlab.data.binarize import static_binarization
from genlab.data.mnist import IDX_FILES

CONFIGS = Path(__file__).parents[1] / "configs" / "data"
SPLITS = ("train", "valid", "test")


def md5(content):
    return hashlib.md5(content).hexdigest()


def mini(**options):
    return ImageData(MNISTMini(), validation=1000, **options)


class Toy:
    """23 + 7 images of 1 x 2 pixels; the first pixel is the number of the image."""

    name = "toy"

    def load(self, root):
        train = torch.arange(23, dtype=torch.uint8)
        test = torch.arange(100, 107, dtype=torch.uint8)
        return Splits(
            *(Split(torch.stack([x, x + 100], 1).view(-1, 1, 1, 2), x.long() % 3) for x in (train, test)), "abc"
        )


def toy(**options):
    return ImageData(Toy(), **{"validation": 3, "batch_size": 4, "eval_batch_size": 3, **options})


@pytest.fixture
def as_rank(monkeypatch):
    """Make `batches` act as process r of w."""

    def pretend(rank, world):
        for user in (batches, module):
            monkeypatch.setattr(user, "rank_and_world", lambda: (rank, world))

    return pretend


@pytest.fixture
def offline(monkeypatch):
    """A machine on which no name of another machine can be looked up."""

    def refuse(*args, **kwargs):
        raise socket.gaierror(-2, "no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


# ---------------------------------------------------------------- mnist_mini


def test_mnist_mini_is_the_beginning_of_mnist():
    splits = MNISTMini().load(None)
    assert splits.train.images.shape == (10_000, 1, 28, 28)
    assert splits.test.images.shape == (2_000, 1, 28, 28)
    assert splits.train.images.dtype == torch.uint8
    assert splits.train.labels.dtype == torch.int64
    assert md5(splits.train.images.numpy().tobytes()) == "3b1134527863a2810c134121a397e522"
    assert md5(splits.test.images.numpy().tobytes()) == "2a02fb5b5825ef9f473de0f9304a16a1"
    assert splits.train.labels.bincount().tolist() == [1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978]
    assert splits.test.labels.bincount().tolist() == [175, 234, 219, 207, 217, 179, 178, 205, 192, 194]
    assert splits.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]


def test_mnist_mini_needs_nothing_and_is_small(offline):
    data = mini()
    assert data.name == "mnist_mini"
    assert data.spec == ImageSpec(1, 28, 28, 256, 10)
    assert [len(data.split(name).labels) for name in SPLITS] == [9_000, 1_000, 2_000]
    assert sum(path.stat().st_size for path in MNISTMini.folder.iterdir()) < 3_000_000


# ---------------------------------------------------------------- splits


def test_splits_are_disjoint_complete_and_the_same_for_every_seed():
    data, other = mini(seed=0), mini(seed=7)
    official = MNISTMini().load(None)
    for name in SPLITS:
        assert torch.equal(data.split(name).images, other.split(name).images)
        assert torch.equal(data.split(name).labels, other.split(name).labels)
    assert torch.equal(data.split("test").images, official.test.images)

    numbers = [toy().split(name).images[:, 0, 0, 0].tolist() for name in SPLITS]
    assert sorted(numbers[0] + numbers[1]) == list(range(23))
    assert numbers[0] == sorted(numbers[0])
    assert len(numbers[1]) == 3
    assert numbers[1] != [0, 1, 2]  # files are often sorted by class: the beginning would not do
    assert numbers[2] == list(range(100, 107))


def test_labels_stay_with_their_images():
    for name in SPLITS:
        split = toy().split(name)
        assert torch.equal(split.labels, split.images[:, 0, 0, 0].long() % 3)
    batch = toy().training_batch(2)
    assert torch.equal(batch.labels, batch.images[:, 0, 0, 0].long() % 3)


def test_validation_by_share_and_limit():
    assert [len(toy(validation=0.1).split(name).labels) for name in SPLITS] == [21, 2, 7]
    assert [len(toy(validation=0.001).split(name).labels) for name in SPLITS] == [22, 1, 7]
    data = toy(limit=5)
    assert [len(data.split(name).labels) for name in SPLITS] == [5, 3, 5]
    assert torch.equal(data.split("train").images, toy().split("train").images[:5])


# ---------------------------------------------------------------- whole splits


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_ranks_partition_a_split_into_the_same_batches(as_rank, world):
    as_rank(0, 1)
    whole = [batch.images.flatten(1).tolist() for batch in toy().batches("test")]
    assert [len(batch) for batch in whole] == [3, 3, 1]
    parts = []
    for rank in range(world):
        as_rank(rank, world)
        mine = toy().batches("test")
        part = [batch.images.flatten(1).tolist() for batch in mine]
        assert len(mine) == len(part)
        assert part == whole[rank::world]
        parts += part
    assert sorted(parts) == sorted(whole)


def test_batch_index_finds_the_image():
    data = mini(eval_batch_size=300)
    assert len(data.val_dataloader()) == 4
    index = torch.cat([batch.index for batch in data.test_dataloader()])
    assert torch.equal(index, torch.arange(2_000))
    for batch in data.val_dataloader():
        assert isinstance(batch, Batch)
        assert torch.equal(batch.images, data.split("valid").images[batch.index])


# ---------------------------------------------------------------- the training sequence


@pytest.mark.parametrize(("world", "batch_size"), [(1, 4), (2, 3), (3, 7), (1, 50)])
def test_every_epoch_shows_every_image_once(as_rank, world, batch_size):
    data = toy(batch_size=batch_size, seed=3)
    seen = []
    for number in range(60 // world):
        for rank in range(world):
            as_rank(rank, world)
            batch = data.training_batch(number)
            assert len(batch.images) == len(batch.index) == batch_size
            seen += batch.index.tolist()
    epochs = [seen[start : start + 20] for start in range(0, len(seen) - 19, 20)]
    assert len(epochs) > 2
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_the_order_depends_on_the_seed():
    orders = [
        torch.cat([batch.index for batch in islice(toy(seed=s).train_dataloader(), 5)]).tolist() for s in (0, 0, 1)
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_a_resumed_stream_goes_on_bit_for_bit():
    options = {"binarize": "dynamic", "augment": "hflip", "batch_size": 64}
    uninterrupted = list(islice(mini(**options).train_dataloader(), 6))
    killed = mini(**options)
    killed.position = 4
    resumed = mini(**options)
    resumed.load_state_dict(killed.state_dict())
    for ours, theirs in zip(islice(resumed.train_dataloader(), 2), uninterrupted[4:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours[:3], theirs[:3], strict=True))


def test_hflip_mirrors_half_of_the_training_images_only():
    plain, mirrored = toy(batch_size=1000).training_batch(0), toy(batch_size=1000, augment="hflip").training_batch(0)
    assert torch.equal(plain.index, mirrored.index)
    flipped = (mirrored.images == plain.images.flip(-1)).flatten(1).all(1)
    kept = (mirrored.images == plain.images).flatten(1).all(1)
    assert torch.all(flipped ^ kept)
    assert 400 < flipped.sum() < 600
    assert torch.equal(toy(augment="hflip").split("valid").images, toy().split("valid").images)


def test_every_batch_and_process_draws_for_itself(as_rank):
    def coins(number):
        batch = toy(batch_size=200, augment="hflip").training_batch(number)
        return (batch.images[:, 0, 0, 0] > batch.images[:, 0, 0, 1]).tolist()

    here, later = coins(0), coins(1)
    as_rank(1, 2)
    there = coins(0)
    assert here != later
    assert here != there
    assert later != there


def test_lightning_trains_on_it_and_the_checkpoint_keeps_the_position(tmp_path):
    import pytorch_lightning as pl

    class Learner(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.scale, self.seen, self.validated = torch.nn.Parameter(torch.ones(())), [], 0

        def training_step(self, batch, number):
            assert isinstance(batch, Batch)
            self.seen += batch.index.tolist()
            self.trainer.datamodule.position += 1
            return self.scale**2

        def validation_step(self, batch, number):
            self.validated += len(batch.images)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options |= {"default_root_dir": tmp_path, "val_check_interval": 3, "check_val_every_n_epoch": None}
    options |= {"num_sanity_val_steps": 0, "enable_checkpointing": False}
    first, second, whole = Learner(), Learner(), Learner()
    trainer = pl.Trainer(max_steps=6, **options)
    trainer.fit(first, datamodule=toy())
    assert first.validated == 2 * 3
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    pl.Trainer(max_steps=9, **options).fit(
        second, datamodule=toy(), ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    pl.Trainer(max_steps=9, **options).fit(whole, datamodule=toy())
    assert first.seen + second.seen == whole.seen


# ---------------------------------------------------------------- binarisation


@pytest.mark.slow
def test_static_is_one_draw_for_ever():
    data = mini(binarize="static")
    assert data.name == "mnist_mini_binary-static"
    assert data.spec.levels == 2
    train = static_binarization("static", MNISTMini().load(None).train.images, "train")
    assert md5(train.numpy().tobytes()) == "7f64c94e8edb48af27a01a1385e5e5a6"
    for name in SPLITS:
        assert set(data.split(name).images.unique().tolist()) == {0, 1}
        assert torch.equal(data.split(name).images, mini(binarize="static", seed=5).split(name).images)


def test_a_pixel_is_one_with_probability_of_its_grey():
    grey = torch.tensor([0, 1, 64, 128, 254, 255], dtype=torch.uint8)
    drawn = static_binarization("static", grey.repeat(100_000, 1), "train").double().mean(0)
    assert drawn[0] == 0
    assert drawn[-1] == 1
    p = grey.double() / 255
    assert torch.all((drawn - p).abs() <= 5 * (p * (1 - p) / 100_000).sqrt())


@pytest.mark.slow
def test_dynamic_redraws_training_images_and_nothing_else():
    data, static = (mini(binarize=how, batch_size=1500, limit=3000) for how in ("dynamic", "static"))
    for name in SPLITS:
        assert torch.equal(data.split(name).images, static.split(name).images)
    stream = [data.training_batch(number) for number in range(5)]
    index = torch.cat([batch.index for batch in stream])
    images = torch.cat([batch.images for batch in stream])
    assert set(images.unique().tolist()) == {0, 1}
    first, second = (images[e : e + 3000][index[e : e + 3000].argsort()] for e in (0, 3000))
    assert 0.02 < (first != second).double().mean() < 0.2
    grey = data._loaded[0]["grey"].images
    assert abs((first.double().mean() - grey.double().mean() / 255).item()) < 1e-3
    assert torch.all(first[grey == 0] == 0)
    assert torch.all(first[grey == 255] == 1)
    batch = static.training_batch(0)
    assert torch.equal(batch.images, static.split("train").images[batch.index])


def test_threshold():
    grey, binary = mini().split("valid").images, mini(binarize="threshold").split("valid").images
    assert torch.equal(binary, (grey >= 128).to(torch.uint8))


def test_larochelle_has_splits_of_its_own(tmp_path, offline):
    sizes = {"train": 5, "valid": 3, "test": 2}
    (tmp_path / "MNIST_binary").mkdir()
    bits = {name: np.random.RandomState(n).randint(0, 2, (n, 784)) for name, n in sizes.items()}
    for name, rows in bits.items():
        text = "".join(" ".join(map(str, row)) + " \n" for row in rows)
        (tmp_path / "MNIST_binary" / f"binarized_mnist_{name}.amat").write_text(text)
    data = ImageData(MNIST(), validation=5000, binarize="larochelle", root=tmp_path)
    assert data.name == "mnist_binary-larochelle"
    assert data.spec == ImageSpec(1, 28, 28, 2, 0)
    for name, rows in bits.items():
        assert np.array_equal(data.split(name).images.reshape(-1, 784), rows)
        assert data.split(name).labels.tolist() == [0] * sizes[name]
    (tmp_path / "MNIST_binary" / "binarized_mnist_test.amat").write_text("0 1 2")
    with pytest.raises(RequestError, match=r"binarized_mnist_test.amat is not a text of 784"):
        ImageData(MNIST(), validation=5000, binarize="larochelle", root=tmp_path).split("test")
    with pytest.raises(RequestError, match=r"binarized_mnist_train.amat is missing"):
        ImageData(MNIST(), validation=5000, binarize="larochelle", root=tmp_path / "none").split("test")


# ---------------------------------------------------------------- files


def idx(values):
    return struct.pack(f">2xBB{values.ndim}I", 8, values.ndim, *values.shape) + values.tobytes()


@pytest.fixture
def fake_mnist(monkeypatch):
    """Four tiny IDX files, {name: bytes}. For this test they are the published ones."""
    rng = np.random.RandomState(0)
    shapes = [(20, 28, 28), (20,), (6, 28, 28), (6,)]
    arrays = [rng.randint(0, 256 if len(shape) > 1 else 10, shape).astype(np.uint8) for shape in shapes]
    content = {name: gzip.compress(idx(array), mtime=0) for name, array in zip(IDX_FILES, arrays, strict=True)}
    contents = {name: md5(idx(array)) for name, array in zip(IDX_FILES, arrays, strict=True)}
    monkeypatch.setattr(MNIST, "content_md5s", contents)
    for source in (MNIST, FashionMNIST):
        monkeypatch.setattr(source.published, "resources", [(name, md5(blob)) for name, blob in content.items()])
        monkeypatch.setattr(source.published, "mirrors", ["http://one.test/", "http://two.test/"])
    return SimpleNamespace(arrays=arrays, content=content)


def write(folder, content):
    folder.mkdir(parents=True)
    for name, blob in content.items():
        (folder / name).write_bytes(blob)


@pytest.mark.parametrize("place", ["MNIST/raw", "."])
@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_read_in_place_from_a_folder_that_cannot_be_written(tmp_path, offline, fake_mnist, place, packed):
    root = tmp_path / "root"
    content = fake_mnist.content
    if not packed:
        content = {name.removesuffix(".gz"): gzip.decompress(blob) for name, blob in content.items()}
    write(root / place, content)
    before = sorted(root.rglob("*"))
    for folder in {root, root / place}:
        folder.chmod(0o555)
    splits = MNIST().load(root)
    for folder in {root, root / place}:
        folder.chmod(0o755)
    assert sorted(root.rglob("*")) == before
    arrays = [splits.train.images[:, 0], splits.train.labels, splits.test.images[:, 0], splits.test.labels]
    assert all(np.array_equal(a, b) for a, b in zip(arrays, fake_mnist.arrays, strict=True))


def kaggle(name):
    """Kaggle's name of an IDX file."""
    return name.removesuffix(".gz").replace("-idx", ".idx")


@pytest.mark.parametrize("place", ["{}", "archive/{}", "{0}/{0}", "archive/{0}/{0}"])
@pytest.mark.parametrize("rename", [kaggle, lambda name: name.removesuffix(".gz")], ids=["dots", "dashes"])
def test_idx_files_as_kaggle_has_them(tmp_path, offline, fake_mnist, place, rename):
    for name, blob in fake_mnist.content.items():
        path = tmp_path / place.format(rename(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.decompress(blob))
    assert np.array_equal(MNIST().load(tmp_path).test.images[:, 0], fake_mnist.arrays[2])
    path.write_bytes(path.read_bytes()[:-1] + b"\x0b")  # one other label
    with pytest.raises(RequestError, match=r"is not of mnist: the md5"):
        MNIST().load(tmp_path)


def test_mnist_packed_anew_is_read_and_fashion_is_not_mistaken_for_it(tmp_path, offline, fake_mnist, monkeypatch):
    anew = {name: gzip.compress(gzip.decompress(blob), 1, mtime=5) for name, blob in fake_mnist.content.items()}
    write(tmp_path / "packed", anew)
    assert np.array_equal(MNIST().load(tmp_path / "packed").train.images[:, 0], fake_mnist.arrays[0])
    write(tmp_path / "open", {kaggle(name): gzip.decompress(blob) for name, blob in anew.items()})
    monkeypatch.setattr(mnist_module, "CONTENT_MD5S", MNIST.content_md5s)
    with pytest.raises(RequestError, match=r"train-images.idx3-ubyte is not of fashion_mnist"):
        FashionMNIST().load(tmp_path / "open")


def test_kaggles_tables_are_read_when_they_hold_mnist(tmp_path, offline, fake_mnist):
    header = ",".join(["label"] + [f"{i}x{j}" for i in range(1, 29) for j in range(1, 29)])
    for name, images, labels in zip(("train", "test"), fake_mnist.arrays[::2], fake_mnist.arrays[1::2], strict=True):
        rows = np.concatenate([labels[:, None], images.reshape(len(labels), -1)], 1)
        np.savetxt(tmp_path / f"mnist_{name}.csv", rows, "%d", ",", header=header, comments="")
    splits = MNIST().load(tmp_path)
    arrays = [splits.train.images[:, 0], splits.train.labels, splits.test.images[:, 0], splits.test.labels]
    assert all(np.array_equal(a, b) for a, b in zip(arrays, fake_mnist.arrays, strict=True))
    text = (tmp_path / "mnist_test.csv").read_text()
    for wrong, message in (
        (text.replace("\n0,", "\n1,", 1).replace("\n2,", "\n3,"), "md5"),
        ("label\n3,300", "not a table"),
    ):
        (tmp_path / "mnist_test.csv").write_text(wrong)
        with pytest.raises(RequestError, match=message):
            MNIST().load(tmp_path)


def test_root_then_environment_then_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("GENLAB_DATA", raising=False)
    assert files.data_root(None) == tmp_path / "cache" / "genlab"
    monkeypatch.setenv("GENLAB_DATA", str(tmp_path / "env"))
    assert files.data_root(None) == tmp_path / "env"
    assert files.data_root(tmp_path) == tmp_path


def one_sentence(error, *parts):
    message = str(error.value)
    assert "\n" not in message
    assert all(str(part) in message for part in parts), message


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (MNIST(), "train-images-idx3-ubyte.gz"),
        (FashionMNIST(), "train-images-idx3-ubyte.gz"),
        (CIFAR10(), "cifar-10-python.tar.gz"),
        (SVHN(), "train_32x32.mat"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_offline_is_one_sentence_that_helps(tmp_path, offline, source, name):
    with pytest.raises(RequestError) as error:
        ImageData(source, validation=1, root=tmp_path / "here").split("test")
    one_sentence(error, name, tmp_path / "here", "http", "no network", "data.root", "GENLAB_DATA", "data=mnist_mini")
    assert "Connection" not in str(error.value)  # the layers of requests around the reason
    assert not [path for path in (tmp_path / "here").rglob("*") if path.is_file()]


class Server(BaseHTTPRequestHandler):
    """Serves `server.served`, {url: bytes or a function that answers}, and notes every request in `server.asked`."""

    protocol_version = "HTTP/1.0"  # a connection for each file

    def do_GET(self):
        url = f"http://{self.headers['Host']}{self.path}"
        self.server.asked.append(url)
        content = self.server.served.get(url)
        if content is None:
            self.send_error(404, "not here")
        elif callable(content):
            content(self)
        else:
            self.answer(content, {} if "two" in url else {"Content-Length": len(content)})

    def answer(self, content, headers):
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def network(monkeypatch):
    """A real HTTP server that every name of another machine leads to."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.served, server.asked = {}, []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    really = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: really(*server.server_address, type=socket.SOCK_STREAM))
    monkeypatch.setenv("no_proxy", "*")
    yield server
    server.shutdown()
    server.server_close()


def test_download_goes_to_the_second_mirror_and_happens_once(tmp_path, fake_mnist, network):
    for name, blob in fake_mnist.content.items():
        network.served["http://two.test/" + name] = blob
    first, second = IDX_FILES[0], IDX_FILES[1]
    network.served["http://one.test/" + first] = b"<html>404</html>"  # a mirror that sends something else
    splits = FashionMNIST().load(tmp_path)
    assert np.array_equal(splits.train.images[:, 0], fake_mnist.arrays[0])
    asked = [f"http://{mirror}.test/{name}" for name in (first, second) for mirror in ("one", "two")]
    assert network.asked[:4] == asked
    folder = tmp_path / "FashionMNIST" / "raw"
    assert sorted(path.name for path in folder.iterdir()) == sorted(IDX_FILES)
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {stat.S_IMODE(ordinary.stat().st_mode)}
    network.asked.clear()
    FashionMNIST().load(tmp_path)
    assert network.asked == []


def cut_off(server, content):
    """Announce ten bytes more than there are."""
    server.answer(content, {"Content-Length": len(content) + 10})


def endless(server, content):
    """Never stop; say nothing of the size."""
    server.answer(content, {})
    while True:
        server.wfile.write(bytes(1 << 16))


def elsewhere(server, content):
    """Send the client to a file on its own disk."""
    server.send_response(302)
    server.send_header("Location", Path(__file__).as_uri())
    server.end_headers()


def nonsense(server, content):
    """A size that is not a number."""
    server.answer(content, {"Content-Length": "many"})


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (cut_off, "10 more expected"),
        (endless, "more than 100,000 bytes"),
        (elsewhere, "No connection adapters"),
        (nonsense, "many"),
        (lambda server, _: server.send_error(503, "too busy"), "503 Server Error: too busy"),
        (lambda server, _: server.connection.shutdown(socket.SHUT_RDWR), "Remote end closed"),
    ],
    ids=["cut off", "endless", "elsewhere", "nonsense", "busy", "silent"],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bad_mirror_leaves_nothing_behind_and_the_next_one_is_asked(
    tmp_path, fake_mnist, network, monkeypatch, answer, message
):
    monkeypatch.setattr(files, "MAX_DOWNLOAD", 100_000)
    monkeypatch.setattr(network, "handle_error", lambda *_: None)  # clients hang up
    name, blob = next(iter(fake_mnist.content.items()))
    for mirror in ("one", "two"):
        network.served[f"http://{mirror}.test/{name}"] = lambda server: answer(server, blob)
    with pytest.raises(RequestError, match=message) as error:
        FashionMNIST().load(tmp_path)
    one_sentence(error, name, "could not be downloaded")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    network.served |= {f"http://two.test/{name}": blob for name, blob in fake_mnist.content.items()}
    assert np.array_equal(FashionMNIST().load(tmp_path).train.images[:, 0], fake_mnist.arrays[0])


def test_a_packed_file_stays_packed_whatever_the_server_calls_it(tmp_path, fake_mnist, network):
    for name, blob in fake_mnist.content.items():
        headers = {"Content-Length": len(blob), "Content-Encoding": "gzip"}
        network.served[f"http://one.test/{name}"] = lambda server, blob=blob, headers=headers: server.answer(
            blob, headers
        )
    FashionMNIST().load(tmp_path)
    for name, blob in fake_mnist.content.items():
        assert (tmp_path / "FashionMNIST" / "raw" / name).read_bytes() == blob
    assert all("one.test" in url for url in network.asked)


def test_other_processes_wait_for_the_first(tmp_path, fake_mnist, network, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(files.time, "sleep", lambda _: write(tmp_path / "MNIST" / "raw", fake_mnist.content))
    assert len(MNIST().load(tmp_path).train.labels) == 20
    assert network.asked == []


def test_a_damaged_file_is_named(tmp_path, fake_mnist, network):
    write(tmp_path / "MNIST" / "raw", fake_mnist.content | {IDX_FILES[2]: b"damaged"})
    write(tmp_path / "FashionMNIST" / "raw", fake_mnist.content | {IDX_FILES[2]: b"damaged"})
    for source, message in ((MNIST(), "not a whole IDX file"), (FashionMNIST(), "md5")):
        with pytest.raises(RequestError) as error:
            source.load(tmp_path)
        one_sentence(error, IDX_FILES[2], message)
    (tmp_path / "MNIST" / "raw" / IDX_FILES[2]).unlink()
    (tmp_path / "MNIST" / "raw" / IDX_FILES[2].removesuffix(".gz")).write_bytes(idx(fake_mnist.arrays[2])[:-1])
    with pytest.raises(RequestError, match="not a whole IDX file"):
        MNIST().load(tmp_path)


@pytest.fixture
def fake_cifar(monkeypatch):
    """Two batches in the published format: `arrays` and the `content` of their files, {name: bytes}."""
    rng = np.random.RandomState(0)
    arrays = {
        name: (rng.randint(0, 256, (8, 3072)).astype(np.uint8), [*range(8)]) for name in ("data_batch_1", "test_batch")
    }
    content = {name: pickle.dumps({b"data": data, b"labels": labels}) for name, (data, labels) in arrays.items()}
    official = cifar10_module.Official
    monkeypatch.setattr(official, "train_list", [["data_batch_1", md5(content["data_batch_1"])]])
    monkeypatch.setattr(official, "test_list", [["test_batch", md5(content["test_batch"])]])
    return SimpleNamespace(arrays=arrays, content=content)


def check_cifar(splits, fake):
    for split, name in ((splits.train, "data_batch_1"), (splits.test, "test_batch")):
        assert np.array_equal(split.images.reshape(-1, 3072), fake.arrays[name][0])
        assert split.labels.tolist() == fake.arrays[name][1]
    assert splits.train.images[0, 1, 2, 3] == fake.arrays["data_batch_1"][0][0, 1024 + 2 * 32 + 3]


def test_cifar_folder(tmp_path, offline, fake_cifar):
    write(tmp_path / "cifar-10-batches-py", fake_cifar.content)
    check_cifar(CIFAR10().load(tmp_path), fake_cifar)


def test_cifar_archive_is_downloaded_and_read_as_it_is(tmp_path, network, fake_cifar, monkeypatch):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("cifar-10-batches-py/"))
        for name, blob in fake_cifar.content.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(blob)
            archive.addfile(member, io.BytesIO(blob))
    monkeypatch.setattr(cifar10_module.Official, "tgz_md5", md5(out.getvalue()))
    monkeypatch.setattr(cifar10_module.Official, "url", "http://one.test/cifar-10-python.tar.gz")
    network.served[cifar10_module.Official.url] = out.getvalue()
    check_cifar(CIFAR10().load(tmp_path), fake_cifar)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-python.tar.gz"]


@pytest.mark.parametrize("ending", [".tar.gz", ".tgz", ".tar", ".tar.xz", ".tar.bz2", ".zip"])
def test_a_cifar_archive_packed_anew_is_known_by_its_members(tmp_path, offline, fake_cifar, monkeypatch, ending):
    path = tmp_path / f"cifar-10-python{ending}"

    def pack(content):
        if ending == ".zip":
            with zipfile.ZipFile(path, "w") as archive:
                for name, blob in content.items():
                    archive.writestr(f"elsewhere/{name}", blob)
            return
        kind = {".tgz": "gz", ".tar": ""}.get(ending, ending.rpartition(".")[2])
        with tarfile.open(path, f"w:{kind}") as archive:
            for name, blob in content.items():
                member = tarfile.TarInfo(f"./elsewhere/{name}")
                member.size = len(blob)
                archive.addfile(member, io.BytesIO(blob))

    pack(fake_cifar.content)
    check_cifar(CIFAR10().load(tmp_path), fake_cifar)
    monkeypatch.setattr(cifar10_module.pickle, "loads", lambda *_, **__: pytest.fail("unpickled"))
    pack(fake_cifar.content | {"test_batch": pickle.dumps("evil")})
    with pytest.raises(RequestError, match=r"test_batch is damaged: its md5"):
        CIFAR10().load(tmp_path)
    pack({"test_batch": fake_cifar.content["test_batch"]})
    with pytest.raises(RequestError, match=r"lacks data_batch_1"):
        CIFAR10().load(tmp_path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(RequestError, match=r"is damaged|lacks"):
        CIFAR10().load(tmp_path)


def test_no_more_of_an_archive_is_read_than_a_batch_can_have(tmp_path, offline, fake_cifar, monkeypatch):
    monkeypatch.setattr(cifar10_module, "MAX_UNPACKED", 1000)
    with zipfile.ZipFile(tmp_path / "cifar-10-python.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in fake_cifar.content:
            archive.writestr(name, bytes(10_000_000))
    blobs = cifar10_module.read_archive(tmp_path / "cifar-10-python.zip", list(fake_cifar.content))
    assert {len(blob) for blob in blobs.values()} == {1000}


def test_a_cifar_pickle_with_a_wrong_md5_is_never_unpickled(tmp_path, offline, fake_cifar, monkeypatch):
    write(tmp_path / "cifar-10-batches-py", fake_cifar.content | {"test_batch": pickle.dumps("evil")})
    monkeypatch.setattr(cifar10_module.pickle, "loads", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(RequestError) as error:
        CIFAR10().load(tmp_path)
    one_sentence(error, tmp_path / "cifar-10-batches-py" / "test_batch", "md5")


def test_svhn_moves_axes_and_calls_zero_zero(tmp_path, offline, monkeypatch):
    savemat = pytest.importorskip("scipy.io").savemat
    images = np.random.RandomState(0).randint(0, 256, (32, 32, 3, 4)).astype(np.uint8)
    split_list = {}
    for split in ("train", "test"):
        path = tmp_path / f"{split}_32x32.mat"
        savemat(path, {"X": images, "y": np.array([[1], [10], [9], [10]], np.uint8)})
        split_list[split] = ["https://one.test/", path.name, md5(path.read_bytes())]
    monkeypatch.setattr(svhn_module.Official, "split_list", split_list)
    splits = SVHN().load(tmp_path)
    assert splits.train.labels.tolist() == [1, 0, 9, 0]
    assert splits.train.images.shape == (4, 3, 32, 32)
    assert splits.test.images[3, 2, 5, 7] == images[5, 7, 2, 3]


# ---------------------------------------------------------------- real files, configs, options


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "sizes", "mean"),
    [("mnist", [55_000, 5_000, 10_000], 0.1307), ("cifar10", [45_000, 5_000, 10_000], 0.4734)],
)
def test_real_files(config, sizes, mean, monkeypatch, offline):
    data = build(config)
    try:
        assert [len(data.split(name).labels) for name in SPLITS] == sizes
    except RequestError as error:
        pytest.skip(str(error))
    pixels = torch.cat([data.split(name).images.flatten() for name in ("train", "valid")])
    assert abs(pixels.sum(dtype=torch.long).item() / len(pixels) / 255 - mean) < 1e-4
    if config == "cifar10":
        assert data.split("test").labels.bincount().tolist() == [1000] * 10
    else:
        assert torch.equal(data.split("test").images[:2000], mini().split("test").images)


def build(name, **changes):
    config = OmegaConf.create({"seed": 3, "data": OmegaConf.load(CONFIGS / f"{name}.yaml")})
    config.data.update(changes)
    return instantiate(config.data)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_config_builds_and_begins_with_a_comment(name, tmp_path):
    assert (CONFIGS / f"{name}.yaml").read_text().startswith("# ")
    data = build(name, **({"path": str(tmp_path)} if name == "folder" else {}))
    assert isinstance(data, ImageData)
    assert data.seed == 3
    names = {"toy1d": "toy1d_histogram_100levels", "toy2d": "toy2d_moons_64levels"}
    names |= {"mnist_binary": "mnist_binary-static", "folder": f"folder-{tmp_path.name}"}
    assert data.name == names.get(name, name)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"binarize": "foo"}, ["data.binarize=foo", "static", "dynamic", "threshold", "larochelle"]),
        ({"binarize": "statick"}, ["data.binarize=statick", "did you mean 'static'"]),
        ({"binarize": "larochelle"}, ["larochelle", "mnist", "toy"]),
        ({"augment": "vflip"}, ["data.augment=vflip", "hflip"]),
        ({"batch_size": 0}, ["data.batch_size=0", "at least 1"]),
        ({"batch_size": 2.5}, ["data.batch_size=2.5", "integer"]),
        ({"eval_batch_size": -1}, ["data.eval_batch_size=-1"]),
        ({"limit": 0}, ["data.limit=0"]),
        ({"seed": -1}, ["data.seed=-1"]),
        ({"validation": 23}, ["data.validation=23", "1 to 22"]),
        ({"validation": 0}, ["data.validation=0"]),
        ({"validation": 2.5}, ["data.validation=2.5"]),
    ],
)
def test_a_wrong_option_is_one_sentence(options, parts):
    with pytest.raises(RequestError) as error:
        toy(**options).split("test")
    one_sentence(error, *parts)


def test_a_wrong_split_is_one_sentence():
    with pytest.raises(RequestError, match="did you mean 'test'"):
        toy().split("tset")


def test_on_a_cpu_nothing_moves():
    data = toy()
    before = data.split("train").images.data_ptr()
    data.move_to("cpu")
    assert data.split("train").images.data_ptr() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_are_the_same_on_a_gpu(monkeypatch):
    options = {"binarize": "dynamic", "augment": "hflip"}
    on_cpu, on_gpu = mini(**options), mini(**options)
    on_gpu.move_to("cuda")
    batches = on_cpu.training_batch(3)[:3], on_gpu.training_batch(3)[:3]  # the context is None
    for a, b in zip(*batches, strict=True):
        assert b.is_cuda
        assert torch.equal(a, b.cpu())
    assert all(tensor.is_cuda for batch in on_gpu.batches("test") for tensor in batch[:3])
    small = mini()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 1000))
    small.move_to("cuda")
    assert not small.split("train").images.is_cuda
