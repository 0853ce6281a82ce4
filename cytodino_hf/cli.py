"""`cytodino <command>`: one table of commands; each calls one function of the package.

Heavy libraries are imported inside the commands, so that `--help` is quick and a missing extra hurts one command.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

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
    from .launch import apply_accelerate_config, use_free_cores

    typer.echo(apply_accelerate_config(ACCELERATE_CONFIG))
    use_free_cores(checked.training.dataloader_num_workers)
    if dry_run:
        from .data.loading import load_split
        from .planning import make_plan
        from .run_folder import RunFolder

        RunFolder(checked.training.output_dir).check(checked)
        typer.echo(make_plan(checked, load_split(checked)).to_text())
        return
    from .finetune import finetune as run_recipe

    run = run_recipe(checked)
    typer.echo(f"{run.path}: model, predictions and report; open {run.report / 'report.html'}")


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


#: Command words -> function, and what of the command line it takes by itself.
COMMANDS: dict[tuple[str, ...], tuple[Callable[..., None], dict[str, Any]]] = {
    ("finetune",): (finetune, _TAKES_OVERRIDES),
    ("data", "draw"): (draw, {}),
}
_GROUPS = {"data": "Image sets."}


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


def run_finetune(arguments: list[str] | None = None) -> None:
    """`run_finetune.py RECIPE ...` is `cytodino finetune RECIPE ...`."""
    main(["finetune", *(sys.argv[1:] if arguments is None else arguments)])
