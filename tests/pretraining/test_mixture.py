"""Mixtures: what is drawn, what is held out under whatever name it lies, and the record of both."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from clouds import labelled_set, picture, save

from cytodino_hf.errors import DataError
from cytodino_hf.pretraining.held_out import rows_named
from cytodino_hf.pretraining.mixture import Mixture, load_mixture
from cytodino_hf.pretraining.mixture_section import parse_mixture
from cytodino_hf.pretraining.views import ViewsSection

FOLDS = ("train", "train", "train", "train", "validation", "calibration", "test", "test")


def load(**data: Any) -> Mixture:
    found: list[str] = []
    plan = parse_mixture(data, found)
    assert found == []
    assert plan is not None
    return load_mixture(plan)


def unlabelled(root: Path, **keys: Any) -> dict[str, Any]:
    return {"root": str(root), "image_folder": {"labels": "none"}, **keys}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of eight images with a split."""
    return labelled_set(tmp_path_factory.mktemp("labelled"), FOLDS, prefix=True)


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory, labelled: Path) -> Path:
    """Images without labels, among them copies of the labelled ones: exact, saved anew, and one of a training image."""
    root = tmp_path_factory.mktemp("loose")
    for number, side in enumerate((40, 64, 100, 250)):
        save(root / f"smear {number}" / "deep" / f"{number}.png", picture(100 + number, side))
    save(root / "top.png", picture(110))
    copied = (labelled / "cells" / "BLA" / "BLA_7.png").read_bytes()
    (root / "test_copy.png").write_bytes(copied)
    smaller = cv2.resize(cv2.rotate(picture(14), cv2.ROTATE_90_CLOCKWISE), (52, 52))
    save(root / "validation_anew.jpg", smaller, quality=90)
    save(root / "train_anew.jpg", picture(11), quality=90)
    (root / "broken.png").write_bytes(copied[:200])
    return root


@pytest.fixture(scope="module")
def both(labelled: Path, loose: Path) -> Mixture:
    return load(
        sources={
            "known": {"root": str(labelled / "cells"), "split": str(labelled / "split.csv")},
            "loose": unlabelled(loose, max_rejected_share=0.5, attribution="me, CC0"),
        }
    )


def test_only_training_images_and_no_copy_of_another_fold(both: Mixture) -> None:
    assert both.images == 8 + 6
    own = [f"known/{code}/{code}_{number}" for code in ("BLA", "LYT") for number in range(4)]
    others = [f"smear {number}/deep/{number}" for number in range(4)]
    assert both.ids == [*own, *(f"loose/{name}" for name in (*others, "top", "train_anew"))]
    assert both.weights == {"known": 8 / 14, "loose": 6 / 14}


def test_the_record_says_what_was_left_out_and_why(both: Mixture, labelled: Path, loose: Path) -> None:
    record = both.record()
    known, other = record["sources"]
    assert known["left_out"] == {"validation": 2, "calibration": 2, "test": 4}
    assert other["left_out"] == {"shows the same picture as a held-out image": 2}
    assert (other["unusable_files"], other["attribution"]) == (1, "me, CC0")
    assert (known["images"], other["images"], record["images"]) == (8, 6, 14)
    assert known["split"] == "split.csv"
    text = json.dumps(record)
    assert str(labelled.parent) not in text
    assert str(loose.parent) not in text


def test_anybody_can_check_the_lists(both: Mixture, labelled: Path, loose: Path, tmp_path: Path) -> None:
    both.write_lists(tmp_path)
    rows = list(csv.DictReader((tmp_path / "images.csv").open()))
    assert [f"{row['source']}/{row['id']}" for row in rows] == sorted(both.ids)
    test_image = (labelled / "cells" / "BLA" / "BLA_7.png").read_bytes()
    sums = {row["sha256"] for row in rows}
    assert hashlib.sha256(test_image).hexdigest() not in sums
    assert hashlib.sha256((loose / "top.png").read_bytes()).hexdigest() in sums
    # cut -d, -f3 images.csv | tail -n +2 | sort | sha256sum
    lines = (tmp_path / "images.csv").read_text().splitlines()[1:]
    third = sorted(line.split(",")[2] for line in lines)
    expected = hashlib.sha256("".join(f"{line}\n" for line in third).encode()).hexdigest()
    assert both.record()["images_sha256"] == expected
    left = list(csv.DictReader((tmp_path / "left_out.csv").open()))
    assert Counter(row["reason"] for row in left if row["source"] == "known") == {
        "test": 4, "validation": 2, "calibration": 2
    }  # fmt: skip
    assert {row["id"] for row in left if row["source"] == "loose"} == {
        "test_copy", "validation_anew", "broken.png"
    }  # fmt: skip


def test_folds_that_a_source_knows_hold_without_a_split(tmp_path: Path) -> None:
    lines = ["path,fold"]
    for number, fold in enumerate(("train", "train", "", "validation", "calibration", "test")):
        save(tmp_path / f"{number}.png", picture(300 + number))
        lines.append(f"{number}.png,{fold}")
    (tmp_path / "cells.csv").write_text("\n".join(lines) + "\n")
    options = {"labels": "none", "table": "cells.csv"}
    mixture = load(sources={"all": {"root": str(tmp_path), "image_folder": options}})
    assert sorted(mixture.ids) == ["all/0", "all/1", "all/2"]
    assert mixture.record()["sources"][0]["left_out"] == {"validation": 1, "calibration": 1, "test": 1}


def test_a_list_of_held_out_images_that_fits_none_is_refused(labelled: Path, tmp_path: Path) -> None:
    """Copies under other names could not be told from the rest."""
    save(tmp_path / "all" / "renamed.png", picture(7))
    with pytest.raises(DataError, match=r"hold_out: none of the 8 images .* source of weight 0"):
        load(sources={"all": unlabelled(tmp_path / "all")}, hold_out=[str(labelled / "split.csv")])


def test_held_out_names_count_where_the_images_themselves_are_not_there(
    labelled: Path, tmp_path: Path
) -> None:
    """Other pictures under the names of the split: nothing but the name can tell."""
    save(tmp_path / "all" / "BLA" / "BLA_7.png", picture(200))
    save(tmp_path / "all" / "LYT_4.jpg", picture(201), quality=95)
    save(tmp_path / "all" / "LYT_0.png", picture(202))
    mixture = load(sources={"all": unlabelled(tmp_path / "all")}, hold_out=[str(labelled / "split.csv")])
    assert mixture.ids == ["all/LYT_0"]
    assert mixture.record()["sources"][0]["left_out"] == {"held out by hold_out": 2}
    assert "names 8 images outside its training fold; 2 images fit" in mixture.notes[-1]


def test_a_listed_path_goes_before_a_file_name() -> None:
    paths = ["p1/1.png", "p2/1.png", "x/p3/1.png", "p3/2.jpg"]
    assert rows_named(["p1/1.png"], paths) == [0]
    assert rows_named(["p3/1.png"], paths) == [2]
    assert rows_named(["/elsewhere/1.tif"], paths) == [0, 1, 2]
    assert rows_named(["2"], paths) == [3]
    assert rows_named([], paths) == []


def test_a_source_of_weight_0_only_holds_out(labelled: Path, loose: Path) -> None:
    mixture = load(
        sources={
            "known": {
                "root": str(labelled / "cells"),
                "split": str(labelled / "split.csv"),
                "weight": 0,
            },
            "loose": unlabelled(loose, max_rejected_share=0.5, weight=2.0),
        },
        images_per_epoch=9,
    )
    assert mixture.images == 6
    assert all(name.startswith("loose/") for name in mixture.ids)
    assert mixture.weights == {"known": 0, "loose": 1}
    data = mixture.dataset_for(ViewsSection(global_size_px=16), lambda draws: np.zeros((2, 1), bool), 0)
    assert len(data) == 6
    assert len(mixture.sampler(0)) == 9
    assert {row for row, _, _ in mixture.sampler(0)} == set(range(6))


@pytest.mark.parametrize("cache", ["bytes", "pixels"])
def test_a_cache_changes_no_pixel(labelled: Path, cache: str) -> None:
    entry = {"root": str(labelled / "cells"), "split": str(labelled / "split.csv")}
    plain, packed = load(sources={"a": entry}), load(sources={"a": entry | {"cache": cache}})
    views = ViewsSection(global_size_px=16)
    one, other = (m.dataset_for(views, lambda draws: np.zeros((2, 1), bool), 0) for m in (plain, packed))
    assert all(np.array_equal(one.original(row), other.original(row)) for row in range(len(one)))
    assert plain.fingerprint() == packed.fingerprint()


def test_the_fingerprint_follows_content_and_draws(labelled: Path, tmp_path: Path) -> None:
    for number in range(4):
        save(tmp_path / f"{number}.png", picture(number))
    prints = [
        load(sources={"a": unlabelled(tmp_path)}).fingerprint(),
        load(sources={"a": unlabelled(tmp_path)}, images_per_epoch=3).fingerprint(),
        load(sources={"b": unlabelled(tmp_path)}).fingerprint(),
    ]
    assert load(sources={"a": unlabelled(tmp_path)}).fingerprint() == prints[0]
    save(tmp_path / "0.png", picture(50))
    prints.append(load(sources={"a": unlabelled(tmp_path)}).fingerprint())
    assert len(set(prints)) == 4


def test_a_drawn_split_is_that_of_the_fine_tuning(labelled: Path) -> None:
    from cytodino_hf.data.loading import load_split
    from cytodino_hf.recipe import parse_recipe

    fractions = {"train": 0.5, "validation": 0.125, "calibration": 0.125, "test": 0.25}
    split = {"split": "stratified", "split_seed": 3, "fractions": fractions}
    mixture = load(sources={"a": {"root": str(labelled / "cells"), **split}})
    document = {
        "data": {"source": "image_folder", "root": str(labelled / "cells"), **split},
        "model": {"backbone": "facebook/dinov3-vits16-pretrain-lvd1689m"},
        "training": {"output_dir": "unused"},
    }
    images = load_split(parse_recipe(document, source="test")).images
    assert mixture.ids == [f"a/{name}" for name in images.fold("train").column("id")]


def test_what_cannot_be_used_is_named_with_its_source(labelled: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"data\.sources\.cells: no images found in .*empty"):
        load(sources={"cells": unlabelled(tmp_path / "empty")})
    save(tmp_path / "copies" / "x.png", picture(6))
    known = {"root": str(labelled / "cells"), "split": str(labelled / "split.csv")}
    with pytest.raises(DataError, match=r"data\.sources\.copies: no image .* is left to pretrain on"):
        load(sources={"known": known, "copies": unlabelled(tmp_path / "copies")})
    save(tmp_path / "one" / "x.png", picture(300))
    with pytest.raises(DataError, match=r"data\.sources\.one: an epoch of 8 images draws none"):
        load(
            sources={
                "known": known | {"weight": 1000.0},
                "one": unlabelled(tmp_path / "one", weight=0.1),
            },
            images_per_epoch=8,
        )


@pytest.mark.real_data
def test_real_cells_with_their_split_and_more_of_them(real_data: Path) -> None:
    split = real_data / "mll7" / "split.csv"
    mixture = load(
        sources={
            "mll7": {"source": "mll", "root": str(real_data / "mll7"), "split": str(split)},
            "more": {"source": "mll", "root": str(real_data / "mll7_more")},
        },
        hold_out=[str(split)],
    )
    assert [source["images"] for source in mixture.record()["sources"]] == [840, 3994]
    folds = {row["path"][:-4]: row["fold"] for row in csv.DictReader(split.open())}
    mine = [name.removeprefix("mll7/") for name in mixture.ids if name.startswith("mll7/")]
    assert {folds[name] for name in mine} == {"train"}
    assert not {name.removeprefix("more/") for name in mixture.ids} & folds.keys()
    assert "CC BY 4.0" in mixture.record()["sources"][1]["attribution"]
