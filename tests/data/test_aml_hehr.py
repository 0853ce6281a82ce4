"""AML_Hehr: the first folder is the diagnosis, the second the patient."""

from __future__ import annotations

from pathlib import Path

import pytest
import set_layouts

from cytodino_hf.data.samples import CellImages
from cytodino_hf.data.sources import aml_hehr
from cytodino_hf.data.splits import assign_folds
from cytodino_hf.errors import DataError
from cytodino_hf.other_sets import OTHER_TAXONOMIES
from cytodino_hf.taxonomy import MLL, Taxonomy

OWN = OTHER_TAXONOMIES["aml_hehr"]


def load(root: Path | None, taxonomy: Taxonomy = OWN) -> CellImages:
    return aml_hehr.load(root, taxonomy, aml_hehr.Options())


@pytest.mark.parametrize("above", [[], ["data"]], ids=["above data", "data itself"])
def test_patients_are_groups_and_diagnoses_labels(tmp_path: Path, above: list[str]) -> None:
    images = load(set_layouts.aml_hehr(tmp_path).joinpath(*above))
    assert images.root == tmp_path / "data"
    assert images.counts() == {"PML_RARA": 4, "NPM1": 2, "control": 4}
    assert images.group_kind == "patient"
    assert set(images.column("group")) == {"AAB", "AAC", "AAD", "AAE", "AAF"}
    assert images.column("path")[0] == "NPM1/AAD/image_0.tif"


def test_no_patient_is_torn_apart(tmp_path: Path) -> None:
    images = load(set_layouts.aml_hehr(tmp_path))
    fractions = {"train": 0.5, "validation": 0.1, "calibration": 0.1, "test": 0.3}
    split = assign_folds(images, split="stratified", fractions=fractions, seed=0)
    folds_of: dict[str, set[str | None]] = {}
    for group, fold in zip(split.images.column("group"), split.images.folds, strict=True):
        folds_of.setdefault(group, set()).add(fold)
    assert all(len(folds) == 1 for folds in folds_of.values())


@pytest.mark.parametrize(
    ("folder", "code"),
    [
        ("APL with PML::RARA", "PML_RARA"), ("PML_RARA", "PML_RARA"), ("npm1", "NPM1"), ("AML with NPM1", "NPM1"),
        ("CBFB_MYH11", "CBFB_MYH11"), ("RUNX1::RUNX1T1", "RUNX1_RUNX1T1"), ("Control", "control"),
        ("lymphoma", None), ("NPM1 and CBFB", None),
    ],
)  # fmt: skip
def test_diagnoses_are_known_however_they_are_written(folder: str, code: str | None) -> None:
    assert aml_hehr.diagnosis_of(folder) == code


def test_an_image_of_no_patient_is_rejected(tmp_path: Path) -> None:
    root = set_layouts.aml_hehr(tmp_path)
    set_layouts.save(root / "data" / "NPM1" / "image_9.tif", 9)
    images = load(root)
    assert [(i.path, i.on_purpose) for i in images.rejected] == [("NPM1/image_9.tif", False)]


def test_mistakes_are_named(tmp_path: Path) -> None:
    root = set_layouts.aml_hehr(tmp_path)
    with pytest.raises(DataError, match=r"data\.taxonomy to 'aml_hehr'"):
        load(root, MLL)
    set_layouts.save(root / "data" / "AML with NPM1" / "AAZ" / "image_0.tif", 1)
    with pytest.raises(DataError, match="AML with NPM1 and NPM1"):
        load(root)
    (root / "data" / "AML with NPM1").rename(root / "data" / "lymphoma")
    with pytest.raises(DataError, match="lymphoma"):
        load(root)
    with pytest.raises(DataError, match="6ppe-4020"):
        load(None)
