"""Miniatures of the layouts of public image sets, for the battery of all sources and for the tests of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, side: int = 16, channels: int = 3) -> np.ndarray:
    """Pixels that differ from number to number, uint8 (side, side, channels)."""
    return np.random.default_rng(number).integers(0, 256, (side, side, channels), dtype=np.uint8)


def save(path: Path, number: int, side: int = 16, channels: int = 3) -> Path:
    """One image file; its suffix says of which kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(number, side, channels)).save(path)
    return path


def class_folders(root: Path) -> Path:
    """`<CLASS>/<CLASS>_NNNNN.png` of MLL's classes."""
    for code in ("LYT", "BLA"):
        for number in range(3):
            save(root / code / f"{code}_{number:05d}.png", number)
    return root


def matek19(root: Path) -> Path:
    """RGBA TIFF; a folder of varied copies beside the classes and one above them."""
    for code in ("LYT", "MYO", "MYB"):
        for number in range(1, 4):
            save(root / "data" / "data" / code / f"{code}_{number:04d}.tiff", number, channels=4)
    save(root / "data" / "augmented" / "LYT" / "LYT_0001_rotated.tiff", 9, channels=4)
    save(root / "data" / "data" / "augmented" / "LYT" / "LYT_0002_rotated.tiff", 9, channels=4)
    return root


def acevedo(root: Path) -> Path:
    """Folders that are coarser than the prefixes of the files."""
    files = {
        "neutrophil": ("SNE", "BNE", "NEUTROPHIL"),
        "ig": ("MY", "MMY", "PMY", "IG"),
        "lymphocyte": ("LY",),
        "platelet": ("PLATELET",),
    }
    for folder, prefixes in files.items():
        for prefix in prefixes:
            for number in (1, 2):
                save(root / "PBC_dataset_normal_DIB" / folder / f"{prefix}_{number}0{number}.jpg", number)
    (root / "PBC_dataset_normal_DIB" / "neutrophil" / ".DS_169665.jpg").touch()
    return root


def mll23(root: Path) -> Path:
    """`<class>/<name>.TIF`."""
    for code in ("myeloblast", "promyelocyte_atypical", "normoblast"):
        for number in (1, 2):
            Image.fromarray(picture(number)).save(
                _parent(root / code / f"{code}_{number}.TIF"), format="TIFF"
            )
    return root


def aml_hehr(root: Path) -> Path:
    """`data/<DIAGNOSIS>/<PATIENT>/image_N.tif`."""
    patients = {"PML_RARA": ("AAB", "AAC"), "NPM1": ("AAD",), "control": ("AAE", "AAF")}
    for diagnosis, names in patients.items():
        for patient in names:
            for number in (0, 1):
                save(root / "data" / diagnosis / patient / f"image_{number}.tif", number)
    return root


def pcam(root: Path, patches: int = 6) -> Path:
    """Train, validation and test as HDF5, compressed as the published files are."""
    import h5py

    root.mkdir(parents=True, exist_ok=True)
    for place, part in enumerate(("train", "valid", "test")):
        pixels = np.stack([picture(100 * place + row, 96) for row in range(patches)])
        labels = (np.arange(patches) % 2).astype(np.uint8).reshape(-1, 1, 1, 1)
        for name, values in (("x", pixels), ("y", labels)):
            with h5py.File(root / f"camelyonpatch_level_2_split_{part}_{name}.h5", "w") as file:
                file.create_dataset(name, data=values, chunks=(1, *values.shape[1:]), compression="gzip")
    return root


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
