"""`cytodino probe`: frozen features side by side."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class _Pooling(StrEnum):
    CLS = "cls"
    WITH_PATCHES = "cls+mean patches"


class _Precision(StrEnum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def probe(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="BACKBONE... [--data.key VALUE]...",
            help="Hub id, folder, random:ONE_OF_THEM (untrained), or classical; the first is compared with the others.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder of tables, figure and features.", show_default=False)],
    more: Annotated[
        Path | None, typer.Option(help="Folder of more labelled images, for the training fold only.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Of untrained weights and of trees.")] = "0,1,2",
    pooling: Annotated[_Pooling, typer.Option(help="What is taken of a backbone's tokens.")] = _Pooling.CLS,
    precision: Annotated[_Precision, typer.Option(help="What backbones compute in.")] = _Precision.FLOAT32,
    few_shot_draws: Annotated[
        int, typer.Option(min=0, help="Draws of 1, 5, 10, 50 training images a class; 0: none.")
    ] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read pictures.")] = 0,
) -> None:
    """Compare backbones by their frozen features: neighbours, logistic regression, few labels, paired differences.

    Any key of a recipe's data section can be set: --data.root FOLDER, --data.source image_folder, --data.split FILE.
    """
    import sys

    from .data.inspection.check import data_section
    from .probing.command_line import parse_seeds, split_arguments
    from .probing.probe import ProbeOptions, run_probe

    backbones, overrides = split_arguments(arguments)
    data, source_options = data_section(None, "mll", "mll", overrides)
    run_probe(
        ProbeOptions(
            backbones=tuple(backbones),
            data=data,
            source_options=source_options,
            output=output,
            more=more,
            seeds=parse_seeds(seeds),
            pooling=pooling.value,  # type: ignore[arg-type]
            precision=precision.value,  # type: ignore[arg-type]
            batch_size=batch_size,
            workers=workers,
            few_shot_draws=few_shot_draws,
            command=shlex.join(["cytodino", *sys.argv[1:]]),
        )
    )
    typer.echo((output / "probe.md").read_text(encoding="utf-8"))
    typer.echo(f"{output}: probe.json, probe.csv, probe.md, probe.png and the predictions of every method")
