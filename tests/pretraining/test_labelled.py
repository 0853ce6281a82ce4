"""What the probe scores is held out of every source, under whatever name it lies, and read once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clouds import labelled_set, picture, save

from cytodino_hf.data.inspection.scan import scan_images
from cytodino_hf.pretraining import looked
from cytodino_hf.pretraining.mixture import Mixture
from cytodino_hf.pretraining.pretrain import load_images
from cytodino_hf.pretraining.recipe import parse_pretrain_recipe
from cytodino_hf.run_folder import RunFolder

FOLDS = ("train", "train", "train", "validation", "calibration", "test")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cells/`, two classes of six images, and `split.csv`."""
    return labelled_set(tmp_path_factory.mktemp("known"), FOLDS)


@pytest.fixture
def load(
    known: Path, tiny_pretraining: Callable[..., dict[str, Any]], tmp_path: Path
) -> Callable[..., Mixture]:
    def load(sources: dict[str, Any], **data: Any) -> Mixture:
        document = tiny_pretraining(known / "cells", tmp_path / "run")
        document["data"] = {"sources": sources, **data}
        document["probe"] |= {"split": str(known / "split.csv")}
        return load_images(parse_pretrain_recipe(document, source="test"))

    return load


def loose(root: Path, **keys: Any) -> dict[str, Any]:
    return {"root": str(root), "image_folder": {"labels": "none"}, **keys}


def test_copies_of_all_folds_but_the_training_fold_are_left_out(
    load: Callable[..., Mixture], tmp_path: Path
) -> None:
    """Only the exact copy of a validation image was found by its sum; now all copies of three folds are."""
    for number, name in ((0, "train"), (3, "validation"), (14, "calibration"), (15, "test"), (90, "new")):
        save(tmp_path / "loose" / f"{name}.png", picture(number))
    save(tmp_path / "loose" / "validation_turned.jpg", np.rot90(picture(13)), quality=88)
    save(tmp_path / "loose" / "train_anew.jpg", picture(1), quality=88)
    mixture = load({"loose": loose(tmp_path / "loose")})
    assert mixture.ids == ["loose/new", "loose/train", "loose/train_anew"]
    record = mixture.record()
    assert [source["name"] for source in record["sources"]] == ["loose"]
    assert record["sources"][0]["left_out"] == {"shows the same picture as a held-out image": 4}
    assert [note for note in mixture.notes if note.startswith("probe: 6 images of the validation")] != []
    assert "or of the probe's labelled set" in record["held_out"]


def test_the_same_set_without_a_split_gives_its_training_fold_only(
    load: Callable[..., Mixture], known: Path
) -> None:
    mixture = load({"cells": {"root": str(known / "cells")}})
    assert mixture.ids == [f"cells/{code}/{number}" for code in ("BLA", "LYT") for number in range(3)]
    assert mixture.record()["sources"][0]["left_out"] == {"held out by the probe": 6}
    assert len([note for note in mixture.notes if note.startswith("probe: ")]) == 1


def test_the_same_set_with_the_same_split_changes_nothing_and_is_read_once(
    load: Callable[..., Mixture], known: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots: list[Path] = []

    def counted(images: Any) -> Any:
        roots.append(images.root)
        return scan_images(images)

    monkeypatch.setattr(looked, "scan_images", counted)
    mixture = load({"cells": {"root": str(known / "cells"), "split": str(known / "split.csv")}})
    assert roots == [known / "cells"]
    assert mixture.record()["sources"][0]["left_out"] == {"calibration": 2, "test": 2, "validation": 2}
    assert [note for note in mixture.notes if note.startswith("probe")] == []


def test_a_list_of_held_out_images_may_fit_the_probes_set_alone(
    load: Callable[..., Mixture], tmp_path: Path
) -> None:
    """A training image of the probe is held out by name, and its copy in the source by what it shows."""
    (tmp_path / "test.txt").write_text("BLA/0.png\n")
    save(tmp_path / "loose" / "renamed.png", picture(0))
    save(tmp_path / "loose" / "new.png", picture(91))
    mixture = load({"loose": loose(tmp_path / "loose")}, hold_out=[str(tmp_path / "test.txt")])
    assert mixture.ids == ["loose/new"]


def test_another_fold_of_the_probe_is_another_run(
    known: Path, tiny_pretraining: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """What is drawn stays the same; what the log compares does not."""
    save(tmp_path / "loose" / "new.png", picture(92))
    document = tiny_pretraining(known / "cells", tmp_path / "run")
    document["data"] = {"sources": {"loose": loose(tmp_path / "loose")}}
    document["probe"] |= {"split": str(known / "split.csv")}
    first = load_images(parse_pretrain_recipe(document, source="test"))
    lines = (known / "split.csv").read_text().replace("BLA/0.png,BLA,train", "BLA/0.png,BLA,validation")
    (tmp_path / "other.csv").write_text(lines)
    (tmp_path / "moved.csv").write_text((known / "split.csv").read_text())
    document["probe"]["split"] = str(tmp_path / "other.csv")
    other = load_images(parse_pretrain_recipe(document, source="test"))
    assert (first.ids, other.ids) == (["loose/new"], ["loose/new"])
    assert first.fingerprint() != other.fingerprint()
    document["probe"]["split"] = str(tmp_path / "moved.csv")
    moved = parse_pretrain_recipe(json.loads(json.dumps(document)), source="test")
    assert load_images(moved).fingerprint() == first.fingerprint()
    RunFolder(tmp_path / "run").check(moved)
