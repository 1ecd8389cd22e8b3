"""Fuzzed requests: every verb with valid keys and odd values, odd keys, odd syntax, all in one process.

A request must end with status 0 or with a refusal as harness.fault defines it: one sentence, nothing left behind. An
unknown key must be refused, however it is spelled. Hypothesis makes the values. A train request stops once its config
has been checked, its data and model made and its folder opened. All other verbs work on the small checkpoints of
tests/fixtures. No request can reach the network. 2,000 take one core 5 minutes.

(The file is not called requests.py, because this folder is on Python's path and wandb imports a package of that name.)
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import string
from pathlib import Path
from typing import Any
from unittest import mock

from harness import FIXTURES, TINY, Tally, call, fault, main, preload, tree, workplace
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

KEYS = {  # what the yamls of the verbs hold; for train the composed config of a pixelcnn
    "sample": "n label context temperature code components chain steps seed out overwrite batch_size data data.root "
    "data.path data.limit weights device trust",
    "eval": "split draws seed weights batch_size data data.root data.limit classifier n out overwrite trust trainer "
    "trainer.accelerator trainer.devices trainer.precision trainer.strategy trainer.num_nodes",
    "complete": "image known label context n particles steps temperature seed out overwrite weights device trust",
    "reconstruct": "image n split corrupted seed out overwrite batch_size data data.limit weights device trust",
    "show": "what out overwrite units split batch_size data data.limit weights device trust",
    "features": "layer split out overwrite data data.limit batch_size weights device trust",
    "probe": "layer per_class train seeds controls out overwrite data data.limit batch_size weights device trust",
    "quality": "classifier n cas temperature code components chain steps seed out overwrite batch_size data "
    "weights device trust",
    "resume": "run trainer.max_steps trainer.precision trainer.devices train train.ema train.log_every "
    "train.patience trainer trainer.gradient_clip_val seed model.net.width data.root optim.lr",
    "train": "model data experiment trainer optim logger sweep model/head model/context data/context seed compile "
    "trust names names.model train train.ema train.log_every train.valid_every train.sample_every "
    "train.checkpoint_every train.max_bad_steps train.patience train.samples data.batch_size "
    "data.eval_batch_size data.limit data.root data.validation data.binarize data.augment data.seed "
    "data.source data.source._target_ data._target_ optim.lr optim.betas optim.weight_decay optim.warmup "
    "optim.schedule optim.fused model._target_ model.net model.net._target_ model.net.width "
    "model.net.depth model.net.kernel model.net.feature_width model.net.value_width model.head "
    "model.head._target_ model.context logger.kind trainer.accelerator trainer.devices trainer.num_nodes "
    "trainer.strategy trainer.precision trainer.max_steps trainer.accumulate_grad_batches "
    "trainer.gradient_clip_val hydra.run.dir hydra.sweep.dir hydra.sweep.subdir hydra.job.name "
    "hydra.job.chdir hydra.searchpath hydra.verbose hydra.output_subdir hydra hydra.mode hydra.callbacks "
    "hydra/job_logging",
}
NEEDS = {  # words that keep a verb's work small; later words override them
    "sample": ["n=1"], "eval": ["data.limit=20"], "complete": ["image=whole.png", "known=top:0.9", "n=1"],
    "reconstruct": ["n=2", "data.limit=20"], "show": ["data.limit=20"], "features": ["data.limit=20"],
    "probe": ["data.limit=60", "train=20", "seeds=1", "controls=false"], "quality": ["n=5", "data.limit=40"],
    "resume": [], "train": ["trainer=smoke", *TINY, "data.limit=64"], "list": [],
}  # fmt: skip
COUNTS = {"n", "draws", "steps", "particles", "components", "seeds", "units"}  # large values would only take long
RUNS = {"sweep", "hydra/launcher", "hydra.mode"}  # these would start processes, in which training is no stub
CHOICES = (
    "pixelcnn flow gan ppca gaussian_mixture latent_gaussian bottleneck_ae mixture_density mnist_mini mnist "
    "cifar10 folder label image none smoke cpu ddp ddp_cpu fsdp adamw two_timescale csv wandb categorical "
    "logistic gmm gaussian walkback test train valid ema raw cuda auto text classifier_mnist stacked_dae "
    "constant bf16-mixed all "
)
ODD = (
    "null true false 0 1 -1 2 0.5 -0.0 1_000 007 0x10 1e3 1e20 -1e400 nan inf -inf [] {} [1,2] [[[1]]] {a:1} "
    "{a:{b:[]}} '' \"\" ' \" \\ \\' a\\ ??? ${seed} ${oc.env:HOME} ${nothing} ${ {} a=b a:b , a, ,a a,,b "
    "(a) [a {a a] $HOME % # @ & range(1,3) choice(1,2) interval(0,1) glob(*) glob(pixel*) sort(2,1) "
    "shuffle(1,2) int(3) str(3) tag(a,1) extend_list(1) whole.png odd.txt folder nowhere/x.png /proc/x.png "
    "../x .. . top:0.5 top:2 left:nan box:1,2,3,4 box:-1,0,99,1 random:0.3 known:x os.system "
    "genlab.data.files.fetch genlab.models.GAN genlab 'quoted\\ text' \"a,b\" ü 画 \u202e \ud800 "
    "é́ "
)
HUGE = ["99999999999999999999", "9" * 400, str(2**63), "-" + str(2**63), "1000000", "1e308", "x" * 5000, "[" * 200]
DANGEROUS = string.whitespace.replace(" ", "").replace("\n", "") + "/~\0"

odd_values = st.one_of(
    st.sampled_from(ODD.split()),
    st.sampled_from(CHOICES.split()),
    st.sampled_from(["", " ", "a b", " a", "\n", "a\nb", *HUGE]),
    st.integers(-3, 40).map(str),
    st.floats(-2, 2).map(str),
    st.lists(st.sampled_from(ODD.split()), min_size=2, max_size=3).map(",".join),
    st.text(st.characters(exclude_characters=DANGEROUS, exclude_categories=()), max_size=8),
    st.recursive(
        st.sampled_from(["1", "a", "null", "true", "'x y'", "${seed}"]),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3).map(lambda v: f"[{','.join(v)}]"),
            st.lists(inner, max_size=2).map(lambda v: "{" + ",".join(f"k{i}:{x}" for i, x in enumerate(v)) + "}"),
        ),
        max_leaves=5,
    ),
)
BOGUS = ["zz", "zz.y", "zz/y", "model.zz", "train.zz", "trainer.limit_val_batches", "data.zz.y", "hydra.zz"]
OPTIONS = ["-m", "--multirun", "--config-dir", "--config-dir=nowhere", "--config-dir=folder", "-cd", "--help", "-h"]
OPTIONS += ["--zz", "-", "--", "-x=1", "--cfg", "--resolve", "--config-name=x"]


def words(verb: str, values: list[str], rng: random.Random) -> list[str]:
    """One word for each of the values, mostly `key=value`."""
    found = []
    for value in values:
        kind = rng.randrange(20)
        if kind == 0:
            found.append(rng.choice(OPTIONS))
            continue
        key = rng.choice((KEYS.get(verb) or "model data").split())
        if kind == 1:
            key = rng.choice(BOGUS)
        elif kind == 2:
            at = rng.randrange(len(key))
            key = rng.choice([key[:at] + key[at + 1 :], key.upper(), key + ".x", key + "/x", f" {key}", ""])
        if key in COUNTS and value.strip("'\"").lstrip("-+").replace("_", "").isdigit():
            value = str(int(value.strip("'\"").replace("_", "")) % 9)
        if key in RUNS:
            value = "null"
        before = rng.choice([""] * 15 + ["+", "++", "~", "-", "@"])
        found.append(f"{before}{key}{rng.choice(['='] * 20 + ['', '==', ':', ' = '])}{value}")
    return found


def request(values: list[str], rng: random.Random) -> tuple[list[str], bool]:
    """(a whole command line, whether it names an unknown key)."""
    verb = rng.choice(["train"] * 8 + [v for v in KEYS if v != "train"] + ["list"])
    asked = words(verb, values, rng)
    bogus = any(word.lstrip("+~-@").startswith(tuple(BOGUS)) and "=" in word for word in asked)
    checkpoints = sorted((FIXTURES / "checkpoints").glob("*.ckpt"))
    use = [] if verb in ("train", "list", "resume") else [f"ckpt={rng.choice(checkpoints)}"]
    if verb == "resume":
        use = ["run=run"]
    elif verb == "quality":
        use.append(f"classifier={rng.choice(checkpoints)}")
    line = [verb, *use, *NEEDS.get(verb, []), *asked]
    if rng.randrange(40) == 0:
        line[0] = rng.choice(["", "Train", "trian", "train ", "--version", "zz", "help", "-m", "\n", "ü"])
    return line, bogus and line[0] == verb != "list" and not {"-h", "--help"} & set(line)


def judge(line: list[str], bogus: bool, folder: Path) -> str | None:
    """Run one request; what is wrong with how it ended, None if nothing."""
    place = folder / "a" / "place"
    place.mkdir(parents=True)
    try:
        (place / "folder").mkdir()
        (place / "odd.txt").write_text("no picture")
        shutil.copyfile(FIXTURES / "whole.png", place / "whole.png")
        if line[0] == "resume":
            shutil.copytree(FIXTURES / "run", place / "run")
        before = tree(folder)
        outcome = call(line, place)
        after = tree(folder)
        wrong = fault(outcome, before, after, refused=bogus)
        sweep = {"-m", "--multirun"} & set(line)
        if sweep and outcome.status == 1 and "unexpected" not in outcome.err and not outcome.raised:
            return None  # some of several runs failed, and each has said so
        return wrong
    finally:
        shutil.rmtree(folder / "a")


def nowhere(*_: object, **__: object) -> None:
    """Replaces every way to the network."""
    raise OSError("no network")


def stub(folder: Path, *_: object) -> dict[str, Any]:
    """Replaces training."""
    return {"valid": {"loss": 0.0}, "test": {"loss": 0.0}}


def run(tally: Tally, count: int, rng: random.Random) -> None:
    """`count` requests."""
    preload()
    with workplace() as folder, mock.patch.dict(os.environ, {"GENLAB_DATA": str(folder / "a" / "data")}):

        @seeded(rng.randrange(2**32))
        @settings(
            max_examples=count, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(st.lists(odd_values, min_size=1, max_size=3))
        def attempt(values: list[str]) -> None:
            line, bogus = request(values[: rng.choice((1, 1, 1, 2, 3))], rng)
            tally.add(" ".join(line).replace(str(FIXTURES), "…"), judge(line, bogus, folder))

        with (
            mock.patch("genlab.processes.training.start", stub),
            mock.patch("genlab.processes.launch.ranks", nowhere),
            mock.patch.object(socket.socket, "connect", nowhere),
            mock.patch.object(socket, "getaddrinfo", nowhere),
        ):
            attempt()


if __name__ == "__main__":
    main(run, 2000)
