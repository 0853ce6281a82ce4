"""Images that must share a fold: those of one group of the source, and those that show one picture."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import DataError
from .inspection.near_duplicates import Duplicates
from .samples import CellImages
from .tables import MAX_NAMED, first_few


def united_groups(images: CellImages, duplicates: Duplicates | None) -> list[str] | None:
    """Group of every row once groups with a common picture are one; None where nothing is kept together.

    A united group has the name of its member that comes first in the alphabet. A row without group and without
    duplicate is its own group.

    Args:
        images: The set, with or without groups.
        duplicates: Of its rows, or None.
    """
    groups = images.groups
    clusters = duplicates.clusters() if duplicates is not None else []
    if not clusters:
        return groups
    own = groups if groups is not None else [f"image:{name}" for name in images.column("id")]
    above: dict[str, str] = {}

    def top(name: str) -> str:
        while above.get(name, name) != name:
            name = above[name]
        return name

    for cluster in clusters:
        tops = {top(own[row]) for row in cluster}
        first = min(tops)
        above.update(dict.fromkeys(tops, first))
    return [top(name) for name in own]


def refuse_divided_duplicates(
    images: CellImages,
    folds: Sequence[str | None],
    duplicates: Duplicates | None,
    split: str,
    *,
    unlisted: str | None = None,
) -> None:
    """Refuse folds that were given and put one picture into two of them.

    Args:
        images, folds: The set and the fold of every row.
        duplicates: Of its rows, or None.
        split: The split as the recipe names it.
        unlisted: What a row without fold is called, where that counts as a fold; None leaves such rows out.

    Raises:
        DataError: There are such pictures; names pairs and the remedy.
    """
    if duplicates is None:
        return
    paths, divided = images.column("path"), []
    for cluster in duplicates.clusters():
        places: dict[str, int] = {}
        for row in cluster:
            if place := folds[row] or unlisted:
                places.setdefault(place, row)
        if len(places) > 1:
            (fold, row), (other_fold, other) = list(places.items())[:2]
            divided.append(f"{paths[row]} ({fold}) and {paths[other]} ({other_fold})")
    if divided:
        raise DataError(
            f"split {split!r} divides {len(divided)} clusters of images that show the same picture: "
            f"{first_few(divided)}. Give the images of a cluster one fold or keep one of them (`cytodino data "
            "check` shows them), or set data.near_duplicates to 'ignore'."
        )


def duplicate_notes(images: CellImages, duplicates: Duplicates | None) -> list[str]:
    """What a report says of images that show the same picture: how many, which groups they join, which labels differ.

    Args:
        images: The set.
        duplicates: Of its rows, or None.
    """
    clusters = duplicates.clusters() if duplicates is not None else []
    if not clusters:
        return []
    count = sum(map(len, clusters))
    one = len(clusters) == 1
    notes = [
        f"{count} images show the same picture as another one ({len(clusters)} cluster{'s' * (not one)}); "
        f"{'it shares' if one else 'each shares'} a fold"
    ]
    if (groups := images.groups) is not None:
        joined = [sorted({groups[row] for row in cluster}) for cluster in clusters]
        if joined := [names for names in joined if len(names) > 1]:
            named = first_few(" and ".join(names[:MAX_NAMED]) for names in joined)
            notes.append(
                f"a {images.group_kind} with a picture of another one counts as one with it: {named}"
            )
    if mixed := mixed_labels(images, clusters):
        notes.append(f"the same picture under two labels ({len(mixed)}): {first_few(mixed)}")
    return notes


def mixed_labels(images: CellImages, clusters: Sequence[Sequence[int]]) -> list[str]:
    """One line for each cluster whose images have different labels."""
    codes, labels, paths = images.taxonomy.codes, images.labels, images.column("path")
    lines = []
    for cluster in clusters:
        first_of = {labels[row]: row for row in reversed(cluster)}
        if len(first_of) > 1:
            lines.append(
                " = ".join(f"{paths[row]} ({codes[label]})" for label, row in sorted(first_of.items()))
            )
    return lines
