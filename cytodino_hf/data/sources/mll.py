"""The bone-marrow set of the Munich Leukemia Laboratory: 171,374 cells of 21 classes, downloaded or local.

Layouts: Kaggle (`bone_marrow_cell_dataset/<CLASS>/<bucket>/<CLASS>_NNNNN.jpg`), TCIA
(`BM_cytomorphology_data/`), and flat copies (`<CLASS>/<CLASS>_NNNNN.jpg`). No patient id is published, so no
split of it is patient-safe.
"""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from ...errors import DataError
from ...taxonomy import MLL_IMAGE_COUNTS, Taxonomy
from ..samples import CellImages, RejectedImage, build_cell_images
from ..tables import first_few
from .base import Source, SourceOptions
from .folders import FoundImages, find_class_root, index_class_folders, subfolders

_HANDLE = "andrewmvd/bone-marrow-cell-classification"
_PAGE = f"https://www.kaggle.com/datasets/{_HANDLE}"
_BY_HAND = f"Download the set by hand ({_PAGE}, or TCIA, doi 10.7937/TCIA.AXH3-T579) and set data.root to it."
_ATTRIBUTION = (
    "Matek et al. (2021), An Expert-Annotated Dataset of Bone Marrow Cytology in Hematologic Malignancies, "
    "The Cancer Imaging Archive, doi 10.7937/TCIA.AXH3-T579, CC BY 4.0"
)
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
    if root is None:
        _check_complete(found.labels, folder, options.version)
    kept = _without_damaged(found, options.exclude, folder)
    return build_cell_images(
        kept.paths,
        kept.labels,
        root=folder,
        source="mll",
        taxonomy=taxonomy,
        attribution=_ATTRIBUTION,
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
    import kagglehub
    import requests  # type: ignore[import-untyped]

    try:
        return Path(kagglehub.dataset_download(f"{_HANDLE}/versions/{version}"))
    except requests.exceptions.RequestException as error:
        raise DataError(_explain(error, version)) from error
    except kagglehub.exceptions.DataCorruptionError as error:
        raise DataError(
            f"{_HANDLE}: the download arrived damaged ({error}). Start again. {_BY_HAND}"
        ) from error
    except (OSError, ValueError, zipfile.BadZipFile, tarfile.TarError) as error:
        cache = os.environ.get("KAGGLEHUB_CACHE", "~/.cache/kagglehub")
        raise DataError(
            f"{_HANDLE}: cannot be unpacked into {cache} ({error}). The set needs 14 GB there while it is "
            f"unpacked; KAGGLEHUB_CACHE names another folder. {_BY_HAND}"
        ) from error


def _explain(error: Exception, version: int) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return (
            f"Kaggle refuses {_HANDLE} (HTTP {status}): the credentials are missing, wrong or not allowed. "
            f"Create a token at https://www.kaggle.com/settings and set KAGGLE_API_TOKEN to it. {_BY_HAND}"
        )
    if status == 404:
        return f"Kaggle has no version {version} of {_HANDLE} (data.mll.version; see {_PAGE}). {_BY_HAND}"
    if status is not None:
        return f"Kaggle answers HTTP {status} for {_HANDLE}; try again later. {_BY_HAND}"
    return (
        f"{_HANDLE} version {version} is not in the cache and Kaggle cannot be reached "
        f"({type(error).__name__}). Check the network. {_BY_HAND}"
    )


SOURCE = Source(
    summary="MLL bone-marrow cells (21 classes, no patient ids), from a local root or downloaded from Kaggle",
    options=Options,
    load=load,
)
