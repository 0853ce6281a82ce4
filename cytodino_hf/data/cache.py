"""Images kept in one file of the user's cache, which all workers and runs map into memory (`data.cache`).

`bytes` keeps the files as they are: many small files of a slow disk become one, decoding is still to do. `pixels`
keeps the decoded pictures: reading one is a copy. The file is an Arrow table (`path`, `height`, `width`,
`content`; see `pictures.py`), named by what it was made of: an image that changes, comes or goes makes another file.
It gets its name when it is whole, so that one half made by a run that was killed is never read. Older files are the
user's to delete (a run may be reading them); each new one says where they are and how much they take.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import DataError
from ..files import push_to_disk
from .hdf5_pictures import place_of
from .images import decoder_versions, read_file, read_rgb
from .parallel import Died, usable_cores, work_through
from .pictures import Pack
from .user_cache import user_cache

if TYPE_CHECKING:
    import pyarrow as pa

    from .samples import CellImages

logger = logging.getLogger(__name__)

Kind = Literal["bytes", "pixels"]

# Another number makes every file be made anew.
_FORMAT_VERSION = 1
# A half-made file is written to all the time; one this old belongs to a process that is gone.
_ABANDONED_SECONDS = 24 * 3600.0
# Pictures whose size is looked at before all are decoded.
_SIZES_SAMPLED = 200
# What is on its way from the decoding processes to the file at once.
_WINDOW_BYTES = 256 * 1024 * 1024
_BATCH_ROWS = 256


def pack_images(images: CellImages, kind: Kind, *, workers: int | None = None) -> CellImages:
    """The same images, read from one file of the user's cache; it is made first where it is not there yet.

    Args:
        images: The whole set, whatever the split takes of it: then all splits of the set read one file.
        kind: `bytes` or `pixels`.
        workers: Processes that read; as many as there are cores by default.

    Raises:
        DataError: An image cannot be read (names it), the cache has no room or cannot be written, or the images lie in
            HDF5 files.
    """
    paths = images.column("path")
    if any(place_of(path) for path in paths[:1]):
        raise DataError(f"{images.root}: the pictures lie in HDF5 files already: set data.cache to 'none'")
    files = [f"{images.root.absolute()}/{path}" for path in paths]
    sizes = _look_at(files)
    name = _fingerprint(kind, images.root, paths, sizes)
    target = user_cache("pictures") / f"{kind}-{name}.arrow"
    if not target.is_file():
        expected = int(sizes[:, 0].sum()) if kind == "bytes" else _decoded_bytes(files)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _alone(target.with_suffix(".lock")):
                if not target.is_file():  # another run may have made it meanwhile
                    _make(target, kind, paths, files, expected, workers or usable_cores())
        except OSError as error:
            raise DataError(
                f"{target}: cannot be written ({error}); set CYTODINO_CACHE to a folder with room, or set data.cache "
                "to 'none'"
            ) from error
    return replace(images, pack=Pack(target))


def _look_at(files: Sequence[str]) -> np.ndarray:
    """Bytes and time of change of each file, int64 (files, 2)."""
    found = np.empty((len(files), 2), np.int64)
    for i, file in enumerate(files):
        try:
            status = os.stat(file)
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error})") from error
        found[i] = status.st_size, status.st_mtime_ns
    return found


def _fingerprint(kind: Kind, root: Path, paths: Sequence[str], sizes: np.ndarray) -> str:
    """Of the files and of what turns them into pixels, whatever the order of the rows."""
    order = sorted(range(len(paths)), key=paths.__getitem__)
    versions = [_FORMAT_VERSION, *decoder_versions()]
    digest = hashlib.sha256(
        json.dumps([kind, versions, str(root.absolute()), [paths[i] for i in order]]).encode()
    )
    digest.update(sizes[order].tobytes())
    return digest.hexdigest()[:24]


def _decoded_bytes(files: Sequence[str]) -> int:
    """What all pictures take when decoded, from the sizes some of them name; files that name none are met later."""
    from PIL import Image, UnidentifiedImageError

    step = max(1, len(files) // _SIZES_SAMPLED)
    areas = []
    for file in files[::step]:
        try:
            with Image.open(file) as picture:
                areas.append(picture.width * picture.height)
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
            continue
    return round(3 * float(np.mean(areas or [0])) * len(files))


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until no other process makes the same file; a killed one waits for nobody and holds nothing."""
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(
    target: Path, kind: Kind, paths: Sequence[str], files: Sequence[str], expected: int, workers: int
) -> None:
    from tqdm.auto import tqdm

    partial = target.with_suffix(".partial")  # a killed run may have left one
    partial.unlink(missing_ok=True)
    _remove_abandoned(target.parent)
    free = shutil.disk_usage(target.parent).free
    logger.warning("%d images take about %.1f GB as %s in %s", len(paths), expected / 1e9, kind, target)
    if expected > free:
        raise DataError(
            f"{target.parent}: {expected / 1e9:.1f} GB are needed for data.cache {kind!r}, {free / 1e9:.1f} GB are "
            "free; make room, set CYTODINO_CACHE to another disk, or choose `bytes` or `none`"
        )
    read = _read_encoded if kind == "bytes" else _read_decoded
    window = max(_BATCH_ROWS, len(files) * _WINDOW_BYTES // max(expected, 1))
    try:
        with tqdm(total=len(files), desc=f"keeping {kind}", unit="image") as progress:
            _write(partial, paths, files, read, window, workers, progress)
        os.replace(partial, target)
        push_to_disk(target.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    held = sum(file.stat().st_size for file in target.parent.glob("*.arrow"))
    logger.warning(
        "kept pictures take %.1f GB now; delete them when no run reads them (what is needed is made anew): rm -r %s",
        held / 1e9, shlex.quote(str(target.parent)),
    )  # fmt: skip


def _remove_abandoned(folder: Path) -> None:
    """Half-made files that killed runs left."""
    for partial in folder.glob("*.partial"):
        if time.time() - partial.stat().st_mtime > _ABANDONED_SECONDS:
            partial.unlink(missing_ok=True)


def _write(
    partial: Path,
    paths: Sequence[str],
    files: Sequence[str],
    read: Callable[[str], np.ndarray],
    window: int,
    workers: int,
    progress: Any,
) -> None:
    import pyarrow as pa

    fields = {"path": pa.string(), "height": pa.int32(), "width": pa.int32(), "content": pa.large_binary()}
    schema = pa.schema(fields)
    with open(partial, "wb") as sink:
        with pa.ipc.new_file(sink, schema) as writer:
            # Results of a whole window stay in memory until its last one is there.
            for start in range(0, len(files), window):
                part = files[start : start + window]
                waiting: list[tuple[str, np.ndarray]] = []
                for place, content in work_through(read, part, workers=workers):
                    if isinstance(content, Died):
                        raise DataError(
                            f"{content.item}: the process that read it was killed; remove the file"
                        )
                    waiting.append((paths[start + place], content))
                    progress.update()
                    if len(waiting) == _BATCH_ROWS:
                        writer.write_batch(_batch(waiting, schema))
                        waiting = []
                if waiting:
                    writer.write_batch(_batch(waiting, schema))
        sink.flush()
        os.fsync(sink.fileno())


def _batch(rows: Sequence[tuple[str, np.ndarray]], schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    ends = np.cumsum([0, *(content.size for _, content in rows)], dtype=np.int64)
    content = np.concatenate([content.reshape(-1) for _, content in rows])
    # Encoded pictures are flat: no height says so.
    shapes = [content.shape[:2] if content.ndim == 3 else (0, 0) for _, content in rows]
    columns = [
        pa.array([path for path, _ in rows], pa.string()),
        pa.array([height for height, _ in shapes], pa.int32()),
        pa.array([width for _, width in shapes], pa.int32()),
        pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(rows), [None, pa.py_buffer(ends), pa.py_buffer(content)]
        ),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _read_encoded(file: str) -> np.ndarray:
    return np.frombuffer(read_file(file), np.uint8)


def _read_decoded(file: str) -> np.ndarray:
    return read_rgb(file)
