"""The data section of a pretraining recipe: every mistake at its place, and the way back to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cytodino_hf.pretraining.mixture_section import MixturePlan, parse_mixture
from cytodino_hf.recipe_mistakes import parse_overrides


def parse(data: Any) -> tuple[MixturePlan | None, list[str]]:
    found: list[str] = []
    return parse_mixture(data, found), found


def test_every_mistake_is_named_at_its_place() -> None:
    _, found = parse(
        {
            "sources": {
                "a": {"source": "mll", "root": "/nowhere/at/all", "wieght": 1, "mll": {"versoin": 2}},
                "b": {"source": "foldr", "split": "missing.csv", "taxonomy": "none such"},
                "c": {"weight": -1.0, "fractions": {"train": 0.9}},
                "d": 5,
                "e.f": {},
            },
            "images_per_epoch": 0,
            "holdout": [],
        }
    )
    text = "\n".join(found)
    for part in (
        "data.sources.a.root = '/nowhere/at/all': no such folder",
        "data.sources.a.wieght: unknown key; did you mean 'weight'?",
        "data.sources.a.mll.versoin: unknown key; did you mean 'version'?",
        "data.sources.b.source = 'foldr': unknown source; did you mean 'image_folder'?",
        "data.sources.b.split = 'missing.csv'",
        "data.sources.b.taxonomy = 'none such'",
        "data.sources.c.weight = -1.0: must be at least 0",
        "data.sources.c.fractions: must sum to 1",
        "data.sources.d = 5: must be an object",
        "the name 'e.f' must be letters",
        "data.images_per_epoch = 0: must be at least 1",
        "data.holdout: unknown key; did you mean 'hold_out'?",
    ):
        assert part in text, part


@pytest.mark.parametrize("sources", [None, {}, [], "mll"])
def test_a_mixture_has_a_source(sources: Any) -> None:
    plan, found = parse({} if sources is None else {"sources": sources})
    assert plan is None
    assert len(found) == 1
    assert "must name one source or more" in found[0]


def test_weights_for_all_or_for_none() -> None:
    def mistakes(*weights: float | None) -> str:
        sources = {f"s{i}": {"source": "synthetic", "weight": weight} for i, weight in enumerate(weights)}
        return "\n".join(parse({"sources": sources})[1])

    assert mistakes(None, None) == mistakes(1.0, 0.5) == mistakes(None, 0.0) == mistakes(2, 0.0) == ""
    assert "data.sources.s1.weight = None: must be a number" in mistakes(1.0, None)
    assert "nothing would be drawn" in mistakes(0.0, 0.0)


def test_files_to_hold_out_must_exist(tmp_path: Path) -> None:
    sources = {"a": {"source": "synthetic"}}
    (tmp_path / "split.csv").write_text("path\n1.png\n")
    assert parse({"sources": sources, "hold_out": [str(tmp_path / "split.csv")]})[1] == []
    assert "no such file" in parse({"sources": sources, "hold_out": [str(tmp_path / "other.csv")]})[1][0]


def test_a_plan_written_and_read_is_the_same_plan() -> None:
    data = {
        "sources": {
            "one": {"source": "mll", "weight": 0.5, "mll": {"exclude": ["BLA_1"]}},
            "two": {"source": "synthetic", "weight": 1.5, "synthetic": {"seed": 7}},
        },
        "images_per_epoch": 10,
    }
    plan, found = parse(data)
    assert found == []
    assert plan is not None
    written = plan.to_dict()
    assert written["sources"]["two"]["synthetic"]["seed"] == 7
    assert "image_folder" not in written["sources"]["two"]
    assert parse(written) == (plan, [])


def test_keys_of_a_source_can_be_changed_on_the_command_line(tmp_path: Path) -> None:
    document: dict[str, Any] = {"data": {"sources": {"one": {"source": "image_folder"}}}}
    tokens = ["--data.sources.one.root", str(tmp_path), "--data.sources.one.image_folder.labels", "none"]
    assert parse_overrides([*tokens, "--data.sources.one.weight", "2"], document) == []
    plan, found = parse(document["data"])
    assert found == []
    assert plan is not None
    assert (plan.entries[0].entry.root, plan.entries[0].entry.weight) == (str(tmp_path), 2.0)
    assert plan.entries[0].options.model_dump()["labels"] == "none"
