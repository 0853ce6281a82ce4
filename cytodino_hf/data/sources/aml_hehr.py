"""Blood cells of 189 patients, four genetic types of acute myeloid leukaemia and controls: TIFF of 144 x 144.

Layout: `<root>/data/<DIAGNOSIS>/<PATIENT>/image_N.tif`. Every image carries the diagnosis of its patient, which most of
its cells do not show: a label for bags of cells, and a weak one for single cells. The patient is the group, so splits
are patient-safe.
"""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import DataError
from ...taxonomy import Taxonomy
from ..samples import CellImages, RejectedImage
from .base import Source, SourceOptions
from .folders import FoundImages, find_class_root, index_class_folders, subfolders
from .translated import build_translated, need_root, no_class_folder, own_taxonomy

ATTRIBUTION = (
    "Hehr et al. (2023), A morphological dataset of white blood cells from patients with four different genetic AML "
    "entities and non-malignant controls, The Cancer Imaging Archive, doi 10.7937/6ppe-4020, under the licence "
    "stated there"
)
_WHERE = "The Cancer Imaging Archive, doi 10.7937/6ppe-4020"
_WRAPPERS = ("data",)
_MAX_DEPTH = 3
# What tells a diagnosis in the name of its folder, letters and digits only. RUNX1T1 is never meant without RUNX1.
_SIGNS = (
    ("PML_RARA", ("PMLRARA", "APL")),
    ("NPM1", ("NPM1",)),
    ("CBFB_MYH11", ("CBFB", "MYH11")),
    ("RUNX1_RUNX1T1", ("RUNX1",)),
    ("control", ("CONTROL", "HEALTHY", "SCD")),
)


class Options(SourceOptions):
    """There is nothing to choose about this set."""


def diagnosis_of(folder: str) -> str | None:
    """Code of the diagnosis that a folder is named after, however it is written; None where it is none.

    Example:
        >>> diagnosis_of("APL with PML::RARA"), diagnosis_of("lymphoma")
        ('PML_RARA', None)
    """
    plain = re.sub(r"[^A-Z0-9]", "", folder.upper())
    found = [code for code, signs in _SIGNS if any(sign in plain for sign in signs)]
    return found[0] if len(found) == 1 else None


def load(root: Path | None, taxonomy: Taxonomy, options: Options) -> CellImages:
    """Index the set; the first folder is the diagnosis, the second the patient, deeper ones do not matter.

    Args:
        root: The folder that holds the folders of the diagnoses, or one up to four levels above it.
        taxonomy: `aml_hehr`.
        options: None.

    Returns:
        Images with the patient as group. One name below two diagnoses is taken for one patient, which no split tears
        apart.

    Raises:
        DataError: No root, no folder of a diagnosis, a folder that is none, two of one diagnosis, or an empty one.
    """
    root = need_root("aml_hehr", root, _WHERE)
    place = _find(root)
    if place is None:
        raise no_class_folder("aml_hehr", root, own_taxonomy("aml_hehr").codes)
    folder, above = place
    code_of = {name: diagnosis_of(name) or name for name in subfolders(folder)}
    _refuse_repeated(code_of, folder)
    found = _of_patients(index_class_folders(folder, own_taxonomy("aml_hehr"), code_of))
    found.rejected += above
    return build_translated(
        found,
        root=folder,
        source="aml_hehr",
        taxonomy=taxonomy,
        attribution=ATTRIBUTION,
        groups={path: path.split("/")[1] for path in found.paths},
        group_kind="patient",
    )


def _find(root: Path) -> tuple[Path, list[RejectedImage]] | None:
    """The folder of the diagnoses, whatever these are called."""
    names: set[str] = set()
    pending = [(root, 0)]
    while pending:
        folder, depth = pending.pop()
        for name in subfolders(folder):
            if diagnosis_of(name):
                names.add(name)
            elif depth < _MAX_DEPTH:
                pending.append((folder / name, depth + 1))
    return find_class_root(root, names, _WRAPPERS)


def _refuse_repeated(code_of: dict[str, str], folder: Path) -> None:
    folders: dict[str, list[str]] = {}
    for name, code in code_of.items():
        folders.setdefault(code, []).append(name)
    if twice := [" and ".join(names) for names in folders.values() if len(names) > 1]:
        raise DataError(f"{folder}: folders of one diagnosis: {', '.join(twice)}; join them")


def _of_patients(found: FoundImages) -> FoundImages:
    kept = FoundImages(rejected=found.rejected)
    for path, label in zip(found.paths, found.labels, strict=True):
        if path.count("/") < 2:
            kept.reject(path, "lies in no folder of a patient")
        else:
            kept.paths.append(path)
            kept.labels.append(label)
    return kept


SOURCE = Source(
    summary="blood cells of 189 AML patients and controls (diagnosis of the patient, patient ids), from a local root",
    options=Options,
    load=load,
)
