"""Download one pinned version of a Kaggle set through kagglehub: resumed, tried again, safely unpacked, then cached.

A version that lies in kagglehub's cache is taken from there without any request.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..archives import Limits, RefusedArchiveError, unpack

logger = logging.getLogger(__name__)

_BUSY = frozenset({429, 500, 502, 503, 504})
_MOST_TRIES = 5
_LONGEST_WAIT_S = 60.0
_CACHE_VARIABLE = "KAGGLEHUB_CACHE"
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class KaggleSet:
    """Which set, and what to say of it.

    Args:
        handle: `owner/name`.
        version: Pinned version.
        version_key: Key of the recipe that chooses the version.
        limits: What its archive may hold.
        disk_gb: Gigabytes needed while it is unpacked.
        by_hand: How to get it without this download, one sentence.
    """

    handle: str
    version: int
    version_key: str
    limits: Limits
    disk_gb: int
    by_hand: str

    @property
    def page(self) -> str:
        """Where a person finds it."""
        return f"https://www.kaggle.com/datasets/{self.handle}"


def download(wanted: KaggleSet) -> Path:
    """Folder of a Kaggle set; downloaded where it is not in the cache.

    A connection that breaks is taken up where it broke, also by the next call.

    Args:
        wanted: The set.

    Returns:
        Its folder in kagglehub's cache.

    Raises:
        DataError: Kaggle cannot be reached or refuses, the archive arrived damaged or is not to be trusted, or the
            disk is too small; each with its remedy.
    """
    import kagglehub
    import requests  # type: ignore[import-untyped]

    try:
        _check_credentials()
        with _made_safe(wanted):
            return _tried_again(wanted)
    except requests.exceptions.RequestException as error:
        raise DataError(_explain(error, wanted)) from error
    except kagglehub.exceptions.DataCorruptionError as error:
        raise DataError(
            f"{wanted.handle}: the download arrived damaged ({' '.join(str(error).split())}). It was deleted; start "
            f"again. {wanted.by_hand}"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"{wanted.handle}: cannot be unpacked into {_cache()} ({error}). The set needs {wanted.disk_gb} GB there "
            f"while it is unpacked; {_CACHE_VARIABLE} names another folder. {wanted.by_hand}"
        ) from error


def _tried_again(wanted: KaggleSet) -> Path:
    """The download, again while Kaggle is busy or while every try brings more of it."""
    import kagglehub
    import requests

    tries, arrived = 0, _arrived(wanted)
    while True:
        try:
            return Path(kagglehub.dataset_download(f"{wanted.handle}/versions/{wanted.version}"))
        except requests.exceptions.RequestException as error:
            more = _arrived(wanted)
            grew, is_busy = more > arrived, _status(error) in _BUSY
            tries = 0 if grew else tries + 1
            if not grew and (not is_busy or tries >= _MOST_TRIES):
                raise
            arrived = more
            wait = _wait_s(error, tries)
            what = f"answers HTTP {_status(error)}" if is_busy else f"broke off after {more:,} bytes"
            logger.warning("%s: Kaggle %s; going on in %.0f s", wanted.handle, what, wait)
            time.sleep(wait)


def _wait_s(error: Exception, tries: int) -> float:
    asked = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    wait = float(asked) if asked.isdecimal() else 2.0 ** max(0, tries - 1)
    return min(wait, _LONGEST_WAIT_S)


def _arrived(wanted: KaggleSet) -> int:
    """Bytes of the archive that are there already."""
    archive = _archive(wanted)
    return archive.stat().st_size if archive.is_file() else 0


def _archive(wanted: KaggleSet) -> Path:
    from kagglehub.cache import get_cached_archive_path
    from kagglehub.handle import parse_dataset_handle

    return Path(get_cached_archive_path(parse_dataset_handle(f"{wanted.handle}/versions/{wanted.version}")))


@contextmanager
def _made_safe(wanted: KaggleSet) -> Iterator[None]:
    """Replace two steps of kagglehub.

    Its unpacking has no limit and drops `..` from names without a word; its way of going on after a break adds
    whatever is answered to the file, a page that says "busy" included.
    """
    from kagglehub import clients, http_resolver

    steps: list[tuple[Any, str, Callable[[Any], Any]]] = [
        (http_resolver, "_extract_archive", lambda _: partial(_unpack, wanted)),
        (clients, "_download_file", lambda own: partial(_take, own)),
    ]
    if missing := [name for module, name, _ in steps if not hasattr(module, name)]:
        raise DataError(
            f"this kagglehub cannot be made safe ({', '.join(missing)} is not there): install kagglehub 1.0.2. "
            f"{wanted.by_hand}"
        )
    with _ONE_AT_A_TIME, ExitStack() as undo:
        for module, name, replace in steps:
            own = getattr(module, name)
            undo.callback(setattr, module, name, own)
            setattr(module, name, replace(own))
        yield


def _unpack(wanted: KaggleSet, archive_path: str, out_path: str) -> None:
    try:
        unpack(Path(archive_path), Path(out_path), wanted.limits)
    except RefusedArchiveError as error:
        # kagglehub would take the same file for a finished download for ever.
        Path(archive_path).unlink(missing_ok=True)
        raise DataError(f"{wanted.handle}: {error}. It was deleted; start again. {wanted.by_hand}") from error


def _take(
    own: Callable[..., None],
    response: Any,
    out_file: str,
    size_read: int,
    total_size: int | None,
    digest: Any,
) -> None:
    """Write an answer to the file, once it is known to be the rest of it."""
    import requests

    response.raise_for_status()
    if size_read and response.status_code != requests.codes.partial:
        Path(out_file).unlink()
        raise requests.exceptions.ConnectionError("the server cannot go on where the connection broke")
    own(response, out_file, size_read, total_size, digest)


def _cache() -> str:
    return os.environ.get(_CACHE_VARIABLE, "~/.cache/kagglehub")


def _status(error: Exception) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _explain(error: Exception, wanted: KaggleSet) -> str:
    status = _status(error)
    if status in (401, 403):
        return (
            f"Kaggle refuses {wanted.handle} (HTTP {status}): {_about_credentials(wanted)} {wanted.by_hand}"
        )
    if status == 404:
        return (
            f"Kaggle has no version {wanted.version} of {wanted.handle} ({wanted.version_key}; see {wanted.page}). "
            f"{wanted.by_hand}"
        )
    if status is not None:
        return f"Kaggle answers HTTP {status} for {wanted.handle}; try again later. {wanted.by_hand}"
    if arrived := _arrived(wanted):
        return (
            f"{wanted.handle}: the connection broke after {arrived:,} bytes ({type(error).__name__}). They are kept: "
            f"start again to go on from there. {wanted.by_hand}"
        )
    return (
        f"{wanted.handle} version {wanted.version} is not in the cache and Kaggle cannot be reached "
        f"({type(error).__name__}). Check the network. {wanted.by_hand}"
    )


def _about_credentials(wanted: KaggleSet) -> str:
    from kagglehub.config import get_kaggle_credentials

    new = "create a token at https://www.kaggle.com/settings and set KAGGLE_API_TOKEN to it"
    if get_kaggle_credentials() is None:
        return f"the credentials are missing: {new} (or write it to ~/.kaggle/access_token)."
    return f"the credentials it was given are wrong or not allowed: open {wanted.page} and accept its terms, or {new}."


def _check_credentials() -> None:
    """Say which file is no credentials file before kagglehub stumbles over it."""
    from kagglehub.config import get_kaggle_credentials

    try:
        get_kaggle_credentials()
    except ValueError as error:
        raise DataError(f"{error}; mend or delete it, or set KAGGLE_API_TOKEN") from error
