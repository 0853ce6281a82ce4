"""What the classes mean: names, lineages, maturation order, which mistakes are dangerous.

Imports nothing of the package on loading; every stage may import it. The built-in taxonomy is that of the MLL
bone-marrow set (Matek et al. 2021, doi 10.1182/blood.2020010568); those of other public sets are in `other_sets`; a
user brings another as a JSON file (`Taxonomy.from_json`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True)
class CellClass:
    """One class of cell.

    Args:
        code: Short name, also the folder name in image sets (`NGS`).
        name: Readable name (`segmented neutrophil`).
        lineage: The lineage it belongs to (`granulocytic`).
        is_critical: Overlooking it may harm a patient (blasts, promyelocytes, ...).
        is_safe: A normal mature cell; a critical cell called this is the worst mistake.
    """

    code: str
    name: str
    lineage: str
    is_critical: bool = False
    is_safe: bool = False


@dataclass(frozen=True)
class Taxonomy:
    """An ordered set of cell classes with lineages and maturation orders.

    Args:
        name: Name of the taxonomy, recorded in reports and model configurations.
        classes: The classes in label order (index = label).
        maturation: Lineage -> codes from immature to mature. A lineage without an entry has no order.

    Raises:
        ValueError: A code occurs twice, a class is both critical and safe, or a maturation order names an
            unknown class, one of another lineage, or one class twice.
    """

    name: str
    classes: tuple[CellClass, ...]
    maturation: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        ordered = {lineage: tuple(codes) for lineage, codes in self.maturation.items()}
        object.__setattr__(self, "maturation", MappingProxyType(ordered))
        self._check()

    def _check(self) -> None:
        codes = [c.code for c in self.classes]
        if not codes:
            raise ValueError(f"taxonomy {self.name!r} has no classes")
        if twice := sorted({c for c in codes if codes.count(c) > 1}):
            raise ValueError(f"taxonomy {self.name!r}: class codes occur twice: {', '.join(twice)}")
        if both := [c.code for c in self.classes if c.is_critical and c.is_safe]:
            raise ValueError(f"taxonomy {self.name!r}: both critical and safe: {', '.join(both)}")
        lineage_of = {c.code: c.lineage for c in self.classes}
        for lineage, order in self.maturation.items():
            if len(set(order)) != len(order):
                raise ValueError(f"taxonomy {self.name!r}: maturation.{lineage} names a class twice: {order}")
            for code in order:
                if lineage_of.get(code) != lineage:
                    raise ValueError(
                        f"taxonomy {self.name!r}: maturation.{lineage} names {code!r}, which is "
                        + (f"{lineage_of[code]!r}" if code in lineage_of else "no class of it")
                    )

    def __reduce__(self) -> tuple[object, ...]:
        # A read-only mapping cannot be pickled; workers get a taxonomy built anew.
        return Taxonomy, (self.name, self.classes, dict(self.maturation))

    @property
    def codes(self) -> tuple[str, ...]:
        """Class codes in label order."""
        return tuple(c.code for c in self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Readable names in label order."""
        return tuple(c.name for c in self.classes)

    @property
    def lineages(self) -> tuple[str, ...]:
        """Lineage of each class, in label order."""
        return tuple(c.lineage for c in self.classes)

    @property
    def critical(self) -> tuple[int, ...]:
        """Labels of the critical classes."""
        return tuple(i for i, c in enumerate(self.classes) if c.is_critical)

    @property
    def safe(self) -> tuple[int, ...]:
        """Labels of the safe classes."""
        return tuple(i for i, c in enumerate(self.classes) if c.is_safe)

    def __len__(self) -> int:
        return len(self.classes)

    def index(self, code: str) -> int:
        """Label of a class code.

        Raises:
            KeyError: The code is no class of this taxonomy.
        """
        try:
            return self.codes.index(code)
        except ValueError:
            raise KeyError(
                f"{code!r} is no class of taxonomy {self.name!r} ({', '.join(self.codes)})"
            ) from None

    def neighbours(self, code: str) -> tuple[str, ...]:
        """The classes one step before and after `code` in its maturation order (none where there is no order).

        Example:
            >>> MLL.neighbours("PMO")
            ('BLA', 'MYB')
        """
        order = self.maturation.get(self.classes[self.index(code)].lineage, ())
        if code not in order:
            return ()
        at = order.index(code)
        return tuple(order[i] for i in (at - 1, at + 1) if 0 <= i < len(order))

    def subset(self, codes: Iterable[str]) -> Taxonomy:
        """The same taxonomy with only some classes, in this taxonomy's order.

        Raises:
            KeyError: A code is no class of this taxonomy.

        Example:
            >>> MLL.subset(["LYT", "BLA"]).codes
            ('BLA', 'LYT')
        """
        wanted = {self.codes[self.index(code)] for code in codes}
        maturation = {
            lineage: kept
            for lineage, order in self.maturation.items()
            if len(kept := tuple(c for c in order if c in wanted)) > 1
        }
        return Taxonomy(self.name, tuple(c for c in self.classes if c.code in wanted), maturation)

    def to_dict(self) -> dict[str, object]:
        """The JSON form that `from_dict` reads."""
        return {
            "name": self.name,
            "classes": [
                {
                    "code": c.code,
                    "name": c.name,
                    "lineage": c.lineage,
                    "is_critical": c.is_critical,
                    "is_safe": c.is_safe,
                }
                for c in self.classes
            ],
            "maturation": {lineage: list(order) for lineage, order in self.maturation.items()},
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, object]) -> Taxonomy:
        """Build a taxonomy from its JSON form.

        Args:
            document: `{"name", "classes": [{"code", "name", "lineage", "is_critical", "is_safe"}], "maturation"}`;
                `name`, `is_critical`, `is_safe` and `maturation` may be left out.

        Raises:
            ValueError: Something is missing, unknown or contradictory; names the place.
        """
        _refuse_unknown(document, {"name", "classes", "maturation"}, "taxonomy")
        rows = document.get("classes")
        if not isinstance(rows, Sequence) or isinstance(rows, str) or not rows:
            raise ValueError("taxonomy: `classes` must be a list with at least one class")
        classes = []
        for number, row in enumerate(rows):
            place = f"taxonomy classes[{number}]"
            if not isinstance(row, Mapping):
                raise ValueError(f"{place}: must be an object with code, name and lineage, not {row!r}")
            _refuse_unknown(row, {"code", "name", "lineage", "is_critical", "is_safe"}, place)
            for key in ("code", "lineage"):
                if not isinstance(row.get(key), str) or not row[key]:
                    raise ValueError(f"{place}: `{key}` must be a text that is not empty")
            for key in ("is_critical", "is_safe"):
                if not isinstance(row.get(key, False), bool):
                    raise ValueError(f"{place}: `{key}` must be true or false, not {row[key]!r}")
            classes.append(
                CellClass(
                    code=row["code"],
                    name=str(row.get("name", row["code"])),
                    lineage=row["lineage"],
                    is_critical=row.get("is_critical", False),
                    is_safe=row.get("is_safe", False),
                )
            )
        maturation = document.get("maturation", {})
        if not isinstance(maturation, Mapping):
            raise ValueError("taxonomy: `maturation` must be an object {lineage: [codes, immature first]}")
        return cls(str(document.get("name", "custom")), tuple(classes), maturation)

    @classmethod
    def from_json(cls, path: str | Path) -> Taxonomy:
        """Read a taxonomy from a JSON file (format: `from_dict`).

        Raises:
            ValueError: The file is no valid taxonomy; names the file and the place in it.
            OSError: The file cannot be read.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not valid JSON ({error})") from error
        if not isinstance(document, dict):
            raise ValueError(
                f"{path}: a taxonomy is a JSON object with `classes`, not {type(document).__name__}"
            )
        try:
            return cls.from_dict(document)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _refuse_unknown(document: Mapping[str, object], known: set[str], place: str) -> None:
    if unknown := sorted(set(document) - known):
        raise ValueError(f"{place}: unknown {', '.join(unknown)} (known: {', '.join(sorted(known))})")


# Classes of the MLL set with the lineages and the critical and safe sets of CytoDINO (arXiv 2512.17930).
_MLL_CLASSES = (
    CellClass("ABE", "abnormal eosinophil", "eosinophil", is_critical=True),
    CellClass("ART", "artefact", "artefact"),
    CellClass("BAS", "basophil", "basophil", is_safe=True),
    CellClass("BLA", "blast", "granulocytic", is_critical=True),
    CellClass("EBO", "erythroblast", "erythroid", is_safe=True),
    CellClass("EOS", "eosinophil", "eosinophil", is_safe=True),
    CellClass("FGC", "faggot cell", "pathological", is_critical=True),
    CellClass("HAC", "hairy cell", "pathological", is_critical=True),
    CellClass("KSC", "smudge cell", "pathological", is_critical=True),
    CellClass("LYI", "immature lymphocyte", "lymphoid", is_critical=True),
    CellClass("LYT", "lymphocyte", "lymphoid", is_safe=True),
    CellClass("MMZ", "metamyelocyte", "granulocytic"),
    CellClass("MON", "monocyte", "monocytic", is_safe=True),
    CellClass("MYB", "myelocyte", "granulocytic", is_critical=True),
    CellClass("NGB", "band neutrophil", "granulocytic", is_safe=True),
    CellClass("NGS", "segmented neutrophil", "granulocytic", is_safe=True),
    CellClass("NIF", "not identifiable", "artefact"),
    CellClass("OTH", "other cell", "artefact"),
    CellClass("PEB", "proerythroblast", "erythroid"),
    CellClass("PLM", "plasma cell", "lymphoid", is_safe=True),
    CellClass("PMO", "promyelocyte", "granulocytic", is_critical=True),
)
_MATURATION_IN_CODE = {
    "granulocytic": ("BLA", "PMO", "MYB", "MMZ", "NGB", "NGS"),
    "erythroid": ("PEB", "EBO"),
}

#: The 21 classes; maturation as the paper's README has it (granulocytic, erythroid and lymphoid).
MLL = Taxonomy("mll", _MLL_CLASSES, {**_MATURATION_IN_CODE, "lymphoid": ("LYI", "LYT", "PLM")})
#: The same classes with the orders the published code uses (no lymphoid order).
MLL_PUBLISHED = Taxonomy("mll_published", _MLL_CLASSES, _MATURATION_IN_CODE)
TAXONOMIES: Mapping[str, Taxonomy] = MappingProxyType({t.name: t for t in (MLL, MLL_PUBLISHED)})

#: Costs of the two dangerous mistakes (CytoDINO, arXiv 2512.17930); any other mistake costs nothing extra.
CRITICAL_TO_SAFE_COST, SAFE_TO_CRITICAL_COST = 3.0, 1.5


def mistake_costs(
    taxonomy: Taxonomy,
    critical_to_safe: float = CRITICAL_TO_SAFE_COST,
    safe_to_critical: float = SAFE_TO_CRITICAL_COST,
) -> list[list[float]]:
    """Cost of predicting class j (column) for label t (row): above zero only between critical and safe classes."""
    return [
        [
            critical_to_safe * (t.is_critical and j.is_safe)
            + safe_to_critical * (t.is_safe and j.is_critical)
            for j in taxonomy.classes
        ]
        for t in taxonomy.classes
    ]


#: Images per class in the published MLL set (sum 171,374); the imbalance that drawn cells imitate.
MLL_IMAGE_COUNTS: Mapping[str, int] = MappingProxyType(
    {
        "NGS": 29424, "EBO": 27395, "LYT": 26242, "ART": 19630, "PMO": 11994, "BLA": 11973, "NGB": 9968,
        "PLM": 7629, "MYB": 6557, "EOS": 5883, "MON": 4040, "NIF": 3538, "MMZ": 3055, "PEB": 2740,
        "BAS": 441, "HAC": 409, "OTH": 294, "LYI": 65, "FGC": 47, "KSC": 42, "ABE": 8,
    }
)  # fmt: skip


def load_taxonomy(name_or_path: str) -> Taxonomy:
    """A built-in taxonomy by name, or one from a JSON file.

    Raises:
        ValueError: Neither a built-in name nor a readable taxonomy file.
    """
    from .other_sets import OTHER_TAXONOMIES  # is made of classes of this module

    known = {**TAXONOMIES, **OTHER_TAXONOMIES}
    if name_or_path in known:
        return known[name_or_path]
    path = Path(name_or_path)
    if not path.is_file():
        raise ValueError(f"{name_or_path!r} is neither a taxonomy ({', '.join(known)}) nor a JSON file")
    return Taxonomy.from_json(path)
