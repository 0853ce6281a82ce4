"""`cytodino evaluate`: reports from predictions, comparison of runs, summary over seeds, transfer to another set."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import CytoDinoError


def evaluate(
    targets: Annotated[
        list[str],
        typer.Argument(
            help="RUN or PREDICTIONS file (.parquet); several RUNs of one recipe give a summary over seeds; with "
            "--data.KEY VALUE a model (RUN, folder or Hub id) that is asked about other images.",
            show_default=False,
        ),
    ],
    against: Annotated[
        Path | None, typer.Option(help="RUN or PREDICTIONS of the same test images to compare with.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the report, without one of another kind; a summary of several RUNs needs it.",
            show_default="RUN/report; NAME_report beside PREDICTIONS; ./transfer for other images",
        ),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(min=100, help="Draws behind each interval.", show_default="the recipe's, or 1000"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of draws and halves.", show_default="the recipe's, or 0")
    ] = None,
    symmetries: Annotated[
        bool, typer.Option("--symmetries", help="Ask the model of a RUN about 8 symmetries of each image.")
    ] = False,
    match_colour: Annotated[
        bool,
        typer.Option("--match-colour", help="Other images: also with the colours of the training images."),
    ] = False,
    match_scale: Annotated[
        bool, typer.Option("--match-scale", help="Other images: also with cells as large as in training.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Commit or branch of a model on the Hub.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read other images.")] = 0,
) -> None:
    """Report how good predictions are, how sure, when to abstain; from PREDICTIONS and embeddings, without the model.

    A RUN's own report is written again, with the same numbers, and the files beside its model are fitted again
    (calibration.json, ood.safetensors), but not with --output or another --seed. PREDICTIONS need labels for numbers.
    Another set: --data.source NAME --data.root FOLDER (and --data.taxonomy, the options of the source); it also writes
    predictions*.parquet, embeddings.parquet and their_labels.csv.
    """
    names = list(takewhile(lambda word: not word.startswith("--"), targets))
    rest = targets[len(names) :]
    if rest:
        from .prediction.elsewhere import ElsewhereOptions, asks_for_elsewhere, evaluate_elsewhere

        if not asks_for_elsewhere(rest):
            raise CytoDinoError(f"unknown option {rest[0]}; see cytodino evaluate --help")
        _refuse("with --data.KEY", {"--against": against is not None, "--symmetries": symmetries})
        if len(names) != 1:
            raise CytoDinoError(f"{len(names)} models before {rest[0]}; another set is asked of one model")
        drawn: dict[str, Any] = {
            name: value for name, value in (("draws", draws), ("seed", seed)) if value is not None
        }
        options = ElsewhereOptions(
            match_colour=match_colour,
            match_scale=match_scale,
            revision=revision,
            workers=workers,
            **drawn,
        )
        typer.echo(evaluate_elsewhere(names[0], rest, output or Path("transfer"), options).text)
        return
    of_others = {
        "--match-colour": match_colour,
        "--match-scale": match_scale,
        "--revision": revision is not None,
        "--workers": workers > 0,
    }
    _refuse("without --data.source and --data.root", of_others)
    _report([Path(name) for name in names], against, output, draws, seed, symmetries)


def _report(
    paths: list[Path],
    against: Path | None,
    output: Path | None,
    draws: int | None,
    seed: int | None,
    symmetries: bool,
) -> None:
    if len(paths) > 1:
        from .seeds_summary import summarise_seeds

        _refuse("with several RUNs", {"--against": against is not None, "--symmetries": symmetries})
        if output is None:
            raise CytoDinoError("a summary of several RUNs belongs to none of them: give --output FOLDER")
        done = summarise_seeds(paths, output, draws=draws, seed=seed)
    elif paths[0].is_dir():
        from .evaluate import evaluate_run

        done = evaluate_run(
            paths[0], against=against, output=output, draws=draws, seed=seed, symmetries=symmetries
        )
    else:
        from .evaluate import evaluate_predictions

        _refuse("with a PREDICTIONS file, which has no model", {"--symmetries": symmetries})
        done = evaluate_predictions(paths[0], against=against, output=output, draws=draws, seed=seed)
    if "reported_fold" in done.report and done.report["reported_fold"] is None:
        typer.echo(
            "no image has a label of a training class, so there are no numbers: give `cytodino predict` labels"
        )
    typer.echo(f"open {done.page}")


def _refuse(where: str, options: dict[str, bool]) -> None:
    if given := [name for name, is_given in options.items() if is_given]:
        raise CytoDinoError(f"{', '.join(given)} cannot be used {where}")
