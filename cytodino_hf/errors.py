"""The one family of errors that a user is meant to read: what is wrong, where, and what to do about it."""

from __future__ import annotations


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


class RunFolderError(CytoDinoError):
    """The output folder belongs to another recipe or other data, or is not a run at all."""
