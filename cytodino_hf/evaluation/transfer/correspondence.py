"""Which classes of a model and of another source are the same, and what is left out on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...errors import DataError
from ...other_sets import UNDIVIDED, WIDER, meanings
from ...taxonomy import MLL, MLL_PUBLISHED, CellClass, Taxonomy
from ..predictions import Predictions

_MLL_NAMES = {MLL.name, MLL_PUBLISHED.name}


@dataclass(frozen=True)
class CommonClass:
    """One class that both sides know.

    Args:
        name: The harmonised name, or the code both use.
        ours: Codes of the model; several where it divides what the other source does not.
        theirs: Codes of the other source.
        note: What a reader must know of it; mostly empty.
    """

    name: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Correspondence:
    """The common classes of a model and another source, in the order of the model's labels.

    Args:
        classes: At least two.
        ours, theirs: Taxonomies of the model and of the other source.
        by: How the classes were found to be the same, one sentence.
    """

    classes: tuple[CommonClass, ...]
    ours: Taxonomy
    theirs: Taxonomy
    by: str

    @property
    def ours_left_out(self) -> tuple[str, ...]:
        """Codes of the model that are scored nowhere: the other source has no such class."""
        used = {code for common in self.classes for code in common.ours}
        return tuple(code for code in self.ours.codes if code not in used)

    @property
    def theirs_left_out(self) -> tuple[str, ...]:
        """Codes of the other source whose images are not scored: the model has no such class."""
        used = {code for common in self.classes for code in common.theirs}
        return tuple(code for code in self.theirs.codes if code not in used)

    @property
    def taxonomy(self) -> Taxonomy:
        """The common classes with the model's biology; critical or safe where all codes of a class are."""
        classes = []
        name_of: dict[str, str] = {}
        for common in self.classes:
            cells = [self.ours.classes[self.ours.index(code)] for code in common.ours]
            name_of |= dict.fromkeys(common.ours, common.name)
            lineages = dict.fromkeys(cell.lineage for cell in cells)
            classes.append(
                CellClass(
                    common.name,
                    cells[0].name if len(cells) == 1 else common.name,
                    next(iter(lineages)) if len(lineages) == 1 else "several",
                    is_critical=all(cell.is_critical for cell in cells),
                    is_safe=all(cell.is_safe for cell in cells),
                )
            )
        lineage_of = {cell.code: cell.lineage for cell in classes}
        orders = {
            lineage: tuple(dict.fromkeys(name_of[code] for code in order if code in name_of))
            for lineage, order in self.ours.maturation.items()
        }
        maturation = {
            lineage: order
            for lineage, order in orders.items()
            if len(order) > 1 and all(lineage_of[name] == lineage for name in order)
        }
        return Taxonomy("common", tuple(classes), maturation)

    def labels(self, their_labels: Sequence[str]) -> np.ndarray:
        """Labels among the common classes, int64 (images,), -1 where the class is not common.

        Raises:
            DataError: A label is no class of the other source's taxonomy.
        """
        place = {code: label for label, common in enumerate(self.classes) for code in common.theirs}
        if unknown := sorted(set(their_labels) - set(self.theirs.codes)):
            raise DataError(
                f"labels {', '.join(unknown)} are no classes of taxonomy {self.theirs.name!r} "
                f"({', '.join(self.theirs.codes)})"
            )
        return np.array([place.get(code, -1) for code in their_labels], dtype=np.int64)

    def restricted(self, predictions: Predictions, their_labels: Sequence[str]) -> Predictions:
        """The images of common classes, with probabilities among these classes alone.

        A common class has the sum of the probabilities of its codes; the sums are divided by their total.

        Args:
            predictions: In the model's classes, of all images.
            their_labels: Code of each image in the other source.

        Raises:
            DataError: The predictions are of other classes or of another number of images, or none is of a common
                class.
        """
        if predictions.classes != self.ours.codes or len(predictions) != len(their_labels):
            raise DataError(
                f"{len(predictions)} predictions of the classes {', '.join(predictions.classes)} do not belong to "
                f"{len(their_labels)} labels and a model of the classes {', '.join(self.ours.codes)}"
            )
        labels = self.labels(their_labels)
        rows = np.flatnonzero(labels >= 0)
        if not len(rows):
            raise DataError(
                f"no image is of a class that the model knows too ({', '.join(c.name for c in self.classes)}); found "
                f"are {', '.join(sorted(set(their_labels))) or 'no images'}"
            )
        chosen = predictions.select(rows)
        logits = np.stack(
            [_log_sum(chosen.logits[:, self._columns(common)]) for common in self.classes], axis=1
        )
        names = tuple(common.name for common in self.classes)
        return replace(chosen, labels=labels[rows], logits=logits, classes=names)

    def of_each_code(self) -> np.ndarray:
        """Label of the common class of each of the model's codes, int64 (codes,), -1 for those left out."""
        place = {code: label for label, common in enumerate(self.classes) for code in common.ours}
        return np.array([place.get(code, -1) for code in self.ours.codes], dtype=np.int64)

    def _columns(self, common: CommonClass) -> list[int]:
        return [self.ours.index(code) for code in common.ours]


def correspondence(ours: Taxonomy, theirs: Taxonomy) -> Correspondence:
    """Find the common classes: by the table of public sets (`other_sets`), or by equal codes.

    Codes are compared where both taxonomies have one name, or one of them is a user's own. A class that one side does
    not divide (wbc_tecom's NEU) is one class on both sides.

    Args:
        ours: Taxonomy of the model.
        theirs: Taxonomy of the other source's labels.

    Raises:
        DataError: Fewer than two classes are common; names those of both.
    """
    our_table, their_table = meanings(ours.name), meanings(theirs.name)
    is_same = ours.name == theirs.name or {ours.name, theirs.name} <= _MLL_NAMES
    if is_same or our_table is None or their_table is None:
        by = "Classes with one code are taken for the same."
        meaning = [{code: code for code in side.codes} for side in (ours, theirs)]
    else:
        by = f"Classes of {ours.name} and {theirs.name} are the same by the table of harmonised labels."
        sides = ((ours, our_table), (theirs, their_table))
        meaning = [{code: table[code] for code in side.codes if code in table} for side, table in sides]
    meaning = _joined(meaning)
    names = [name for name in dict.fromkeys(meaning[0].values()) if name in meaning[1].values()]
    if len(names) < 2:
        raise DataError(
            f"a model of the classes {', '.join(ours.codes)} ({ours.name}) and a source of {', '.join(theirs.codes)} "
            f"({theirs.name}) have {len(names)} common classes; two are needed. Is data.taxonomy the one of the source?"
        )
    classes = tuple(
        CommonClass(
            name, _codes(meaning[0], name), _codes(meaning[1], name), _note(name, ours, theirs, is_same)
        )
        for name in names
    )
    return Correspondence(classes, ours, theirs, by)


def _joined(meaning: list[dict[str, str]]) -> list[dict[str, str]]:
    """Where one side does not divide a class, neither does the other."""
    for whole, parts in UNDIVIDED.items():
        if any(whole in side.values() for side in meaning):
            meaning = [
                {code: whole if name in parts else name for code, name in side.items()} for side in meaning
            ]
    return meaning


def _codes(meaning: dict[str, str], name: str) -> tuple[str, ...]:
    return tuple(code for code, found in meaning.items() if found == name)


def _note(name: str, ours: Taxonomy, theirs: Taxonomy, is_same: bool) -> str:
    # Blasts are wider than myeloblasts only where one side is the MLL set.
    is_wider = name in UNDIVIDED or len({ours.name, theirs.name} & _MLL_NAMES) == 1
    return WIDER.get(name, "") if is_wider and not is_same else ""


def _log_sum(logits: np.ndarray) -> np.ndarray:
    """Logarithm of the sum of the exponentials of (images, codes), float32 (images,), computed in float64."""
    wide: np.ndarray = logits.astype(np.float64)
    most = wide.max(axis=1, keepdims=True)
    summed: np.ndarray = most[:, 0] + np.log(np.exp(wide - most).sum(axis=1))
    return summed.astype(np.float32)
