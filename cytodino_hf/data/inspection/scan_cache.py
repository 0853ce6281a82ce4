"""What scans found, kept in the user's cache: one Parquet file for each folder of images."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..images import decoder_versions
from ..user_cache import user_cache
from .perceptual_hash import THUMBNAIL_PX

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

_OLD_PARTIAL_SECONDS = 3600.0


class ScanCache:
    """The scan of one folder on the disk.

    Files that could be used are kept; the others are few, and what is wrong with them may go away without a change
    of the file (no permission, a lost connection).

    Args:
        root: Folder the paths are relative to.
        scanner_version: With the versions of the decoders it says whether what is kept still holds.
    """

    def __init__(self, root: Path, scanner_version: int) -> None:
        self.root = root
        name = hashlib.sha256(str(root.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        self.file = user_cache("scans") / f"{name}.parquet"
        self.version = ", ".join([f"scanner {scanner_version}", *decoder_versions()])

    @cached_property
    def schema(self) -> pa.Schema:
        """Columns of a scan."""
        import pyarrow as pa

        whole, number = pa.int32(), pa.float32()
        columns = {
            "path": pa.string(), "size_bytes": pa.int64(), "mtime_ns": pa.int64(), "reason": pa.string(),
            "notes": pa.string(), "width": whole, "height": whole, "file_sha256": pa.binary(32),
            "pixel_sha256": pa.binary(32), "hash": pa.uint64(), "detail": number,
            "thumbnail": pa.binary(THUMBNAIL_PX**2),
            "brightness": number, "blue": number, "purple": number, "residual": number,
        }  # fmt: skip
        return pa.schema(list(columns.items()), metadata={"version": self.version})

    def table(self, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
        """Rows as a table; what a row lacks is null."""
        import pyarrow as pa

        return pa.Table.from_pylist(list(rows), schema=self.schema)

    def find(self, paths: Sequence[str], sizes: np.ndarray, times: np.ndarray) -> tuple[pa.Table, np.ndarray]:
        """What is kept, and the row in it of each file (-1: not kept, or the file has changed)."""
        import pyarrow as pa
        import pyarrow.compute as pc

        kept = self._read()
        found = pc.index_in(pa.array(paths, pa.string()), kept["path"].combine_chunks())
        row_of = found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        there = np.flatnonzero(row_of >= 0)
        same = np.ones(len(there), dtype=bool)
        for name, values in (("size_bytes", sizes), ("mtime_ns", times)):
            same &= kept[name].to_numpy()[row_of[there]] == values[there]
        row_of[there[~same]] = -1
        return kept, row_of

    def keep(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add what was found about usable files; what is kept about others stays while they exist.

        A folder that cannot be written costs a warning and the next scan its time, no more.
        """
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        new = self.table(row for row in rows if row["reason"] is None)
        if not new.num_rows:
            return
        old = self._read()  # anew: another scan of the same folder may have written meanwhile
        others = old.filter(pc.invert(pc.is_in(old["path"], new["path"].combine_chunks())))
        there = [os.path.exists(f"{self.root}/{path}") for path in others["path"].to_pylist()]
        table = pa.concat_tables([others.filter(pa.array(there, pa.bool_())), new])
        partial = self.file.with_name(f".{self.file.name}.{os.getpid()}.partial")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._remove_old_partials()
            pq.write_table(table, partial, compression="zstd", write_page_checksum=True)
            os.replace(partial, self.file)
        except OSError as error:
            logger.warning(
                "%s: cannot keep the scan (%s); it will be made again next time. CYTODINO_CACHE names another folder.",
                self.file, error,
            )  # fmt: skip
            with contextlib.suppress(OSError):  # it is not there, or cannot be removed either
                partial.unlink()

    def _read(self) -> pa.Table:
        """The file; an empty table where there is none, or it is of another version or damaged."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            if not self.file.is_file():
                return self.schema.empty_table()
            with pq.ParquetFile(self.file, page_checksum_verification=True) as content:
                if content.schema_arrow.equals(self.schema, check_metadata=True):
                    return content.read()
        except (OSError, pa.ArrowException) as error:
            logger.warning("%s: cannot be read (%s); the images are scanned again", self.file, error)
        return self.schema.empty_table()

    def _remove_old_partials(self) -> None:
        """Files that killed scans left; a running one writes its own in seconds."""
        for leftover in self.file.parent.glob(f".{self.file.name}.*.partial"):
            if time.time() - leftover.stat().st_mtime > _OLD_PARTIAL_SECONDS:
                leftover.unlink(missing_ok=True)
