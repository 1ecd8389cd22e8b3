"""Configs and checkpoints become models through one gate, which lets no file of a stranger run code."""

from __future__ import annotations

import zipfile

import pytest
import torch

from genlab.build import build, build_data, load
from genlab.build.gate import public
from genlab.core import ImageSpec, RequestError

public("model")  # imported now, before a test replaces builtins

SPEC = ImageSpec(1, 4, 4, 2)
GOOD = {
    "_target_": "genlab.models.Autoregressive",
    "net": {"_target_": "genlab.nets.PixelCNN", "_partial_": True, "width": 8, "depth": 1},
    "head": {"_target_": "genlab.heads.Bernoulli", "_partial_": True},
}


def checkpoint(path, config="", **changes):
    """A checkpoint file with this config and other changes of its content."""
    from omegaconf import OmegaConf

    model = build(GOOD, SPEC)
    content = {
        "state_dict": {f"model.{k}": v for k, v in model.state_dict().items()},
        "genlab": {
            "config": config or OmegaConf.to_yaml({"model": GOOD}),
            "spec": {"channels": 1, "height": 4, "width": 4, "levels": 2, "classes": 0},
        },
    }
    content.update(changes)
    torch.save(content, path)
    return path


def with_target(target):
    """The good config with another target of its net."""
    return {**GOOD, "net": {**GOOD["net"], "_target_": target}}


@pytest.mark.parametrize(
    "target",
    [
        "os.system", "builtins.eval", "builtins.exec", "subprocess.Popen", "torch.hub.load", "torch.nn.Linear",
        "genlab.build.torch.hub.load", "genlab.build.importlib.import_module", "genlab.cli.os.system",
        "genlab.build.load", "genlab.core.ImageSpec", "genlab", "", 3, None, ["os.system"],
    ],
)  # fmt: skip
def test_targets_outside_genlab_are_refused_and_run_nothing(target, monkeypatch, tmp_path):
    ran = []
    for name in ("os.system", "builtins.eval"):
        module, _, attribute = name.rpartition(".")
        monkeypatch.setattr(__import__(module), attribute, lambda *a, name=name: ran.append(name))
    with pytest.raises(RequestError) as caught:
        build(with_target(target), SPEC)
    assert "\n" not in str(caught.value)
    assert not ran


@pytest.mark.parametrize("place", ["model", "net", "hidden"])
def test_a_strangers_checkpoint_runs_no_code(place, tmp_path):
    marker = tmp_path / "executed"
    call = f"{{_target_: os.system, command: 'touch {marker}'}}"
    text = {
        "model": f"model: {call}",
        "net": f"model: {{_target_: genlab.models.Autoregressive, net: {call}, head: {call}}}",
        "hidden": f"model: {{_target_: genlab.models.Autoregressive, net: {{a: [1, {{b: {call}}}]}}, head: {{}}}}",
    }[place]
    with pytest.raises(RequestError, match=r"os\.system"):
        load(checkpoint(tmp_path / "bad.ckpt", text))
    assert not marker.exists()


def test_interpolations_in_a_checkpoint_are_refused(tmp_path):
    with pytest.raises(RequestError, match="unresolved"):
        load(checkpoint(tmp_path / "bad.ckpt", "model: {_target_: '${oc.env:HOME}'}"))


class Payload:
    """Its pickle would run a command."""

    def __reduce__(self):
        """The call that unpickling makes."""
        import os

        return os.system, ("exit 1",)


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "pickle", "other", "spec", "weights"])
def test_damaged_or_foreign_files_are_one_sentence(kind, tmp_path):
    path = checkpoint(tmp_path / "x.ckpt")
    whole = path.read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("hello")
    elif kind == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "pickle":
        torch.save({"genlab": Payload()}, path)
    elif kind == "other":
        torch.save({"state_dict": {}}, path)
    elif kind == "spec":
        checkpoint(path, genlab={"config": "model: 3", "spec": {"channels": -1}})
    elif kind == "weights":
        checkpoint(path, state_dict={"model.net.nothing": torch.zeros(1)})
    with pytest.raises(RequestError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("where", ["weight", "position", "description"])
def test_a_flipped_bit_is_noticed(where, tmp_path):
    """Torch itself reads such a file, because it does not check the checksums."""
    path = checkpoint(tmp_path / "x.ckpt")
    whole, content = bytearray(path.read_bytes()), torch.load(path, weights_only=True)
    part = content["state_dict"]["model.net.first.weight"]
    sought = {"weight": part.numpy().tobytes(), "position": b"model.net.first.weight", "description": b"PixelCNN"}
    position = whole.index(sought[where])
    assert whole.find(sought[where], position + 1) < 0
    whole[position + 1] ^= 1
    path.write_bytes(whole)
    torch.load(path, weights_only=True)
    with pytest.raises(RequestError, match="not those that were written") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_with_two_entries_of_one_name_is_refused(tmp_path):
    path = checkpoint(tmp_path / "x.ckpt")
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr(next(name for name in file.namelist() if name.endswith("/data/0")), b"another")
    with pytest.raises(RequestError, match="two entries of one name"):
        load(path)


def test_a_good_checkpoint_loads_with_torch_alone(tmp_path):
    path = checkpoint(tmp_path / "x.ckpt")
    content = torch.load(path, weights_only=True)
    model = load(path)
    assert torch.equal(model.state_dict()["net.first.weight"], content["state_dict"]["model.net.first.weight"])
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"net": {**GOOD["net"], "widht": 3}}, "widht"),
        ({"net": {**GOOD["net"], "width": 1}}, "width >= 2"),
        ({"head": {"_target_": "genlab.heads.Nothing", "_partial_": True}}, "does not exist"),
        ({"_target_": "genlab.nowhere.Thing"}, "not a public part"),
    ],
)
def test_configs_that_do_not_fit_say_why(change, answer):
    with pytest.raises(RequestError, match=answer):
        build({**GOOD, **change}, SPEC)


@pytest.mark.parametrize("target", ["os.system", "genlab.build.load", "genlab.data.files.os.remove", "torch.load"])
@pytest.mark.parametrize("place", ["top", "source"])
def test_the_data_section_of_a_strangers_checkpoint_runs_no_code_either(target, place):
    good = {"_target_": "genlab.data.ImageData", "source": {"_target_": "genlab.data.MNISTMini"}, "validation": 10}
    bad = {**good, "_target_": target} if place == "top" else {**good, "source": {"_target_": target}}
    with pytest.raises(RequestError, match=r"does not exist|nothing was run"):
        build_data(bad)
    assert build_data(good).name == "mnist_mini"
