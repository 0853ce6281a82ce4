"""The command line of `cytodino probe`: backbones and keys of a recipe's data section, in any order."""

from __future__ import annotations

from collections.abc import Sequence


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sort arguments into backbones and `--section.key VALUE` pairs.

    Args:
        arguments: What was typed besides the options of the command.

    Returns:
        Backbones, and the rest in its order, for `parse_overrides`.
    """
    backbones: list[str] = []
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--"):
            backbones.append(token)
            continue
        overrides.append(token)
        if "=" not in token and rest and not rest[0].startswith("--"):
            overrides.append(rest.pop(0))
    return backbones, overrides


def parse_seeds(text: str) -> tuple[int, ...]:
    """Whole numbers between commas.

    Raises:
        RecipeError: Something else.
    """
    from ..errors import RecipeError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise RecipeError(
            [f"--seeds {text}: must be whole numbers between commas, such as 0,1,2"], "command line"
        ) from error
