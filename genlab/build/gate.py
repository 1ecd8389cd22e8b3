"""Build objects from a config of plain values. Only here can a config determine which constructors genlab calls.

A `_target_` names a public constructor of genlab or an object of a package that the user trusts (`trust=`). A file of
genlab that defines public constructors lists them in `CONFIGURABLE`, by the config key under which they may be used. In
a config the name has the package but not the file (`genlab.nets.PixelCNN`). Names are looked up in those lists, and no
attribute is followed. With `_partial_: true`, the constructor is not called yet: the object that gets it adds the
remaining arguments. Values are neither interpolated nor converted here. Hydra has composed the config before, and is
not used again.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, partial
from typing import Any

from genlab.core import RequestError, nearest

PACKAGES = {"model": ("models", "nets", "heads", "codes", "flows"), "data": ("data",)}
MOST_LAYERS = 1_000  # building a layer takes at least a tenth of a millisecond
LAYER_KEYS = {"depth", "layers", "levels", "resolutions", "steps"}  # arguments that are a number of layers
LARGEST = 10_000_000  # the largest value of any other number in a config
UNBOUNDED_KEYS = {"seed", "max_pixels"}  # no memory is allocated in proportion to these
CALL_KEYS = {"_target_", "_partial_"}


@cache  # to list the files of a package takes milliseconds, and every config is checked against them
def public(kind: str) -> dict[str, dict[str, Any]]:
    """{config key: {dotted name: constructor}}; `kind` is "model" or "data"."""
    constructors: dict[str, dict[str, Any]] = {}
    for package in PACKAGES[kind]:
        folder = importlib.import_module(f"genlab.{package}").__path__
        for file in pkgutil.walk_packages(folder, f"genlab.{package}."):
            module = importlib.import_module(file.name)
            for role, names in getattr(module, "CONFIGURABLE", {}).items():
                named = {f"genlab.{package}.{name}": getattr(module, name) for name in names}
                constructors.setdefault(role, {}).update(named)
    return constructors


class Gate:
    """Builds what configs of a `kind` ("model" or "data") describe.

    `trust`: packages outside genlab whose objects a config may name. `fits` returns True for those of their objects
    that may be used.
    """

    def __init__(self, kind: str, trust: Sequence[str], fits: Callable[[Any], bool]) -> None:
        self.kind, self.trust, self.fits = kind, trusted(trust), fits

    @cached_property
    def roles(self) -> dict[str, dict[str, Any]]:
        """The public constructors. They are imported at first use, so a config that is refused earlier imports none."""
        return public(self.kind)

    def plan(self, config: Any, role: str) -> Callable[[], Any]:
        """A function that builds what `config` describes.

        The whole config is checked now. Its constructors are called only when the function is called. `role`: the key
        under which the config is used. Raises RequestError for a config that may not be built.
        """
        if not isinstance(config, Mapping) or "_target_" not in config:
            raise RequestError(f"the {role} config does not name what to build: it has no _target_")
        return self._plan(config, role)

    def foreign(self, config: Any) -> bool:
        """Returns True if a `_target_` in the config is outside genlab."""
        if isinstance(config, Mapping):
            outside = not str(config.get("_target_", "genlab.")).startswith("genlab.")
            return outside or any(map(self.foreign, config.values()))
        return isinstance(config, (list, tuple)) and any(map(self.foreign, config))

    def _plan(self, node: Any, role: str) -> Callable[[], Any]:
        """`plan` of any node of the config, plain values included."""
        if isinstance(node, (list, tuple)):
            parts = [self._plan(each, role) for each in node]
            return lambda: [part() for part in parts]
        if not isinstance(node, Mapping):
            if isinstance(node, (int, float)) and abs(node) > LARGEST and role not in UNBOUNDED_KEYS:
                raise RequestError(f"{role}={node} in the config of the {self.kind}: at most {LARGEST:,} is possible")
            return lambda: node
        unknown = next((key for key in node if str(key).startswith("_") and key not in CALL_KEYS), None)
        if unknown is not None:
            raise RequestError(f"the config of the {self.kind} has the key {unknown!r}, which means nothing here")
        keywords = {str(key): self._plan(value, str(key)) for key, value in node.items() if key not in CALL_KEYS}
        if "_target_" not in node:
            return lambda: {key: part() for key, part in keywords.items()}
        target = self._find(node["_target_"], role)
        if str(node["_target_"]).startswith("genlab."):
            self._check_layers(node)
        call = partial if node.get("_partial_") is True else _call
        return lambda: call(target, **{key: part() for key, part in keywords.items()})

    def _check_layers(self, node: Mapping[str, Any]) -> None:
        """Raise RequestError if a constructor of genlab would get too large a number of layers."""
        for key in LAYER_KEYS & set(node):
            if isinstance(node[key], int) and node[key] > MOST_LAYERS:
                raise RequestError(
                    f"{key}={node[key]} in the config of the {self.kind}: at most {MOST_LAYERS:,} is possible"
                )

    def _find(self, target: Any, role: str) -> Any:
        """The constructor that `target`, a dotted name, stands for.

        Raises RequestError for a name that is not allowed. Its module is not imported then.
        """
        refused = RequestError(
            f"the config asks for {target!r} as {role}, which is not a public part of "
            f"{' or '.join(('genlab', *self.trust))}; nothing was run "
            "(to use your own package, name it on the command line: trust=[package])"
        )
        if not isinstance(target, str):
            raise refused
        package, _, name = target.rpartition(".")
        if target.split(".")[0] == "genlab":
            of_all_roles = {name: each for named in self.roles.values() for name, each in named.items()}
            # A trusted package may have parts of genlab under keys of its own.
            allowed = of_all_roles if self.trust else self.roles.get(role, of_all_roles)
            if target in allowed:
                return allowed[target]
            known = [each.rpartition(".")[2] for each in allowed if each.startswith(f"{package}.")]
            if known:
                raise RequestError(
                    f"the config asks for {target!r} as {role}, which does not exist: {nearest(name, known)}"
                )
            raise refused
        if target.split(".")[0] not in self.trust:
            raise refused
        try:
            constructor = getattr(importlib.import_module(package), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise RequestError(f"the config asks for {target!r}, which does not exist") from error
        # The name "mine.os.system" also begins with "mine.", so the module in which the object was defined is checked.
        if getattr(constructor, "__module__", "").split(".")[0] not in self.trust or not self.fits(constructor):
            raise refused
        return constructor


def trusted(value: Any) -> tuple[str, ...]:
    """The packages that `trust=` names. Raises RequestError for anything that is not a package's name."""
    names = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) and name.isidentifier() for name in names):
        raise RequestError(f"trust={value}: expected names of packages, like trust=[mypackage]")
    return tuple(names)


def _call(target: Callable[..., Any], /, **keywords: Any) -> Any:
    return target(**keywords)
