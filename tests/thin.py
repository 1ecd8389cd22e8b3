"""Near-equal cases, of which `make check` asks every few and the whole suite all."""

from __future__ import annotations

from collections.abc import Iterable

import pytest


def every(n: int, cases: Iterable) -> list:
    """The cases, all but every n-th marked slow."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow if i % n else ())
        for i, case in enumerate(cases)
    ]
