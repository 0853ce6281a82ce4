"""Normal blood cells, Barcelona: 17,092 JPEG of 360 x 363 in 8 folders, 13 classes by the beginning of the file name.

Layout: `PBC_dataset_normal_DIB/<folder>/<PREFIX>_NNNN.jpg`. The folder is coarser than the prefix: `neutrophil` holds
segmented (SNE), band (BNE) and unspecified (NEUTROPHIL) ones, `ig` myelocytes (MY), metamyelocytes (MMY),
promyelocytes (PMY) and unspecified ones (IG). No patient id is published, so no split of it is patient-safe.
"""

from __future__ import annotations

from pathlib import Path

from ...taxonomy import Taxonomy
from ..samples import CellImages
from .base import Source, SourceOptions
from .folders import FoundImages, find_class_root, index_class_folders
from .translated import build_translated, need_root, no_class_folder, own_taxonomy

ATTRIBUTION = (
    "Acevedo et al. (2020), A dataset of microscopic peripheral blood cell images for development of automatic "
    "recognition systems, Mendeley Data, doi 10.17632/snkd93bnjr, CC BY 4.0"
)
_WHERE = "Mendeley Data, doi 10.17632/snkd93bnjr"
_WRAPPERS = ("PBC_dataset_normal_DIB",)
_PREFIXES = {
    "basophil": ("BA",),
    "eosinophil": ("EO",),
    "erythroblast": ("ERB",),
    "ig": ("IG", "MMY", "MY", "PMY"),
    "lymphocyte": ("LY",),
    "monocyte": ("MO",),
    "neutrophil": ("BNE", "NEUTROPHIL", "SNE"),
    "platelet": ("PLATELET",),
}


class Options(SourceOptions):
    """There is nothing to choose about this set."""


def load(root: Path | None, taxonomy: Taxonomy, options: Options) -> CellImages:
    """Index the set; an image whose prefix does not belong to its folder is rejected.

    Args:
        root: The folder that holds the 8 folders, or one up to four levels above it.
        taxonomy: `acevedo` for its own 13 classes; `mll` or `harmonised` for those with a counterpart there.
        options: None.

    Raises:
        DataError: No root, none of the folders, an unknown folder, or an empty one.
    """
    root = need_root("acevedo", root, _WHERE)
    place = find_class_root(root, _PREFIXES, _WRAPPERS)
    if place is None:
        raise no_class_folder("acevedo", root, tuple(_PREFIXES))
    folder, above = place
    found = _by_prefix(index_class_folders(folder, own_taxonomy("acevedo")))
    found.rejected += above
    return build_translated(found, root=folder, source="acevedo", taxonomy=taxonomy, attribution=ATTRIBUTION)


def _by_prefix(found: FoundImages) -> FoundImages:
    """Labels by the file name; a folder that is not of the set keeps its name as label, which is refused later."""
    kept = FoundImages(rejected=found.rejected)
    for path, folder in zip(found.paths, found.labels, strict=True):
        prefix = path[path.rfind("/") + 1 :].partition("_")[0]
        allowed = _PREFIXES.get(folder, (folder,))
        if folder in _PREFIXES and prefix not in allowed:
            kept.reject(path, f"a file of {folder!r} begins with {' or '.join(allowed)}, not {prefix!r}")
        else:
            kept.paths.append(path)
            kept.labels.append(prefix if folder in _PREFIXES else folder)
    return kept


SOURCE = Source(
    summary="normal blood cells of Acevedo et al. 2020 (13 classes by file name, no patient ids), from a local root",
    options=Options,
    load=load,
)
