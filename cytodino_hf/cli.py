"""`cytodino <command>`: one table of commands; each calls one function of the package.

Heavy libraries are imported inside the commands, so that `--help` is quick and a missing extra hurts one command.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from . import cli_backbones, cli_benchmark, cli_data, cli_evaluate, cli_predict, cli_probe, cli_publish
from .errors import CytoDinoError

#: Beside `run_finetune.py` in a checkout.
ACCELERATE_CONFIG = Path(__file__).resolve().parent.parent / "accelerate_config.yaml"
# Arguments that are no options of the command are overrides of the recipe.
_TAKES_OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}


def finetune(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Recipe, a JSON file.", show_default=False)],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done; train nothing.")
    ] = False,
) -> None:
    """Fine-tune on the images of a recipe: model, predictions and report into training.output_dir.

    Any key of the recipe can be changed: --section.key VALUE (lists and objects as JSON).
    """
    from .recipe import load_recipe

    checked = load_recipe(recipe, context.args)
    _begin_training(checked.training.dataloader_num_workers)
    if dry_run:
        from .data.loading import load_split
        from .planning import make_plan
        from .run_folder import RunFolder

        RunFolder(checked.training.output_dir).check(checked)
        typer.echo(make_plan(checked, load_split(checked)).to_text())
        return
    from .finetune import finetune as run_recipe
    from .launch import speaks

    run = run_recipe(checked)
    if speaks():
        typer.echo(f"{run.path}: model, predictions and report; open {run.report / 'report.html'}")


def pretrain(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Pretraining recipe, a JSON file.", show_default=False)],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done; train nothing.")
    ] = False,
) -> None:
    """Learn from unlabelled images (iBOT): a backbone for recipes into training.output_dir/backbone.

    Any key of the recipe can be changed: --section.key VALUE (lists and objects as JSON).
    """
    from .pretraining.recipe import load_pretrain_recipe

    checked = load_pretrain_recipe(recipe, context.args)
    _begin_training(checked.training.dataloader_num_workers)
    if dry_run:
        from .pretraining.planning import make_pretrain_plan
        from .run_folder import RunFolder

        RunFolder(checked.training.output_dir).check(checked)
        typer.echo(make_pretrain_plan(checked).to_text())
        return
    from .launch import speaks
    from .pretraining.pretrain import pretrain as run_recipe

    run = run_recipe(checked)
    if speaks():
        typer.echo(f"{run.path / 'backbone'}: a backbone for model.backbone of a recipe; open its README.md")


def audit(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Recipe, a JSON file.", show_default=False)],
    folds: Annotated[int, typer.Option(min=2, help="Parts; a model is trained for each.")] = 5,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the audit.", show_default="training.output_dir-audit")
    ] = None,
) -> None:
    """Find doubtful labels: each fold of the images is answered by a model that was trained on the others.

    Any key of the recipe can be changed: --section.key VALUE (lists and objects as JSON). An audit that was
    interrupted goes on where it was.
    """
    from .recipe import load_recipe

    checked = load_recipe(recipe, context.args)
    _begin_training(checked.training.dataloader_num_workers)
    from .audit import audit as run_audit

    found = run_audit(checked, output or Path(f"{checked.training.output_dir}-audit"), folds)
    doubtful = found.section["audit"]["doubtful"]
    typer.echo(f"{doubtful['images']:,} of {doubtful['n']:,} labels are doubtful; open {found.page}")


def _begin_training(workers: int) -> None:
    """What every training does before it imports torch: memory, precision, threads, whose end is its own."""
    from .launch import (
        apply_accelerate_config,
        end_with_launcher,
        speaks,
        use_free_cores,
        use_large_pages,
    )

    use_large_pages()
    precision = apply_accelerate_config(ACCELERATE_CONFIG)
    if speaks():
        typer.echo(precision)
    use_free_cores(workers)
    end_with_launcher()


def draw(
    out: Annotated[Path, typer.Argument(help="Folder to draw into.", show_default=False)],
    cells: Annotated[int, typer.Option(min=1, help="Cells in all, at least 20 a class.")] = 4000,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same pictures.")] = 0,
    imbalance_power: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Counts follow the real set's to this power; 0 draws all classes alike."
        ),
    ] = 0.25,
    patients: Annotated[int, typer.Option(min=1, help="Drawn patients, the groups of a split.")] = 80,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one for each core.")] = 0,
) -> None:
    """Draw a set of synthetic cells in the layout of the MLL set."""
    from .data.sources.synthetic import draw_image_set

    draw_image_set(
        out,
        cells=cells,
        seed=seed,
        imbalance_power=imbalance_power,
        patients=patients,
        workers=workers or None,
    )
    typer.echo(f"{out}: drawn (synthetic) cells")


def check(
    context: typer.Context,
    root: Annotated[str, typer.Argument(help="Folder of the images.", show_default=False)],
    source: Annotated[str, typer.Option(help="How the folder is read, as in a recipe.")] = "image_folder",
    taxonomy: Annotated[str, typer.Option(help="Classes, as in a recipe.")] = "mll",
    out: Annotated[Path, typer.Option(help="Folder for data_report.json and data_report.html.")] = Path("."),
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one for each core.")] = 0,
) -> None:
    """Look at every image of a folder: unreadable ones, duplicates, sizes, stain. Exit code 1: a training would stop.

    Any key of a recipe's data section can be set: --data.image_folder.table cells.csv, --data.split source.
    """
    from .data.inspection.check import check_image_set, data_section, write_check

    section, options = data_section(root, source, taxonomy, context.args)
    found = check_image_set(section, options, workers=workers or None)
    page = write_check(found, out)
    for problem in found.report["problems"]:
        typer.echo(f"problem: {problem}", err=True)
    report = found.report
    typer.echo(
        f"{report['images']:,} images can be used, {len(report['rejected']):,} files were rejected; see {page}"
    )
    if not report["usable"]:
        raise typer.Exit(1)


#: Command words -> function, and what of the command line it takes by itself.
COMMANDS: dict[tuple[str, ...], tuple[Callable[..., None], dict[str, Any]]] = {
    ("finetune",): (finetune, _TAKES_OVERRIDES),
    ("pretrain",): (pretrain, _TAKES_OVERRIDES),
    ("audit",): (audit, _TAKES_OVERRIDES),
    ("data", "get"): (cli_data.get, _TAKES_OVERRIDES),
    ("data", "draw"): (draw, {}),
    ("data", "check"): (check, _TAKES_OVERRIDES),
    ("convert",): (cli_backbones.convert, {}),
    ("explain",): (cli_backbones.explain, {}),
    ("probe",): (cli_probe.probe, _TAKES_OVERRIDES),
    ("evaluate",): (cli_evaluate.evaluate, _TAKES_OVERRIDES),
    ("predict",): (cli_predict.predict, {}),
    ("publish",): (cli_publish.publish, {}),
    ("benchmark", "data"): (cli_benchmark.data, {}),
    ("benchmark", "step"): (cli_benchmark.step, {}),
    ("benchmark", "predict"): (cli_benchmark.predict, {}),
    ("benchmark", "startup"): (cli_benchmark.startup, {}),
    ("benchmark", "quality"): (cli_benchmark.quality, {}),
    ("benchmark", "pretraining"): (cli_benchmark.pretraining, {}),
}
_GROUPS = {
    "data": "Image sets.",
    "benchmark": "Speed, memory and quality against the published way (in a checkout).",
}


def build_app() -> typer.Typer:
    """The command line from the table."""
    app = typer.Typer(
        help="Fine-tune DINOv3 on bone-marrow cells. Research use, not a medical device.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    groups = {name: typer.Typer(help=text, no_args_is_help=True) for name, text in _GROUPS.items()}
    for name, group in groups.items():
        app.add_typer(group, name=name)
    for (*group_name, name), (function, settings) in COMMANDS.items():
        target = groups[group_name[0]] if group_name else app
        target.command(name, context_settings=dict(settings))(function)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run one command; a mistake of the user ends in a message and an exit code, not in a traceback."""
    try:
        build_app()(arguments, prog_name="cytodino")
    except CytoDinoError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


def push_to_hub(arguments: list[str] | None = None) -> None:
    """`push_to_hub.py RUN ...` is `cytodino publish RUN ...`."""
    main(["publish", *(sys.argv[1:] if arguments is None else arguments)])


def run_finetune(arguments: list[str] | None = None) -> None:
    """`run_finetune.py RECIPE ...` is `cytodino finetune RECIPE ...`."""
    main(["finetune", *(sys.argv[1:] if arguments is None else arguments)])
