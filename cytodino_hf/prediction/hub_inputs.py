"""Images of a data set on the Hub, by id and commit."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from .inputs import HUB_PREFIX, InputImages, add_rows


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
    folder = _download(repository, revision or None, cache_dir)
    for split, table in _splits(folder, repository).items():
        columns = [key for key, kind in table.features.items() if type(kind).__name__ == "Image"]
        column = "image" if "image" in table.features else columns[0] if len(columns) == 1 else None
        if column is None:
            raise DataError(
                f"{HUB_PREFIX}{repository}: split {split} has no column `image` and not one column of images (found: "
                f"{', '.join(table.features)})"
            )
        rows = table if column == "image" else table.rename_column(column, "image")
        add_rows(found, rows, f"{repository}@{folder.name}", numbered_as=split, inside=f"{split}/")


def _download(repository: str, revision: str | None, cache_dir: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name = HUB_PREFIX + repository
    try:
        return Path(
            snapshot_download(repository, repo_type="dataset", revision=revision, cache_dir=cache_dir)
        )
    except LocalEntryNotFoundError as error:
        raise DataError(
            f"{name} is not in the local cache and the Hub cannot be asked; fetch it once with a connection "
            f"(`hf download {repository} --repo-type dataset`)"
        ) from error
    except HfHubHTTPError as error:
        raise DataError(
            f"{name} cannot be fetched ({error.server_message or error}); check the name and the revision "
            f"{revision or '(the newest)'}; if it is gated or private, ask for access on "
            f"https://huggingface.co/datasets/{repository}, then `hf auth login` or set HF_TOKEN"
        ) from error
    except HFValidationError as error:
        raise DataError(
            f"{name}: no id of the Hub ({error}); it is OWNER/NAME or OWNER/NAME@REVISION"
        ) from error


def _splits(folder: Path, repository: str) -> dict:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return dict(load_dataset(str(folder)))
    except (DatasetsError, ValueError, OSError) as error:
        raise DataError(
            f"{HUB_PREFIX}{repository}: cannot be read as a data set of images ({error})"
        ) from error
