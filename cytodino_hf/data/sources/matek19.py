"""Blood cells of acute myeloid leukaemia, Munich (LMU): 18,365 images of 15 classes, RGBA TIFF of 400 x 400.

Layout: `.../<CLASS>/<CLASS>_NNNN.tiff`. A folder `augmented` beside or above them holds varied copies and is left out.
MYB is a myelocyte and MYO a myeloblast. No patient id is published, so no split of it is patient-safe.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import DataError
from ...taxonomy import Taxonomy
from ..samples import CellImages, RejectedImage
from .base import Source, SourceOptions
from .folders import FoundImages, find_class_root, index_class_folders
from .translated import build_translated, need_root, no_class_folder, own_taxonomy

ATTRIBUTION = (
    "Matek et al. (2019), A Single-cell Morphological Dataset of Leukocytes from AML Patients and Non-malignant "
    "Controls, The Cancer Imaging Archive, doi 10.7937/tcia.2019.36f5o9ld, under the licence stated there"
)
_WHERE = "The Cancer Imaging Archive, doi 10.7937/tcia.2019.36f5o9ld"
_WRAPPERS = ("data", "AML-Cytomorphology_LMU", "AML-Cytomorphology")
_VARIED = "augmented"


class Options(SourceOptions):
    """There is nothing to choose about this set."""


def load(root: Path | None, taxonomy: Taxonomy, options: Options) -> CellImages:
    """Index the set.

    Args:
        root: The folder that holds the class folders, or one up to four levels above it.
        taxonomy: `matek19` for its own 15 classes; `mll` or `harmonised` for those with a counterpart there.
        options: None.

    Raises:
        DataError: No root, no class folder, an unknown or empty class, or a root inside `augmented`.
    """
    root = need_root("matek19", root, _WHERE)
    own = own_taxonomy("matek19")
    place = find_class_root(root, own.codes, _WRAPPERS)
    if place is None:
        raise no_class_folder("matek19", root, own.codes)
    folder, above = place
    if _VARIED in folder.parts[len(root.parts) - 1 :]:
        raise DataError(
            f"{folder}: holds varied copies of images; set data.root to the folder of the originals"
        )
    found = _without_varied(index_class_folders(folder, own))
    found.rejected += above
    return build_translated(found, root=folder, source="matek19", taxonomy=taxonomy, attribution=ATTRIBUTION)


def _without_varied(found: FoundImages) -> FoundImages:
    kept = FoundImages(rejected=[i for i in found.rejected if _VARIED not in i.path.split("/")])
    copies = 0
    for path, label in zip(found.paths, found.labels, strict=True):
        if _VARIED in path.split("/")[:-1]:
            copies += 1
        else:
            kept.paths.append(path)
            kept.labels.append(label)
    if copies:
        kept.rejected.append(RejectedImage(_VARIED, f"{copies} varied copies of images of the set", True))
    return kept


SOURCE = Source(
    summary="AML blood cells of Matek et al. 2019 (15 classes, no patient ids), from a local root",
    options=Options,
    load=load,
)
