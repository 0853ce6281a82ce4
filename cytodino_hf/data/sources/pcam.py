"""PatchCamelyon: 327,680 patches of lymph node of 96 x 96, tumour or none in the centre, in HDF5 files.

Layout: `camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5` with `x` uint8 (patches, 96, 96, 3) and `y` (patches,
1, 1, 1). Labels are read at once, a patch when it is asked for (`cytodino_hf.data.hdf5_pictures`). The set's own folds
stand in the table, for `data.split` "source". Which patches are of one slide is not in these files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import DataError
from ...taxonomy import Taxonomy
from ..hdf5_pictures import PICTURES, open_hdf5
from ..samples import CellImages, build_cell_images
from .base import Source, SourceOptions
from .folders import list_folder, subfolders
from .translated import need_root, own_taxonomy

if TYPE_CHECKING:
    import h5py

ATTRIBUTION = (
    "PatchCamelyon: Veeling et al. (2018), Rotation Equivariant CNNs for Digital Pathology, arXiv 1806.03962, from "
    "Camelyon16 (Bejnordi et al. 2017, doi 10.1001/jama.2017.14585), CC0"
)
_WHERE = "github.com/basveeling/pcam"
_NAME = "camelyonpatch_level_2_split_{}_{}.h5"
_FOLDS = {"train": "train", "valid": "validation", "test": "test"}
_LABELS = "y"


class Options(SourceOptions):
    """There is nothing to choose about this set."""


def load(root: Path | None, taxonomy: Taxonomy, options: Options) -> CellImages:
    """Index the set; parts that are not there are left out, but each needs both of its files.

    Args:
        root: The folder that holds the HDF5 files, unpacked, or one that holds nothing but that folder.
        taxonomy: `pcam`, or one with its codes.
        options: None.

    Returns:
        Patches with the path `<file>_x.h5/<row>` and the set's own folds. No groups.

    Raises:
        DataError: No root, none of the files, one without the other, numbers of patches and labels that differ, labels
            that are not 0 and 1, another taxonomy, or h5py is not installed.
    """
    root = need_root("pcam", root, _WHERE)
    own = own_taxonomy("pcam")
    if not set(own.codes) <= set(taxonomy.codes):
        raise DataError(
            f"{root}: the classes of pcam ({', '.join(own.codes)}) are not in taxonomy {taxonomy.name!r} "
            f"({', '.join(taxonomy.codes)}): set data.taxonomy to 'pcam'"
        )
    folder = _find(root)
    paths: list[str] = []
    ids: list[str] = []
    labels: list[str] = []
    folds: list[str] = []
    for part, fold in _FOLDS.items():
        found = _labels(folder, part)
        paths += [f"{_NAME.format(part, PICTURES)}/{row:06d}" for row in range(len(found))]
        ids += [f"{part}-{row:06d}" for row in range(len(found))]
        labels += [own.codes[label] for label in found.tolist()]
        folds += [fold] * len(found)
    return build_cell_images(
        paths,
        labels,
        root=folder,
        source="pcam",
        taxonomy=taxonomy,
        folds=folds,
        ids=ids,
        attribution=ATTRIBUTION,
    )


def _find(root: Path) -> Path:
    """The root, or the one folder in it, with at least one file of the set."""
    names = {_NAME.format(part, kind) for part in _FOLDS for kind in (PICTURES, _LABELS)}
    inside = subfolders(root)
    places = [root, root / inside[0]] if len(inside) == 1 else [root]
    for place in places:
        present = {entry.name for entry in list_folder(place)}
        if present & names:
            return place
        if packed := sorted(name for name in present if name.removesuffix(".gz") in names):
            raise DataError(f"{place}: {', '.join(packed)} must be unpacked first: gunzip {place}/*.h5.gz")
    raise DataError(
        f"{root}: no file of PatchCamelyon ({_NAME.format('train', PICTURES)}, ...). Set data.root to their folder."
    )


def _labels(folder: Path, part: str) -> np.ndarray:
    """int64 (patches,) of one part; empty where the set was got without it."""
    files = [folder / _NAME.format(part, kind) for kind in (PICTURES, _LABELS)]
    there = [file.is_file() for file in files]
    if not any(there):
        return np.empty(0, dtype=np.int64)
    if not all(there):
        raise DataError(
            f"{files[there.index(False)]}: missing beside {files[there.index(True)].name}; get it too"
        )
    pictures, answers = (_array(file, name) for file, name in zip(files, (PICTURES, _LABELS), strict=True))
    labels = np.asarray(answers[()]).reshape(-1)
    if len(labels) != len(pictures):
        raise DataError(f"{files[0]}: {len(pictures)} patches, but {len(labels)} labels in {files[1].name}")
    if odd := sorted(set(np.unique(labels).tolist()) - {0, 1}):
        raise DataError(f"{files[1]}: labels must be 0 and 1, found {odd[:5]}; copy the file anew")
    return labels.astype(np.int64)


def _array(file: Path, name: str) -> h5py.Dataset:
    opened = open_hdf5(file)
    if name not in opened:
        raise DataError(
            f"{file}: holds no {name!r} (found: {', '.join(opened) or 'nothing'}); copy the file anew"
        )
    return opened[name]


SOURCE = Source(
    summary="PatchCamelyon, patches of lymph node (tumour or normal, own folds), from a local root of HDF5 files",
    options=Options,
    load=load,
)
