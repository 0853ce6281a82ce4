"""publish(run, repo_id): assemble, look for leaks, send in one commit."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PublishError
from .allow_list import Storage, Wish
from .assemble import Publication, assemble
from .leaks import refuse_leaks

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)
_TOKENS = "https://huggingface.co/settings/tokens"
# Letters, digits, dots, dashes and underscores; as the Hub has it.
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class Published:
    """What came of it.

    Args:
        text: Files, sizes and card of a dry run; else one line.
        commit: 40 hexadecimal digits of what the repository holds now; None after a dry run.
    """

    text: str
    commit: str | None


def publish(
    run: str | Path,
    repo_id: str,
    *,
    merged: bool = False,
    private: bool = False,
    revision: str | None = None,
    storage: Storage = "float32",
    dry_run: bool = False,
) -> Published:
    """Put the model of a RUN on the Hub; the same call again changes nothing.

    Args:
        run: RUN of a fine-tuning or a pretraining; it is only read.
        repo_id: USER/NAME on the Hub, made where it does not exist.
        merged: Whole weights instead of an adapter, its head and the name of the base.
        private: Make a new repository private.
        revision: Branch to write to; None for main.
        storage: Type of the published weights; bfloat16 halves their size and rounds.
        dry_run: Show what would be sent; ask the Hub for nothing but the text of a licence.

    Raises:
        PublishError: The RUN, the account or the connection do not allow it; says the remedy.
        LeakError: Something that must not leave the machine was found; nothing was sent.
    """
    if not _REPO_ID.fullmatch(repo_id):
        raise PublishError(f"--repo-id {repo_id!r}: must be USER/NAME of letters, digits, '.', '-' and '_'")
    with tempfile.TemporaryDirectory(prefix="cytodino_publish_") as work:
        publication = assemble(Path(run), Path(work), Wish(repo_id, merged, storage))
        refuse_leaks({n: f for n, f in publication.files.items() if n not in publication.public})
        if dry_run:
            return Published(publication.to_text(), None)
        with _failures_explained(repo_id):
            return _send(publication, repo_id, private, revision)


def check_account(repo_id: str) -> None:
    """Ask the Hub whether this account may write, so that hours of training do not end at a missing token.

    Raises:
        PublishError: No token, a token that may only read, or no connection.
    """
    from huggingface_hub import HfApi

    with _failures_explained(repo_id):
        _check_token(HfApi(), repo_id)


def _check_token(api: HfApi, repo_id: str) -> None:
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise PublishError(f"{repo_id}: HF_HUB_OFFLINE is set; unset it to publish")
    if get_token() is None:
        raise PublishError(
            f"{repo_id}: no token; make one that may write on {_TOKENS}, then `hf auth login` or set HF_TOKEN"
        )
    token = api.whoami().get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise PublishError(
            f"{repo_id}: the token {token.get('displayName', '')!r} may only read; make one that may write on "
            f"{_TOKENS}, then `hf auth login` or set HF_TOKEN"
        )


def _send(publication: Publication, repo_id: str, private: bool, revision: str | None) -> Published:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    _check_token(api, repo_id)
    api.create_repo(repo_id, private=private or None, exist_ok=True)
    if private and not api.model_info(repo_id).private:
        raise PublishError(
            f"{repo_id} exists and is public; make it private on its page, or leave --private out"
        )
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    there = api.model_info(repo_id, revision=revision)
    known = {sibling.rfilename for sibling in there.siblings or ()}
    # What an earlier publication left and this one has no more; files of others stay.
    stale = sorted(name for name in known - set(publication.files) if publication.kind.allows(name))
    operations: list[Any] = [CommitOperationDelete(path_in_repo=name) for name in stale]
    operations += [CommitOperationAdd(name, file) for name, file in sorted(publication.files.items())]
    done = api.create_commit(
        repo_id, operations, commit_message=f"A {publication.kind.name} of cytodino_hf", revision=revision
    )
    if done.oid == there.sha:
        return Published(
            f"{repo_id} holds this model already, at commit {done.oid}; nothing was changed", done.oid
        )
    return Published(f"{repo_id}: {len(publication.files)} files, commit {done.oid}", done.oid)


@contextmanager
def _failures_explained(repo_id: str) -> Iterator[None]:
    """One line with the remedy for what the Hub or the way to it refuses."""
    # The client's own name for what its transport raises, whichever library that is.
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    again = "Nothing of the RUN was changed and the repository shows no half of it; the same command goes on"
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise PublishError(
                f"{repo_id}: the Hub refuses to write there ({status}); give the name of your account or of an "
                f"organisation you may write to, and a token that may write ({_TOKENS}), by `hf auth login` or HF_TOKEN"
            ) from error
        raise PublishError(f"{repo_id}: the Hub answered {status}: {error}. {again}") from error
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise PublishError(f"{repo_id}: the connection failed ({error}). {again}") from error
