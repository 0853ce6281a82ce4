"""Bring one commit of a data set on the Hub to this machine, compared byte for byte with the sums the Hub publishes.

huggingface_hub tries again and goes on where a connection broke; it compares sizes only, so the sums are compared here.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ...errors import DataError
from ...files import file_sha256

logger = logging.getLogger(__name__)

_KIND = "dataset"
_BUSY = frozenset({500, 502, 503, 504})
_WAITS_S = (1, 2, 4, 8)
_SHA256_DIGITS, _GIT_DIGITS = 64, 40
_T = TypeVar("_T")


@dataclass(frozen=True)
class Asked:
    """What the user wrote and where, which messages point to.

    Args:
        name: `owner/name` of the data set.
        revision: Commit, branch or tag; None for the newest.
        name_in, revision_in: Where the user gave these two.
        limit: A larger commit is refused, in bytes; None for no limit.
        limit_in: Where the limit stands.
    """

    name: str
    revision: str | None
    name_in: str
    revision_in: str
    limit: int | None = None
    limit_in: str = ""


@dataclass(frozen=True)
class _File:
    """A file of a commit as the Hub lists it; the sum is a sha256, or a git name for small files."""

    size: int
    sum: str


def fetch_commit(asked: Asked, cache_dir: str | None = None) -> Path:
    """Folder with all files of a commit, in the Hub's cache; the folder is called by the commit.

    Without the Hub, or with HF_HUB_OFFLINE=1, a commit that is whole in the cache is taken from there; a branch or tag
    is then what it was when it was fetched.

    Args:
        asked: The data set.
        cache_dir: The Hub's cache; None for the usual one.

    Raises:
        DataError: It is missing, gated, too large, arrived damaged, or the Hub cannot be reached; with the remedy.
    """
    with _explained(asked):
        listed = _unless_offline(lambda: _listing(asked.name, asked.revision))
        if listed is not None:
            _refuse_too_much(asked, sum(file.size for file in listed.values()), cache_dir)
        folder = _snapshot(asked, cache_dir, local_files_only=listed is None)
        if listed is not None and asked.revision != folder.name:
            listed = _listing(asked.name, folder.name)  # a branch may have moved meanwhile
    _refuse_other_bytes(asked.name, folder, listed)
    return folder


def _snapshot(asked: Asked, cache_dir: str | None, *, local_files_only: bool) -> Path:
    """All files of a commit; again while the Hub is busy, which its client does for questions but not for files."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    for wait_s in (*_WAITS_S, None):
        try:
            return Path(
                snapshot_download(
                    asked.name, repo_type=_KIND, revision=asked.revision, cache_dir=cache_dir,
                    local_files_only=local_files_only,
                )
            )  # fmt: skip
        except HfHubHTTPError as error:
            status = error.response.status_code
            if wait_s is None or status not in _BUSY:
                raise
            logger.warning("%s: the Hub answers HTTP %s; going on in %s s", asked.name, status, wait_s)
            time.sleep(wait_s)
    raise AssertionError("the last try returns or raises")


def newest_commit(asked: Asked) -> str:
    """The commit that is the newest of a data set now.

    Raises:
        DataError: It is missing or gated, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    with _explained(asked):
        return str(HfApi().dataset_info(asked.name).sha)


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


def _unless_offline(ask: Callable[[], _T]) -> _T | None:
    """What the Hub answers; None where it cannot be asked."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        return ask()
    except HfHubHTTPError:
        raise
    except (HTTPError, ConnectionError) as error:
        logger.warning("the Hub cannot be reached (%s); looking in its cache", type(error).__name__)
        return None


def _listing(name: str, revision: str | None) -> dict[str, _File]:
    """Files of a commit, branch or tag."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    tree = HfApi().list_repo_tree(name, repo_type=_KIND, revision=revision, recursive=True)
    files = [entry for entry in tree if isinstance(entry, RepoFile)]
    return {f.path: _File(f.size, f.lfs.sha256 if f.lfs is not None else f.blob_id) for f in files}


def _refuse_too_much(asked: Asked, size: int, cache_dir: str | None) -> None:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if asked.limit is not None and size > asked.limit:
        raise DataError(
            f"data set {asked.name} holds {size / 1e9:.1f} GB, more than {asked.limit_in} = {asked.limit / 1e9:g} "
            "allows; raise it to download them all the same"
        )
    cache = Path(cache_dir or constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    # What is there already needs no room again: a start that goes on, or another commit with the same files.
    there = (cache / repo_folder_name(repo_id=asked.name, repo_type=_KIND) / "blobs").glob("*")
    free = shutil.disk_usage(cache).free + sum(file.stat().st_size for file in there)
    if size > free:
        raise DataError(
            f"data set {asked.name} holds {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {cache}; HF_HOME "
            "names another folder"
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
def _explained(asked: Asked) -> Iterator[None]:
    """Turn the many ways a download can fail into one message with the remedy."""
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except (OSError, HTTPError, HFValidationError) as error:
        raise DataError(_remedy(error, asked)) from error


def _remedy(error: Any, asked: Asked) -> str:
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
    name, revision = asked.name, asked.revision or "main"
    again = (
        f"`hf download {name} --repo-type dataset --revision {revision}` fetches it once with a connection"
    )
    if isinstance(error, HFValidationError):
        return f"{asked.name_in}: {name!r} is no name of a data set; it is OWNER/NAME"
    if isinstance(error, GatedRepoError):
        page = f"https://huggingface.co/datasets/{name}"
        return f"data set {name} is gated and this account has no access: accept its terms on {page}, then {sign_in}"
    if isinstance(error, RevisionNotFoundError):
        return f"data set {name} has no revision {revision} ({asked.revision_in})"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"data set {name} does not exist on the Hub, or is private and no token is set: check {asked.name_in}, "
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
