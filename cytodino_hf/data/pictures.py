"""Where the pictures of a data set are read from: their own files, or one packed file mapped into memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import DataError
from .images import read_rgb

if TYPE_CHECKING:
    import pyarrow as pa

    from .samples import CellImages


class Pictures(Protocol):
    """Pictures of the rows of a data set."""

    def read(self, row: int, buffer: np.ndarray | None = None) -> np.ndarray:
        """uint8 RGB (height, width, 3); perhaps not writable, perhaps a view of `buffer` (see `images.read_rgb`)."""
        ...


@dataclass(frozen=True)
class FilePictures:
    """Each picture decoded from its own file.

    Args:
        root: Folder of the paths.
        paths: Relative to it, Arrow text.
    """

    root: Path
    paths: pa.Array

    def read(self, row: int, buffer: np.ndarray | None = None) -> np.ndarray:
        """One picture; see `Pictures`."""
        return read_rgb(f"{self.root}/{self.paths[row].as_py()}", buffer)


@dataclass(frozen=True)
class PackedPictures:
    """Rows of a packed file.

    Args:
        pack: The file.
        places: Place of each row in it, int64.
    """

    pack: Pack
    places: np.ndarray

    def read(self, row: int, buffer: np.ndarray | None = None) -> np.ndarray:
        """One picture; see `Pictures`."""
        return self.pack.picture(int(self.places[row]), buffer)


@dataclass(frozen=True)
class Pack:
    """A packed file, opened at the first look; workers get its name only.

    Args:
        file: Made by `cache.pack_images`.
    """

    file: Path

    def rows(self, paths: pa.Array) -> PackedPictures:
        """The pictures of these paths.

        Raises:
            DataError: The file lacks one of them.
        """
        import pyarrow.compute as pc

        places = pc.index_in(paths, self._table["path"])
        if places.null_count:
            missing = paths.filter(pc.is_null(places))[0].as_py()
            raise DataError(f"{self.file}: lacks {missing}; remove the file, and it is made anew")
        return PackedPictures(self, places.to_numpy(zero_copy_only=False).astype(np.int64))

    def picture(self, place: int, buffer: np.ndarray | None = None) -> np.ndarray:
        """One picture, uint8 RGB; decoded ones are a view of the file and not writable.

        Args:
            place: Where in the file.
            buffer: For encoded ones; see `images.read_rgb`.

        Raises:
            DataError: An encoded picture cannot be decoded; names its image.
        """
        content = self._memory[self._starts[place] : self._stops[place]]
        if self._height[place]:
            return content.reshape(self._height[place], self._width[place], 3)
        return read_rgb({"path": self._table["path"][place].as_py(), "bytes": content.tobytes()}, buffer)

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file}

    @cached_property
    def _mapped(self) -> pa.Buffer:
        import pyarrow as pa

        with self._named(), pa.memory_map(str(self.file)) as source:
            return source.read_buffer(source.size())

    @cached_property
    def _table(self) -> pa.Table:
        import pyarrow as pa

        with self._named():
            return pa.ipc.open_file(self._mapped).read_all()

    @contextmanager
    def _named(self) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{self.file}: the kept pictures cannot be read ({error}); remove the file, and it is made anew"
            ) from error

    @cached_property
    def _memory(self) -> np.ndarray:
        return np.frombuffer(self._mapped, np.uint8)

    @cached_property
    def _height(self) -> np.ndarray:
        return self._table["height"].to_numpy()

    @cached_property
    def _width(self) -> np.ndarray:
        return self._table["width"].to_numpy()

    @cached_property
    def _bounds(self) -> np.ndarray:
        """Where each picture starts and ends in the file: Arrow's own look-up takes longer than the copy."""
        bounds = []
        for chunk in self._table["content"].chunks:
            _, offsets, data = chunk.buffers()
            ends = np.frombuffer(offsets, np.int64)[: len(chunk) + 1] + (data.address - self._mapped.address)
            bounds.append(np.stack([ends[:-1], ends[1:]]))
        return np.concatenate(bounds, axis=1)

    @property
    def _starts(self) -> np.ndarray:
        return self._bounds[0]

    @property
    def _stops(self) -> np.ndarray:
        return self._bounds[1]


def pictures_of(images: CellImages) -> Pictures:
    """The pictures of a set, from its pack where it has one, else from their files."""
    column = images.dataset.select_columns(["path"]).with_format("arrow")[:]["path"]
    paths = column.combine_chunks()
    return FilePictures(images.root.absolute(), paths) if images.pack is None else images.pack.rows(paths)
