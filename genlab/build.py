"""From a config to a model, and from a checkpoint to a model: nothing else in genlab instantiates one.

Configs come back out of checkpoint files, also strangers'. So a `_target_` of a model must name a class of genlab (or
of a package the user trusts by `trust=`) that is a torch module, one of a data set something that genlab.data
defines: a checkpoint can compute, not execute.
Files are read by torch's restricted unpickler (`weights_only=True`) alone.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra.errors
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from genlab.core import ImageSpec, RequestError, RunError
from genlab.failures import explained


def build(config: DictConfig | Mapping[str, Any], spec: ImageSpec, trust: Sequence[str] = ()) -> nn.Module:
    """Model of `config` (its `_target_` and parts) for images of `spec`.

    Raises RequestError, in one sentence, for a target outside genlab and `trust`, an unknown or a bad argument.
    """
    plain = _checked(
        config, trust, "model part", lambda found: isinstance(found, type) and issubclass(found, nn.Module)
    )
    # spec goes in behind Hydra's back: as an argument of instantiate it would become a DictConfig.
    return _made("model", lambda: instantiate(plain, _partial_=True)(spec=spec), plain)


def build_data(config: DictConfig | Mapping[str, Any], trust: Sequence[str] = ()) -> Any:
    """Data module of a config, through the same gate: of genlab, only what genlab.data defines."""
    plain = _checked(
        config, trust, "data set", lambda found: found.__module__.startswith("genlab.data.") or not _is_ours(found)
    )
    return _made("data", lambda: instantiate(plain), plain)


def find_checkpoint(path: str | Path) -> Path:
    """A checkpoint file, or the best (else the last) checkpoint of a run folder."""
    path = Path(path).expanduser()
    if path.is_dir():
        for name in ("best", "last"):
            file = path / "checkpoints" / f"{name}.ckpt"
            if file.is_file():
                return file
        raise RequestError(f"ckpt={path} is a folder without checkpoints/best.ckpt or checkpoints/last.ckpt")
    if not path.is_file():
        raise RequestError(f"ckpt={path} does not exist: give a checkpoint file or a run folder")
    return path


def read_checkpoint(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the whole checkpoint, its config as a plain dict). Runs no code of the file."""
    file = find_checkpoint(path)
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for damaged files
        raise RequestError(
            f"ckpt={file} is not a readable checkpoint (damaged, cut off, or holding more than tensors and "
            f"primitives): {type(error).__name__}"
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("genlab"), dict):
        raise RequestError(f"ckpt={file} is not a genlab checkpoint: it does not say which model it holds")
    try:
        config = OmegaConf.to_container(OmegaConf.create(checkpoint["genlab"]["config"]), resolve=False)
        ImageSpec(**checkpoint["genlab"]["spec"])
    except Exception as error:
        raise RequestError(f"ckpt={file} has a damaged description of its model") from error
    if "${" in checkpoint["genlab"]["config"]:  # what is stored is resolved; an interpolation could read the machine
        raise RequestError(f"ckpt={file} has a config with unresolved values, which genlab never writes")
    return checkpoint, config  # type: ignore[return-value]


def restore(path: str | Path, *, weights: str = "ema", trust: Sequence[str] = ()) -> tuple[nn.Module, dict[str, Any]]:
    """(model in evaluation mode, its run config). `weights`: "ema", or "raw" as the optimiser left them."""
    checkpoint, config = read_checkpoint(path)
    if weights not in ("ema", "raw"):
        raise RequestError(f"weights={weights} is not known: choose ema or raw")
    spec = ImageSpec(**checkpoint["genlab"]["spec"])
    model = build(config["model"], spec, trust)
    state = checkpoint["state_dict"]
    kept = "ema." if weights == "ema" and any(key.startswith("ema.") for key in state) else "model."
    try:
        model.load_state_dict({key.removeprefix(kept): v for key, v in state.items() if key.startswith(kept)})
    except RuntimeError as error:
        raise RequestError(f"ckpt={path} does not fit the model it describes: {_first_line(error)}") from error
    model.weights = "ema" if kept == "ema." else "raw"  # type: ignore[assignment]
    unsound = next(
        (key for key, v in model.state_dict().items() if v.is_floating_point() and not v.isfinite().all()), None
    )
    if unsound is not None:
        raise RunError(f"ckpt={path} has weights that are not finite numbers ({unsound}): its training had gone wrong")
    names = config.get("names")
    model.chosen_as = names.get("model") if isinstance(names, dict) else None  # type: ignore[assignment]
    config["class_names"] = list(checkpoint["genlab"].get("class_names") or ())
    return model.eval().requires_grad_(False), config


def load(path: str | Path, *, weights: str = "ema", device: str = "cpu", trust: Sequence[str] = ()) -> nn.Module:
    """The model of a run folder or checkpoint file, ready to `sample`, `complete` and give `log_prob`.

    Needs nothing but the file. Averaged weights (EMA) unless `weights="raw"`. Packages other than genlab whose
    classes the checkpoint may use are named in `trust`.
    """
    return restore(path, weights=weights, trust=trust)[0].to(device)


def _checked(
    config: DictConfig | Mapping[str, Any], trust: Sequence[str], what: str, fits: Callable[[Any], bool]
) -> dict[str, Any]:
    """The config as a plain dict, once every `_target_` in it names something allowed that `fits`."""
    plain = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else dict(config)
    for target in _targets(plain):
        _check_target(target, trust, what, fits)
    return plain  # type: ignore[return-value]


def _targets(node: Any) -> Iterator[Any]:
    """Every `_target_` at any depth."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield node["_target_"]
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _targets(value)


def _check_target(target: Any, trust: Sequence[str], what: str, fits: Callable[[Any], bool]) -> None:
    allowed = ("genlab", *trust)
    refused = RequestError(
        f"the config asks for {target!r}, which is not a {what} of {' or '.join(allowed)}; nothing was run "
        "(to use your own package, name it: trust=[package])"
    )
    # By name first: a module outside the allowed packages is not even imported.
    if not isinstance(target, str) or target.split(".")[0] not in allowed:
        raise refused
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RequestError(f"the config asks for {target!r}, which does not exist") from error
    # By what it is: genlab.cli.os.system also begins with "genlab.".
    if getattr(found, "__module__", "").split(".")[0] not in allowed or not fits(found):
        raise refused


def _is_ours(found: Any) -> bool:
    return found.__module__.split(".")[0] == "genlab"


def _made(what: str, make: Callable[[], Any], plain: Mapping[str, Any]) -> Any:
    """What `make` returns; whatever goes wrong in a constructor as one sentence."""
    try:
        return make()
    except Exception as error:
        known = explained(error)
        if known is not None:
            raise known from error
        cause = error.__cause__ or error if isinstance(error, hydra.errors.InstantiationException) else error
        if not isinstance(cause, (TypeError, ValueError, OverflowError, RuntimeError, ArithmeticError, LookupError)):
            raise
        why = _first_line(cause).replace("'NoneType' object is not callable", "a part that it needs is null")
        why = re.sub(r"(\.__init__)?\(\) got an unexpected keyword argument", " takes no", why)
        raise RequestError(f"the {what} cannot be built: {why}{_keys_beside(cause, plain)}") from error


def _keys_beside(error: BaseException, plain: Any) -> str:
    """Of an argument that a constructor does not take: which keys stand beside it in the config."""
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    nodes = [plain]
    while unknown and nodes:
        node = nodes.pop()
        if isinstance(node, Mapping):
            if unknown[1] in node:
                known = sorted(key for key in node if key != unknown[1] and not key.startswith("_"))
                return f"; the keys beside it are {', '.join(known)}"
            nodes += node.values()
    return ""


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
