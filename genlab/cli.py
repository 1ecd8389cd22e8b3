"""The command line: `genlab VERB key=value …`. Everything after the verb is in the syntax of Hydra.

A wrong request ends with one sentence on standard error and exit status 2, a failed run with one sentence and status 1,
and a signal (`system/signals.py`) with status 128 + its number. Nothing is created before the request has been checked.
GENLAB_DEBUG=1 shows the traceback instead of the sentence. Handlers of signals must be installed before torch is
imported, so this file imports nothing at its top that imports torch.
"""

from __future__ import annotations

import importlib
import os
import shlex
import sys
import textwrap
from pathlib import Path

from genlab.system import allocator, output, signals

VERBS = {
    "train": "train a model, then evaluate its best weights once on the test split",
    "resume": "continue a run in its folder, as if it had never stopped",
    "eval": "compute the likelihood of a whole split, or the reconstruction error of an autoencoder",
    "sample": "draw images from a model",
    "complete": "draw the unknown part of an image",
    "reconstruct": "show images beside their reconstructions",
    "show": "draw pictures of what a model has learnt: filters, codes, traversals",
    "features": "compute the features of every image of a split",
    "probe": "train a linear classifier on the features, and on others for comparison",
    "compress": "write images into one file without loss, in as few bits as the model says",
    "decompress": "read the images of such a file",
    "score": "tell how odd every image of a set is to a model",
    "neighbours": "find the nearest training images of images, and near duplicates",
    "quality": "measure how closely samples resemble test images",
    "compare": "put the results of runs into one table, over seeds and settings",
    "report": "make one web page of runs: tables, curves, samples over training, configs",
    "list": "list the models, data sets and experiments",
    "completion": "print a script that makes bash, zsh or fish complete what you type",
}
WITHOUT_CONFIG = {"list", "completion"}
WRITE_FILES = set(VERBS) - WITHOUT_CONFIG  # the result of these verbs is in files, not in what they print
USAGE = """\
genlab: generative image models, exact, fast and safe.

usage: genlab VERB key=value …

{verbs}

genlab VERB --help explains the keys of a verb. First steps, which download nothing:
  genlab train
  genlab sample ckpt=outputs/DATE/RUN n=64
"""


def main(arguments: list[str] | None = None) -> None:
    """Run a verb and exit with status 0, 1 (a run failed), 2 (the request was wrong) or 128 + a signal's number."""
    signals.install()
    allocator.keep_freed_memory()
    output.steady()
    words = sys.argv[1:] if arguments is None else arguments
    status = run(words)
    lost = output.lost()
    if lost is not None:
        print(f"genlab: standard output was cut short: {lost.strerror}", file=sys.stderr)
        if not words or words[0] not in WRITE_FILES:
            status = status or 1
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit status."""
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt:
        print("genlab: interrupted", file=sys.stderr)
        return 130
    except signals.Stopped as stop:
        print(f"genlab: {stop}", file=sys.stderr)
        return 128 + stop.number
    except Exception as error:
        if os.environ.get("GENLAB_DEBUG") == "1":
            raise
        from genlab.core import Interrupted, RequestError
        from genlab.system.failures import explained, sentence

        failure = explained(error)
        print(f"genlab: {sentence(error)}", file=sys.stderr)
        if isinstance(failure, Interrupted):
            return 128 + (failure.number or signals.received or signals.ENDING[0])
        return 2 if isinstance(failure, RequestError) else 1


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        lines = (f"  {verb:<13}{what}" for verb, what in VERBS.items())
        print(USAGE.format(verbs="\n".join(lines)), end="")
        return 0
    if arguments[0] == "--version":
        from genlab import __version__

        print(f"genlab {__version__}")
        return 0
    verb, *words = arguments
    if verb not in VERBS:
        from genlab.core import RequestError, nearest

        raise RequestError(f"unknown verb {verb!r}: {nearest(verb, VERBS)}")
    if {"-h", "--help"} & set(words):
        _explain(verb, [word for word in words if word not in ("-h", "--help")])
        return 0
    if verb not in WITHOUT_CONFIG and (shown := _without_cfg(words)) is not None:
        from genlab.verbs import explain

        print(explain.composed(verb, shown), end="")
        return 0
    if verb == "list":
        from genlab.verbs import catalogue

        catalogue.run(words)
        return 0
    if verb == "completion":
        from genlab.verbs import completion

        completion.run(words, VERBS)
        return 0
    # These import Hydra and torch, which takes seconds, so they are imported only by the verbs that need them.
    from genlab.processes import group
    from genlab.request.compose import Request

    task = importlib.import_module(f"genlab.verbs.{'evaluate' if verb == 'eval' else verb}")
    command = shlex.join(["genlab", *arguments])
    return group.run_verb(verb, lambda: task.command(Request(verb, words, command=command))) or 0


def _without_cfg(words: list[str]) -> list[str] | None:
    """The words without `--cfg job`, which asks for the composed config; None if it is not among them."""
    for i, word in enumerate(words):
        if word == "--cfg" or word.startswith("--cfg="):
            what = word.partition("=")[2] or (words[i + 1] if i + 1 < len(words) else "")
            if what != "job":
                from genlab.core import RequestError

                raise RequestError(f"--cfg {what}: give --cfg job, which prints the config of the request")
            return [*words[:i], *words[i + (1 if "=" in word else 2) :]]
    return None


def _explain(verb: str, words: list[str]) -> None:
    """Print what a verb does and its keys. With words of a request, or for training, the keys of what they choose;
    otherwise the verb's own config, for which nothing slow has to be imported.
    """
    from genlab.request.folders import configs_folder

    print(f"genlab {verb}: {VERBS[verb]}.\n")
    if verb == "list":
        print("usage: genlab list [model|data|experiment|trainer|…] [--config-dir DIR]")
    elif verb == "completion":
        print(
            'usage: eval "$(genlab completion bash)", in ~/.bashrc; the first lines of the script say it for the others'
        )
    elif verb == "train" or (words and verb not in WITHOUT_CONFIG):
        from genlab.verbs import explain

        print("keys and values (key=value to change, group=choice to swap a part, see genlab list GROUP):\n")
        print(textwrap.indent(explain.composed(verb, words), "  "))
        if verb == "train":
            print("  -m key=a,b …    run every combination; sweep=joblib or optuna runs them in another way")
            print("  --config-dir D  also read configs from the folder D")
            print("  --cfg job       print the config alone, for example of model=pixelsnail data=cifar10")
    elif verb == "resume":
        from genlab.processes.resume import CHANGEABLE

        print(f"usage: genlab resume run=DIR [trainer.max_steps=…]\n\nWhat may be changed: {CHANGEABLE}.")
    else:
        text = Path(configs_folder(), f"{verb}.yaml").read_text()
        print("keys and defaults (key=value to change, group=choice to swap a part, see genlab list):\n")
        print(textwrap.indent(text, "  "))
        print("  --config-dir D  also read configs from the folder D")


if __name__ == "__main__":
    main()
