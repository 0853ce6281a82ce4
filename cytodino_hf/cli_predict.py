"""`cytodino predict`: a finished model on many images."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class _Precision(StrEnum):
    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def predict(
    model: Annotated[str, typer.Argument(help="RUN, folder or Hub id.", show_default=False)],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Images; folders; CSV or Parquet files with the column path (or pictures inside: image, bytes) and, "
            "if wanted, id, group, fold, label; hf://datasets/OWNER/NAME[@REVISION].",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option(help="File to write, .parquet or .csv.", show_default=False)],
    revision: Annotated[
        str | None, typer.Option(help="Of a model on the Hub: branch, tag or commit.")
    ] = None,
    precision: Annotated[
        _Precision, typer.Option(help="Of the backbone; auto: bfloat16 where it is markedly quicker.")
    ] = _Precision.AUTO,
    calibrated: Annotated[
        bool,
        typer.Option(
            "--calibrated",
            help="Apply the model's calibration to the answers; without it they are as the model says.",
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 32,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read pictures.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1; by default the GPU where there is one.")
    ] = None,
    group_kind: Annotated[str | None, typer.Option(help="What the groups are: patient, slide, ...")] = None,
    cache_dir: Annotated[str | None, typer.Option(help="Folder of the Hub's files.")] = None,
) -> None:
    """Say what cell every image shows: one row an image, each id once; the same command goes on or does nothing.

    Images that cannot be read are named, and the others go on.
    """
    from .launch import use_large_pages
    from .prediction.command import PredictOptions, predict_images

    use_large_pages()
    options = PredictOptions(
        revision=revision,
        device=device,
        precision=precision.value,  # type: ignore[arg-type]
        batch_size=batch_size,
        workers=workers,
        is_calibrated=calibrated,
        group_kind=group_kind,
        cache_dir=cache_dir,
    )
    done = predict_images(model, inputs, output, options)
    for path, reason in done.problems.items():
        typer.echo(f"problem: {path}: {reason}", err=True)
    if not done.scored:
        typer.echo(f"{output}: holds all {done.images:,} images already; nothing to do")
        return
    weights, precision_used = (done.scorer.revision[:12], done.scorer.precision) if done.scorer else ("", "")
    typer.echo(
        f"{output}: {done.images:,} images, {done.scored:,} of them new, by weights {weights} in {precision_used}"
        + (f"; {len(done.problems):,} could not be read" if done.problems else "")
    )
