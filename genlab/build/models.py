"""From a config to a model, and from a checkpoint to a model.

Configs come back out of checkpoint files, also strangers'. `foreign.py` reads the files, `gate.py` builds what a config
may name, and here is what both need: the size of a model, known before it is made. A model is first made without
numbers (torch's meta device), which takes no memory whatever its sizes; so a config that asks for more than this
machine has, or for other weights than its checkpoint holds, is refused before anything is allocated.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.modules import module as registration

from genlab.build import untrusted
from genlab.build.gate import Gate
from genlab.core import ImageSpec, RequestError, RunError
from genlab.system.failures import explained

PARTS = 5_000  # modules of a model; PixelCNN++ has 200


def build(config: DictConfig | Mapping[str, Any], spec: ImageSpec, trust: Sequence[str] = ()) -> nn.Module:
    """Model of `config` (its `_target_` and parts) for images of `spec`.

    Raises RequestError, in one sentence, for a target outside genlab and `trust`, an unknown or a bad argument, and a
    model that this machine has no memory for.
    """
    return _build(config, spec, trust, lambda sketch: None)


def build_data(config: DictConfig | Mapping[str, Any], trust: Sequence[str] = (), role: str = "data") -> Any:
    """What a config of a data set describes, through the same gate: the data module, or with `role="context"` that."""
    plain = _plain(config)
    return _made("data", Gate("data", trust, callable).plan(plain, role), plain)


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
    content = untrusted.checkpoint(file)
    return content, untrusted.describe(content, file)[0]


def restore(path: str | Path, *, weights: str = "ema", trust: Sequence[str] = ()) -> tuple[nn.Module, dict[str, Any]]:
    """(model in evaluation mode, its run config). `weights`: "ema", or "raw" as the optimiser left them."""
    file = find_checkpoint(path)
    content = untrusted.checkpoint(file)
    config, spec = untrusted.describe(content, file)
    if weights not in ("ema", "raw"):
        raise RequestError(f"weights={weights} is not known: choose ema or raw")
    state = content["state_dict"]
    kept = "ema." if weights == "ema" and any(key.startswith("ema.") for key in state) else "model."
    own = {key.removeprefix(kept): v for key, v in state.items() if key.startswith(kept)}
    model = _build(config["model"], spec, trust, lambda sketch: _check_fit(sketch, own, path))
    try:
        model.load_state_dict(own)
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
    config["class_names"] = list(content["genlab"].get("class_names") or ())
    return model.eval().requires_grad_(False), config


def load(path: str | Path, *, weights: str = "ema", device: str = "cpu", trust: Sequence[str] = ()) -> nn.Module:
    """The model of a run folder or checkpoint file, ready to `sample`, `complete` and give `log_prob`.

    Needs nothing but the file. Averaged weights (EMA) unless `weights="raw"`. Packages other than genlab whose
    classes the checkpoint may use are named in `trust`.
    """
    return restore(path, weights=weights, trust=trust)[0].to(device)


def model_name(model: Any) -> str:
    """The name of a model in messages: `model=NAME` as its user chose it, otherwise its class."""
    name = getattr(model, "chosen_as", None)
    return f"model={name}" if name else f"this {type(model).__name__}"


def _build(
    config: DictConfig | Mapping[str, Any], spec: ImageSpec, trust: Sequence[str], check: Callable[[nn.Module], None]
) -> nn.Module:
    """The model, once `check` has passed its sketch without numbers."""
    gate = Gate("model", trust, lambda found: isinstance(found, type) and issubclass(found, nn.Module))
    plain = _plain(config)

    plan = gate.plan({**plain, "_partial_": True} if plain else plain, "model")

    def make() -> nn.Module:
        return plan()(spec=spec)

    try:
        with _counted(), torch.device("meta"):
            sketch = _made("model", make, plain)
    except RequestError as error:
        # A constructor of the user's own may look at numbers, which a sketch does not have.
        if isinstance(error, TooLarge) or not gate.foreign(plain):
            raise
    else:
        check(sketch)
    return _made("model", make, plain)


def _plain(config: DictConfig | Mapping[str, Any]) -> Any:
    """Mappings, lists and values: of a config that Hydra has composed, its interpolations resolved, once."""
    return OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config


class TooLarge(RequestError):
    """A model that does not fit this machine."""


@contextmanager
def _counted() -> Iterator[None]:
    """Refuse a model while its parts are put together, as soon as they are too many or too large."""
    parts = values = 0
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def part(*_: Any) -> None:
        nonlocal parts
        parts += 1
        if parts > PARTS:
            raise TooLarge(f"the model would have more than {PARTS:,} layers: give a smaller depth")

    def tensor(owner: nn.Module, name: str, value: Tensor | None) -> None:
        nonlocal values
        values += 0 if value is None else value.numel()
        if 4 * values > memory:
            raise TooLarge(
                f"the model would have more than {memory // 4:,} weights, and this machine has memory for fewer "
                f"({memory / 1e9:.0f} GB): give a smaller width"
            )

    hooks = [
        registration.register_module_module_registration_hook(part),
        registration.register_module_parameter_registration_hook(tensor),
        registration.register_module_buffer_registration_hook(tensor),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_fit(sketch: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """RequestError unless the weights of a checkpoint are those of the model it describes, by name and shape."""
    asked = {name: tuple(value.shape) for name, value in sketch.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    wrong = next((name for name in {**asked, **found} if asked.get(name) != found.get(name)), None)
    if wrong is not None:
        raise RequestError(
            f"ckpt={path} does not fit the model it describes: {wrong!r} has the shape {found.get(wrong, 'nothing')} "
            f"and should have {asked.get(wrong, 'nothing')}"
        )


def _made(what: str, make: Callable[[], Any], plain: Mapping[str, Any]) -> Any:
    """What `make` returns; whatever goes wrong in a constructor as one sentence."""
    try:
        return make()
    except Exception as error:
        known = explained(error)
        if known is not None:
            raise known from error
        expected = (TypeError, ValueError, OverflowError, RuntimeError, ArithmeticError, LookupError, AttributeError)
        if not isinstance(error, expected):
            raise
        why = _first_line(error).replace("'NoneType' object is not callable", "a part that it needs is null")
        why = re.sub(r"(\.__init__)?\(\) got an unexpected keyword argument", " takes no", why)
        raise RequestError(f"the {what} config does not fit: {why}{_keys_beside(error, plain)}") from error


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
