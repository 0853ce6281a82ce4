"""`cytodino publish`: a RUN to the Hub."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class StorageType(StrEnum):
    """Type of the published weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def publish(
    run: Annotated[Path, typer.Argument(help="RUN of a finished training.", show_default=False)],
    repo_id: Annotated[str, typer.Option(help="USER/NAME on the Hub.", show_default=False)],
    merged: Annotated[
        bool, typer.Option("--merged", help="Whole weights instead of an adapter and the name of its base.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to write to; main by default.")] = None,
    storage: Annotated[
        StorageType,
        typer.Option(help="Type of the published weights; bfloat16 halves their size and rounds."),
    ] = StorageType.FLOAT32,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List files, sizes and the card; send nothing.")
    ] = False,
) -> None:
    """Put the model of a RUN on the Hub: weights, code, preprocessing, card. The same command again changes nothing.

    Needs a token that may write: `hf auth login` or HF_TOKEN. Predictions, images and checkpoints stay here.
    """
    from .publishing.publish import publish as send

    done = send(
        run,
        repo_id,
        merged=merged,
        private=private,
        revision=revision,
        storage=storage.value,
        dry_run=dry_run,
    )
    typer.echo(done.text)
