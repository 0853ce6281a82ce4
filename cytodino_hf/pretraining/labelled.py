"""The labelled set of the probe: found and read before the mixture, so that what it scores is never drawn."""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..data.loading import divide
from ..recipe import DataSection
from .looked import PROBED, Looked, ReadSet, read_set, set_key

if TYPE_CHECKING:
    from ..data.inspection.scan import Scan
    from ..data.samples import CellImages
    from .recipe import PretrainRecipe

# Keys of the probe section that a fine-tuning recipe's data section has as well.
_SHARED = ("source", "root", "taxonomy", "split", "split_seed", "fractions")


@dataclass(frozen=True)
class LabelledImages:
    """The labelled set of the probe.

    Args:
        images: Those that are in a fold, with their folds.
        scan: Of them.
        key: Of the set; see `set_key`.
        whole: The set as it was read.
    """

    images: CellImages
    scan: Scan
    key: Hashable
    whole: ReadSet

    @property
    def sha256(self) -> list[str]:
        """Of each image's file."""
        return [value.hex() for value in self.scan.column("file_sha256")]

    def identity(self) -> str:
        """Changes with the images of the two folds that the probe reads, their content, labels and order."""
        codes = self.images.taxonomy.codes
        rows = zip(self.images.folds, self.images.labels, self.sha256, strict=True)
        return json.dumps([(f, codes[label], sha) for f, label, sha in rows if f in ("train", "validation")])

    def hold_out(self, looked: list[Looked], keys: list[Hashable]) -> str | None:
        """Keep all but the training fold out of every source, as a source of weight 0 would.

        Where a source is this very set its images are marked; otherwise this set joins the sources, so that copies of
        its images are found in them.

        Args:
            looked: The sources; changed.
            keys: Of their sets.

        Returns:
            What was held out, in words; None where the sources hold out all of it themselves.
        """
        names = self.images.column("path")
        held = {name for name, fold in zip(names, self.images.folds, strict=True) if fold != "train"}
        same = [source for source, key in zip(looked, keys, strict=True) if key == self.key]
        if same:
            named = [
                source.mark(row, PROBED)
                for source in same
                for row, path in enumerate(source.images.column("path"))
                if path in held
            ]
            if not any(named):
                return None
        else:
            folds = [None if fold == "train" else fold for fold in self.images.folds]
            looked.append(Looked("probe", self.images, self.scan, folds, ()))
        return (
            f"probe: {len(held)} images of the validation, calibration and test folds of its labelled set are held out "
            "of every source, and copies of them"
        )


def labelled_images(recipe: PretrainRecipe) -> LabelledImages | None:
    """The labelled set of the probe with its folds; None where the recipe has no probe.

    Raises:
        DataError: It cannot be used as asked.
    """
    section = recipe.probe
    if not section.is_on:
        return None
    options = recipe.probe_options[str(section.source)]
    whole = read_set(section, options)
    data = DataSection(**{name: getattr(section, name) for name in _SHARED})
    images = divide(whole.images, whole.scan, data, needs_validation=True).images
    row_of = {path: row for row, path in enumerate(whole.images.column("path"))}
    scan = whole.scan.select([row_of[path] for path in images.column("path")])
    return LabelledImages(images, scan, set_key(section, options), whole)
