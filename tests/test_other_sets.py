"""The table of correspondences: the published columns, the traps, and biology that is written once."""

from __future__ import annotations

import pytest

from cytodino_hf.other_sets import HARMONISED_TO_MLL, OTHER_TAXONOMIES, UNDIVIDED, meanings, translation
from cytodino_hf.taxonomy import MLL, load_taxonomy

# The published map: harmonised, MLL23, Matek19, Acevedo, MLL bone marrow.
PUBLISHED = """
neutrophil_segmented neutrophil_segmented NGS SNE NGS
neutrophil_band      neutrophil_band      NGB BNE NGB
myeloblast           myeloblast           MYO -   BLA
lymphocyte           lymphocyte           LYT LY  LYT
eosinophil           eosinophil           EOS EO  EOS
monocyte             monocyte             MON MO  MON
erythroblast         normoblast           EBO ERB EBO
myelocyte            myelocyte            MYB MY  MYB
basophil             basophil             BAS BA  BAS
metamyelocyte        metamyelocyte        MMZ MMY MMZ
promyelocyte         promyelocyte         PMO PMY PMO
hairy_cell           hairy_cell           -   -   HAC
plasma_cell          plasma_cell          -   -   PLM
smudge_cell          smudge_cell          KSC -   KSC
"""


@pytest.mark.parametrize(("column", "name"), [(1, "mll23"), (2, "matek19"), (3, "acevedo"), (4, "mll")])
def test_columns_are_the_published_ones(column: int, name: str) -> None:
    rows = [line.split() for line in PUBLISHED.split("\n") if line]
    assert {row[column]: row[0] for row in rows if row[column] != "-"} == dict(meanings(name))


def test_sizes_and_classes_without_counterpart() -> None:
    assert {name: len(t) for name, t in OTHER_TAXONOMIES.items()} == {
        "harmonised": 14, "matek19": 15, "acevedo": 13, "mll23": 18, "wbc_tecom": 5, "aml_hehr": 5, "pcam": 2,
    }  # fmt: skip
    alone = {name: set(OTHER_TAXONOMIES[name].codes) - set(meanings(name)) for name in OTHER_TAXONOMIES}
    assert alone["matek19"] == {"LYA", "MOB", "PMB"}
    assert alone["acevedo"] == {"IG", "NEUTROPHIL", "PLATELET"}
    assert alone["wbc_tecom"] == set()


def test_a_neutrophil_is_translated_into_neither_kind() -> None:
    assert meanings("wbc_tecom")["NEU"] == "neutrophil"
    assert UNDIVIDED["neutrophil"] == ("neutrophil_band", "neutrophil_segmented")
    assert "NEU" not in translation("wbc_tecom", "mll")


@pytest.mark.parametrize("name", sorted(OTHER_TAXONOMIES))
def test_biology_is_that_of_the_class_that_means_the_same(name: str) -> None:
    taxonomy = load_taxonomy(name)
    assert taxonomy is OTHER_TAXONOMIES[name]
    for cell in taxonomy.classes:
        code = HARMONISED_TO_MLL.get(meanings(name).get(cell.code, ""))
        if code is not None:
            same = MLL.classes[MLL.index(code)]
            assert (cell.lineage, cell.is_critical, cell.is_safe) == (
                same.lineage,
                same.is_critical,
                same.is_safe,
            )


def test_codes_stay_where_nothing_is_known() -> None:
    assert translation("matek19", "matek19") is None
    assert translation("matek19", "my laboratory") is None
    assert meanings("my laboratory") is None
    assert translation("pcam", "mll") == {}
