"""Tensors that lie in a file of weights: what the pickle says of them, and their numbers once they are asked for."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError

from ..errors import WeightsFileError
from .pickle_values import Global, PickleRefusedError

_DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool,
}  # fmt: skip
_STORAGES = {f"torch.{name}Storage": dtype for name, dtype in _DTYPES.items()}
_DTYPE_NAMES = {str(dtype): dtype for dtype in _DTYPES.values()}
_REBUILD = {f"torch._utils._rebuild_{name}" for name in ("tensor", "tensor_v2", "tensor_v3")}
# What `zipfile` raises on broken archives, besides its own errors, is nearly anything.
_DAMAGED = (
    zipfile.BadZipFile, zipfile.LargeZipFile, SafetensorError, struct.error, ValueError, OverflowError, EOFError,
    NotImplementedError, RuntimeError,
)  # fmt: skip
_MOST = 2**48  # of a shape, stride or offset: no file is that large, and torch can compute with it
_UNTYPED = "torch.storage.UntypedStorage"


class Store(Protocol):
    """An open file of weights."""

    path: Path

    def storage_bytes(self, key: str) -> bytes:
        """Plain bytes of a whole storage."""
        ...


@dataclass(frozen=True, eq=False)
class Storage:
    """A run of numbers in the file: `elements` of them in `dtype`, or bytes where that is None."""

    store: Store
    key: str
    dtype: torch.dtype | None
    elements: int
    start: int = 0  # in elements, of a part of a storage in the older format


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor in an open file of weights: shape and type at once, numbers when asked for.

    Args:
        shape: As saved.
        dtype: As saved.
        load: Reads the numbers; valid while the file is open.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], torch.Tensor]

    def read(self) -> torch.Tensor:
        """The numbers, contiguous, in memory of their own.

        Raises:
            WeightsFileError: They are cut short, damaged, or not of the announced size.
        """
        return self.load()


@contextmanager
def naming_failures(path: Path) -> Iterator[None]:
    """Name the file in every way in which reading it can fail."""
    try:
        yield
    except PickleRefusedError as error:
        raise WeightsFileError(f"{path}: {error}; download it anew") from error
    except _DAMAGED as error:
        raise WeightsFileError(f"{path}: damaged or cut short ({error}); download it anew") from error
    except OSError as error:
        raise WeightsFileError(f"{path}: cannot be read ({error})") from error


def make_storage(store: Store, kind: Any, storage_type: Any, key: Any, elements: Any) -> Storage:
    """A storage as a pickle refers to it.

    Raises:
        ValueError: It refers to something else.
    """
    if kind != "storage" or not isinstance(storage_type, Global) or not isinstance(key, str):
        raise ValueError("it refers to something that is no storage of numbers")
    if storage_type.name not in _STORAGES and storage_type.name != _UNTYPED:
        raise ValueError(f"numbers of the kind {storage_type.name} are not read")
    if type(elements) is not int or elements < 0:
        raise ValueError(f"storage {key} has no size")
    return Storage(store, key, _STORAGES.get(storage_type.name), elements)


def _tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, dtype: torch.dtype | None = None
) -> StoredTensor:
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without numbers")
    for values in ((offset,), shape, stride):
        if not isinstance(values, tuple) or any(type(v) is not int or not 0 <= v < _MOST for v in values):
            raise ValueError("a tensor's shape, stride or offset is none")
    found = dtype or storage.dtype
    if found is None or len(shape) != len(stride):
        raise ValueError("a tensor without a type, or with a stride for another shape")
    return StoredTensor(shape, found, lambda: _read(storage, offset, shape, stride, found))


def _read(
    storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype
) -> torch.Tensor:
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    with naming_failures(storage.store.path):
        raw = bytearray(storage.store.storage_bytes(storage.key))
    stored_in = storage.dtype or torch.uint8
    available = len(raw) // dtype.itemsize
    last = storage.start + offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    # More numbers than are stored would be one number repeated: no weight is, and a small file could fill the memory.
    if (
        last >= available
        or count > available
        or len(raw) < (storage.start + storage.elements) * stored_in.itemsize
    ):
        raise WeightsFileError(
            f"{storage.store.path}: storage {storage.key} holds {len(raw):,} bytes, not enough for a "
            f"tensor of {shape} in {dtype}: damaged, or made to mislead"
        )
    usable = memoryview(raw)[: available * dtype.itemsize]
    flat = torch.frombuffer(usable, dtype=dtype)
    tensor = flat.as_strided(shape, stride, storage.start + offset)
    return tensor if tensor.is_contiguous() and count == available else tensor.contiguous().clone()


def rebuild_functions() -> Mapping[str, Callable[..., Any]]:
    """Our functions that stand for the few that a file of tensors calls."""

    def with_dtype(
        storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
    ) -> Any:
        if not isinstance(dtype, Global) or dtype.name not in _DTYPE_NAMES:
            # Never the value itself: a few nested bytes can have an endless text.
            named = dtype.name if isinstance(dtype, Global) else type(dtype).__name__
            raise ValueError(f"a tensor of the type {named[:60]}")
        return _tensor(storage, offset, shape, stride, _DTYPE_NAMES[dtype.name])

    def of_subclass(function: Any, _type: Any, arguments: Any, _state: Any) -> Any:
        if not isinstance(function, Global) or function.name not in _REBUILD:
            raise ValueError("a kind of tensor that is not read")
        return table[function.name](*arguments)

    def dictionary(pairs: Any = ()) -> dict[Any, Any]:
        return {key: value for key, value in pairs if isinstance(key, str | int)}

    table: dict[str, Callable[..., Any]] = {
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": lambda storage, offset, shape, stride, *_: _tensor(
            storage, offset, shape, stride
        ),
        "torch._utils._rebuild_tensor_v3": with_dtype,
        "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
        "torch._tensor._rebuild_from_type_v2": of_subclass,
        "torch.Size": lambda sizes=(): tuple(sizes),
        **dict.fromkeys(("builtins.set", "__builtin__.set"), lambda values=(): list(values)),
        "collections.OrderedDict": dictionary,
        "collections.defaultdict": lambda *_: {},
    }
    return table
