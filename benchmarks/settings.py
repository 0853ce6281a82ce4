"""What a benchmark may be asked for, checked before anything is loaded."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Precision = Literal["float32", "bfloat16"]
Backbone = Literal["vits", "vitb", "vitl", "tiny"]


class Settings(BaseModel):
    """Asked of every benchmark.

    Args:
        rounds: Timed rounds of every cell.
        threads: Threads of torch and OpenCV.
        quick: Smallest sizes: to see that it runs, not to measure.
        memory: Measure the peak memory of every cell in a process of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rounds: int = Field(5, ge=1)
    threads: int = Field(1, ge=1)
    quick: bool = False
    memory: bool = True


class ImageSettings(Settings):
    """Asked of the benchmarks that read images.

    Args:
        images: Folder of class folders; None draws cells.
        images_name: What to call them in the output, where the folder is nobody's business.
    """

    images: Path | None = Field(None, exclude=True)
    images_name: str | None = None


class DataSettings(ImageSettings):
    """Asked of `data`.

    Args:
        pictures: Pictures of one round.
        batch_size: Pictures of a batch, where it is not one.
        index_files: Empty files to index; 0 leaves that out.
    """

    pictures: int = Field(256, ge=1)
    batch_size: int = Field(16, ge=1)
    index_files: int = Field(171_000, ge=0)


class ModelSettings(ImageSettings):
    """Asked of `step` and `predict`.

    Args:
        backbone: A key of `models.BACKBONES`.
        batch_sizes: Batches of ours.
        device: `cpu` or `cuda`.
        precisions: Of ours; the published way computes in float32.
    """

    backbone: Backbone = "vits"
    batch_sizes: tuple[int, ...] = (4,)
    device: Literal["cpu", "cuda"] = "cpu"
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")


class StepSettings(ModelSettings):
    """Asked of `step`.

    Args:
        compile: Time ours with torch.compile too.
        checkpointing: Time ours with activation checkpointing too.
    """

    compile: bool = False
    checkpointing: bool = False


class PredictSettings(ModelSettings):
    """Asked of `predict`.

    Args:
        pictures: Pictures of one round.
        files: Start from the image files on both sides, not from pictures that are decoded already.
    """

    batch_sizes: tuple[int, ...] = (8,)
    pictures: int = Field(32, ge=1)
    files: bool = False


#: Smallest sizes of each benchmark (`--quick`).
QUICK: dict[type[Settings], dict[str, object]] = {
    Settings: {"rounds": 1},
    DataSettings: {"rounds": 2, "pictures": 6, "batch_size": 3, "index_files": 42, "memory": False},
    StepSettings: {"rounds": 2, "backbone": "tiny", "batch_sizes": (2,), "memory": False},
    PredictSettings: {"rounds": 2, "backbone": "tiny", "batch_sizes": (2,), "pictures": 4, "memory": False},
}


def command_line(benchmark: str, settings: Settings) -> str:
    """The command that asks for these settings; a folder of images is called ROOT, wherever it lies."""
    words = ["cytodino", "benchmark", benchmark]
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        # The device is named always: without it another machine would choose its own.
        if (value == field.default and name != "device") or (
            settings.quick and name in QUICK[type(settings)]
        ):
            continue
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        elif isinstance(value, Path):
            words += [option, "ROOT"]
        else:
            words += [
                option,
                shlex.quote(",".join(map(str, value)) if isinstance(value, tuple) else str(value)),
            ]
    return " ".join(words)
