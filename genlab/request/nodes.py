"""Small functions on a composed config: its keys, its plain values, the section of a key."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genlab.core import RequestError
from genlab.request.values import format_value

LONGEST_ERROR = 240  # characters of a library's message in one of ours


def dotted_keys(node: Any, prefix: str = "") -> list[str]:
    """All keys of a config, also those of its sections: "model", "model.net", "model.net.width", …."""
    keys: list[str] = []
    for key in node:
        keys.append(f"{prefix}{key}")
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            keys += dotted_keys(child, f"{prefix}{key}.")
    return keys


def keys_without_hydra(config: DictConfig) -> list[str]:
    """`dotted_keys` without those of Hydra's own section."""
    return [key for key in dotted_keys(config) if key.partition(".")[0] != "hydra"]


def plain_values(config: DictConfig) -> dict[str, Any]:
    """The config as plain values, resolved and without Hydra's section; a missing value is "???".

    Raises RequestError if an interpolation cannot be resolved.
    """
    plain: dict[str, Any] = {}
    try:
        for key in (str(key) for key in config if key != "hydra"):
            value = "???" if OmegaConf.is_missing(config, key) else config[key]
            plain[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        raise RequestError(f"the config does not resolve: {format_error(error)}") from error
    return plain


def section_of(config: DictConfig, key: str) -> DictConfig | None:
    """The section that holds a dotted key: of "model.net.width", the section "model.net". None if there is none."""
    section = key.rpartition(".")[0]
    try:
        node = OmegaConf.select(config, section) if section else config
    except OmegaConfBaseException:
        return None
    return node if isinstance(node, DictConfig) else None


def missing_keys(config: DictConfig) -> list[str]:
    """The dotted keys whose value is "???", Hydra's section left out."""
    missing = []
    for key in keys_without_hydra(config):
        section, _, name = key.rpartition(".")
        if OmegaConf.is_missing(OmegaConf.select(config, section) if section else config, name):
            missing.append(key)
    return missing


def format_error(error: BaseException) -> str:
    """The message of a library's error as one short line."""
    return format_value(" ".join(str(error).split()) or type(error).__name__, LONGEST_ERROR)
