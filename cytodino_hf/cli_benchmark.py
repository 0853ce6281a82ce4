"""`cytodino benchmark ...`: options of the measurements that lie in `benchmarks/` of a checkout."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from .errors import CytoDinoError

_CHECKOUT = Path(__file__).resolve().parent.parent
_PRECISIONS = "float32,bfloat16"


@dataclass(frozen=True)
class _Written:
    """Where the findings go."""

    json: Annotated[Path | None, typer.Option(help="Write every raw value and all circumstances here.")] = (
        None
    )
    results: Annotated[
        Path | None, typer.Option(help="Markdown file whose section of this benchmark is replaced.")
    ] = None


@dataclass(frozen=True)
class _Timed:
    """How time is measured."""

    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds of every cell, all cells in turn.")] = 5
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch and OpenCV.")] = 1
    quick: Annotated[
        bool, typer.Option("--quick", help="Smallest sizes: to see that it runs, not to measure.")
    ] = False


@dataclass(frozen=True)
class _Measured(_Timed):
    """How time and memory are measured, and on which images."""

    memory: Annotated[
        bool, typer.Option(help="Measure peak memory too, each cell in a process of its own.")
    ] = True
    images: Annotated[
        Path | None, typer.Option(help="Folder of class folders; drawn (synthetic) cells without it.")
    ] = None
    images_name: Annotated[
        str | None, typer.Option(help="What the output calls these images, instead of the folder.")
    ] = None


@dataclass(frozen=True)
class _OfModel(_Measured):
    """What else is asked of the benchmarks that compute with a model."""

    backbone: Annotated[str, typer.Option(help="Size of DINOv3, random weights: vits, vitb, vitl.")] = "vits"
    precisions: Annotated[
        str, typer.Option(help="Of ours, with commas between; the published way is float32.")
    ] = _PRECISIONS
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default cuda where there is one.")] = (
        None
    )


_BatchSizes = Annotated[str, typer.Option(help="Batches of ours, with commas between.")]


@dataclass(frozen=True)
class _OfStudy:
    """What is asked of the studies of quality."""

    images: Annotated[Path, typer.Option("--images", help="Folder of class folders.", show_default=False)]
    output: Annotated[Path, typer.Option(help="Folder of the study; holds every RUN.", show_default=False)]
    split: Annotated[
        Path | None, typer.Option(help="CSV path,label,fold; split.csv in the folder without it.")
    ] = None
    images_name: Annotated[
        str, typer.Option(help="What the output calls these images, instead of the folder.")
    ] = "real images"
    seeds: Annotated[str, typer.Option(help="Each arm is trained once with each, commas between.")] = "0,1,2"
    image_size_px: Annotated[int, typer.Option(min=8, help="Side of the picture, for every arm.")] = 128
    center_crop_px: Annotated[
        int | None,
        typer.Option(
            min=0, help="Centred square cut out first; 0: none; else as the backbone was pretrained."
        ),
    ] = None
    epochs: Annotated[
        float | None, typer.Option(help="Other than the recipe's; as many choices of a checkpoint.")
    ] = None
    max_steps: Annotated[int | None, typer.Option(min=1, help="Steps of a batch of ours, for a trial.")] = (
        None
    )
    jobs: Annotated[
        int, typer.Option(min=1, help="Runs at the same time, one thread each (OMP_NUM_THREADS: more).")
    ] = 1
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that read images, of each run; for a GPU.")
    ] = 0
    draws: Annotated[int, typer.Option(min=100, help="Bootstrap draws behind each interval.")] = 2000


@dataclass(frozen=True)
class _WrittenWithFigure(_Written):
    """Where the findings of a study go."""

    figure: Annotated[Path | None, typer.Option(help="Write the figure here, a PNG.")] = None


def _with_shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters of one of the classes above are spread out into the options they stand for."""
    groups: dict[str, type[Any]] = {
        name: kind
        for name, kind in get_type_hints(command).items()
        if isinstance(kind, type) and is_dataclass(kind)
    }
    hints = get_type_hints(command, include_extras=True)
    spread: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name not in groups:
            spread.append(
                parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
            )
            continue
        spread += inspect.signature(groups[parameter.name], eval_str=True).parameters.values()
    spread = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in spread]
    signature = inspect.Signature(spread)

    @functools.wraps(command)
    def with_options(**values: Any) -> None:
        bound = signature.bind(**values)
        bound.apply_defaults()
        given = bound.arguments
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        command(**given)

    with_options.__signature__ = signature  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in spread}
    return with_options


@_with_shared_options
def data(
    measured: _Measured,
    written: _Written,
    pictures: Annotated[int, typer.Option(min=1, help="Pictures of one round.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures of a batch.")] = 16,
    index_files: Annotated[int, typer.Option(min=0, help="Empty files to index; 0: none.")] = 171_000,
) -> None:
    """Files to batches: Pillow and albumentations one by one, against ours with each cache; indexing a folder."""
    own = {"pictures": pictures, "batch_size": batch_size, "index_files": index_files}
    _run("data", "DataSettings", vars(measured) | own, written)


@_with_shared_options
def step(
    of_model: _OfModel,
    written: _Written,
    batch_sizes: _BatchSizes = "4",
    compile: Annotated[bool, typer.Option("--compile", help="Time ours with torch.compile too.")] = False,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Time ours with activation checkpointing too.")
    ] = False,
) -> None:
    """One optimizer step with LoRA and decoder head: batch 1 x 4 in float32, against ours."""
    own = {"compile": compile, "checkpointing": checkpointing}
    _run("step", "StepSettings", _model(of_model, batch_sizes) | own, written)


@_with_shared_options
def predict(
    of_model: _OfModel,
    written: _Written,
    batch_sizes: _BatchSizes = "8",
    pictures: Annotated[int, typer.Option(min=1, help="Pictures of one round.")] = 32,
    files: Annotated[
        bool, typer.Option("--files", help="Begin with the image files, not with decoded pictures.")
    ] = False,
) -> None:
    """Scoring: one picture at a time in float32, against batches with LoRA merged; how often both agree."""
    own = {"pictures": pictures, "files": files}
    _run("predict", "PredictSettings", _model(of_model, batch_sizes) | own, written)


@_with_shared_options
def startup(timed: _Timed, written: _Written) -> None:
    """Help, a recipe checked, a dry run: fresh processes, against importing what the published script imports."""
    _run("startup", "Settings", vars(timed), written)


@_with_shared_options
def quality(
    of_study: _OfStudy,
    written: _WrittenWithFigure,
    backbone: Annotated[str, typer.Option(help="Hub id, folder, or embedded.")] = "embedded",
    more: Annotated[
        list[Path] | None, typer.Option(help="Folder of more labelled images, for training in some arms.")
    ] = None,
    natural_ratios: Annotated[
        bool,
        typer.Option(
            "--natural-ratios", help="Thin the training fold to the class ratios of the full MLL set."
        ),
    ] = False,
    only: Annotated[
        str, typer.Option(help="Names of arms, commas between; without it the standard ones.")
    ] = "",
    probe: Annotated[
        list[Path] | None,
        typer.Option(help="probe.json of `cytodino probe` on these images, to stand beside."),
    ] = None,
) -> None:
    """Ours against as published, and an ablation: every arm with every seed, paired intervals over the test images.

    Every run is a normal RUN below --output; the same command goes on where it was stopped.
    """
    own = {
        "backbone": backbone,
        "more": tuple(more or ()),
        "natural_ratios": natural_ratios,
        "only": tuple(filter(None, only.split(","))),
        "probe": tuple(probe or ()),
    }
    _run_study("quality", "study", "QualitySettings", _study(of_study) | own, written)


@_with_shared_options
def pretraining(
    of_study: _OfStudy,
    written: _WrittenWithFigure,
    backbones: Annotated[
        list[Path], typer.Option(help="Folder that `cytodino pretrain` wrote (RUN/backbone); one a time.")
    ],
    fine_tune: Annotated[bool, typer.Option(help="Fine-tune on each of them as well.")] = True,
) -> None:
    """Quality of backbones over the time they were pretrained: neighbours, logistic regression, fine-tuned."""
    own = {"backbones": tuple(backbones), "fine_tune": fine_tune}
    _run_study("pretraining", "pretraining_time", "PretrainingTimeSettings", _study(of_study) | own, written)


def _study(options: _OfStudy) -> dict[str, Any]:
    seeds = _numbers("seeds", options.seeds, "0,1,2")
    return vars(options) | {"seeds": seeds}


def _run_study(
    name: str, module: str, settings: str, values: dict[str, Any], written: _WrittenWithFigure
) -> None:
    """Run a study of the checkout, show its tables, and write what is asked for."""
    _find_checkout(f"benchmark {name}")
    checked = import_module("benchmarks.quality.settings").checked_settings(settings, values)
    study = import_module(f"benchmarks.quality.{module}")
    typer.echo(study.write(study.run(checked), **vars(written)))


def _model(options: _OfModel, batch_sizes: str) -> dict[str, Any]:
    sizes = _numbers("batch-sizes", batch_sizes, "4,16", smallest=1)
    precisions = tuple(name.strip() for name in options.precisions.split(","))
    return vars(options) | {"batch_sizes": sizes, "precisions": precisions}


def _numbers(option: str, text: str, example: str, *, smallest: int = 0) -> Sequence[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) >= smallest for part in parts):
        raise CytoDinoError(
            f"--{option} {text}: must be whole numbers with commas between, such as {example}"
        )
    return tuple(int(part) for part in parts)


def _run(name: str, settings: str, values: dict[str, Any], written: _Written) -> None:
    """Run a benchmark of the checkout, show its tables, and write what is asked for."""
    _find_checkout(f"benchmark {name}")
    harness = import_module("benchmarks.harness")
    typer.echo(harness.run_benchmark(name, settings, values, **vars(written)))


def _find_checkout(command: str) -> None:
    if not (_CHECKOUT / "benchmarks" / "__init__.py").is_file():
        raise CytoDinoError(
            f"cytodino {command} is not part of the installed package: clone the repository, `pip install -e .` there, "
            "and run it again"
        )
    if str(_CHECKOUT) not in sys.path:
        sys.path.insert(0, str(_CHECKOUT))
