"""Sets with labels of their own: read in their own taxonomy, or translated into that of another set."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ...errors import DataError
from ...other_sets import OTHER_TAXONOMIES, translation
from ...taxonomy import Taxonomy
from ..samples import CellImages, RejectedImage, build_cell_images
from .folders import FoundImages, subfolders


def own_taxonomy(source: str) -> Taxonomy:
    """The taxonomy in the labels of a set, which has the name of its source."""
    return OTHER_TAXONOMIES[source]


def no_class_folder(source: str, root: Path, names: tuple[str, ...]) -> DataError:
    """That a root holds no class folder of a set, with what it holds instead."""
    return DataError(
        f"{root}: no class folder of {source} ({', '.join(names[:3])}, ...). Folders found: "
        f"{', '.join(subfolders(root)[:10]) or 'none'}. Set data.root to the folder that holds them."
    )


def need_root(source: str, root: Path | None, where: str) -> Path:
    """The root, for a source that downloads nothing.

    Args:
        source: Name of the source.
        root: As the recipe has it.
        where: Where a person finds the set.

    Raises:
        DataError: There is none.
    """
    if root is None:
        raise DataError(
            f"source {source!r} needs the folder of the images: get them ({where}), set data.root"
        )
    return root


def build_translated(
    found: FoundImages,
    *,
    root: Path,
    source: str,
    taxonomy: Taxonomy,
    attribution: str,
    groups: dict[str, str] | None = None,
    group_kind: str | None = None,
) -> CellImages:
    """The table of images in the labels of the taxonomy asked for.

    Classes without counterpart in another set's taxonomy are left out on purpose, with one entry for each class.

    Args:
        found: Paths and own labels; a label unknown to the set's own taxonomy is refused by name.
        root: Folder of the paths.
        source: Name of the source and of its own taxonomy.
        taxonomy: The set's own; that of another set or `harmonised`, into which labels are translated; or a user's
            own, in the labels of the set.
        attribution: Whose images these are.
        groups: Path -> group.
        group_kind: What a group is.

    Raises:
        DataError: A class is not known, or none has a counterpart in `taxonomy`.
    """
    own = own_taxonomy(source)
    codes = translation(own.name, taxonomy.name)
    paths, labels, rejected = found.paths, found.labels, list(found.rejected)
    if codes is not None:
        _refuse_unknown(labels, own, root)
        left_out = Counter(label for label in labels if label not in codes)
        rejected += [
            RejectedImage(label, f"{count} images of a class without counterpart in {taxonomy.name!r}", True)
            for label, count in sorted(left_out.items())
        ]
        kept = [row for row, label in enumerate(labels) if label in codes]
        paths, labels = [paths[row] for row in kept], [codes[labels[row]] for row in kept]
        if left_out and not kept:
            raise DataError(
                f"{root}: no class of source {source!r} has a counterpart in taxonomy {taxonomy.name!r}: set "
                f"data.taxonomy to {own.name!r}"
            )
    return build_cell_images(
        paths,
        labels,
        root=root,
        source=source,
        taxonomy=taxonomy,
        groups=None if groups is None else [groups[path] for path in paths],
        group_kind=group_kind,
        attribution=attribution,
        rejected=sorted(rejected, key=lambda image: image.path),
    )


def _refuse_unknown(labels: list[str], own: Taxonomy, root: Path) -> None:
    if unknown := sorted(set(labels) - set(own.codes)):
        raise DataError(
            f"{root}: holds classes that {own.name} does not have: {', '.join(unknown)}. Known: "
            f"{', '.join(own.codes)}. Remove them, or read the folder with source 'image_folder'."
        )
