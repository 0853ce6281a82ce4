"""The bone-marrow set of the Munich Leukemia Laboratory: 171,374 cells of 21 classes, downloaded or local.

Layouts: Kaggle (`bone_marrow_cell_dataset/<CLASS>/<bucket>/<CLASS>_NNNNN.jpg`), TCIA
(`BM_cytomorphology_data/`), and flat copies (`<CLASS>/<CLASS>_NNNNN.jpg`). No patient id is published, so no
split of it is patient-safe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from ...errors import DataError
from ...taxonomy import MLL_IMAGE_COUNTS, Taxonomy
from ..archives import Limits
from ..samples import DRAWN_RECORD, CellImages, RejectedImage, build_cell_images
from ..tables import first_few
from .base import Source, SourceOptions
from .folders import FoundImages, find_class_root, index_class_folders, subfolders
from .kaggle import KaggleSet, download

_HANDLE = "andrewmvd/bone-marrow-cell-classification"
_PAGE = f"https://www.kaggle.com/datasets/{_HANDLE}"
_BY_HAND = f"Download the set by hand ({_PAGE}, or TCIA, doi 10.7937/TCIA.AXH3-T579) and set data.root to it."
#: Whose images these are.
ATTRIBUTION = (
    "Matek et al. (2021), An Expert-Annotated Dataset of Bone Marrow Cytology in Hematologic Malignancies, "
    "The Cancer Imaging Archive, doi 10.7937/TCIA.AXH3-T579, CC BY 4.0"
)
# The set holds some 171,400 files, 6.8 GB packed and hardly more unpacked: room for another version, not for a bomb.
_LIMITS = Limits(files=500_000, total_bytes=20_000_000_000, ratio=50)
_DISK_GB = 14
_WRAPPERS = ("bone_marrow_cell_dataset", "BM_cytomorphology_data")

#: Garbled files of the published set. Most decode without an error, so that only a list finds them.
DAMAGED = frozenset(
    {
        "ART_07788", "BLA_09522", "EBO_06999", "EOS_02571", "LYT_19975",
        "MYB_05527", "NGB_09454", "NGS_04035", "NGS_15228", "NGS_18642",
    }
)  # fmt: skip


class Options(SourceOptions):
    """What a recipe may choose about the MLL set."""

    version: int = Field(
        default=1,
        ge=1,
        description="Version of the Kaggle copy to download where no root is given. Pinned, so that a run "
        "can be repeated and a cached copy needs no network; the counts of the classes are compared with the "
        "published ones.",
    )
    exclude: list[str] = Field(
        default=[],
        description="More images to leave out (path, file name, or file name without suffix), besides the "
        "ten files of the set that are known to be damaged.",
    )


def load(root: Path | None, taxonomy: Taxonomy, options: Options) -> CellImages:
    """Index the MLL set.

    Args:
        root: The folder that holds the class folders, or one up to four levels above it. None downloads the
            Kaggle copy (6.8 GB) into kagglehub's cache, or takes it from there.
        taxonomy: Classes allowed; the set may hold fewer.
        options: See `Options`.

    Returns:
        Images with paths relative to the folder that holds the class folders, so that a list of paths fits
        every layout. No groups.

    Raises:
        DataError: Nothing found, an unknown or empty class folder, a failed or incomplete download, or a name
            in `exclude` that fits no image.
    """
    folder, above = _class_root(root if root is not None else _download(options.version), taxonomy)
    found = index_class_folders(folder, taxonomy)
    found.rejected += above
    # A set that says it was drawn claims no count, and every report calls it synthetic.
    if root is None and not (folder / DRAWN_RECORD).is_file():
        _check_complete(found.labels, folder, options.version)
    kept = _without_damaged(found, options.exclude, folder)
    return build_cell_images(
        kept.paths,
        kept.labels,
        root=folder,
        source="mll",
        taxonomy=taxonomy,
        attribution=ATTRIBUTION,
        rejected=sorted(kept.rejected, key=lambda image: image.path),
    )


def _class_root(root: Path, taxonomy: Taxonomy) -> tuple[Path, list[RejectedImage]]:
    if (place := find_class_root(root, taxonomy.codes, _WRAPPERS)) is not None:
        return place
    raise DataError(
        f"{root}: no class folder of taxonomy {taxonomy.name!r} ({', '.join(taxonomy.codes[:3])}, ...). "
        f"Folders found: {', '.join(subfolders(root)[:10]) or 'none'}. Set data.root to the folder that holds them."
    )


def _without_damaged(found: FoundImages, exclude: Sequence[str], folder: Path) -> FoundImages:
    kept = FoundImages(rejected=found.rejected)
    asked = frozenset(exclude)
    used: set[str] = set()
    for path, label in zip(found.paths, found.labels, strict=True):
        name = path[path.rfind("/") + 1 :]
        stem = name[: name.rfind(".")]
        if asked and (named := asked & {path, name, stem}):
            used |= named
            kept.reject(path, "left out by data.mll.exclude", on_purpose=True)
        elif stem in DAMAGED:
            kept.reject(path, "known to be damaged in the published set", on_purpose=True)
        else:
            kept.paths.append(path)
            kept.labels.append(label)
    if missing := sorted(asked - used):
        raise DataError(
            f"{folder}: {len(missing)} names in data.mll.exclude fit no image: {first_few(missing)}. "
            "Give a path, a file name, or a file name without its suffix."
        )
    return kept


def _check_complete(labels: Sequence[str], folder: Path, version: int) -> None:
    found = Counter(labels)
    short = [
        f"{code} {found[code]} of {published}"
        for code, published in MLL_IMAGE_COUNTS.items()
        if found[code] < published
    ]
    if short:
        raise DataError(
            f"version {version} of {_HANDLE} holds fewer images than were published: {first_few(short)}. "
            f"Choose another version (data.mll.version; see {_PAGE}), or set data.root to {folder} to "
            "use it as it is."
        )


def _download(version: int) -> Path:
    """Path of the Kaggle copy; from the cache without any request where it is there."""
    return download(KaggleSet(_HANDLE, version, "data.mll.version", _LIMITS, _DISK_GB, _BY_HAND))


SOURCE = Source(
    summary="MLL bone-marrow cells (21 classes, no patient ids), from a local root or downloaded from Kaggle",
    options=Options,
    load=load,
    fetch=lambda options: _download(options.version),
)
