"""The stages of scripts/gpu_session.py. Each is a function of a `Stage`, whose processes do the work on the device.

The session itself never uses the device, so that an error there ends one process and not the session.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import bench_table
import gpu_pieces
import yaml
from gpu_runs import curve, difference, last_step, outcome, speed, trained

if TYPE_CHECKING:
    from gpu_session import Stage

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests"
TOY = ["model=pixelcnn", "data=mnist_mini", "model.net.width=4", "model.net.depth=1", "model.net.feature_width=4"]
TOY += ["data.limit=40", "data.batch_size=8", "optim.warmup=2"]
# Minutes of a piece of training that are kept to start and to save, and those of a quick session.
MARGIN, QUICK_MARGIN = 1.5, 0.05
PROBE = """
import json, platform, torch
from genlab.train import provenance
facts = {"python": platform.python_version(), "torch": torch.__version__, "commit": provenance.commit()}
if torch.cuda.is_available():
    card = torch.cuda.get_device_properties(0)
    facts |= {"cards": torch.cuda.device_count(), "card": card.name, "memory, GiB": round(card.total_memory / 2**30, 1)}
    facts |= {"capability": f"{card.major}.{card.minor}", "multiprocessors": card.multi_processor_count}
    facts |= {"CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}
print(json.dumps(facts))
"""


class Skipped(Exception):
    """A stage that this machine cannot run; the reason is for the report."""


def environment(stage: Stage) -> None:
    """What the numbers are measured on."""
    facts = json.loads(stage.run("probe", "-c", PROBE).splitlines()[-1])
    facts["CPU cores"] = os.cpu_count()
    if stage.args.device == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
        facts["driver"] = (done.stdout.splitlines() or ["unknown"])[0]
    for name, value in facts.items():
        stage.add(f"- {name}: {value}", **{name: value})


def tests(stage: Stage) -> None:
    """The tests marked gpu."""
    files = [path for path in sorted(TESTS.rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    options = ["-m", "gpu", "-n", "0", "-rfE", "-p", "no:cacheprovider"]
    text = stage.run("pytest", "-m", "pytest", *options, *files, check=False)
    lines = [line for line in text.splitlines() if line.strip()]
    for line in [line for line in lines if line.startswith(("FAILED", "ERROR"))] + lines[-1:]:
        stage.add(f"- {line}")
    if " failed" in lines[-1] or " error" in lines[-1] or " passed" not in lines[-1]:
        stage.status = "failed" if stage.args.device == "cuda" else "skipped"


def precision(stage: Stage) -> None:
    """bf16-mixed and fp16-mixed against float32: the same steps of the same model."""
    precisions = ["32", "bf16-mixed"] + (["fp16-mixed"] if stage.args.device == "cuda" else [])
    compared(stage, {name: [f"trainer.precision={name}"] for name in precisions})


def compile(stage: Stage) -> None:
    """compile=true against no compilation, in the precision that is chosen automatically."""
    compared(stage, {"compile=false": ["compile=false"], "compile=true": ["compile=true"]})


def compared(stage: Stage, variants: dict[str, list[str]]) -> None:
    """Train a few steps of the experiment in each variant; a table of losses and speeds."""
    steps = 6 if stage.args.quick else 50
    words = [*experiment(stage), f"trainer.max_steps={steps}", f"train.valid_every={steps}", "train.sample_every=0"]
    words += [f"train.checkpoint_every={steps}", f"train.log_every={max(1, steps // 5)}"]
    if not stage.args.quick:  # at batches of 128, float32 may need more memory than there is
        words += ["data.limit=1000", "data.batch_size=64", "optim.warmup=2"]
    stage.add(f"`genlab train {' '.join(words)}`\n")
    stage.add("| variant | precision | loss at step | valid | images/s | start, s | peak, GiB |")
    stage.add("| --- | --- | --- | --- | --- | --- | --- |")
    failures = []
    for name, more in variants.items():
        try:
            run = trained(stage, name.replace("=", "-"), [*words, *more])
        except RuntimeError as error:
            failures.append(str(error))
            continue
        losses = ", ".join(f"{step}: {loss:.4f}" for step, loss in run.losses)
        cells = (name, run.results["precision"], losses, run.valid, f"{run.images_per_second:.1f}", f"{run.start:.1f}")
        stage.add(
            f"| {' | '.join(cells)} | {run.results['peak_memory_bytes'] / 2**30:.2f} |",
            **{name: {"losses": run.losses, "images_per_second": run.images_per_second, "start": run.start}},
        )
    if failures:
        raise RuntimeError("; ".join(failures))


def sampling(stage: Stage) -> None:
    """Rows captured as graphs: the same pixels as without, and the speed of both."""
    file = stage.work / "sampling.json"
    n, toy = ("4", ["--quick"]) if stage.args.quick else ("64", [])
    if stage.args.device == "cpu":
        stage.add("Nothing is captured on a CPU: both columns are the same code.\n")
    stage.add("| model | different values | captured, images/s | step by step, images/s |\n| --- | --- | --- | --- |")
    try:
        stage.run("sampling", HERE / "gpu_sampling.py", file, "--device", stage.args.device, "--n", n, *toy)
    finally:
        for r in json.loads(file.read_text()) if file.exists() else []:
            name = f"{r['model']} {r['depth']}x{r['width']}, {r['data']}, n={r['n']}"
            speeds = f"{r['n'] / r['captured']:.2f} | {r['n'] / r['eager']:.2f}"
            stage.add(f"| {name} | {r['different_values']} of {r['values']} | {speeds} |", **{r["model"]: r})
            if r["different_values"]:
                stage.status = "failed"


def resume(stage: Stage) -> None:
    """kill -9, then resume: equal to an undisturbed run? A second undisturbed run shows what the device repeats."""
    every, steps = (4, 24) if stage.args.quick else (20, 300)
    words = TOY if stage.args.quick else ["model=gated_pixelcnn", "data=mnist_mini", "data.limit=1000"]
    words = [*words, f"trainer={where(stage)}", f"trainer.max_steps={steps}", f"train.valid_every={steps}"]
    words += ["train.sample_every=0", f"train.checkpoint_every={every}", "train.log_every=2"]
    for name in ("undisturbed", "again"):
        trained(stage, name, words, "--deterministic")
    run = stage.work / "killed"
    times = stage.work / "killed.json"
    child = [HERE / "gpu_child.py", times, "--deterministic"]
    process = stage.start("killed", *child, "train", *words, f"hydra.run.dir={run}")
    while not (run / "checkpoints" / "last.ckpt").exists() and process.poll() is None and stage.left > 0:
        time.sleep(0.01)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if (run / "results.json").exists() or not (run / "checkpoints" / "last.ckpt").exists():
        raise RuntimeError("the run ended before it could be killed after its first checkpoint")
    stage.run("resumed", *child, "resume", f"run={run}")
    ends = {name: outcome(stage.work / name) for name in ("undisturbed", "again", "killed")}
    for name, what in (("again", "a second undisturbed run"), ("killed", "killed after a checkpoint and resumed")):
        fault = difference(ends[name], ends["undisturbed"])
        stage.add(f"- {what}: {fault or 'equal to the first, to the bit'}", **{name: fault})
    stage.figures["valid"] = {name: end["results"]["valid"]["bits_per_dim"] for name, end in ends.items()}
    if stage.figures["killed"] and not stage.figures["again"]:
        stage.status = "failed"
    random_kills(stage)


def random_kills(stage: Stage) -> None:
    """scripts/faults/kills.py: kills at random moments, without deterministic algorithms."""
    count = "1" if stage.args.quick else "8"
    text = stage.run("kills", HERE / "faults" / "kills.py", "--count", count, check=False)
    stage.add(f"- kills at random moments, without deterministic algorithms: {text.strip().splitlines()[-1]}")


def distributed(stage: Stage) -> None:
    """DDP and FSDP on all GPUs against one: the same images, so nearly the same losses."""
    toy = stage.args.quick or stage.args.device == "cpu"
    if stage.args.device == "cpu":
        count, ways = 2, {"ddp": ["trainer=ddp_cpu"]}
    else:
        count = cards(stage)
        ways = {"ddp": ["trainer=ddp"], "fsdp": ["trainer=fsdp"]}
    if count < 2:
        raise Skipped("There is one GPU, and NCCL cannot give it to two processes: DDP and FSDP were not run.")
    words = TOY if toy else ["model=gated_pixelcnn", "data=mnist_mini", "data.limit=1000"]
    words = [*words, f"trainer.max_steps={6 if toy else 50}", "train.sample_every=0", "trainer.precision=32"]
    runs = {"one": [f"trainer={where(stage)}", f"data.batch_size={8 * count}"]}
    runs |= {way: [*more, f"trainer.devices={count}", "data.batch_size=8"] for way, more in ways.items()}
    stage.add("| | processes | valid, bits/dim | images/s, with the start |\n| --- | --- | --- | --- |")
    for name, more in runs.items():
        folder = stage.work / name
        env = {"GENLAB_OVERSUBSCRIBE": "1"}
        stage.run(name, "-m", "genlab", "train", *words, *more, f"hydra.run.dir={folder}", env=env)
        results = json.loads((folder / "results.json").read_text())
        valid, images = results["valid"]["bits_per_dim"], results["images_per_second"]
        stage.add(f"| {name} | {results['processes']} | {valid:.5f} | {images} |", **{name: valid})


def bench(stage: Stage) -> None:
    """scripts/bench.py; what it has measured by the end of the stage's time counts."""
    file = stage.args.out / "bench.json"
    words = ["--device", stage.args.device, "--out", str(file)]
    if stage.args.quick:
        words += ["--quick", "--models", "pixelcnn", "--parts", "training", "sampling"]
    else:
        words += ["--models", "pixelcnn", "gated_pixelcnn", "pixel_transformer:attention=local_1d", "pixelcnnpp"]
        words += [
            "--data",
            "3x32x32",
            "--n",
            "16",
            "256",
            "--rounds",
            "3",
            "--parts",
            "training",
            "overhead",
            "sampling",
        ]
    file.unlink(missing_ok=True)
    try:
        stage.run("bench", HERE / "bench.py", *words)
    finally:
        results = json.loads(file.read_text()) if file.exists() else {}
        for name, flops in results.get("ceilings_flops", {}).items():
            stage.add(f"- matrix product {name}: {flops['median'] / 1e12:.3g} TFLOP/s")
        for part, table in (("training", bench_table.training), ("sampling", bench_table.sampling)):
            if results.get(part):
                stage.add(f"\n{part}:\n\n{table(results)}")
        for r in results.get("overhead", []):
            stage.add(f"- genlab train costs {100 * r['overhead']:.1f} % more than the bare loop ({r['model']})")


def train(stage: Stage) -> None:
    """One piece of the experiment: begun by `genlab train`, continued by `genlab resume`, paused before time is up."""
    run, args = stage.work / "run", stage.args
    if not run.exists() and gpu_pieces.unpack(args.carried, run):
        stage.add("- The run was put together from its pieces; their SHA-256 is right.")
    before = last_step(run)
    minutes = stage.left / 60 - (QUICK_MARGIN if args.quick else MARGIN)
    if minutes <= 0 or (run / "results.json").exists():
        raise Skipped("The run is finished." if minutes > 0 else "Too little time was left for a piece of training.")
    pause = f"train.pause_after={minutes:.3f}"
    toy = ["trainer.max_steps=100", "train.log_every=20", "train.sample_every=0"]
    if (run / "config.yaml").exists():
        words = ["resume", f"run={run}", pause]
    else:
        words = ["train", *experiment(stage), *(toy if args.quick else []), *args.words, pause, f"hydra.run.dir={run}"]
    stage.add(f"- `genlab {' '.join(words).replace(str(stage.work) + os.sep, '')}`")
    times = stage.work / "times.json"
    try:
        stage.run("train", HERE / "gpu_child.py", times, *words)
    finally:
        if (run / "checkpoints" / "last.ckpt").exists():
            piece(stage, run, times, before)


def piece(stage: Stage, run: Path, times: Path, before: int) -> None:
    """Report what a piece of training has come to, and pack the run if it is to be carried."""
    settings, step = yaml.safe_load((run / "config.yaml").read_text()), last_step(run)
    goal = settings["trainer"]["max_steps"]
    stage.add(f"- steps {before} to {step} of {goal}", steps=step, goal=goal)
    if times.exists():
        batches = json.loads(times.read_text())
        stage.add(f"- {speed(batches, settings)[0]:.1f} images/s, start {speed(batches, settings)[1]:.0f} s")
    for column in ("train/bits_per_dim", "valid/bits_per_dim"):
        if values := curve(run, column):
            stage.add(f"- {column}: {values[0][1]:.4f} at step {values[0][0]}, {values[-1][1]:.4f} at {values[-1][0]}")
    if (run / "results.json").exists():
        test = json.loads((run / "results.json").read_text())["test"]
        stage.add(
            f"- finished: test {test.get('bits_per_dim', float('nan')):.4f} bits/dim, {test['n']} images", test=test
        )
    elif step and goal and step > before:
        pieces = (goal - step) / (step - before)
        stage.add(f"- about {pieces:.0f} more pieces like this one")
    sizes = {path.name: path.stat().st_size / 2**20 for path in sorted((run / "checkpoints").glob("*.ckpt"))}
    stage.add("- " + ", ".join(f"{name}: {size:.1f} MiB" for name, size in sizes.items()), checkpoints_mib=sizes)
    if stage.args.carry:
        manifest = gpu_pieces.pack(run, stage.args.out, stage.args.carry * 2**20)
        stage.add(f"- packed into {manifest['pieces']} files, SHA-256 {manifest['sha256']}", packed=manifest)


def experiment(stage: Stage) -> list[str]:
    """The words that name what is trained, and where."""
    chosen = TOY if stage.args.quick else [f"experiment={stage.args.experiment}"]
    return [*chosen, f"trainer={where(stage)}"]


def where(stage: Stage) -> str:
    """trainer=gpu or trainer=cpu: one process."""
    return "gpu" if stage.args.device == "cuda" else "cpu"


def cards(stage: Stage) -> int:
    """The number of GPUs, counted in a process of its own."""
    return int(stage.run("cards", "-c", "import torch; print(torch.cuda.device_count())").splitlines()[-1])
