"""T10: every model with a likelihood is a codec. Its code decodes to the same images, and is as long as it says."""

from __future__ import annotations

import lzma
import math
import zlib

import pytest
import torch
import zoo

from genlab.build import build
from genlab.coding.codec import Codec, Undecodable
from genlab.core import ImageSpec

SPECS = {"grey": zoo.GREY, "rgb": zoo.RGB, "binary": zoo.BINARY}
N = 30
FLOW_SPECS = {"grey": ImageSpec(1, 5, 4, 16), "rgb": ImageSpec(3, 4, 3, 8)}


def as_float(made):
    """In float32, as trained models are, and known to the codec."""
    return made.float().eval()


def check(codec, x, labels=None):
    """Encode, decode, compare. Returns the number of bits."""
    block, coder = codec.encode(x, labels, verify=False)
    assert coder == "model"
    assert torch.equal(codec.decode(block, "model", len(x)), x)
    return 8 * len(block)


@torch.no_grad()
@pytest.mark.parametrize("portable", [False, True], ids=["plain", "portable"])
@pytest.mark.parametrize("case", zoo.nets_and_heads(SPECS))
def test_autoregressive_codes_decode_and_are_as_long_as_the_likelihood_says(case, portable):
    made = as_float(case.tiny())
    x = zoo.random_images(case.spec, N)
    bits = -made.log_prob(x).double().sum().item() / math.log(2)
    coded = check(Codec(made, portable=portable), x)
    assert coded < 1.01 * bits + 160  # two empty sections, and the coder's last words


@torch.no_grad()
@pytest.mark.parametrize("portable", [False, True], ids=["plain", "portable"])
def test_portable_files_survive_other_floats(portable):
    """The decoder's floats differ in the last places: portable codes decode, plain ones need not."""
    case = next(param.values[0] for param in zoo.nets(SPECS))
    made, other = case.tiny(), case.tiny()
    x = zoo.random_images(case.spec, N)
    for parameter in other.parameters():
        parameter.mul_(1 + 1e-14)
    block, _ = Codec(made, portable=portable).encode(x, verify=False)
    if portable:
        assert torch.equal(Codec(other, portable=True).decode(block, "model", N), x)


@torch.no_grad()
def test_a_value_close_to_a_rounding_edge_is_an_exception():
    """Found when encoding, coded uniformly on both sides."""
    from genlab.coding.tables import UNITS, Portable

    p = torch.tensor([[0.25 + 0.5 / UNITS, 0.75 - 0.5 / UNITS], [0.3, 0.7]], dtype=torch.double)
    encoder = Portable()
    table = encoder.of(p.log(), torch.tensor([1, 1]))
    assert encoder.exceptions == {0}
    assert table[0].tolist() == [1, 1]
    assert Portable({0}).of(p.log(), None).tolist() == table.tolist()


@torch.no_grad()
def test_labels_are_part_of_a_block():
    case = next(p.values[0] for p in zoo.nets({"grey": zoo.GREY}, ("label",)))
    made = as_float(case.tiny(scale=2.0))
    x, labels = zoo.random_images(case.spec, N), torch.arange(N) % case.spec.classes
    codec = Codec(made)
    bits = -made.log_prob(x, labels).double().sum().item() / math.log(2)
    assert check(codec, x, labels) < 1.01 * bits + 600  # the labels, by zlib


def trained_latent(case):
    """A latent model whose posterior is neither wide nor far out: an untrained one codes nothing well."""
    return as_float(case.tiny(scale=0.1))


@torch.no_grad()
@pytest.mark.parametrize("case", zoo.hidden(SPECS))
def test_latent_codes_decode_and_are_as_long_as_the_bound_says(case):
    made = trained_latent(case)
    x = zoo.random_images(case.spec, 200)
    torch.manual_seed(0)
    bits = sum(-made.log_prob(x).double().sum().item() for _ in range(20)) / 20 / math.log(2)
    coded = check(Codec(made, at_once=4), x)
    assert coded < 1.02 * bits + 500  # the first latents, and the coder's last words


@torch.no_grad()
@pytest.mark.parametrize("dequantisation", ["uniform", "variational"])
@pytest.mark.parametrize("coupling", ["affine", "mixture"])
@pytest.mark.parametrize("shape", FLOW_SPECS)
def test_flow_codes_decode_and_are_as_long_as_the_bound_says(shape, coupling, dequantisation):
    made = flow(FLOW_SPECS[shape], coupling, dequantisation)
    x = zoo.random_images(made.spec, 200)
    torch.manual_seed(0)
    bits = sum(-made.log_prob(x).sum().item() for _ in range(20)) / 20 / math.log(2)
    first = 45 * made.flow.dims + 500  # the noise of the first image, and the coder's last words
    assert check(Codec(made, at_once=2), x) < 1.02 * bits + first


def flow(spec, coupling, dequantisation):
    """A small flow with random weights, in float64."""
    config = zoo.shrunk("flow")
    config["coupling"] = zoo._part("coupling", coupling)
    config["dequantisation"] = zoo._part("dequantisation", dequantisation)
    torch.manual_seed(0)
    made = build(zoo._shrink(config), spec).double().eval()
    for name, parameter in made.named_parameters():
        if "log_scale" not in name:
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


@torch.no_grad()
def test_what_the_model_cannot_code_is_stored_by_lzma():
    """Every block is decoded again; one that comes back different is stored in another way."""
    made = as_float(next(param.values[0] for param in zoo.nets(SPECS)).tiny())
    x = zoo.random_images(made.spec, N)
    codec = Codec(made)
    decode = codec.decode
    codec.decode = lambda block, coder, n: decode(block, coder, n) + (coder == "model")
    block, coder = codec.encode(x)
    assert coder == "lzma"
    assert torch.equal(codec.decode(block, coder, N), x)


@pytest.mark.parametrize(
    ("block", "coder"),
    [
        (lzma.compress(bytes(10**7)), "lzma"),  # far more than one image
        (b"no lzma", "lzma"),
        (b"\xff" * 40, "model"),
        (b"", "model"),
        (len(labels := zlib.compress(b"\xff" * 4)).to_bytes(4, "little") + labels + bytes(12), "model"),
    ],
    ids=["bomb", "no lzma", "absurd", "empty", "cut"],
)
def test_a_block_from_a_stranger_is_refused(block, coder):
    """It does not decode, or to other images than its hash says; it takes no memory that its images do not need."""
    case = next(p.values[0] for p in zoo.nets({"grey": zoo.GREY}, ("label",)))
    with pytest.raises(Undecodable):
        Codec(as_float(case.tiny())).decode(block, coder, 1)


def test_an_altered_code_is_not_decoded_silently():
    made = trained_latent(zoo.hidden(SPECS)[0].values[0])
    x = zoo.random_images(made.spec, N)
    codec = Codec(made)
    block, _ = codec.encode(x, verify=False)
    altered = block[:-3] + bytes([block[-3] ^ 1]) + block[-2:]
    with pytest.raises(Undecodable):
        codec.decode(altered, "model", N)
