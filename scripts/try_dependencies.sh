#!/usr/bin/env bash
# Do the dependency ranges of pyproject.toml hold at their ends? `scripts/try_dependencies.sh oldest|newest|pre`
#
# oldest: every lower bound, exactly. newest: what pip chooses. pre: the same with hydra-core's pre-release.
# Makes a virtual environment in a temporary folder (some 7 GB: torch brings CUDA), installs genlab there, trains,
# samples and evaluates by the command line, runs the tests that touch these packages, and removes it all again.
# PYTHON=python3.10 chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
end=${1:-}
case $end in oldest | newest | pre) ;; *) echo "usage: scripts/try_dependencies.sh oldest|newest|pre" >&2; exit 2 ;; esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
source "$work/venv/bin/activate"

touch "$work/constraints.txt"
if [ "$end" = oldest ]; then  # "torch>=2.8" -> "torch==2.8", of what a user installs; the tools of development are new
  awk '/^dependencies = \[/{on=1;next} on&&/^\]/{on=0} on' pyproject.toml |
    sed -nE 's/^ *"([A-Za-z0-9_-]+)>=([0-9.]+).*/\1==\2/p' > "$work/constraints.txt"
fi
cat "$work/constraints.txt"
# pytorch-lightning of before 2025 imports pkg_resources, which setuptools dropped in version 82.
pip install --quiet --constraint "$work/constraints.txt" "$PWD" pytest hypothesis "setuptools<81"
[ "$end" != pre ] || pip install --quiet --upgrade --pre hydra-core
pip list --format=freeze | grep -iE "^(torch|torchvision|pytorch-lightning|hydra-core|omegaconf|numpy|scipy|pillow|rich|scikit-learn|matplotlib|wandb)="

export OMP_NUM_THREADS=1
cp -r tests scripts configs pyproject.toml "$work/"  # the installed genlab is what is tried, not the one beside the tests
cd "$work"
genlab list model > /dev/null
genlab train trainer=smoke model.net.width=8 hydra.run.dir=run
genlab sample ckpt=run n=4
genlab eval ckpt=run data.limit=100
genlab train trainer=smoke model=latent_gaussian trainer.max_steps=4 hydra.run.dir=latent
genlab resume run=latent trainer.max_steps=8
genlab train -m trainer=smoke model.net.width=4,8 hydra.sweep.dir=sweep
WANDB_MODE=offline genlab train trainer=smoke model=ppca logger=wandb hydra.run.dir=tracked
python -m pytest -q -m "not slow and not gpu" tests/test_train.py tests/test_resume.py tests/test_build.py tests/test_folder.py \
  tests/test_pictures.py tests/test_probe.py tests/test_show.py tests/test_fixtures.py
echo "genlab works with the $end dependencies"
