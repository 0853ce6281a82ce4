"""`cytodino benchmark ...`: options of the measurements that lie in `benchmarks/` of a checkout."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import CytoDinoError

_CHECKOUT = Path(__file__).resolve().parent.parent

_Rounds = Annotated[int, typer.Option(min=1, help="Timed rounds of every cell, all cells in turn.")]
_Threads = Annotated[int, typer.Option(min=1, help="Threads of torch and OpenCV.")]
_Images = Annotated[
    Path | None, typer.Option(help="Folder of class folders; drawn (synthetic) cells without it.")
]
_ImagesName = Annotated[
    str | None, typer.Option(help="What the output calls these images, instead of the folder.")
]
_Backbone = Annotated[str, typer.Option(help="Size of DINOv3, random weights: vits, vitb, vitl.")]
_BatchSizes = Annotated[str, typer.Option(help="Batches of ours, with commas between.")]
_Precisions = Annotated[str, typer.Option(help="Of ours, with commas between; the published way is float32.")]
_Device = Annotated[str | None, typer.Option(help="cpu or cuda; by default cuda where there is one.")]
_Memory = Annotated[bool, typer.Option(help="Measure peak memory too, each cell in a process of its own.")]
_Quick = Annotated[bool, typer.Option("--quick", help="Smallest sizes: to see that it runs, not to measure.")]
_Json = Annotated[Path | None, typer.Option(help="Write every raw round and all circumstances here.")]
_Results = Annotated[
    Path | None, typer.Option(help="Markdown file whose section of this benchmark is replaced.")
]

_PRECISIONS = "float32,bfloat16"

_Root = Annotated[Path, typer.Option("--images", help="Folder of class folders.", show_default=False)]
_Split = Annotated[Path | None, typer.Option(help="CSV path,label,fold; split.csv in the folder without it.")]
_Output = Annotated[Path, typer.Option(help="Folder of the study; holds every RUN.", show_default=False)]
_Seeds = Annotated[str, typer.Option(help="Each arm is trained once with each, commas between.")]
_Size = Annotated[int, typer.Option(min=8, help="Side of the picture, for every arm.")]
_Epochs = Annotated[float | None, typer.Option(help="Other than the recipes'; shortens every arm alike.")]
_MaxSteps = Annotated[int | None, typer.Option(min=1, help="Steps of a batch of ours, for a trial.")]
_Jobs = Annotated[
    int, typer.Option(min=1, help="Runs at the same time, one thread each (OMP_NUM_THREADS: more).")
]
_Workers = Annotated[int, typer.Option(min=0, help="Processes that read images, of each run; for a GPU.")]
_Draws = Annotated[int, typer.Option(min=100, help="Bootstrap draws behind each interval.")]
_Figure = Annotated[Path | None, typer.Option(help="Write the figure here, a PNG.")]


def data(
    images: _Images = None,
    images_name: _ImagesName = None,
    pictures: Annotated[int, typer.Option(min=1, help="Pictures of one round.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures of a batch.")] = 16,
    index_files: Annotated[int, typer.Option(min=0, help="Empty files to index; 0: none.")] = 171_000,
    rounds: _Rounds = 5,
    threads: _Threads = 1,
    memory: _Memory = True,
    quick: _Quick = False,
    json: _Json = None,
    results: _Results = None,
) -> None:
    """Files to batches: Pillow and albumentations one by one, against ours with each cache; indexing a folder."""
    values = {
        "images": images,
        "images_name": images_name,
        "pictures": pictures,
        "batch_size": batch_size,
        "index_files": index_files,
    }
    _run("data", "DataSettings", values | _common(rounds, threads, memory, quick), json, results)


def step(
    backbone: _Backbone = "vits",
    batch_sizes: _BatchSizes = "4",
    precisions: _Precisions = _PRECISIONS,
    compile: Annotated[bool, typer.Option("--compile", help="Time ours with torch.compile too.")] = False,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Time ours with activation checkpointing too.")
    ] = False,
    device: _Device = None,
    images: _Images = None,
    images_name: _ImagesName = None,
    rounds: _Rounds = 5,
    threads: _Threads = 1,
    memory: _Memory = True,
    quick: _Quick = False,
    json: _Json = None,
    results: _Results = None,
) -> None:
    """One optimizer step with LoRA and decoder head: batch 1 x 4 in float32, against ours."""
    values = {
        **_model(backbone, batch_sizes, precisions, device, images, images_name),
        "compile": compile,
        "checkpointing": checkpointing,
    }
    _run("step", "StepSettings", values | _common(rounds, threads, memory, quick), json, results)


def predict(
    backbone: _Backbone = "vits",
    batch_sizes: _BatchSizes = "8",
    precisions: _Precisions = _PRECISIONS,
    pictures: Annotated[int, typer.Option(min=1, help="Pictures of one round.")] = 32,
    device: _Device = None,
    images: _Images = None,
    images_name: _ImagesName = None,
    rounds: _Rounds = 5,
    threads: _Threads = 1,
    memory: _Memory = True,
    quick: _Quick = False,
    json: _Json = None,
    results: _Results = None,
) -> None:
    """Scoring: one picture at a time in float32, against batches with LoRA merged; how often both agree."""
    values = _model(backbone, batch_sizes, precisions, device, images, images_name) | {"pictures": pictures}
    _run("predict", "PredictSettings", values | _common(rounds, threads, memory, quick), json, results)


def startup(
    rounds: _Rounds = 5,
    threads: _Threads = 1,
    quick: _Quick = False,
    json: _Json = None,
    results: _Results = None,
) -> None:
    """Help, a recipe checked, a dry run: fresh processes, against importing what the published script imports."""
    _run("startup", "Settings", _common(rounds, threads, True, quick), json, results)


def quality(
    images: _Root,
    output: _Output,
    backbone: Annotated[str, typer.Option(help="Hub id, folder, or embedded.")] = "embedded",
    more: Annotated[
        list[Path] | None, typer.Option(help="Folder of more labelled images, for training in some arms.")
    ] = None,
    only: Annotated[
        str, typer.Option(help="Names of arms, commas between; without it the standard ones.")
    ] = "",
    split: _Split = None,
    images_name: _ImagesName = None,
    seeds: _Seeds = "0,1,2",
    image_size_px: _Size = 128,
    epochs: _Epochs = None,
    max_steps: _MaxSteps = None,
    jobs: _Jobs = 1,
    workers: _Workers = 0,
    draws: _Draws = 2000,
    json: _Json = None,
    results: _Results = None,
    figure: _Figure = None,
) -> None:
    """Ours against as published, and an ablation: every arm with every seed, paired intervals over the test images.

    Every run is a normal RUN below --output; the same command goes on where it was stopped.
    """
    values = _study(
        images, output, split, images_name, seeds, image_size_px, epochs, max_steps, jobs, workers, draws
    )
    values |= {"backbone": backbone, "more": tuple(more or ()), "only": tuple(filter(None, only.split(",")))}
    _run_study("quality", "study", "QualitySettings", values, json, results, figure)


def pretraining(
    images: _Root,
    output: _Output,
    backbones: Annotated[
        list[Path], typer.Option(help="Folder that `cytodino pretrain` wrote (RUN/backbone); one a time.")
    ],
    fine_tune: Annotated[bool, typer.Option(help="Fine-tune on each of them as well.")] = True,
    split: _Split = None,
    images_name: _ImagesName = None,
    seeds: _Seeds = "0,1,2",
    image_size_px: _Size = 128,
    epochs: _Epochs = None,
    max_steps: _MaxSteps = None,
    jobs: _Jobs = 1,
    workers: _Workers = 0,
    draws: _Draws = 2000,
    json: _Json = None,
    results: _Results = None,
    figure: _Figure = None,
) -> None:
    """Quality of backbones over the time they were pretrained: neighbours, logistic regression, fine-tuned."""
    values = _study(
        images, output, split, images_name, seeds, image_size_px, epochs, max_steps, jobs, workers, draws
    )
    values |= {"backbones": tuple(backbones), "fine_tune": fine_tune}
    _run_study("pretraining", "pretraining_time", "PretrainingTimeSettings", values, json, results, figure)


def _study(
    images: Path,
    output: Path,
    split: Path | None,
    images_name: str | None,
    seeds: str,
    image_size_px: int,
    epochs: float | None,
    max_steps: int | None,
    jobs: int,
    workers: int,
    draws: int,
) -> dict[str, Any]:
    if not all(seed.strip().isdecimal() for seed in seeds.split(",")):
        raise CytoDinoError(f"--seeds {seeds}: must be whole numbers with commas between, such as 0,1,2")
    values = {
        "images": images,
        "output": output,
        "split": split,
        "seeds": tuple(int(seed) for seed in seeds.split(",")),
        "image_size_px": image_size_px,
        "epochs": epochs,
        "max_steps": max_steps,
        "jobs": jobs,
        "workers": workers,
        "draws": draws,
    }
    return values if images_name is None else values | {"images_name": images_name}


def _run_study(
    name: str,
    module: str,
    settings: str,
    values: dict[str, Any],
    json: Path | None,
    results: Path | None,
    figure: Path | None,
) -> None:
    """Run a study of the checkout, show its tables, and write what is asked for."""
    _find_checkout(f"benchmark {name}")
    checked = import_module("benchmarks.quality.settings").checked_settings(settings, values)
    study = import_module(f"benchmarks.quality.{module}")
    typer.echo(study.write(study.run(checked), json=json, results=results, figure=figure))


def _common(rounds: int, threads: int, memory: bool, quick: bool) -> dict[str, Any]:
    return {"rounds": rounds, "threads": threads, "memory": memory, "quick": quick}


def _model(
    backbone: str,
    batch_sizes: str,
    precisions: str,
    device: str | None,
    images: Path | None,
    images_name: str | None,
) -> dict[str, Any]:
    sizes = batch_sizes.split(",")
    if not all(size.strip().isdecimal() and int(size) for size in sizes):
        raise CytoDinoError(
            f"--batch-sizes {batch_sizes}: must be whole numbers with commas between, such as 4,16"
        )
    return {
        "backbone": backbone,
        "batch_sizes": tuple(int(size) for size in sizes),
        "precisions": tuple(name.strip() for name in precisions.split(",")),
        "device": device,
        "images": images,
        "images_name": images_name,
    }


def _run(name: str, settings: str, values: dict[str, Any], json: Path | None, results: Path | None) -> None:
    """Run a benchmark of the checkout, show its tables, and write what is asked for."""
    _find_checkout(f"benchmark {name}")
    harness = import_module("benchmarks.harness")
    shown = harness.run_benchmark(name, settings, values, json=json, results=results)
    typer.echo(shown)


def _find_checkout(command: str) -> None:
    if not (_CHECKOUT / "benchmarks" / "__init__.py").is_file():
        raise CytoDinoError(
            f"cytodino {command} is not part of the installed package: clone the repository, `pip install -e .` there, "
            "and run it again"
        )
    if str(_CHECKOUT) not in sys.path:
        sys.path.insert(0, str(_CHECKOUT))
