"""A file from a stranger cannot run code: checkpoints, run folders, configs and shared folders that try."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import re
import resource
import zipfile
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
import yaml
import zoo
from omegaconf import OmegaConf

from genlab import cli
from genlab.build import build, build_data, load, read_checkpoint, restore, untrusted
from genlab.build import models as building
from genlab.build.gate import public
from genlab.core import ImageSpec, RequestError
from genlab.processes import training
from genlab.processes.run_folder import open_folder
from genlab.request.checkpoints import open_data
from genlab.request.compose import Request, split_hydra
from genlab.request.folders import configs_folder
from genlab.system.atomic import atomically, remove_left_over, write_text

SPEC = ImageSpec(1, 4, 4, 2)
MODEL = {
    "_target_": "genlab.models.Autoregressive",
    "net": {"_target_": "genlab.nets.PixelCNN", "_partial_": True, "width": 4, "depth": 1},
    "head": {"_target_": "genlab.heads.Bernoulli", "_partial_": True},
}
DATA = {"_target_": "genlab.data.ImageData", "source": {"_target_": "genlab.data.MNISTMini"}, "validation": 10}
FAST = ["trainer=smoke", "trainer.max_steps=1", "train.sample_every=0", "data.limit=64"]


def content(config=None, **card):
    """The content of a checkpoint with this text as its config and these other fields."""
    model = build(MODEL, SPEC)
    text = yaml.safe_dump({"model": MODEL, "data": DATA}) if config is None else config
    spec = {"channels": 1, "height": 4, "width": 4, "levels": 2}
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    return {"state_dict": state, "genlab": {"config": text, "spec": spec, "step": 1, **card}}


def checkpoint(path, config=None, **card):
    """A checkpoint file with `content`."""
    torch.save(content(config, **card), path)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A path that exists once the package `evil` has been imported."""
    mark = tmp_path / "executed"
    text = f"""
import pathlib, torch
pathlib.Path({str(mark)!r}).touch()
class Net(torch.nn.Module): pass
def call(*args, **kwargs): pass
class Callback:
    def on_multirun_start(self, **_): pass
"""
    (tmp_path / "evil.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return mark


def refused(words, capsys, answer=""):
    """Run a command that must be refused with status 2 and one sentence, which is returned."""
    assert cli.run([str(word) for word in words]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "genlab: unexpected" not in message
    assert answer in message
    return message


# ---- 1: interpolations in every spelling


@pytest.mark.parametrize(
    "spelled",
    [
        r'"\x24{oc.env:HOME}"', r'"\u0024{oc.env:HOME}"', r'"$\x7boc.env:HOME}"', "'${oc.env:HOME}'", "${oc.env:HOME}",
        '"$\\\n  {oc.env:HOME}"', r'"\x24{oc.create:{_target_: os.system}}"', "{a: [\"\\x24{x}\"]}", '{"\\x24{x}": 1}',
        "???",
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["model", "data", "names"])
def test_an_interpolation_is_refused_in_every_spelling(spelled, place, tmp_path):
    text = yaml.safe_dump({"model": MODEL, "data": DATA, "names": {}}).replace(
        f"\n{place}:" if place != "data" else "data:",
        f"\n{place}:\n  extra: {spelled}" if place != "data" else f"data:\n  extra: {spelled}",
        1,
    )
    text = (
        text if place != "names" else text.replace("names:\n  extra: " + spelled + " {}", f"names:\n  extra: {spelled}")
    )
    assert spelled in text
    with pytest.raises(RequestError, match=r"not a config|damaged"):
        read_checkpoint(checkpoint(tmp_path / "x.ckpt", text))


@pytest.mark.parametrize(
    "config",
    [
        {"model": MODEL},
        ["model"],
        3,
        None,
        b"model: 1",
        "[1, 2]",
        "",
        "model: !!python/name:os.system",
        "? [a]\n: 1",
        "a: 2020-01-01\n1: 2",
    ],
)
def test_a_config_is_a_text_that_holds_a_mapping(config, tmp_path):
    whole = content()
    whole["genlab"]["config"] = config
    torch.save(whole, tmp_path / "x.ckpt")
    with pytest.raises(RequestError):
        read_checkpoint(tmp_path / "x.ckpt")


def test_plain_values_are_read_as_hydra_reads_them():
    text = "a: 1e-3\nb: 5.0e-4\nc: [1, yes, null, 2020-01-01]\nd: {e: '1e-3'}\n"
    ours, theirs = untrusted.plain_config(text, "x"), OmegaConf.to_container(OmegaConf.create(text))
    assert ours == theirs


# ---- 2: the constructors that a config may name


PICKLE = pickle.dumps({b"data": b"", b"labels": []})
NAMES = ["genlab.data.cifar10.read_batch", "genlab.data.files.fetch", "genlab.data.files.download", "genlab.data.Batch"]
NAMES += [
    "genlab.data.mnist.read_idx",
    "genlab.data.folder.read_image",
    "genlab.data.Source",
    "genlab.data.module.ImageData",
]


@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("place", ["top", "source", "context", "deep"])
def test_only_listed_constructors_of_data(target, place):
    call = {
        "_target_": target,
        "blob": PICKLE.decode("latin1"),
        "url": "file:///etc/passwd",
        "target": "x",
        "md5": None,
    }
    config = {"top": call, "deep": {**DATA, "root": [{"a": call}]}}.get(place, {**DATA, place: call})
    with pytest.raises(RequestError, match=r"nothing was run|does not exist"):
        build_data(config)


@pytest.mark.parametrize("part", ["source", "data"])
def test_a_part_is_accepted_under_its_own_key_only(part):
    with pytest.raises(RequestError, match="does not exist"):
        build_data({**DATA, "source": DATA} if part == "source" else DATA["source"])
    with pytest.raises(RequestError, match="as head"):
        build({**MODEL, "head": MODEL["net"]}, SPEC)


@pytest.mark.parametrize("key", ["_args_", "_recursive_", "_convert_", "_mode_"])
def test_other_special_keys_of_hydra_are_refused(key):
    with pytest.raises(RequestError, match="means nothing"):
        build({**MODEL, "net": {**MODEL["net"], key: [1]}}, SPEC)


def test_every_config_names_what_is_listed_and_lists_hold_constructors_alone():
    listed = {
        name: constructor
        for kind in ("model", "data")
        for constructors in public(kind).values()
        for name, constructor in constructors.items()
    }
    named = set()
    for file in configs_folder().rglob("*.yaml"):
        if file.name != "train.yaml":  # it may name a callback of Hydra
            named |= {line.split("_target_:")[1].strip(" }\n") for line in file.open() if "_target_:" in line}
    assert named
    assert named <= set(listed)
    for name, constructor in listed.items():
        assert isinstance(constructor, type) or name in ("genlab.data.folder_data", "genlab.data.toy_data")
        assert constructor.__module__.startswith(name.rpartition(".")[0])


def test_a_trusted_package_is_trusted_by_the_caller_alone(evil, tmp_path):
    config = yaml.safe_dump({"trust": ["evil"], "model": {"_target_": "evil.Net"}})
    path = checkpoint(tmp_path / "x.ckpt", config)
    with pytest.raises(RequestError, match="nothing was run"):
        load(path)
    assert not evil.exists()
    for wrong in ("genlab.data.files", 3, ["a b"]):
        with pytest.raises(RequestError, match="trust="):
            load(path, trust=wrong)


# ---- 3: who decides which packages are trusted


@pytest.fixture
def run_folder(here):
    """The folder of a run that was killed at its start."""
    config, _ = split_hydra(Request("train", FAST, command="").config())
    with ExitStack() as claim:
        open_folder(here / "run", config, "genlab train", claim, or_next=False)
    return here / "run"


def state_of(folder):
    """{path: content} of every file in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"trust": ["evil"], "model": {"_target_": "evil.Net"}},
        {"trust": ["evil"], "data": {"_target_": "evil.call"}},
        {"model": {"_target_": "${oc.env:HOME}"}},
        {"optim": {"lr": "${oc.create:{_target_: evil.call}}"}},
        {"logger": {"kind": "csv", "project": "\\${oc.env:HOME}"}},
        {"trainer": 3},
        {"seed": "???"},
    ],
)
def test_a_run_folder_cannot_trust_itself(change, run_folder, evil, capsys):
    file = run_folder / "config.yaml"
    config = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**config, **change}))
    before = {name: text for name, text in state_of(run_folder).items() if name != "command.txt"}
    refused(["resume", f"run={run_folder}"], capsys)
    assert not evil.exists()
    after = state_of(run_folder)
    assert {name: after.get(name) for name in before} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("model/x.yaml", "# @package _global_\ntrust: [evil]\nmodel: {_target_: evil.Net}\n", ["model=x"]),
        ("experiment/x.yaml", "# @package _global_\ntrust: [evil]\n", ["experiment=x"]),
        (
            "experiment/x.yaml",
            '# @package _global_\n"h\\x79dra": {callbacks: {a: {_target_: evil.Callback}}}\n',
            ["experiment=x"],
        ),
        ("experiment/x.yaml", "# @package hydra.callbacks\na: {_target_: evil.Callback}\n", ["experiment=x"]),
        ("experiment/x.yaml", "defaults: [{b@hydra.callbacks: y}]\n", ["experiment=x"]),
        ("experiment/x.yaml", "defaults: [{a: '${b}'}]\n", ["experiment=x"]),
        ("hydra/launcher/x.yaml", "_target_: evil.call\n", ["hydra/launcher=x"]),
        ("hydra/job_logging/x.yaml", "handlers: {a: {(): evil.call}}\n", ["hydra/job_logging=x"]),
    ],
)  # fmt: skip
def test_a_config_folder_cannot_trust_itself_or_run_code(file, text, words, here, evil, capsys):
    path = here / "conf" / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    sweep = file.startswith("hydra/launcher")  # only a sweep would use it; test_exploits.py has more of them
    where = ["-m", "hydra.sweep.dir=run"] if sweep else ["hydra.run.dir=run"]
    refused(["train", "--config-dir", "conf", *words, *FAST, *where], capsys, "trust=[")
    assert not evil.exists()
    assert [entry.name for entry in here.iterdir()] == ["conf"]


@pytest.mark.parametrize("value", ["0", "true", "[1]", "'a b'", "{a: 1}", "[genlab.data]"])
def test_trust_takes_names_of_packages_only(value, here, capsys):
    refused(["train", *FAST, f"trust={value}"], capsys, "trust=")


# ---- 4: temporary files


@pytest.mark.parametrize("name", ["command.txt", "a.png", "last.ckpt"])
def test_nothing_is_written_through_a_link(name, tmp_path):
    private, target = tmp_path / "private", tmp_path / "shared" / name
    private.write_text("mine")
    target.parent.mkdir()
    for planted in (f".{name}.tmp", f".{name}.{os.getpid()}.part"):
        (target.parent / planted).symlink_to(private)
    target.symlink_to(private)
    write_text(target, "text")
    assert private.read_text() == "mine"
    assert not target.is_symlink()  # the link has been replaced by the file
    assert target.read_text() == "text"


def test_a_temporary_file_is_new_has_a_random_name_and_the_permissions_of_the_umask(tmp_path):
    seen = []
    before = os.umask(0o027)
    try:
        for _ in range(2):
            with atomically(tmp_path / "x") as temporary:
                seen.append(temporary.name)
                assert temporary.stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)
    assert len(set(seen)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("locks", [True, False])
def test_temporary_files_left_over_are_removed_unless_they_are_in_use(tmp_path, monkeypatch, locks):
    left, young = tmp_path / f".x.{'0' * 16}.tmp", tmp_path / f".x.{'1' * 16}.tmp"
    other, link = tmp_path / ".x.mine.tmp", tmp_path / f".x.{'2' * 16}.tmp"
    deep = tmp_path / "deep" / f".y.{'0' * 16}.tmp"
    deep.parent.mkdir()
    for path in (left, young, other, deep):
        path.write_text("")
    link.symlink_to(other)
    for path in (left, other, link, deep):
        os.utime(path, (0, 0), follow_symlinks=False)

    def no_locks(*_):
        raise OSError(errno.ENOSYS, "no locks here")

    if not locks:
        monkeypatch.setattr("fcntl.flock", no_locks)
    with atomically(tmp_path / "x") as in_use:
        if locks:
            os.utime(in_use, (0, 0))
        write_text(tmp_path / "x", "other writer")
        assert in_use.exists()
        assert deep.exists()  # of another destination
        remove_left_over(tmp_path)
        assert in_use.exists()
    assert not left.exists()
    assert not deep.exists()
    assert young.exists() == (not locks)  # without locks it may be in use
    assert other.exists()
    assert link.is_symlink()


def test_two_processes_that_write_one_file_do_not_remove_each_others_new_temporary_file(tmp_path, monkeypatch):
    first, lock = [], fcntl.flock

    def late(file, how):  # another process takes the new file for one left over, before it is locked
        if not first:
            first.append(True)
            for path in tmp_path.iterdir():
                path.unlink()
        lock(file, how)

    monkeypatch.setattr("fcntl.flock", late)
    write_text(tmp_path / "x", "text")
    assert first
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


# ---- 5: limits on size


@pytest.fixture
def frugal():
    """Check that a test takes little memory: at most 200 MB more than the process has ever had."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.parametrize(
    "spec",
    [
        {"channels": 3, "height": 10**6, "width": 10**6}, {"channels": 10**9, "height": 1, "width": 1},
        {"channels": 1, "height": 4, "width": 4, "levels": 10**9},
        {"channels": 1, "height": 4, "width": 4, "classes": 10**9},
        {"channels": 1.5, "height": 4, "width": 4}, {"channels": "1", "height": 4, "width": 4},
        {"height": True, "width": 1, "channels": 1},
        {"channels": 1, "height": 4, "width": 4, "context": 3}, {"colour": 1},
        {"channels": 1, "height": 4, "width": 4, "context": {"channels": 1, "height": 10**6, "width": 10**6}},
    ],
)  # fmt: skip
def test_limits_of_an_image(spec, tmp_path, frugal):
    with pytest.raises(RequestError):
        load(checkpoint(tmp_path / "x.ckpt", spec=spec))


@pytest.mark.parametrize(
    "net",
    [
        {"depth": 10**7}, {"depth": 10**5}, {"width": 10**6}, {"width": 10**9},
        {"feature_width": 10**7, "width": 10**5},
        {"kernel": 10**6 + 1}, {"depth": 10**300}, {"width": float("inf")},
    ],
)  # fmt: skip
@pytest.mark.parametrize("from_file", [True, False])
def test_limits_of_a_model(net, from_file, tmp_path, frugal):
    config = {**MODEL, "net": {**MODEL["net"], **net}}
    path = checkpoint(tmp_path / "x.ckpt", yaml.safe_dump({"model": config}))
    with pytest.raises(RequestError):
        load(path) if from_file else build(config, SPEC)


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.choices("model"))
def test_a_sketch_has_the_models_weights_and_draws_no_random_number(name):
    config = Request("train", [f"model={name}"], command="").config().model
    other = {"context": ImageSpec(1, 32, 32)} if name == "mixture_density" else {"classes": 10}
    spec = ImageSpec(3, 32, 32, **other)
    sketches, states = [], []

    def check(sketch):
        sketches.append(sketch)
        states.append(torch.get_rng_state())

    states.append(torch.get_rng_state())
    model = building._build(config, spec, (), check)
    assert torch.equal(*states)
    sketch = sketches[0]
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in sketch.state_dict().items()}
    assert all(value.is_meta for value in sketch.state_dict().values())


def laughs(levels):
    """YAML with few characters and very many values (the billion laughs attack)."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        laughs(9), "a: " + "[" * 90_000, "a: " + "{b: " * 9_000, "a: &a [*a]", "x" * 10**6, "a: " + "9" * 50_000,
        "- 1\n" * 20_000,
    ],
    ids=["laughs", "brackets", "braces", "itself", "long", "digits", "values"],
)  # fmt: skip
def test_limits_of_a_config(text, tmp_path, frugal, here, capsys):
    with pytest.raises(RequestError, match="not a config"):
        load(checkpoint(tmp_path / "x.ckpt", text))
    (here / "conf").mkdir()
    (here / "conf" / "x.yaml").write_text(text)
    refused(["train", "--config-dir", "conf", *FAST], capsys, "not a config")


def repacked(path, change, kind=zipfile.ZIP_STORED):
    """Rewrite a checkpoint with `change(name, bytes)` applied to every entry."""
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", kind) as file:
        for name, value in entries.items():
            file.writestr(name, change(name, value))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["compressed", "legacy", "stride", "shared", "claim", "meta", "sparse", "pickled"])
def test_a_checkpoint_cannot_be_larger_than_its_file(kind, tmp_path, frugal):
    path, whole = checkpoint(tmp_path / "x.ckpt"), content()
    if kind == "compressed":
        whole["more"] = torch.zeros(10**8, dtype=torch.uint8)
        torch.save(whole, path)
        repacked(path, lambda name, value: value, zipfile.ZIP_DEFLATED)
    elif kind == "legacy":
        torch.save(whole, path, _use_new_zipfile_serialization=False)
    elif kind == "stride":
        whole["state_dict"]["model.more"] = torch.zeros(1).expand(10**12)
    elif kind == "shared":
        one = torch.zeros(10**5)
        whole["state_dict"] |= {f"model.{i}": one.view(1, -1) for i in range(1000)}
    elif kind == "claim":  # the storage says it has 2^30 numbers
        many = b"J" + (2**28).to_bytes(4, "little")
        repacked(path, lambda name, value: re.sub(rb"(cpuq.)K.", lambda match: match[1] + many, value, flags=re.S))
    elif kind == "meta":
        whole["state_dict"]["model.more"] = torch.empty(10**12, device="meta")
    elif kind == "sparse":
        whole["state_dict"]["model.more"] = torch.sparse_coo_tensor(size=(10**6, 10**6))
    elif kind == "pickled":
        whole["more"] = Path("x")
    if kind not in ("compressed", "legacy", "claim"):
        torch.save(whole, path)
    with pytest.raises(RequestError, match="not a readable checkpoint"):
        load(path)


def test_weights_that_are_not_the_models_are_refused_by_name(tmp_path):
    whole = content(yaml.safe_dump({"model": {**MODEL, "net": {**MODEL["net"], "depth": 2}}}))
    torch.save(whole, tmp_path / "x.ckpt")
    with pytest.raises(RequestError, match=r"does not fit the model it describes: 'net.blocks.1"):
        restore(tmp_path / "x.ckpt")


# ---- 6: the other fields of a checkpoint


MUTATIONS = [3, -1, 2**200, "x", "\x1b]0;x\x07", None, [], {}, float("nan"), True, torch.zeros(2), [[1]], {"a": 1}]
FIELDS = ["config", "spec", "step", "version", "commit", "sums", "seconds", "stopped_early", "class_names", "updates"]


def refusal(read):
    """The message of the RequestError that `read` raises; empty if it raises none."""
    try:
        read()
    except RequestError as error:
        return str(error)
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("field", FIELDS)
def test_a_wrong_field_about_the_run_is_one_sentence(field, tmp_path):
    for value in MUTATIONS:
        torch.save(content(**{field: value}), tmp_path / "x.ckpt")
        refused = refusal(lambda: read_checkpoint(tmp_path / "x.ckpt"))
        assert refused.isprintable()
        assert refused or field not in ("config", "spec") or value is None  # for which `content` has a default


@pytest.mark.slow
def test_a_config_with_wrong_parts_is_one_sentence(tmp_path):
    request = OmegaConf.create({"data": {"root": None, "limit": 8}, "batch_size": None, "trust": []})
    for path in ("model", "data", "names", "names.model", "data.source", "data.validation", "data.context", "data.root",
                 "model.net", "model.head", "data.batch_size", "data.limit"):  # fmt: skip
        for value in (3, [], {}, {"_target_": "genlab.data.Label"}):
            config = OmegaConf.create({"model": MODEL, "data": DATA, "names": {"model": "x"}})
            OmegaConf.update(config, path, value, merge=False, force_add=True)
            checkpoint(tmp_path / "x.ckpt", OmegaConf.to_yaml(config))
            with pytest.raises(RequestError):  # also for right parts: the images do not fit the model
                open_data(request, restore(tmp_path / "x.ckpt")[1])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    small = ["model.net.width=8", "model.net.depth=1", "trainer.max_steps=2"]
    config, _ = split_hydra(Request("train", [*FAST, *small], command="").config())
    training.run(config, folder, "genlab train")
    return folder


@pytest.mark.slow
def test_a_run_with_a_wrong_checkpoint_is_one_sentence(finished, here, capsys):
    last = finished / "checkpoints" / "last.ckpt"
    whole = torch.load(last, weights_only=True)
    places = [("callbacks",), ("callbacks", "Validation"), ("callbacks", "Validation", "value"), ("loops",), ("epoch",)]
    places += [("callbacks", "Validation", "details"), ("callbacks", "Validation", "details", "nats"), ("global_step",)]
    places += [
        ("ImageData", "position"),
        ("optimizer_states",),
        ("lr_schedulers",),
        ("genlab", "sums"),
        ("state_dict",),
    ]
    places += [("optimizer_states", 0, "state"), ("optimizer_states", 0, "param_groups"), ("genlab", "updates")]
    places += [("optimizer_states", 0, "state", 0, "exp_avg"), ("lr_schedulers", 0, "base_lrs"), ("loops", "fit_loop")]
    places += [("pytorch-lightning_version",), ("genlab", "step"), ("ImageData",)]
    for number, place in enumerate(places):
        for value in (("x", None, torch.zeros(2))[number % 3],):
            broken = pickle.loads(pickle.dumps(whole))
            node = broken
            for key in place[:-1]:
                node = node[key]
            node[place[-1]] = value
            torch.save(broken, last)
            status = cli.run(["resume", f"run={finished}", "trainer.max_steps=3"])
            message = capsys.readouterr().err
            assert "genlab: unexpected" not in message, (place, value, message)
            assert status in (0, 2), (place, value, message)
            (finished / "results.json").write_text("{}")
    torch.save(whole, last)


def test_the_settings_of_a_tracker_in_a_strangers_run_are_refused(tmp_path):
    pytest.importorskip("wandb")
    from genlab.train import loggers

    for name, text in (("id.txt", "../../x"), ("settings", "[default]\nbase_url = http://example.invalid\n")):
        folder = tmp_path / name
        write_text(folder / "wandb" / name, text)
        with pytest.raises(RequestError, match="wandb"):
            loggers.make({"kind": "wandb", "project": "x"}, folder, 0, {})
