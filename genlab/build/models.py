"""Build a model from a config, or from a checkpoint.

A checkpoint contains the config of its model, and it may come from an unknown source. `untrusted.py` reads the file,
and `gate.py` builds only what a config may name. Here the size of a model is checked before it is built. For that it is
first built on torch's meta device (the "sketch"), where tensors have shapes but no values and take no memory. So a
config is refused before anything is allocated if its model is larger than this machine's memory, or does not have the
weights that its checkpoint holds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.modules import module as registration
from torch.overrides import TorchFunctionMode

from genlab.build import untrusted
from genlab.build.gate import Gate
from genlab.build.zoo import PREFIX, from_zoo
from genlab.core import ImageSpec, RequestError, RunError
from genlab.system.failures import explained

MOST_MODULES = 5_000  # of a model; PixelCNN++ has 200


def build(config: DictConfig | Mapping[str, Any], spec: ImageSpec, trust: Sequence[str] = ()) -> nn.Module:
    """The model that `config` (a `_target_` and its arguments) describes, for images of `spec`.

    Raises RequestError for a target outside genlab and the packages in `trust`, for an unknown or wrong argument, and
    for a model that is too large for this machine's memory.
    """
    return _build(config, spec, trust, lambda sketch: None)


def build_data(config: DictConfig | Mapping[str, Any], trust: Sequence[str] = (), role: str = "data") -> Any:
    """The data module that `config` describes, or with `role="context"` the context of a data module.

    Raises RequestError as `build` does.
    """
    plain = _plain(config)
    return _call("data", Gate("data", trust, callable).plan(plain, role), plain)


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint file at `path`. Of a run folder, it is the best checkpoint, or the last one if there is no best.
    `zoo:NAME` is a model of the zoo.

    Raises RequestError if there is none.
    """
    if str(path).startswith(PREFIX):
        return from_zoo(str(path).removeprefix(PREFIX))
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
    """(the whole checkpoint, the config in it as a plain dict). No code in the file is run."""
    file = find_checkpoint(path)
    content = untrusted.checkpoint(file)
    return content, untrusted.describe(content, file)[0]


def restore(path: str | Path, *, weights: str = "ema", trust: Sequence[str] = ()) -> tuple[nn.Module, dict[str, Any]]:
    """(model in evaluation mode, config of its run) of a checkpoint file or run folder.

    `weights`: "ema" for the averaged weights (raw ones if none were averaged), "raw" for those of the last step. The
    choice is stored in `model.weights`. The config also has the names of the classes, the `step` and `validation` of
    the checkpoint, None in one that does not say. Raises RequestError for a file that is damaged or does not fit the
    model it describes, and RunError for weights that are not finite.
    """
    file = find_checkpoint(path)
    content = untrusted.checkpoint(file)
    config, spec = untrusted.describe(content, file)
    if weights not in ("ema", "raw"):
        raise RequestError(f"weights={weights} is not known: choose ema or raw")
    state = content["state_dict"]
    prefix = "ema." if weights == "ema" and any(key.startswith("ema.") for key in state) else "model."
    model_state = {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
    if not model_state and prefix == "model.":
        raise RequestError(f"ckpt={path} has averaged weights alone: leave out weights=raw")
    model = _build(config["model"], spec, trust, lambda sketch: _check_fit(sketch, model_state, path))
    try:
        model.load_state_dict(model_state)
    except RuntimeError as error:
        raise RequestError(f"ckpt={path} does not fit the model it describes: {_first_line(error)}") from error
    model.weights = "ema" if prefix == "ema." else "raw"  # type: ignore[assignment]
    for key, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise RunError(f"ckpt={path} has weights that are not finite numbers ({key}): its training had gone wrong")
    names = config.get("names")
    model.chosen_as = names.get("model") if isinstance(names, dict) else None  # type: ignore[assignment]
    config["class_names"] = list(content["genlab"].get("class_names") or ())
    config["step"], callbacks = content["genlab"].get("step"), content.get("callbacks")
    config["validation"] = callbacks.get("Validation") if isinstance(callbacks, dict) else None
    return model.eval().requires_grad_(False), config


def load(path: str | Path, *, weights: str = "ema", device: str = "cpu", trust: Sequence[str] = ()) -> nn.Module:
    """The model of a run folder or checkpoint file, ready for `sample`, `complete` and `log_prob`.

    `weights`: "ema" for the averaged weights, "raw" for those of the last step. `trust`: packages other than genlab
    whose classes the checkpoint may use. Raises as `restore` does.
    """
    return restore(path, weights=weights, trust=trust)[0].to(device)


def model_name(model: Any) -> str:
    """The name of a model in messages: `model=NAME` as its user chose it, otherwise its class."""
    name = getattr(model, "chosen_as", None)
    return f"model={name}" if name else f"this {type(model).__name__}"


def _build(
    config: DictConfig | Mapping[str, Any], spec: ImageSpec, trust: Sequence[str], check: Callable[[nn.Module], None]
) -> nn.Module:
    """Build a sketch of the model, call `check` on it, and build the model."""
    gate = Gate("model", trust, lambda each: isinstance(each, type) and issubclass(each, nn.Module))
    plain = _plain(config)
    plan = gate.plan({**plain, "_partial_": True} if plain else plain, "model")

    def make() -> nn.Module:
        return plan()(spec=spec)

    try:
        with _limited_size(), torch.device("meta"), _ValuesLeftOut():
            sketch = _call("model", make, plain)
    except RequestError as error:
        # A constructor of the user's own package may read values of tensors, which a sketch does not have.
        if isinstance(error, TooLarge) or not gate.foreign(plain):
            raise
    else:
        check(sketch)
    return _call("model", make, plain)


def _plain(config: DictConfig | Mapping[str, Any]) -> Any:
    """The config as mappings, lists and plain values. Interpolations in a config composed by Hydra are resolved."""
    return OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config


class _ValuesLeftOut(TorchFunctionMode):
    """Inside the block, functions that change nothing but values are not called.

    A sketch has no values, and on the meta device PyTorch computes the shapes of these functions slowly, in Python.
    """

    FUNCTIONS = frozenset(
        {nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, nn.init.constant_}
        | {Tensor.normal_, Tensor.uniform_, Tensor.mul_, F.normalize}
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The first argument instead of the result of one of `FUNCTIONS`."""
        kwargs = kwargs or {}
        if func in self.FUNCTIONS:
            return args[0] if args else kwargs["tensor"]
        if func is torch.mv:  # of the power iterations of spectral norm
            return args[0].new_empty(len(args[0]))
        return func(*args, **kwargs)


class TooLarge(RequestError):
    """A model is too large for this machine."""


@contextmanager
def _limited_size() -> Iterator[None]:
    """Inside the block, TooLarge is raised as soon as a model under construction has too many modules or weights."""
    modules = weights = 0
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def count_module(*_: Any) -> None:
        nonlocal modules
        modules += 1
        if modules > MOST_MODULES:
            raise TooLarge(f"the model would have more than {MOST_MODULES:,} layers: give a smaller depth")

    def count_weights(owner: nn.Module, name: str, value: Tensor | None) -> None:
        nonlocal weights
        weights += 0 if value is None else value.numel()
        if 4 * weights > memory:
            raise TooLarge(
                f"the model would have more than {memory // 4:,} weights, and this machine has memory for fewer "
                f"({memory / 1e9:.0f} GB): give a smaller width"
            )

    hooks = [
        registration.register_module_module_registration_hook(count_module),
        registration.register_module_parameter_registration_hook(count_weights),
        registration.register_module_buffer_registration_hook(count_weights),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_fit(sketch: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise RequestError unless the weights of a checkpoint fit the model that it describes, by name and shape."""
    of_model = {name: tuple(value.shape) for name, value in sketch.state_dict().items()}
    of_file = {name: tuple(value.shape) for name, value in state.items()}
    for name in {**of_model, **of_file}:
        if of_model.get(name) != of_file.get(name):
            raise RequestError(
                f"ckpt={path} does not fit the model it describes: {name!r} has the shape "
                f"{of_file.get(name, 'nothing')} and should have {of_model.get(name, 'nothing')}"
            )


def _call(what: str, construct: Callable[[], Any], plain: Mapping[str, Any]) -> Any:
    """Call `construct` and return its result. An error in it becomes a RequestError about the `what` config `plain`."""
    try:
        return construct()
    except Exception as error:
        failure = explained(error)
        if failure is not None:
            raise failure from error
        expected = (TypeError, ValueError, OverflowError, RuntimeError, ArithmeticError, LookupError, AttributeError)
        if not isinstance(error, expected):
            raise
        why = _first_line(error).replace("'NoneType' object is not callable", "a part that it needs is null")
        why = re.sub(r"(\.__init__)?\(\) got an unexpected keyword argument", " takes no", why)
        raise RequestError(f"the {what} config does not fit: {why}{_keys_beside(error, plain)}") from error


def _keys_beside(error: BaseException, plain: Any) -> str:
    """For an error about an argument that a constructor does not take: the other keys beside it in the config."""
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
