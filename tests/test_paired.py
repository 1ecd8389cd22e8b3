"""Tables of paired comparisons (scripts/paired.py): words that replace those of the base, and gains by seed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from omegaconf import OmegaConf

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("paired", ROOT / "scripts" / "paired.py")
paired = importlib.util.module_from_spec(spec)
spec.loader.exec_module(paired)


def test_a_variant_replaces_words_of_the_base_or_adds_some():
    table = OmegaConf.create({"base": "a=1 b=2", "variants": {"other": "b=3 c=4"}})
    assert paired.variants(table) == {"base": "a=1 b=2", "other": "a=1 b=3 c=4"}


def test_a_gain_is_the_mean_over_the_seeds_that_both_have(tmp_path, monkeypatch):
    (tmp_path / "toy.yaml").write_text("minutes: 6\nbase: a=1\nvariants:\n  other: a=2\n  missing: a=3\n")
    rows = [("a=1", 0, 4.0), ("a=1", 1, 4.2), ("a=2", 0, 3.9), ("a=2", 1, 3.9), ("a=2", 2, 9.0)]
    lines = [
        json.dumps({"words": w, "seed": s, "minutes": 6, "bits_per_dim": v, "steps": 10, "parameters": 5})
        for w, s, v in rows
    ]
    (tmp_path / "toy.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(paired, "FILES", tmp_path)
    *_, first, second, empty = paired.tables()
    assert first.startswith("| other | 3.9000, 3.9000, 9.0000 | -0.2000 |")
    assert second.startswith("| base | 4.0000, 4.2000 | +0.0000 |")
    assert empty == ""


def test_the_words_of_every_cell_compose():
    from genlab.request.compose import Request

    for file in paired.FILES.glob("*.yaml"):
        for words in paired.variants(OmegaConf.load(file)).values():
            assert Request("train", words.split(), "").config()
