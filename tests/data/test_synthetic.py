"""Drawn cells: what is promised of the set (counts, determinism, folders) and of the shapes of each class."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from skimage.measure import label as components
from skimage.measure import regionprops
from skimage.morphology import disk, erosion

from cytodino_hf.data.drawing import IMAGE_SIZE_PX, LOOKS, draw_cell, slide_look
from cytodino_hf.data.drawing.canvas import Region
from cytodino_hf.data.drawing.shapes import NUCLEI
from cytodino_hf.data.images import read_rgb
from cytodino_hf.data.sources.synthetic import SOURCE, Options, class_counts, draw_image_set, load, plan
from cytodino_hf.errors import DataError
from cytodino_hf.taxonomy import MLL, MLL_IMAGE_COUNTS

SMALL = Options(cells=420, imbalance_power=0.5, seed=3, patients=12)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.jpg"))
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("drawn") / "cells"
    draw_image_set(out, **SMALL.model_dump(), workers=1, progress=False)
    return out


def test_counts_follow_the_power_and_the_floor() -> None:
    counts = class_counts(4000, 0.25)
    assert sum(counts.values()) == 4000
    weight = np.array([MLL_IMAGE_COUNTS[code] for code in MLL.codes], dtype=np.float64) ** 0.25
    expected = 4000 * weight / weight.sum()  # no class falls below the floor at this power
    assert expected.min() > 20
    assert np.abs(np.array([counts[code] for code in MLL.codes]) - expected).max() < 1

    steep = class_counts(4000, 1.0)
    assert sum(steep.values()) == 4000
    assert min(steep.values()) == 20
    ratio = MLL_IMAGE_COUNTS["NGS"] / MLL_IMAGE_COUNTS["EOS"]
    assert steep["NGS"] / steep["EOS"] == pytest.approx(ratio, rel=0.02)
    assert len(set(class_counts(4200, 0.0).values())) == 1


def test_every_class_is_described_and_no_two_alike() -> None:
    assert set(LOOKS) == set(MLL.codes)
    rules = [look.rule for look in LOOKS.values()]
    assert len(set(rules)) == len(rules)
    assert {look.nucleus for look in LOOKS.values()} <= set(NUCLEI)


@pytest.mark.parametrize("code", sorted(LOOKS))
def test_a_class_is_drawn_in_the_middle_and_by_its_seed(code: str) -> None:
    slide = slide_look(0, 1, 1)
    first, again, other = (draw_cell(code, slide, np.random.default_rng(s)) for s in (5, 5, 6))
    assert first.shape == (IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    middle = first[60:190, 60:190].mean(axis=2)
    assert middle.std() > 3 * slide.noise  # something lies there


def test_slides_differ_more_in_stain_than_pictures_of_one_slide() -> None:
    def means(slides: list[tuple[int, int]]) -> np.ndarray:
        pictures = [
            draw_cell("MYB", slide_look(0, *s), np.random.default_rng(i)) for i, s in enumerate(slides)
        ]
        return np.array([p[75:175, 75:175].mean(axis=(0, 1)) for p in pictures])

    across = means([(patient, 1) for patient in range(16)])
    within = means([(3, 1)] * 16)
    assert (across.std(axis=0) > within.std(axis=0)).all()


def nucleus_mask(form: str, seed: int) -> np.ndarray:
    outlines = NUCLEI[form](np.random.default_rng(seed), 50.0).outlines
    region = Region(np.zeros((200, 200, 3), np.uint8), [outline + 100 for outline in outlines])
    return np.pad(region.cover > 127, 3)


@pytest.mark.parametrize("seed", range(6))
def test_nuclei_have_the_shape_of_their_stage(seed: int) -> None:
    # Solidity (area by that of the convex hull) falls from myelocyte to band, as maturation goes.
    masks = {form: nucleus_mask(form, seed) for form in ("round", "kidney", "band", "segmented", "bilobed")}
    solidity = {form: regionprops(mask.astype(int))[0].solidity for form, mask in masks.items()}
    assert solidity["round"] > 0.97
    assert 0.75 < solidity["kidney"] < 0.97
    assert solidity["band"] < 0.75
    # Erosion cuts the strands: lobes come apart, a band and a kidney stay one.
    lobes = {form: components(erosion(mask, disk(7))).max() for form, mask in masks.items()}
    assert lobes["band"] == lobes["kidney"] == lobes["round"] == 1
    assert all(components(mask).max() == 1 for mask in masks.values())
    assert 2 <= lobes["segmented"] <= 5
    assert lobes["bilobed"] == 2


def test_cells_are_dealt_evenly_to_patients() -> None:
    cells = plan(Options(cells=4000, imbalance_power=0.25, seed=0, patients=40))
    for code in ("NGS", "ABE"):
        patients = np.bincount([c.patient for c in cells if c.code == code], minlength=41)[1:]
        assert patients.max() - patients.min() <= 1
    assert len({c.path for c in cells}) == len(cells) == 4000
    assert cells == plan(Options(cells=4000, imbalance_power=0.25, seed=0, patients=40))


def test_the_folder_is_mll_shaped_and_says_that_it_is_drawn(drawn: Path) -> None:
    with (drawn / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 420
    assert rows[0]["path"] == f"{rows[0]['label']}/0001-{class_counts(420, 0.5)[rows[0]['label']]:04d}/" + (
        f"{rows[0]['label']}_00001.jpg"
    )
    assert all(read_rgb(drawn / row["path"]).shape == (250, 250, 3) for row in rows[::40])
    assert "synthetic" in (drawn / "ABOUT.txt").read_text()


def test_pixels_do_not_depend_on_the_number_of_workers(drawn: Path, tmp_path: Path) -> None:
    draw_image_set(tmp_path / "two", **SMALL.model_dump(), workers=2, progress=False)
    assert digests(tmp_path / "two") == digests(drawn)


def test_load_gives_groups_by_patient(drawn: Path) -> None:
    images = load(drawn, MLL, SMALL)
    assert images.is_drawn
    assert images.group_kind == "patient"
    assert len(images.dataset) == 420
    assert images.counts() == {code: class_counts(420, 0.5)[code] for code in MLL.codes}
    assert len(set(images.dataset["group"])) == 12
    assert SOURCE.options is Options


def test_a_half_drawn_folder_is_finished(drawn: Path) -> None:
    whole = digests(drawn)
    record = json.loads((drawn / "drawn.json").read_text())
    (drawn / "drawn.json").write_text(json.dumps({**record, "complete": False}))
    for path in sorted(whole)[::100]:
        (drawn / path).unlink()
    load(drawn, MLL, SMALL)
    assert digests(drawn) == whole
    assert json.loads((drawn / "drawn.json").read_text())["complete"]


def test_the_cache_is_named_by_the_options(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CYTODINO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = load(None, MLL, SMALL)
    assert first.root.parent == tmp_path / "cytodino_hf" / "drawn"
    assert digests(first.root) == digests(drawn)
    before = {path: path.stat().st_mtime_ns for path in first.root.rglob("*")}
    assert load(None, MLL, SMALL).fingerprint() == first.fingerprint()
    assert {path: path.stat().st_mtime_ns for path in first.root.rglob("*")} == before


def test_another_folder_is_never_drawn_into(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("mine")
    with pytest.raises(DataError, match=r"letters\.txt"):
        load(tmp_path, MLL, SMALL)
    with pytest.raises(DataError, match=r"another data\.root"):
        load(drawn, MLL, SMALL.model_copy(update={"seed": 4}))
    with pytest.raises(DataError, match="is no folder"):
        load(drawn / "ABOUT.txt", MLL, SMALL)


def test_a_cache_that_cannot_be_written_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CYTODINO_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"data\.root"):
        load(None, MLL, SMALL)


def test_arguments_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cells"):
        draw_image_set(tmp_path / "x", cells=100, seed=0, imbalance_power=0.2, patients=10)
    assert not (tmp_path / "x").exists()
