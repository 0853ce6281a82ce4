"""Bring one commit of a data set on the Hub to this machine, compared byte for byte with the sums the Hub publishes.

huggingface_hub tries again and goes on where a connection broke; it compares sizes only, so the sums are compared here.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...files import file_sha256

logger = logging.getLogger(__name__)

_KIND = "dataset"
_BUSY = frozenset({500, 502, 503, 504})
_WAITS_S = (1, 2, 4, 8)
_SHA256_DIGITS, _GIT_DIGITS = 64, 40


@dataclass(frozen=True)
class _File:
    """A file of a commit as the Hub lists it; the sum is a sha256, or a git name for small files."""

    size: int
    sum: str


def fetch_commit(name: str, revision: str, most_bytes: int) -> Path:
    """Folder with all files of a commit, in the Hub's cache.

    Without the Hub, or with HF_HUB_OFFLINE=1, a commit that is whole in the cache is taken from there.

    Args:
        name: `owner/name` of the data set.
        revision: The commit, 40 hexadecimal digits.
        most_bytes: A larger commit is refused before anything is downloaded.

    Raises:
        DataError: It is missing, gated, too large, arrived damaged, or the Hub cannot be reached; with the remedy.
    """
    with _explained(name, revision):
        listed = _listing(name, revision)
        if listed is not None:
            _refuse_too_much(name, sum(file.size for file in listed.values()), most_bytes)
        folder = _snapshot(name, revision, local_files_only=listed is None)
    _refuse_other_bytes(name, folder, listed)
    return folder


def _snapshot(name: str, revision: str, *, local_files_only: bool) -> Path:
    """All files of a commit; again while the Hub is busy, which its client does for questions but not for files."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    for wait_s in (*_WAITS_S, None):
        try:
            return Path(
                snapshot_download(name, repo_type=_KIND, revision=revision, local_files_only=local_files_only)
            )
        except HfHubHTTPError as error:
            status = error.response.status_code
            if wait_s is None or status not in _BUSY:
                raise
            logger.warning("%s: the Hub answers HTTP %s; going on in %s s", name, status, wait_s)
            time.sleep(wait_s)
    raise AssertionError("the last try returns or raises")


def newest_commit(name: str) -> str:
    """The commit that is the newest of a data set now.

    Raises:
        DataError: It is missing or gated, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    with _explained(name, "main"):
        return str(HfApi().dataset_info(name).sha)


def licence_of(folder: Path) -> str:
    """The licence that the card of a data set names; empty where it names none."""
    from huggingface_hub import DatasetCard

    card = folder / "README.md"
    if not card.is_file():
        return ""
    try:
        licence = DatasetCard.load(card, ignore_metadata_errors=True).data.get("license")
    except (ValueError, OSError) as error:
        logger.warning("%s: the card cannot be read, so the licence is not known (%s)", card, error)
        return ""
    names = licence if isinstance(licence, list) else [licence]
    return " ".join(" ".join(str(name) for name in names if name).split())


def _listing(name: str, revision: str) -> dict[str, _File] | None:
    """Files of a commit; None where the Hub cannot be asked."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]
    from huggingface_hub.hf_api import RepoFile

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        tree = HfApi().list_repo_tree(name, repo_type=_KIND, revision=revision, recursive=True)
        files = [entry for entry in tree if isinstance(entry, RepoFile)]
    except HfHubHTTPError:
        raise
    except (HTTPError, ConnectionError) as error:
        logger.warning("the Hub cannot be reached (%s); looking in its cache", type(error).__name__)
        return None
    return {f.path: _File(f.size, f.lfs.sha256 if f.lfs is not None else f.blob_id) for f in files}


def _refuse_too_much(name: str, size: int, most_bytes: int) -> None:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if size > most_bytes:
        raise DataError(
            f"data set {name} holds {size / 1e9:.1f} GB, more than data.hub_dataset.max_gigabytes = "
            f"{most_bytes / 1e9:g} allows; raise it to download them all the same"
        )
    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    # What is there already needs no room again: a start that goes on, or another commit with the same files.
    there = (cache / repo_folder_name(repo_id=name, repo_type=_KIND) / "blobs").glob("*")
    free = shutil.disk_usage(cache).free + sum(file.stat().st_size for file in there)
    if size > free:
        raise DataError(
            f"data set {name} holds {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {cache}; HF_HOME names "
            "another folder"
        )


def _refuse_other_bytes(name: str, folder: Path, listed: Mapping[str, _File] | None) -> None:
    """Compare every file with its sum; a file that differs is deleted, so that the next start fetches it anew."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        file = path.relative_to(folder).as_posix()
        # The cache calls a file by its sum, which is all there is without the Hub.
        known = path.resolve().name if path.is_symlink() else ""
        wanted = listed[file].sum if listed is not None and file in listed else known
        if len(wanted) not in (_SHA256_DIGITS, _GIT_DIGITS):
            raise DataError(f"{path}: no sum is known to compare it with; delete {folder} and start again")
        found = file_sha256(path) if len(wanted) == _SHA256_DIGITS else _git_name(path)
        if found != wanted:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise DataError(
                f"data set {name}: {file} arrived with other bytes than were published (sum {found[:12]}, published "
                f"{wanted[:12]}). It was deleted; start again."
            )


def _git_name(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def _explained(name: str, revision: str) -> Iterator[None]:
    """Turn the many ways a download can fail into one message with the remedy."""
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except (OSError, HTTPError, HFValidationError) as error:
        raise DataError(_remedy(error, name, revision)) from error


def _remedy(error: Any, name: str, revision: str) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    sign_in = "`hf auth login` or set HF_TOKEN"
    again = (
        f"`hf download {name} --repo-type dataset --revision {revision}` fetches it once with a connection"
    )
    if isinstance(error, HFValidationError):
        return f"data.hub_dataset.id = {name!r} is no name of a data set; it is owner/name"
    if isinstance(error, GatedRepoError):
        page = f"https://huggingface.co/datasets/{name}"
        return f"data set {name} is gated and this account has no access: accept its terms on {page}, then {sign_in}"
    if isinstance(error, RevisionNotFoundError):
        return f"data set {name} has no commit {revision} (data.hub_dataset.revision)"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"data set {name} does not exist on the Hub, or is private and no token is set: check data.hub_dataset.id, "
            f"{sign_in}"
        )
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
        return f"data set {name} at {revision} is not whole in the local cache, and {why}; {again}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the Hub refuses data set {name} (HTTP {status}): {sign_in} with an account that may read it"
    what = f"answers HTTP {status}" if status else f"{type(error).__name__}: {error}"
    return f"data set {name} cannot be fetched ({what}). What arrived is kept: start again later."
