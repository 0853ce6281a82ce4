"""What the studies of quality may be asked for, checked before anything is loaded."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cytodino_hf.errors import CytoDinoError


class StudySettings(BaseModel):
    """Asked of both studies.

    Args:
        images: Folder of class folders.
        split: CSV `path,label,fold`; None takes `split.csv` in the folder.
        images_name: What to call the images in the output, where the folder is nobody's business.
        seeds: Every arm is trained once with each.
        output: Folder of the study; holds every RUN.
        image_size_px: Side of the picture, for every arm.
        center_crop_px: Side of the centred square cut out of each picture first; 0 keeps all; None does as the backbone
            was pretrained.
        epochs: Passes over what the sampler of ours draws, for every arm; None takes the recipe's. Also how often a
            checkpoint may be chosen.
        max_steps: Optimizer steps of a batch of ours, for a trial; other batches get steps for as many images.
        jobs: Runs that train at the same time, each with one thread.
        workers: Processes that read images, of each run; for a GPU.
        draws: Bootstrap draws behind each interval.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: Path
    split: Path | None = None
    images_name: str = "real images"
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    output: Path
    image_size_px: int = Field(128, ge=8)
    center_crop_px: int | None = Field(None, ge=0)
    epochs: float | None = Field(None, gt=0, le=1000)
    max_steps: int | None = Field(None, ge=1)
    jobs: int = Field(1, ge=1)
    workers: int = Field(0, ge=0)
    draws: int = Field(2000, ge=100)

    @property
    def split_file(self) -> Path:
        """The file that says which image is in which fold."""
        return self.split if self.split is not None else self.images / "split.csv"


class QualitySettings(StudySettings):
    """Asked of `benchmark quality`.

    Args:
        more: Folders of labelled images that join the training fold of the arms that say so.
        natural_ratios: Training folds are thinned to the class ratios of the full MLL set.
        backbone: Hub id, folder, or `embedded`.
        only: Names of arms; empty takes the standard ones.
        probe: Files of `cytodino probe` on the same images, whose rows stand beside.
    """

    more: tuple[Path, ...] = ()
    natural_ratios: bool = False
    backbone: str
    only: tuple[str, ...] = ()
    probe: tuple[Path, ...] = ()


class PretrainingTimeSettings(StudySettings):
    """Asked of `benchmark pretraining`.

    Args:
        backbones: Folders that `cytodino pretrain` wrote.
        fine_tune: Fine-tune on each of them as well.
    """

    backbones: tuple[Path, ...] = Field(min_length=1)
    fine_tune: bool = True


def checked_settings(name: str, values: dict[str, Any]) -> StudySettings:
    """Settings from the options of a command.

    Args:
        name: `QualitySettings` or `PretrainingTimeSettings`.
        values: Its fields.

    Raises:
        CytoDinoError: One is not possible; names all.
    """
    model = {one.__name__: one for one in (QualitySettings, PretrainingTimeSettings)}[name]
    try:
        found = model.model_validate(values)
    except ValidationError as error:
        problems = (f"--{p['loc'][0]!s} {p['input']}: {p['msg']}".replace("_", "-") for p in error.errors())
        raise CytoDinoError("; ".join(problems)) from error
    if len(set(found.seeds)) < len(found.seeds) or min(found.seeds) < 0:
        raise CytoDinoError(f"--seeds {','.join(map(str, found.seeds))}: must be different numbers from 0 on")
    if not found.split_file.is_file():
        raise CytoDinoError(
            f"{found.split_file}: no such file; a comparison needs given folds: name a CSV path,label,fold with --split"
        )
    return found


def command_line(name: str, settings: StudySettings) -> str:
    """The command that asks for these settings; folders are called by what they hold, wherever they lie."""
    words = ["cytodino", "benchmark", name]
    for key, field in type(settings).model_fields.items():
        value = getattr(settings, key)
        if value == field.default or key in ("images_name", "jobs", "workers"):
            continue
        option = f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        elif key in ("images", "split", "output"):
            words += [option, {"images": "ROOT", "split": "FILE", "output": "DIR"}[key]]
        elif key in ("more", "backbones", "probe"):
            words += [part for path in value for part in (option, called(path))]
        elif key == "backbone":
            words += [option, called(Path(value)) if Path(value).is_dir() else value]
        else:
            words += [option, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return " ".join(map(shlex.quote, words))


def called(path: Path) -> str:
    """A folder by its last name that says something: RUN/backbone is called RUN."""
    path = path.absolute()
    return path.parent.name if path.name == "backbone" else path.name
