"""The one family of errors that a user is meant to read: what is wrong, where, and what to do about it."""

from __future__ import annotations

from typing import Any


class CytoDinoError(Exception):
    """A mistake or a missing thing on the user's side; the command line prints it without a traceback."""

    exit_code = 1


class RecipeError(CytoDinoError):
    """Everything that is wrong with a recipe, found before anything is downloaded or loaded.

    Args:
        problems: One line per mistake, each with section.key, the value, what is allowed.
        source: The recipe file (or a word for it), named in the first line.
    """

    exit_code = 2

    def __init__(self, problems: list[str], source: str) -> None:
        self.problems = list(problems)
        self.source = source
        noun = "mistake" if len(problems) == 1 else "mistakes"
        super().__init__("\n".join([f"{source}: {len(problems)} {noun}", *(f"  - {p}" for p in problems)]))


class DataError(CytoDinoError):
    """The image set cannot be used as asked: names the file or folder and the remedy."""


class BackboneUnavailableError(CytoDinoError):
    """The backbone is gated, missing, refused or out of reach; says how to get it."""


class ModelUnavailableError(CytoDinoError):
    """A finished model is missing, out of reach, changed or of another kind; says how to get it."""


class RunFolderError(CytoDinoError):
    """The output folder belongs to another recipe or other data, or is not a run at all."""


class OtherProcessError(CytoDinoError):
    """Another process of the same training stopped, so this one stops too."""


class CheckpointError(CytoDinoError):
    """A checkpoint that must not be read: not sealed, damaged, or of another kind of start."""


class FullDiskError(CytoDinoError):
    """A checkpoint could not be written; the older ones are untouched."""


class InterruptedTrainingError(CytoDinoError):
    """A signal stopped the training after a sealed checkpoint; the same command continues.

    Args:
        message: Signal, step, what to do.
        exit_code: 143 for SIGTERM, 130 for Ctrl+C, as a shell reports them.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class BadNumbersError(CytoDinoError):
    """A loss, gradient, weight or answer of the model is NaN or infinite: names the images and what is kept.

    Args:
        message: What, where, remedy.
        findings: The same as plain values, for `bad_numbers.json`.
    """

    def __init__(self, message: str, findings: dict[str, Any] | None = None) -> None:
        self.findings = findings or {}
        super().__init__(message)


class WorkerKilledError(CytoDinoError):
    """The system ended a process that reads images: names the signal, the likely cause and the remedy."""


class MachineError(CytoDinoError):
    """The machine could not read a file that may well be sound: names the file, the cause and the remedy."""


class NotEnoughMemoryError(CytoDinoError):
    """The memory of the GPU or the machine does not suffice: names the sizes and the remedy."""


class WeightsFileError(CytoDinoError):
    """A file of weights is damaged, of another kind, or holds another model than was said; names file and tensors."""


class PublishError(CytoDinoError):
    """A model cannot be published: not finished, not whole, no right to write, or no connection; says the remedy."""


class LeakError(PublishError):
    """Something that must not leave the machine is in what was about to be sent; says where."""


class CollapseError(CytoDinoError):
    """A pretraining has collapsed: what was seen, and what to change."""
