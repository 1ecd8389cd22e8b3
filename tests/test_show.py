"""Pictures of what a model has learnt: every picture shows what its name says, or a message says why there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genlab import cli
from genlab.build import build
from genlab.core import Coder, ImageSpec, RequestError
from genlab.data import Split
from genlab.data.batches import take
from genlab.request.compose import Request
from genlab.viz import grid, pictures, plots, representations, signed
from genlab.viz.subject import Subject

SPEC = ImageSpec(1, 6, 5, 4, classes=3)
FAST = ["trainer=smoke", "trainer.max_steps=2", "trainer.accelerator=cpu"]
MLP = ["model.latent_dim=8", "model.encoder.hidden=[]", "model.decoder.hidden=[]"]
GENERAL_FILES = {f"{name}.png" for name in pictures.GENERAL}
CODERS = ["linear_ae", "sparse_ae", "denoising_ae", "conv_ae"]


def build_model(name="sparse_ae", *words, spec=SPEC):
    """A small model with its initial weights."""
    mlp = MLP if name.endswith("_ae") and name != "conv_ae" else []
    small = [*mlp, *(["model.code.k=3"] if name == "sparse_ae" else []), *words]
    config = Request("train", [f"model={name}", *small], command="").config().model
    torch.manual_seed(0)
    return build(config, spec).eval().requires_grad_(False)


class Data:
    """Random images in three classes."""

    class_names = ("a", "b", "c")

    def split(self, name):
        """50 images, the same for every split."""
        generator = torch.Generator().manual_seed(1)
        x = torch.randint(0, SPEC.levels, (50, *SPEC.shape), generator=generator)
        return Split(x.to(torch.uint8), torch.arange(50) % 3)

    def first(self, name, count):
        """The first images as a batch."""
        return take(self.split(name), torch.arange(count))


def subject(model, folder, **options):
    return Subject(model, Data(), "valid", folder / "metrics.csv", **options)


def tiles(path, height, width):
    """All places of a grid (N, h, w), empty ones included."""
    scale = max(1, 64 // max(height, width))
    pixels = np.asarray(Image.open(path))[::scale, ::scale]
    high, wide = height + 2, width + 2
    places = [(r, c) for r in range(2, pixels.shape[0] - 2, high) for c in range(2, pixels.shape[1] - 2, wide)]
    return torch.from_numpy(np.stack([pixels[r : r + height, c : c + width] for r, c in places]))


def test_as_many_filters_as_requested_are_shown_each_scaled_by_its_own_largest_weight(tmp_path):
    model = build_model()
    for asked, shown in ((5, 5), (None, 8), (20, 8)):
        pictures.filters(subject(model, tmp_path, units=asked))(tmp_path / "f.png")
        found = tiles(tmp_path / "f.png", 6, 5)
        there = (found != 128).flatten(1).any(1)
        assert there.sum() == shown
        assert there[:shown].all()
        weights = model.encoder.layers[0].weight.view(8, 6, 5)[:shown]
        largest = weights.abs().flatten(1).max(1).values[:, None, None]
        assert (found[:shown].float() - (128 + 127 * weights / largest)).abs().max() <= 0.5
        assert ((found[:shown].int() - 128).abs().flatten(1).max(1).values == 127).all()


def test_zero_is_mid_grey_whatever_the_scale():
    weights = torch.zeros(3, 1, 2, 2)
    weights[0, 0, 0, 0], weights[1, 0, 0, 0] = 1e-6, -1e6
    found = signed(weights)
    assert found[:, 0, 0, 0].tolist() == [255, 1, 128]
    assert (found[:, 0, 1] == 128).all()


def test_a_single_image_has_a_border_like_any_other():
    x = torch.randint(1, 4, (1, *SPEC.shape))
    alone, twice = (np.asarray(grid(x.expand(n, -1, -1, -1), SPEC, columns=1)) for n in (1, 2))
    assert (alone == twice[: len(alone)]).all()


def test_an_atom_of_a_linear_decoder_is_its_column():
    model = build_model("linear_ae")
    columns = model.decoder.layers[0].weight.T.reshape(8, 1, 6, 5)
    torch.testing.assert_close(representations.atoms(model, torch.arange(8)), columns)
    torch.testing.assert_close(representations.atoms(model, torch.tensor([6, 2])), columns[[6, 2]])


@pytest.mark.slow
@pytest.mark.parametrize("net", ["pixelcnn", "row_lstm", "diagonal_bilstm", "pixel_transformer", "gated_pixelcnn"])
def test_a_filter_of_an_autoregressive_net_is_what_a_brighter_pixel_adds(net):
    """One pixel from darkest to brightest, and the first layer's output wherever the pixel is in its window."""
    model = build_model(net, "model.net.width=12", "model.net.depth=1", *attention(net), spec=ImageSpec(1, 9, 9, 4))
    layer = model.net.blocks[0].vertical if net == "gated_pixelcnn" else model.net.first
    seen = []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    dark = torch.zeros(1, 1, 9, 9, dtype=torch.long)
    bright = dark.clone()
    bright[0, 0, 4, 4] = 3
    model.net(dark)
    model.net(bright)
    difference, found = (seen[1] - seen[0])[0], model.filters()[:, 0]
    rows, reach = found.shape[1], found.shape[2] // 2
    # a place sees the pixel through the tap that leads from the one to the other: the kernel turned round
    end = 5 + reach + (net == "gated_pixelcnn")  # whose vertical stack comes a row late
    window = difference[:, end - rows : end, 4 - reach : 5 + reach]
    torch.testing.assert_close(window.flip(1, 2), found, rtol=1e-4, atol=1e-5)
    assert found.abs().sum() > 0


def attention(net):
    return ["model.net.attention_heads=3"] if net == "pixel_transformer" else []


def test_the_most_activating_image_is_the_argmax_over_the_split():
    model, x = build_model(), Data().split("valid").images
    h = representations.encode_all(model, x)
    best = representations.most_activating(h, torch.arange(8))
    assert torch.equal(h.gather(0, best.T)[0], h.max(0).values)
    values = h.gather(0, best.T)
    assert (values[:-1] >= values[1:]).all()
    assert best.shape == (8, 9)
    assert representations.most_activating(h[:4], torch.arange(8)).shape == (8, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", CODERS)
def test_a_traversal_at_the_units_own_value_is_the_reconstruction(name):
    model, x = build_model(name), Data().split("valid").images
    assert isinstance(model, Coder)
    h, y = representations.encode_all(model, x), model.decode(model.encode(x[:1]))
    for unit in (0, 5):
        other = h[0, unit] + 1
        own, moved = representations.traversal(model, h[0], unit, torch.stack([h[0, unit], other]))
        torch.testing.assert_close(own, y[0])
        assert not torch.allclose(moved, y[0])


def test_the_most_varying_units_come_first_and_dead_ones_are_left_out():
    h = torch.tensor([[0.0, 1, 5, 2], [0, 3, 5, 9]])
    assert representations.most_varying(h, 4).tolist() == [3, 1]
    assert representations.most_varying(h, 1).tolist() == [3]


def test_a_plane_is_the_code_itself_or_its_principal_components():
    h = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    points, share = representations.plane(h)
    assert torch.equal(points, h)
    assert share is None
    turned, _ = torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(1)))
    points, share = representations.plane(h @ turned[:2] + 3)  # a plane somewhere in 7 dimensions
    assert share == pytest.approx(1)
    distances = torch.nn.functional.pdist
    torch.testing.assert_close(distances(points), distances(h), rtol=1e-4, atol=1e-4)
    covariance = points.T.cov()
    assert covariance[0, 0] >= covariance[1, 1]
    assert abs(covariance[0, 1]) < 1e-5
    with pytest.raises(RequestError, match="at least 2"):
        representations.plane(h[:, :1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["denoising_ae", "conv_ae"])  # the run below is of a sparse_ae
def test_an_autoencoder_has_every_picture_except_curves_that_it_did_not_log(name, tmp_path):
    written, reasons = pictures.draw(subject(build_model(name), tmp_path), list(pictures.GENERAL), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == GENERAL_FILES - {"sparsity.png"}
    assert len(written) == len(GENERAL_FILES) - 1
    assert "metrics.csv is not there" in reasons[0]


@pytest.mark.slow
def test_a_picture_that_a_model_cannot_have_is_left_out_with_a_reason(tmp_path):
    narrow = subject(build_model("linear_ae", "model.latent_dim=1"), tmp_path)
    assert "at least 2 numbers" in pictures.draw(narrow, ["plane", "filters"], tmp_path)[1][0]
    constant = build_model()
    constant.encoder.layers[0].weight.zero_()
    assert "no unit of the code changes" in pictures.draw(subject(constant, tmp_path), ["traversal"], tmp_path)[1][0]
    pixel = build_model("pixelcnnpp", "model.net.width=8", "model.net.depth=1", "model.net.resolutions=1")
    written, reasons = pictures.draw(subject(pixel, tmp_path), list(pictures.GENERAL), tmp_path)
    assert written == []
    assert any("first layer cannot be drawn as pictures" in why for why in reasons)
    assert any("has no code" in why for why in reasons)
    assert {path.name for path in tmp_path.iterdir()} == {"filters.png"}


def test_a_failure_while_writing_leaves_what_was_there(tmp_path):
    class Broken:
        def savefig(self, path, format):
            path.write_bytes(b"half")
            raise OSError("disk full")

    (tmp_path / "a.png").write_bytes(b"before")
    with pytest.raises(OSError, match="disk full"):
        plots.save_figure(tmp_path / "a.png", Broken())
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.png", b"before")]


def test_curves_are_those_of_the_metrics(tmp_path):
    (tmp_path / "metrics.csv").write_text(
        "step,train/active,valid/active,valid/asked_active,valid/dead_share\n1,0.5,,,\n2,0.25,0.3,0.1,0.7\n"
    )
    (axes,) = plots.sparsity(tmp_path / "metrics.csv").axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["on, of an image (train)"] == [[1, 0.5], [2, 0.25]]
    assert lines["on, of an image (valid)"] == [[2, 0.3]]
    assert lines["never on, of the split (valid)"] == [[2, 0.7]]
    assert lines["asked for"][0][1] == 0.1
    (tmp_path / "metrics.csv").write_text("step,train/bits_per_dim\n1,3\n")
    with pytest.raises(RequestError, match="does not say"):
        plots.sparsity(tmp_path / "metrics.csv")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A smoke run of a sparse autoencoder, with pictures."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = ["model=sparse_ae", "model.code.k=3", "train.sample_every=2", "train.log_every=1", *MLP, *FAST]
    assert cli.run(["train", *words, f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_training_ends_with_the_pictures_that_the_verb_draws(run_folder, here, capsys):
    assert {path.name for path in (run_folder / "pictures").iterdir()} == GENERAL_FILES
    assert [path.name for path in (run_folder / "reconstructions").iterdir()] == ["step=000002.png"]
    assert cli.run(["show", f"ckpt={run_folder}", "data.limit=100", "device=cpu", "out=."]) == 0
    assert {path.name for path in here.iterdir()} == GENERAL_FILES
    assert set(capsys.readouterr().out.split()) == GENERAL_FILES
    for name in GENERAL_FILES:
        assert (here / name).read_bytes() == (run_folder / "pictures" / name).read_bytes(), name


WRONG = [
    (["what=filter"], "did you mean 'filters'"),
    (["split=vlid"], "did you mean 'valid'"),
    (["units=0"], "at least 1"),
    (["out=nowhere"], "does not exist"),
    (["weights=best"], "ema or raw"),
    (["data.path=here"], "data.root"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("words", "answer"), WRONG, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_wrong_requests_get_one_sentence_and_leave_nothing(words, answer, run_folder, here, capsys):
    assert cli.run(["show", f"ckpt={run_folder}", *words]) == 2
    err = capsys.readouterr().err
    assert answer in err
    assert err.count("\n") == 1
    assert list(here.iterdir()) == []


@pytest.mark.slow
def test_models_without_a_code_show_what_they_have(here, capsys):
    ckpt = f"ckpt={Path(__file__).parent / 'fixtures' / 'checkpoints' / 'pixelcnn.ckpt'}"
    assert cli.run(["show", ckpt, "what=traversal"]) == 2
    assert "model=pixelcnn has no code" in capsys.readouterr().err
    assert not list(here.iterdir())
    assert cli.run(["show", ckpt, "data.limit=20", "out=."]) == 0
    assert "left out: model=pixelcnn has no code" in capsys.readouterr().out
    assert {path.name for path in here.iterdir()} == {"filters.png", "receptive_field.png", "order.png"}


# ---- latent Gaussian models

LATENT_FILES = {"bounds.png", "units.png", "manifold.png", "walk.png"}
LATENT = ["model/head=logistic", "model.encoder.hidden=[8]", "model.decoder.hidden=[8]"]


@pytest.mark.slow
def test_a_latent_model_has_its_own_pictures_and_others_have_not(tmp_path):
    model = build_model("latent_gaussian", *LATENT, "model.latent_dim=2")
    assert pictures.everything(model)[-4:] == ["bounds", "units", "manifold", "walk"]
    assert pictures.everything(build_model()) == list(pictures.GENERAL)
    written, reasons = pictures.draw(subject(model, tmp_path), pictures.everything(model), tmp_path)
    assert {path.rpartition("/")[2] for path in written} == GENERAL_FILES - {"sparsity.png"} | LATENT_FILES
    assert len(reasons) == 1
    with pytest.raises(RequestError, match="latent_dim=2, and this model has 3"):
        pictures.manifold(subject(build_model("latent_gaussian", *LATENT, "model.latent_dim=3"), tmp_path))
    for picture, why in (
        (pictures.units, "no posterior"),
        (pictures.manifold, "no posterior"),
        (pictures.walk, "no walk"),
    ):
        with pytest.raises(RequestError, match=why):
            picture(subject(build_model(), tmp_path))


GAN = ["model.generator.widths=[4]", "model.discriminator.widths=[4]"]
FLOW = ["model.flow.levels=1", "model.flow.steps=1"]


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "words"),
    [("latent_gaussian", LATENT), ("flow", FLOW), ("gan", GAN), ("gan", [*GAN, "model/context=label"])],
)
def test_a_walk_goes_from_draw_to_draw_without_leaving_the_prior(name, words, tmp_path):
    model, seen, n = build_model(name, *words), [], 500
    a, b = model.prior(2 * n, generator=torch.Generator().manual_seed(0)).chunk(2)
    labels = torch.arange(n) % 3 if "model/context=label" in words else None
    images = model.decode(a[:2], None if labels is None else labels[:2])
    decode = model.decode
    model.decode = lambda z, label=None: seen.append((z, label)) or torch.zeros(len(z), *SPEC.shape)
    representations.prior_interpolation(model, a, b, 5, labels)
    z = seen[0][0].view(n, 5, -1)
    torch.testing.assert_close(z[:, 0], a)
    torch.testing.assert_close(z[:, -1], b)
    assert ((z.var((0, 2)) - 1).abs() < 0.1).all()
    assert labels is None or torch.equal(seen[0][1].view(n, 5), labels[:, None].expand(n, 5))
    model.decode = decode
    assert images.shape == (2, *SPEC.shape)
    assert images.min() >= 0
    assert images.max() <= 1
    if name != "latent_gaussian":  # which has a code too
        with pytest.raises(RequestError, match=r"what=filters\|walk is all there is"):
            pictures.codes(subject(model, tmp_path))
    pictures.walk(subject(model, tmp_path))(tmp_path / "walk.png")
    assert (tmp_path / "walk.png").stat().st_size > 0


def test_bars_are_the_kl_of_the_units(tmp_path):
    model = build_model("latent_gaussian", *LATENT, "model.latent_dim=3")
    torch.nn.init.normal_(model.encoder.layers[-1].weight, std=0.5)
    x = Data().split("valid").images
    mean, log_var = model.posterior(x)
    kl = ((mean.square() + log_var.exp() - 1 - log_var) / 2).mean(0)
    found = representations.kl_per_unit(model, x)
    torch.testing.assert_close(found.float(), kl)
    (axes,) = plots.bars(found, "valid").axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == sorted(found.tolist(), reverse=True)


@pytest.mark.slow
def test_a_manifold_has_the_quantiles_of_the_prior_the_second_unit_upwards(tmp_path):
    model = build_model("latent_gaussian", *LATENT, "model.latent_dim=2")
    seen = []
    model.decode = lambda h, context=None: seen.append(h) or torch.zeros(len(h), *SPEC.shape)
    pictures.manifold(subject(model, tmp_path))
    z = torch.cat(seen).view(pictures.MANIFOLD_SIDE, pictures.MANIFOLD_SIDE, 2)
    assert (z[:, 1:, 0] > z[:, :-1, 0]).all()
    assert (z[1:, :, 1] < z[:-1, :, 1]).all()
    levels = torch.special.ndtr(z[0, :, 0])
    torch.testing.assert_close(levels, (torch.arange(pictures.MANIFOLD_SIDE) + 0.5) / pictures.MANIFOLD_SIDE)


def test_lines_between_images_begin_and_end_at_their_reconstructions(tmp_path):
    model = build_model("bottleneck_ae")
    x = Data().split("valid").images
    sheets = []
    keep = plots.labelled_grid
    plots.labelled_grid = lambda sheet, *rest, **more: sheets.append(sheet) or keep(sheet, *rest, **more)
    try:
        pictures.between(subject(model, tmp_path))
    finally:
        plots.labelled_grid = keep
    rows = sheets[0].view(pictures.PAIRS, pictures.STEPS + 2, *SPEC.shape)
    expected = (model.decode(model.encode(x[: 2 * pictures.PAIRS])) * 255).round().clamp(0, 255).long()
    assert torch.equal(rows[:, 1], expected[::2])
    assert torch.equal(rows[:, -2], expected[1::2])
