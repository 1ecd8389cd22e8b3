"""Checks of the numbers in a request: counts, the temperature, the seed."""

from __future__ import annotations

from omegaconf import DictConfig

from genlab.core import RequestError

TEMPERATURES = 1e-9, 1e4  # beyond these, logits and latents are not finite in float32


def check_at_least(config: DictConfig, key: str, least: int) -> None:
    """Raise RequestError unless config[key] is a whole number of at least `least`."""
    value = config[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise RequestError(f"{key}={value}: expected a whole number of at least {least}")


def check_temperature(config: DictConfig) -> None:
    """Raise RequestError unless the temperature is a number in the range `TEMPERATURES`."""
    t, (least, most) = config.temperature, TEMPERATURES
    if not isinstance(t, (int, float)) or isinstance(t, bool) or not t > 0:
        raise RequestError(f"temperature={t}: expected a number above 0 (1 is the model's own distribution)")
    if not least <= t <= most:
        raise RequestError(f"temperature={t}: expected a number from {least:g} to {most:g} (1 is the model's own)")


def check_seed(config: DictConfig) -> None:
    """Raise RequestError unless the seed is a whole number that torch's generators accept."""
    if not isinstance(config.seed, int) or isinstance(config.seed, bool) or not 0 <= config.seed < 2**63:
        raise RequestError(f"seed={config.seed}: expected a whole number from 0 to 2^63 - 1")
