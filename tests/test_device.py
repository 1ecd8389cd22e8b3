"""What a GPU needs, as far as it can be seen without one: see also test_pretend.py."""

from __future__ import annotations

import copy

import pretend_models
import pytest
import torch
import zoo
from torch import nn

from genlab.core import ImageSpec
from genlab.flows import ActNorm
from genlab.nets.coders.dcgan import SpectralNorm
from genlab.nets.layers.attention import rotary_table, rotate
from genlab.system.device import Mirror, cholesky, inverse, precision_used, solve, true_float32
from genlab.train.compile import networks


@pytest.fixture
def settings():
    """PyTorch's settings of precision, put back afterwards."""
    matmul, conv = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = conv


def stand() -> tuple:
    """All of those settings, in the older words and in the newer ones."""
    b = torch.backends
    parts = [getattr(getattr(b, lib), op, None) for lib in ("cudnn", "mkldnn") for op in ("matmul", "conv", "rnn")]
    newer = [part.fp32_precision for part in [*parts, b.cuda.matmul] if hasattr(part, "fp32_precision")]
    return torch.get_float32_matmul_precision(), b.cudnn.allow_tf32, b.cuda.matmul.allow_tf32, *newer


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
def test_float32_is_float32_whatever_was_set_and_what_was_set_comes_back(settings, before):
    torch.set_float32_matmul_precision(before)
    set_before = stand()
    assert precision_used(torch.zeros(1)) == {"highest": "32", "high": "tf32", "medium": "bf16"}[before]
    with true_float32():
        assert stand()[:3] == ("highest", False, False)
        assert set(stand()[3:]) <= {"ieee"}
        assert precision_used(torch.zeros(1)) == "32"
    assert stand() == set_before


def test_the_precision_that_is_recorded_is_the_one_that_was_used():
    assert precision_used(torch.zeros(1, dtype=torch.double)) == "64"
    with torch.autocast("cpu", torch.bfloat16):
        assert precision_used(torch.zeros(1)) == "bf16-mixed"


class Asked(nn.Module):
    """A model that notes in which precision it was asked."""

    exact, conditioning = True, "none"

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen = set()

    def log_prob(self, x, context=None):
        self.seen.add(stand()[:2])
        return -torch.ones(len(x))

    def objective(self, x, context=None):
        return {"loss": -self.log_prob(x)}


def test_judging_is_in_true_float32_and_says_so(settings):
    from trainees import DotsData

    from genlab.measure.evaluation import evaluate_split

    torch.set_float32_matmul_precision("medium")
    model = Asked()
    found = evaluate_split(model, DotsData(validation=16), "test", weights="raw", seed=0)
    assert model.seen == {("highest", False)}
    assert found.details["precision"] == "32"


def test_every_sampler_draws_in_true_float32(settings, monkeypatch):
    """Of every family, in whatever the user has set: its random numbers are asked which precision is on."""
    torch.set_float32_matmul_precision("medium")
    spec = ImageSpec(1, 4, 4, 4)
    for subject in pretend_models.subjects():
        if subject.name not in (
            "pixelcnn",
            "flow",
            "gan hinge",
            "gan wgan_gp",
            "latent_gaussian",
            "ppca",
            "gaussian_mixture em",
        ):
            continue
        model = subject.model(spec).eval()
        seen = set()
        for draw in ("rand", "randn"):
            own = getattr(torch, draw)
            monkeypatch.setattr(
                torch, draw, lambda *a, own=own, seen=seen, **k: (seen.add(stand()[0]), own(*a, **k))[1]
            )
        model.sample(2)
        monkeypatch.undo()
        torch.set_float32_matmul_precision("medium")
        assert seen == {"highest"}, subject.name


def test_linear_algebra_that_does_not_wait_is_the_same_and_nan_where_it_fails():
    torch.manual_seed(0)
    root = torch.randn(2, 4, 4, dtype=torch.double)
    m, b = root @ root.mT + torch.eye(4), torch.randn(2, 4, 3, dtype=torch.double)
    assert torch.equal(cholesky(m), torch.linalg.cholesky(m))
    assert torch.equal(inverse(m), torch.linalg.inv(m))
    assert torch.equal(solve(m, b), torch.linalg.solve(m, b))
    m[1] = 0
    for found in (cholesky(-m - torch.eye(4)), inverse(m), solve(m, b)):
        assert found[1].isnan().all()
    assert inverse(m)[0].isfinite().all()


def test_a_mirror_reads_only_what_somebody_else_has_written():
    buffer, mirror = torch.zeros(()), Mirror()
    assert mirror.read(buffer) == 0
    buffer += 1
    mirror.note(buffer, 1)
    buffer.item, reads = None, []
    assert mirror.read(buffer) == 1
    buffer.item = lambda: reads.append(1) or 7
    assert (mirror.read(buffer), reads) == (1, [])
    buffer.fill_(7)  # a checkpoint, or a guard that takes a step back
    assert (mirror.read(buffer), reads) == (7, [1])
    assert (mirror.read(buffer), reads) == (7, [1])


def test_actnorm_starts_again_after_a_step_that_was_taken_back_and_not_after_a_checkpoint():
    layer, other = ActNorm((2, 4, 4)), ActNorm((2, 4, 4))
    before = [b.clone() for b in layer.buffers()]
    layer(3 + torch.randn(5, 2, 4, 4))
    for buffer, value in zip(layer.buffers(), before, strict=True):
        buffer.copy_(value)
    layer(100 + torch.randn(5, 2, 4, 4))
    assert (layer.mean > 90).all()
    other.load_state_dict(layer.state_dict())
    for resumed in (other, copy.deepcopy(layer), copy.deepcopy(other).double().float()):
        resumed(torch.randn(5, 2, 4, 4))
        assert (resumed.mean > 90).all()


def test_spectral_norm_iterates_outside_of_autocast(monkeypatch):
    conv = nn.Conv2d(2, 3, 3)
    theirs = copy.deepcopy(conv)
    torch.manual_seed(0)
    torch.nn.utils.parametrize.register_parametrization(conv, "weight", SpectralNorm(conv.weight))
    torch.manual_seed(0)
    torch.nn.utils.parametrizations.spectral_norm(theirs)
    assert torch.equal(conv.weight, theirs.weight)
    assert list(conv.state_dict()) == list(theirs.state_dict())
    own, seen = torch.mv, set()
    monkeypatch.setattr(torch, "mv", lambda *a: (seen.add(torch.is_autocast_enabled("cpu")), own(*a))[1])
    with torch.autocast("cpu", torch.bfloat16):
        assert conv.weight.dtype == torch.float
    assert seen == {False}


@pytest.mark.parametrize("head", ["bernoulli", "categorical", "conditional_categorical", "logistic_mixture"])
def test_logits_are_not_rounded_to_bfloat16_under_autocast(head):
    levels, channels = (2, 1) if head == "bernoulli" else (8, 1)
    made = zoo.part(zoo._part("head", head), width=6, channels=channels, levels=levels)
    for p in made.parameters():
        nn.init.normal_(p)
    h, x = torch.randn(4, 6).bfloat16(), torch.zeros(4, channels, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        pixels = made(h)
        found = pixels.log_prob(x)
    assert found.dtype == torch.float
    if head in ("bernoulli", "categorical"):
        assert torch.equal(found, made(h.float()).log_prob(x))


def test_scores_and_classes_are_not_rounded_to_bfloat16_under_autocast():
    spec = ImageSpec(1, 4, 4, 4, classes=3)
    gan = pretend_models.build(pretend_models.alone("gan", spec, context="label"), spec).eval()
    classifier = pretend_models.build(pretend_models.alone("classifier", spec, shift=1), spec).eval()
    x, label = zoo.random_images(spec, 5), torch.arange(5) % 3
    with torch.autocast("cpu", torch.bfloat16):
        score = gan.discriminator(gan.scaled(x), label)
        logits = classifier.read(x).log_probs
    for found in (score, logits):
        assert found.dtype == torch.float
        assert not torch.equal(found, found.bfloat16().float())


@pytest.mark.slow
def test_rotation_compiles_without_complex_numbers(monkeypatch):
    x, table = torch.randn(2, 6, 3, 8), rotary_table(2, 3, 8)
    plain = rotate(x, table)
    graphs = []
    torch._dynamo.reset()

    def look(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(rotate, backend=look, fullgraph=True)(x, table)
    assert "complex" not in graphs[0].code
    torch.testing.assert_close(compiled, plain)


def test_compile_finds_the_nets_of_a_flow():
    spec = ImageSpec(1, 4, 4, 4)
    flow = pretend_models.build(pretend_models.alone("flow", spec), spec)
    found = networks(flow)
    assert found
    assert {type(net).__name__ for net in found} == {"ResNet"}
    within = {id(p) for net in found for p in net.parameters()}
    largest = max(flow.parameters(), key=torch.Tensor.numel)
    assert id(largest) in within
