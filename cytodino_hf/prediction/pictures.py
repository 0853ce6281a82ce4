"""Pictures as a user has them (files, bytes, Pillow, NumPy, rows of a table) become batches; a bad one is named."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from ..data.dataset import keep_freed_memory, keep_to_one_core
from ..data.images import read_file, read_rgb
from ..data.sources.hub_unpack import row_content
from ..errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset as Table

    from ..model.image_processing_cytodino import CytoDinoImageProcessor


@dataclass(frozen=True)
class TableRow:
    """A picture that lies in a row of a table.

    Args:
        table: With the column `image`, undecoded (`{"path", "bytes"}`).
        row: Which.
        root: Folder that a file must lie in which the row names; None for a table of the user's own.
    """

    table: Table
    row: int
    root: Path | None = None

    def content(self) -> bytes:
        """The encoded picture.

        Raises:
            DataError: The row holds none.
        """
        value = self.table[self.row]["image"] or {"bytes": None, "path": None}
        content: bytes | None = value["bytes"]
        if self.root is not None:
            content = row_content(value, self.root) or None
        elif content is None and value["path"] is not None:
            content = read_file(value["path"])
        if content is None:
            raise DataError("this row of the table holds no picture; remove it")
        return content


#: What stands for one picture.
Picture = str | Path | bytes | Image.Image | np.ndarray | Mapping[str, Any] | TableRow


def read_picture(picture: Picture, name: str) -> np.ndarray:
    """Decode a picture by the one decoder of the project.

    Args:
        picture: File, encoded bytes, `{"path", "bytes"}`, a Pillow image, or uint8 (height, width), (height, width, 3)
            or (height, width, 4). Transparency is dropped, the EXIF orientation is applied.
        name: What messages call it.

    Returns:
        uint8 (height, width, 3), RGB.

    Raises:
        DataError: It cannot be used; says why, without its name for files in memory.
    """
    if isinstance(picture, str | Path):
        return read_rgb(str(picture))
    if isinstance(picture, Mapping):
        return read_rgb({"path": picture.get("path") or name, "bytes": picture.get("bytes")})
    if isinstance(picture, TableRow):
        picture = picture.content()
    if isinstance(picture, np.ndarray):
        picture = _from_array(picture)
    content = _encoded(picture) if isinstance(picture, Image.Image) else picture
    return read_rgb({"path": name, "bytes": content})


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise DataError(
            f"an array of {array.dtype} {array.shape}; it must be uint8 (height, width), (height, width, 3) or "
            "(height, width, 4)"
        )
    return Image.fromarray(array)


def _encoded(picture: Image.Image) -> bytes:
    """The picture as an uncompressed file, so that what is refused of files is refused of pictures in memory too."""
    try:
        upright = ImageOps.exif_transpose(picture)
        # Deep modes stay: converted, they would come out white or black.
        kept = upright if upright.mode.startswith(("I", "F")) else upright.convert("RGB")
        file = io.BytesIO()
        kept.save(file, "TIFF")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be decoded ({error})") from error
    return file.getvalue()


class InputPictures(Dataset[dict[str, Any]]):
    """Pictures of a user, in batches for `evaluation.scoring.score`; one that cannot be read becomes a problem.

    Args:
        pictures: All of them.
        names: What messages call them.
        rows: Which to read, in this order.
        processor: Gives the geometry.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        names: Sequence[str],
        rows: Sequence[int],
        processor: CytoDinoImageProcessor,
    ) -> None:
        self.pictures = pictures
        self.names = names
        self.rows = rows
        self.processor = processor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, places: Sequence[int]) -> dict[str, Any]:
        """One batch; DataLoader asks for it."""
        keep_to_one_core()
        keep_freed_memory()
        ready, rows, problems = [], [], {}
        for row in (self.rows[place] for place in places):
            try:
                picture = read_picture(self.pictures[row], self.names[row])
            except DataError as error:
                problems[row] = _reason(error, self.pictures[row], self.names[row])
                continue
            ready.append(self.processor.crop_and_resize(self.processor.hide_center(picture)))
            rows.append(row)
        pixels = torch.from_numpy(np.stack(ready)) if ready else torch.empty((0, 1, 1, 3), dtype=torch.uint8)
        return {
            "pixel_values": pixels.permute(0, 3, 1, 2),
            "rows": torch.tensor(rows, dtype=torch.int64),
            "problems": problems,
        }


def problem_of(picture: Picture, name: str) -> str | None:
    """Why a picture cannot be read, or None where it can."""
    try:
        read_picture(picture, name)
    except DataError as error:
        return _reason(error, picture, name)
    return None


def _reason(error: DataError, picture: Picture, name: str) -> str:
    """Why, without the name that stands beside it."""
    text = str(error)
    for known in (name, str(picture) if isinstance(picture, str | Path) else name):
        text = text.removeprefix(f"{known}: ")
    return text
