"""From a config of plain values to objects: the only place in genlab where a config says what is called.

A `_target_` names a public constructor of genlab or something of a package that the user trusts (`trust=`). Every
package of genlab lists its public constructors in `CONFIGURABLE`, by the config key under which they may stand. Names
are looked up in those lists; no attribute is followed. `_partial_: true` makes a constructor that waits for the rest of
its arguments. No value is interpolated or converted here: Hydra has composed the config and is not used again.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from genlab.core import RequestError, nearest

PACKAGES = {"model": ("models", "nets", "heads", "codes", "flows"), "data": ("data",)}
MOST_LAYERS = 1_000  # to build a layer takes a tenth of a millisecond, or more
LAYERS = {"depth", "layers", "levels", "resolutions", "steps"}  # what our constructors call a number of layers
MOST = 10_000_000  # any other number in a config of a model or a data set
UNBOUNDED = {"seed", "max_pixels"}  # nothing is allocated for these
CALLS = {"_target_", "_partial_"}


def public(kind: str) -> dict[str, dict[str, Any]]:
    """{config key: {dotted name: constructor}}; `kind` is "model" or "data"."""
    found: dict[str, dict[str, Any]] = {}
    for package in PACKAGES[kind]:
        module = importlib.import_module(f"genlab.{package}")
        for role, names in module.CONFIGURABLE.items():
            found.setdefault(role, {}).update({f"genlab.{package}.{name}": getattr(module, name) for name in names})
    return found


class Gate:
    """What a config of a `kind` ("model" or "data") may build; `fits`: which objects of trusted packages it may."""

    def __init__(self, kind: str, trust: Sequence[str], fits: Callable[[Any], bool]) -> None:
        self.kind, self.trust, self.fits = kind, trusted(trust), fits

    @cached_property
    def roles(self) -> dict[str, dict[str, Any]]:
        """The public constructors, imported at first use: a config that is refused earlier imports nothing."""
        return public(self.kind)

    def plan(self, config: Any, role: str) -> Callable[[], Any]:
        """A function that makes what a config describes. The whole config is checked now; nothing is called yet."""
        if not isinstance(config, Mapping) or "_target_" not in config:
            raise RequestError(f"the {role} config does not name what to build: it has no _target_")
        return self._plan(config, role)

    def foreign(self, config: Any) -> bool:
        """Whether the config names anything outside genlab."""
        if isinstance(config, Mapping):
            own = str(config.get("_target_", "genlab.")).startswith("genlab.")
            return not own or any(map(self.foreign, config.values()))
        return isinstance(config, (list, tuple)) and any(map(self.foreign, config))

    def _plan(self, node: Any, role: str) -> Callable[[], Any]:
        """`plan` of any node of the config, plain values included."""
        if isinstance(node, (list, tuple)):
            parts = [self._plan(each, role) for each in node]
            return lambda: [part() for part in parts]
        if not isinstance(node, Mapping):
            if isinstance(node, (int, float)) and abs(node) > MOST and role not in UNBOUNDED:
                raise RequestError(f"{role}={node} in the config of the {self.kind}: at most {MOST:,} is possible")
            return lambda: node
        unknown = next((key for key in node if str(key).startswith("_") and key not in CALLS), None)
        if unknown is not None:
            raise RequestError(f"the config of the {self.kind} has the key {unknown!r}, which means nothing here")
        keywords = {str(key): self._plan(value, str(key)) for key, value in node.items() if key not in CALLS}
        if "_target_" not in node:
            return lambda: {key: part() for key, part in keywords.items()}
        target = self._find(node["_target_"], role)
        many = {key: node[key] for key in LAYERS & set(node) if isinstance(node[key], int) and node[key] > MOST_LAYERS}
        for key, value in many.items() if str(node["_target_"]).startswith("genlab.") else ():
            raise RequestError(f"{key}={value} in the config of the {self.kind}: at most {MOST_LAYERS:,} is possible")
        call = partial if node.get("_partial_") is True else _call
        return lambda: call(target, **{key: part() for key, part in keywords.items()})

    def _find(self, target: Any, role: str) -> Any:
        """The constructor of a dotted name. RequestError for a name that is not allowed, before it is imported."""
        refused = RequestError(
            f"the config asks for {target!r} as {role}, which is not a public part of "
            f"{' or '.join(('genlab', *self.trust))}; nothing was run "
            "(to use your own package, name it on the command line: trust=[package])"
        )
        if not isinstance(target, str):
            raise refused
        package, _, name = target.rpartition(".")
        if target.split(".")[0] == "genlab":
            everything = {n: f for found in self.roles.values() for n, f in found.items()}
            fitting = everything if self.trust else self.roles.get(role, everything)  # which may use other keys
            if target in fitting:
                return fitting[target]
            known = [each.rpartition(".")[2] for each in fitting if each.startswith(f"{package}.")]
            if known:
                raise RequestError(
                    f"the config asks for {target!r} as {role}, which does not exist: {nearest(name, known)}"
                )
            raise refused
        if target.split(".")[0] not in self.trust:
            raise refused
        try:
            found = getattr(importlib.import_module(package), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise RequestError(f"the config asks for {target!r}, which does not exist") from error
        # The object itself is checked, not its name: mine.os.system also begins with "mine.".
        if getattr(found, "__module__", "").split(".")[0] not in self.trust or not self.fits(found):
            raise refused
        return found


def trusted(value: Any) -> tuple[str, ...]:
    """The packages that `trust` names. RequestError for anything but names."""
    names = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) and name.isidentifier() for name in names):
        raise RequestError(f"trust={value}: expected names of packages, like trust=[mypackage]")
    return tuple(names)


def _call(target: Callable[..., Any], /, **keywords: Any) -> Any:
    return target(**keywords)
