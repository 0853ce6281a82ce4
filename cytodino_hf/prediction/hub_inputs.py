"""Images of a data set on the Hub, by id and commit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.sources.hub_download import Asked, fetch_commit
from ..data.sources.hub_unpack import refuse_outside, safe_reader
from ..errors import DataError
from .inputs import HUB_PREFIX, InputImages, add_rows

if TYPE_CHECKING:
    from datasets import Dataset


def add_hub_dataset(found: InputImages, name: str, cache_dir: str | None) -> None:
    """Append every image of every split.

    The files are fetched as they are at one commit and read from the cache afterwards, with HF_HUB_OFFLINE too.

    Args:
        found: Where to.
        name: `OWNER/NAME` or `OWNER/NAME@REVISION`.
        cache_dir: Of the Hub's files.

    Raises:
        DataError: It cannot be had, or holds no images; says the remedy.
    """
    repository, _, revision = name.partition("@")
    where = HUB_PREFIX + name
    asked = Asked(repository, revision or None, where, f"what follows @ in {where}")
    folder = fetch_commit(asked, cache_dir)
    for split, table in _splits(folder, repository).items():
        columns = [key for key, kind in table.features.items() if type(kind).__name__ == "Image"]
        column = "image" if "image" in table.features else columns[0] if len(columns) == 1 else None
        if column is None:
            raise DataError(
                f"{HUB_PREFIX}{repository}: split {split} has no column `image` and not one column of images (found: "
                f"{', '.join(table.features)})"
            )
        rows = table if column == "image" else table.rename_column(column, "image")
        add_rows(
            found, rows, f"{repository}@{folder.name}", numbered_as=split, inside=f"{split}/",
            name_of_file=partial(_name_in, folder), root=folder,
        )  # fmt: skip


def _name_in(folder: Path, path: str) -> str:
    """How a file of the data set is called there, wherever this machine keeps it."""
    file = refuse_outside(path, folder).relative_to(folder).as_posix()
    inside, is_packed, _ = path.partition("::")  # zip://a.png::/folder/b.zip
    return f"{file}/{inside.partition('://')[2]}" if is_packed else file


def _splits(folder: Path, repository: str) -> dict[str, Dataset]:
    from datasets.exceptions import DatasetsError

    try:
        reader = safe_reader(folder)
        reader.download_and_prepare()
        return dict(reader.as_dataset())
    except (DatasetsError, ValueError, OSError) as error:
        raise DataError(
            f"{HUB_PREFIX}{repository}: cannot be read as a data set of images ({error})"
        ) from error
