"""The classes of other public image sets, and which of them mean the same: one table for sources and for transfer.

Lineages and which classes are critical or safe are those of the class of the MLL set that means the same, so that a
mistake is judged alike on every set; only classes without one say it themselves.

Source: the published map of 11 classes between MLL23, Matek19 and Acevedo, and three more classes that are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .taxonomy import MLL, MLL_PUBLISHED, CellClass, Taxonomy

#: Harmonised class -> code of the MLL set. The first 11 are the published map.
HARMONISED_TO_MLL: Mapping[str, str] = MappingProxyType(
    {
        "myeloblast": "BLA", "promyelocyte": "PMO", "myelocyte": "MYB", "metamyelocyte": "MMZ",
        "neutrophil_band": "NGB", "neutrophil_segmented": "NGS", "erythroblast": "EBO", "lymphocyte": "LYT",
        "monocyte": "MON", "eosinophil": "EOS", "basophil": "BAS",
        "hairy_cell": "HAC", "plasma_cell": "PLM", "smudge_cell": "KSC",
    }
)  # fmt: skip

#: A class that some sets do not divide -> the harmonised classes it is made of.
UNDIVIDED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"neutrophil": ("neutrophil_band", "neutrophil_segmented")}
)

#: What a reader must know of a correspondence that is not exact.
WIDER: Mapping[str, str] = MappingProxyType(
    {
        "myeloblast": "BLA of the MLL set holds all blasts, which is wider than myeloblasts",
        "neutrophil": "the other set does not divide neutrophils, so NGS and NGB count as one class, and their "
        "probabilities are added",
    }
)

# Own code -> harmonised class, or a class of its own without counterpart. MYB of Matek19 is a myelocyte, MYO a blast.
_MATEK19: dict[str, str | CellClass] = {
    "BAS": "basophil", "EBO": "erythroblast", "EOS": "eosinophil", "KSC": "smudge_cell",
    "LYA": CellClass("LYA", "atypical lymphocyte", "lymphoid"),
    "LYT": "lymphocyte", "MMZ": "metamyelocyte",
    "MOB": CellClass("MOB", "monoblast", "monocytic", is_critical=True),
    "MON": "monocyte", "MYB": "myelocyte", "MYO": "myeloblast", "NGB": "neutrophil_band",
    "NGS": "neutrophil_segmented",
    "PMB": CellClass("PMB", "bilobed promyelocyte", "granulocytic", is_critical=True),
    "PMO": "promyelocyte",
}  # fmt: skip
# Codes are the prefixes of the file names.
_ACEVEDO: dict[str, str | CellClass] = {
    "BA": "basophil", "BNE": "neutrophil_band", "EO": "eosinophil", "ERB": "erythroblast",
    # Promyelocytes, myelocytes and metamyelocytes: critical ones and others, so neither.
    "IG": CellClass("IG", "immature granulocyte, undivided", "granulocytic"),
    "LY": "lymphocyte", "MMY": "metamyelocyte", "MO": "monocyte", "MY": "myelocyte",
    "NEUTROPHIL": CellClass("NEUTROPHIL", "neutrophil, undivided", "granulocytic", is_safe=True),
    "PLATELET": CellClass("PLATELET", "platelet", "platelet"),
    "PMY": "promyelocyte", "SNE": "neutrophil_segmented",
}  # fmt: skip
_MLL23: dict[str, str | CellClass] = {
    "basophil": "basophil", "eosinophil": "eosinophil", "hairy_cell": "hairy_cell", "lymphocyte": "lymphocyte",
    "lymphocyte_large_granular": CellClass("lymphocyte_large_granular", "large granular lymphocyte", "lymphoid"),
    "lymphocyte_neoplastic": CellClass(
        "lymphocyte_neoplastic", "neoplastic lymphocyte", "lymphoid", is_critical=True
    ),
    "lymphocyte_reactive": CellClass("lymphocyte_reactive", "reactive lymphocyte", "lymphoid"),
    "metamyelocyte": "metamyelocyte", "monocyte": "monocyte", "myeloblast": "myeloblast",
    "myelocyte": "myelocyte", "neutrophil_band": "neutrophil_band",
    "neutrophil_segmented": "neutrophil_segmented", "normoblast": "erythroblast",
    "plasma_cell": "plasma_cell", "promyelocyte": "promyelocyte",
    "promyelocyte_atypical": CellClass(
        "promyelocyte_atypical", "atypical promyelocyte", "pathological", is_critical=True
    ),
    "smudge_cell": "smudge_cell",
}  # fmt: skip
_WBC_TECOM: dict[str, str | CellClass] = {
    "BAS": "basophil", "EOS": "eosinophil", "LYT": "lymphocyte", "MON": "monocyte",
    "NEU": CellClass("NEU", "neutrophil, undivided", "granulocytic", is_safe=True),
}  # fmt: skip
# Every cell carries the diagnosis of its patient.
_AML_HEHR = (
    CellClass("PML_RARA", "APL with PML::RARA", "leukaemia", is_critical=True),
    CellClass("NPM1", "AML with NPM1", "leukaemia", is_critical=True),
    CellClass("CBFB_MYH11", "AML with CBFB::MYH11", "leukaemia", is_critical=True),
    CellClass("RUNX1_RUNX1T1", "AML with RUNX1::RUNX1T1", "leukaemia", is_critical=True),
    CellClass("control", "no leukaemia", "control", is_safe=True),
)
_PCAM = (
    CellClass("normal", "no tumour in the centre", "normal", is_safe=True),
    CellClass("tumour", "tumour in the centre", "tumour", is_critical=True),
)
_TABLES: dict[str, dict[str, str | CellClass]] = {
    "harmonised": {name: name for name in HARMONISED_TO_MLL},
    "matek19": _MATEK19,
    "acevedo": _ACEVEDO,
    "mll23": _MLL23,
    "wbc_tecom": _WBC_TECOM,
}


def _class(code: str, meaning: str | CellClass) -> CellClass:
    if isinstance(meaning, CellClass):
        return meaning
    same = MLL.classes[MLL.index(HARMONISED_TO_MLL[meaning])]
    return CellClass(code, same.name, same.lineage, same.is_critical, same.is_safe)


def _taxonomy(name: str, table: Mapping[str, str | CellClass]) -> Taxonomy:
    code_of = {HARMONISED_TO_MLL[m]: code for code, m in table.items() if isinstance(m, str)}
    orders = {
        lineage: tuple(code_of[code] for code in order if code in code_of)
        for lineage, order in MLL.maturation.items()
    }
    maturation = {lineage: order for lineage, order in orders.items() if len(order) > 1}
    return Taxonomy(name, tuple(_class(code, meaning) for code, meaning in table.items()), maturation)


#: Taxonomies by name, each in the labels of one set; `harmonised` has those that sets share.
OTHER_TAXONOMIES: Mapping[str, Taxonomy] = MappingProxyType(
    {
        **{name: _taxonomy(name, table) for name, table in _TABLES.items()},
        "aml_hehr": Taxonomy("aml_hehr", _AML_HEHR),
        "pcam": Taxonomy("pcam", _PCAM),
    }
)

_FROM_MLL = {code: name for name, code in HARMONISED_TO_MLL.items()}
_MEANINGS: dict[str, dict[str, str]] = {
    **{name: {code: m for code, m in table.items() if isinstance(m, str)} for name, table in _TABLES.items()},
    MLL.name: _FROM_MLL,
    MLL_PUBLISHED.name: _FROM_MLL,
    "aml_hehr": {},
    "pcam": {},
}
_MEANINGS["wbc_tecom"]["NEU"] = "neutrophil"


def meanings(taxonomy_name: str) -> Mapping[str, str] | None:
    """What the codes of a taxonomy mean.

    Args:
        taxonomy_name: Name of a taxonomy of this project.

    Returns:
        Code -> harmonised or undivided class; codes without counterpart are missing. None for a taxonomy of the
        user's own, of which nothing is known.

    Example:
        >>> meanings("matek19")["MYO"], meanings("matek19")["MYB"]
        ('myeloblast', 'myelocyte')
    """
    return MappingProxyType(_MEANINGS[taxonomy_name]) if taxonomy_name in _MEANINGS else None


def translation(own: str, wanted: str) -> Mapping[str, str] | None:
    """Codes of one taxonomy in those of another.

    Args:
        own: Name of the taxonomy the codes are of.
        wanted: Name of the other.

    Returns:
        Code -> code of the other; codes without counterpart are missing. None where the codes stay as they are: one
        taxonomy, or `wanted` is a user's own.

    Example:
        >>> translation("matek19", "mll")["MYO"]
        'BLA'
    """
    ours, theirs = meanings(own), meanings(wanted)
    if own == wanted or ours is None or theirs is None:
        return None
    code_of = {meaning: code for code, meaning in theirs.items()}
    return {code: code_of[meaning] for code, meaning in ours.items() if meaning in code_of}
