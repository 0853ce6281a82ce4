"""Read tensors out of a file of weights without executing anything that is in it.

Files of `torch.save` hold a pickle, and loading one the usual way runs whatever program somebody put there.
`open_weights` reads the pickle as data (see `pickle_values`) and the numbers from their plain bytes: the zip format of
PyTorch >= 1.6, the older format of one stream of pickles, and safetensors. Objects of unknown classes, such as the
configuration beside the weights, become placeholders that hold what was stored.
"""

from __future__ import annotations

import mmap
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import WeightsFileError
from .pickle_values import read_pickle
from .stored_tensors import Storage, StoredTensor, make_storage, naming_failures, rebuild_functions

#: A checkpoint of a thousand tensors takes less than one; the numbers themselves lie elsewhere.
MAX_PICKLE_BYTES = 64 * 1024 * 1024

#: First values of the older format (torch/serialization.py: MAGIC_NUMBER, PROTOCOL_VERSION).
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_ZIP_START, _PICKLE_START = b"PK\x03\x04", b"\x80"
_TAR_MARK = slice(257, 262)
_ENCRYPTED = 1  # bit of a zip entry's flags


@contextmanager
def open_weights(path: Path) -> Iterator[Any]:
    """Everything that was saved into a file of weights, with nothing of it executed.

    Args:
        path: A file of `torch.save`, or a `.safetensors` file; the content decides, not the suffix.

    Returns:
        Context of the saved value, mostly a dict: plain values, `StoredTensor` for tensors, `Placeholder` for objects
        of classes that are not known here. Tensors can be read inside the context only.

    Raises:
        WeightsFileError: Missing, cut short, damaged, hostile, or of a kind that is not read.
    """
    with ExitStack() as open_files:
        with naming_failures(path):
            values = _read_values(path, open_files)
        yield values


def _read_values(path: Path, open_files: ExitStack) -> Any:
    if not path.is_file():
        raise WeightsFileError(f"{path}: no regular file" if path.exists() else f"{path}: no such file")
    file = open_files.enter_context(open(path, "rb"))  # noqa: SIM115 - the stack closes it
    start = file.read(512)
    if start.startswith(_ZIP_START):
        return _ZipStore(path, open_files.enter_context(zipfile.ZipFile(file))).values()
    if start.startswith(_PICKLE_START):
        content = open_files.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return _StreamStore(path, content).values()
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return _safetensors(path, open_files)
    raise WeightsFileError(f"{path}: {_looks_like(start)}")


def _looks_like(start: bytes) -> str:
    if not start:
        return "an empty file; download it anew"
    if start[_TAR_MARK] == b"ustar":
        return (
            "a tar archive, or a file of PyTorch before 0.2; weights of vision transformers are never in one"
        )
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page; download the weights themselves"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of git LFS; run `git lfs pull`"
    return "neither a file of torch.save nor safetensors"


class _ZipStore:
    """The format of PyTorch >= 1.6: `NAME/data.pkl`, and the numbers in `NAME/data/KEY`."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self.archive = archive

    def values(self) -> Any:
        names = self.archive.namelist()
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise WeightsFileError(f"{self.path}: a zip archive, but none that torch.save wrote")
        self.folder = pickles[0].removesuffix("data.pkl")
        if f"{self.folder}constants.pkl" in names:
            raise WeightsFileError(
                f"{self.path}: a TorchScript program, not weights; save its state_dict() with torch.save first"
            )
        # Entries that overlap each other make a small file hold a huge one.
        if sum(entry.compress_size for entry in self.archive.infolist()) > self.path.stat().st_size:
            raise WeightsFileError(
                f"{self.path}: its entries lie over each other, which torch.save never does"
            )
        if f"{self.folder}byteorder" in names and self.entry("byteorder") != b"little":
            raise WeightsFileError(f"{self.path}: written on a big-endian machine; save it anew on another")
        if self.archive.getinfo(pickles[0]).file_size > MAX_PICKLE_BYTES:
            raise WeightsFileError(f"{self.path}: its pickle is larger than {MAX_PICKLE_BYTES:,} bytes")
        return read_pickle(self.entry("data.pkl"), rebuild_functions(), self.stored)[0]

    def entry(self, name: str) -> bytes:
        try:
            info = self.archive.getinfo(self.folder + name)
        except KeyError as error:
            raise WeightsFileError(
                f"{self.path}: has no {name}; it is cut short, download it anew"
            ) from error
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED:
            raise WeightsFileError(
                f"{self.path}: {name} is compressed or encrypted, which torch.save never does; unpack it and pack it "
                "without compression (zip -0)"
            )
        return self.archive.read(info)

    def stored(self, identity: Any) -> Storage:
        kind, storage_type, key, _, elements = identity
        return make_storage(self, kind, storage_type, key, elements)

    def storage_bytes(self, key: str) -> bytes:
        return self.entry(f"data/{key}")


class _StreamStore:
    """The format before PyTorch 1.6: magic, protocol, system, value, keys (a pickle each), then the numbers."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path = path
        self.content = content
        self.position = 0
        self.places: dict[str, tuple[int, int]] = {}
        self.wanted: dict[str, torch.dtype] = {}

    def values(self) -> Any:
        if self.next_pickle() != _MAGIC:
            raise WeightsFileError(f"{self.path}: a pickle, but none that torch.save wrote")
        if self.next_pickle() != _PROTOCOL:
            raise WeightsFileError(f"{self.path}: written by another version of torch.save than is read")
        system = self.next_pickle()
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise WeightsFileError(f"{self.path}: written on a big-endian machine; save it anew on another")
        values = self.next_pickle()
        self.find_numbers(self.next_pickle())
        return values

    def next_pickle(self) -> Any:
        data = self.content[self.position : self.position + MAX_PICKLE_BYTES]
        value, length = read_pickle(data, rebuild_functions(), self.stored)
        self.position += length
        return value

    def find_numbers(self, keys: Any) -> None:
        """Where the numbers of each storage lie: their count as 8 bytes, then they themselves."""
        if not isinstance(keys, list) or not all(isinstance(key, str) and key in self.wanted for key in keys):
            raise WeightsFileError(f"{self.path}: its list of storages is damaged; download it anew")
        for key in keys:
            elements = int.from_bytes(self.content[self.position : self.position + 8], "little")
            start = self.position + 8
            self.position = start + elements * self.wanted[key].itemsize
            if self.position > len(self.content):
                raise WeightsFileError(f"{self.path}: cut short; download it anew")
            self.places[key] = (start, self.position)

    def stored(self, identity: Any) -> Any:
        if identity[0] == "module":
            return identity[1]
        kind, storage_type, key, _, elements, view = identity
        storage = make_storage(self, kind, storage_type, key, elements)
        if storage.dtype is None or self.wanted.setdefault(key, storage.dtype) != storage.dtype:
            raise ValueError(f"storage {key} has no certain type")
        if view is None:
            return storage
        _, start, part = view
        if type(start) is not int or type(part) is not int or not 0 <= start <= start + part <= elements:
            raise ValueError(f"a part of storage {key} lies outside of it")
        return Storage(self, key, storage.dtype, part, start)

    def storage_bytes(self, key: str) -> bytes:
        if key not in self.places:
            raise WeightsFileError(f"{self.path}: storage {key} is missing; download it anew")
        start, stop = self.places[key]
        return self.content[start:stop]


def _safetensors(path: Path, open_files: ExitStack) -> dict[str, StoredTensor]:
    from safetensors import safe_open

    file = open_files.enter_context(safe_open(path, framework="pt"))
    found = {}
    for name in file.keys():  # noqa: SIM118 - no dict
        tensor = file.get_tensor(name)  # mapped into memory; the numbers are read when they are copied
        found[name] = StoredTensor(tuple(tensor.shape), tensor.dtype, tensor.clone)
    return found
