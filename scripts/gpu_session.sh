#!/usr/bin/env bash
# The most of half an hour with a GPU: every check that needs one, then a piece of a long training, and a report.
#
#   scripts/gpu_session.sh OUT [--budget 25] [--stages tests,bench] [--experiment pixelcnnpp_cifar10] …
#
# docs/gpu-session.md says how to prepare the machine; scripts/gpu_session.py is what runs. Exit status: 0 if no stage failed,
# 1 if one did, 2 if the request was wrong or there is no GPU.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONUNBUFFERED=1 PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" "$root/scripts/gpu_session.py" "$@"
