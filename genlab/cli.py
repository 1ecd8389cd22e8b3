"""The command line: `genlab VERB key=value …`. Everything after the verb is Hydra.

A wrong request is one sentence on standard error and status 2; a failed run one sentence and status 1; nothing is
created before the request is understood. A signal (`signals.py`) is status 128 + its number. GENLAB_DEBUG=1 shows the
traceback instead. Nothing heavy is imported up here: the handlers of signals come first.
"""

from __future__ import annotations

import importlib
import os
import shlex
import sys
import textwrap
from pathlib import Path

from genlab.system import output, signals

VERBS = {
    "train": "train a model on data, then evaluate its best weights once on the test split",
    "resume": "go on with a run in its folder, as if it had never stopped",
    "eval": "likelihood of a checkpoint over a whole split",
    "sample": "draw images",
    "complete": "fill in the unknown part of an image",
    "reconstruct": "show images beside their reconstructions",
    "show": "pictures of what a model has learnt: filters, codes, traversals",
    "features": "what a model makes of every image of a data set, as numbers",
    "probe": "what those features are worth to a linear classifier, beside controls",
    "quality": "how like test images samples are, in the features of a classifier",
    "list": "what there is: models, data sets, experiments",
}
WORKING = set(VERBS) - {"list"}  # what they are called for is in files; what they print is beside it
USAGE = """\
genlab: generative image models, exact, fast and safe.

usage: genlab VERB key=value …

{verbs}

genlab VERB --help explains a verb's keys. First steps, with nothing to download:
  genlab train
  genlab sample ckpt=outputs/DATE/RUN n=64
"""


def main(arguments: list[str] | None = None) -> None:
    """Entry point: run the verb and exit with 0, 1 (a run failed), 2 (the request was wrong) or 128 + a signal."""
    signals.install()
    output.steady()
    words = sys.argv[1:] if arguments is None else arguments
    status = run(words)
    lost = output.lost()
    if lost is not None:
        print(f"genlab: standard output was cut short: {lost.strerror}", file=sys.stderr)
        if not words or words[0] not in WORKING:
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

        known = explained(error)
        print(f"genlab: {sentence(error)}", file=sys.stderr)
        if isinstance(known, Interrupted):
            return 128 + (known.number or signals.asked or signals.ENDING[0])
        return 2 if isinstance(known, RequestError) else 1


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        lines = (f"  {verb:<10}{what}" for verb, what in VERBS.items())
        print(USAGE.format(verbs="\n".join(lines)), end="")
        return 0
    if arguments[0] == "--version":
        from genlab import __version__

        print(f"genlab {__version__}")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        from genlab.core import RequestError, nearest

        raise RequestError(f"unknown verb {verb!r}: {nearest(verb, VERBS)}")
    if {"-h", "--help"} & set(rest):
        _explain(verb)
        return 0
    if verb == "list":
        from genlab.verbs import catalogue

        catalogue.run(rest)
        return 0
    from genlab.processes import group
    from genlab.request.compose import Request  # Hydra takes a moment to import, so only for those who need it

    task = importlib.import_module(f"genlab.verbs.{'evaluate' if verb == 'eval' else verb}")
    command = shlex.join(["genlab", *arguments])
    return group.run_verb(verb, lambda: task.command(Request(verb, rest, command=command))) or 0


def _explain(verb: str) -> None:
    """What a verb does and its keys: the verb's own config, comments and all."""
    from genlab.request.folders import configs_folder

    print(f"genlab {verb}: {VERBS[verb]}.\n")
    if verb == "list":
        print("usage: genlab list [model|data|experiment|trainer|…]")
    elif verb == "resume":
        from genlab.processes.resume import CHANGEABLE

        print(f"usage: genlab resume run=DIR [trainer.max_steps=…]\n\nWhat may be changed: {CHANGEABLE}.")
    else:
        text = Path(configs_folder(), f"{verb}.yaml").read_text()
        print("keys and defaults (key=value to change, group=choice to swap a part, see genlab list):\n")
        print(textwrap.indent(text, "  "))
        if verb == "train":
            print("  -m key=a,b …    run every combination; sweep=joblib | optuna for other ways of running them")
        print("  --config-dir D  look for configs in D as well")


if __name__ == "__main__":
    main()
