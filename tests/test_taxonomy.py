"""The classes and what they mean: the published facts, subsets, and taxonomies of the user's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cytodino_hf.taxonomy import (
    MLL,
    MLL_IMAGE_COUNTS,
    MLL_PUBLISHED,
    TAXONOMIES,
    CellClass,
    Taxonomy,
    load_taxonomy,
)

OWN = {
    "name": "blood",
    "classes": [
        {"code": "NEU", "name": "neutrophil", "lineage": "granulocytic", "is_safe": True},
        {"code": "BND", "lineage": "granulocytic"},
        {"code": "BLA", "lineage": "granulocytic", "is_critical": True},
        {"code": "LYT", "lineage": "lymphoid", "is_safe": True, "is_critical": False},
    ],
    "maturation": {"granulocytic": ["BLA", "BND", "NEU"]},
}


def test_the_21_classes_with_their_roles() -> None:
    assert len(MLL) == 21
    assert list(MLL.codes) == sorted(MLL.codes)
    assert {MLL.codes[i] for i in MLL.critical} == {"BLA", "MYB", "PMO", "FGC", "HAC", "KSC", "ABE", "LYI"}
    assert {MLL.codes[i] for i in MLL.safe} == {"NGS", "NGB", "LYT", "MON", "EOS", "BAS", "PLM", "EBO"}
    members: dict[str, set[str]] = {}
    for code, lineage in zip(MLL.codes, MLL.lineages, strict=True):
        members.setdefault(lineage, set()).add(code)
    assert members == {
        "granulocytic": {"BLA", "PMO", "MYB", "MMZ", "NGB", "NGS"},
        "erythroid": {"PEB", "EBO"},
        "lymphoid": {"LYI", "LYT", "PLM"},
        "monocytic": {"MON"},
        "eosinophil": {"EOS", "ABE"},
        "basophil": {"BAS"},
        "pathological": {"FGC", "HAC", "KSC"},
        "artefact": {"ART", "NIF", "OTH"},
    }


def test_maturation_orders_of_the_paper_and_of_its_code() -> None:
    assert dict(MLL.maturation) == {
        "granulocytic": ("BLA", "PMO", "MYB", "MMZ", "NGB", "NGS"),
        "erythroid": ("PEB", "EBO"),
        "lymphoid": ("LYI", "LYT", "PLM"),
    }
    assert set(MLL_PUBLISHED.maturation) == {"granulocytic", "erythroid"}
    assert MLL_PUBLISHED.classes == MLL.classes


def test_image_counts_are_those_of_the_published_set() -> None:
    assert set(MLL_IMAGE_COUNTS) == set(MLL.codes)
    assert sum(MLL_IMAGE_COUNTS.values()) == 171_374


def test_neighbours_are_the_stages_before_and_after() -> None:
    assert MLL.neighbours("BLA") == ("PMO",)
    assert MLL.neighbours("NGS") == ("NGB",)
    assert MLL.neighbours("MMZ") == ("MYB", "NGB")
    assert MLL.neighbours("LYT") == ("LYI", "PLM")
    assert MLL_PUBLISHED.neighbours("LYT") == ()
    assert MLL.neighbours("MON") == ()
    for code in MLL.codes:
        assert all(code in MLL.neighbours(other) for other in MLL.neighbours(code))


def test_a_subset_keeps_order_roles_and_the_stages_that_are_left() -> None:
    part = MLL.subset(["NGS", "LYT", "BLA", "MYB"])
    assert part.codes == ("BLA", "LYT", "MYB", "NGS")
    assert dict(part.maturation) == {"granulocytic": ("BLA", "MYB", "NGS")}
    assert part.neighbours("MYB") == ("BLA", "NGS")
    assert part.critical == (0, 2)
    assert part.safe == (1, 3)
    assert MLL.subset(MLL.codes) == MLL


def test_an_unknown_class_is_named() -> None:
    assert MLL.index("PMO") == 20
    for call in (lambda: MLL.index("XYZ"), lambda: MLL.subset(["BLA", "XYZ"]), lambda: MLL.neighbours("XYZ")):
        with pytest.raises(KeyError, match="'XYZ' is no class of taxonomy 'mll'"):
            call()


def test_json_form_comes_back_equal(tmp_path: Path) -> None:
    for taxonomy in (MLL, MLL_PUBLISHED, Taxonomy.from_dict(OWN)):
        file = tmp_path / f"{taxonomy.name}.json"
        file.write_text(json.dumps(taxonomy.to_dict()), encoding="utf-8")
        assert Taxonomy.from_json(file) == taxonomy
        assert load_taxonomy(str(file)) == taxonomy


def test_names_and_roles_may_be_left_out() -> None:
    own = Taxonomy.from_dict(OWN)
    assert own.names == ("neutrophil", "BND", "BLA", "LYT")
    assert own.critical == (2,)
    assert own.safe == (0, 3)
    plain = Taxonomy.from_dict({"classes": [{"code": "A", "lineage": "x"}]})
    assert plain.name == "custom"
    assert not plain.maturation


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": []}, "at least one class"),
        ({"classes": "BLA"}, "at least one class"),
        ({"classes": ["BLA"]}, r"classes\[0\]: must be an object"),
        ({"classes": [{"code": "A"}]}, r"classes\[0\]: `lineage` must be a text"),
        ({"classes": [{"code": "", "lineage": "x"}]}, r"classes\[0\]: `code` must be a text"),
        ({"classes": [{"code": "A", "lineage": "x", "is_safe": "yes"}]}, "`is_safe` must be true or false"),
        ({"classes": [{"code": "A", "lineage": "x", "danger": 1}]}, r"classes\[0\]: unknown danger"),
        ({"stages": {}}, "unknown stages"),
        ({"maturation": ["BLA"]}, "`maturation` must be an object"),
        ({"maturation": {"granulocytic": ["BLA", "XYZ"]}}, "names 'XYZ', which is no class of it"),
        ({"maturation": {"granulocytic": ["BLA", "LYT"]}}, "names 'LYT', which is 'lymphoid'"),
        ({"maturation": {"granulocytic": ["BLA", "NEU", "BLA"]}}, "names a class twice"),
        ({"classes": [{"code": "A", "lineage": "x"}] * 2, "maturation": {}}, "occur twice: A"),
        (
            {
                "classes": [{"code": "A", "lineage": "x", "is_safe": True, "is_critical": True}],
                "maturation": {},
            },
            "both critical and safe: A",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_in_a_taxonomy_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Taxonomy.from_dict(OWN | change)


def test_mistakes_in_a_file_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    for text, message in (("{", "not valid JSON"), ("[]", "not list"), ('{"classes": []}', "at least one")):
        file.write_text(text)
        with pytest.raises(ValueError, match=message) as caught:
            Taxonomy.from_json(file)
        assert str(file) in str(caught.value)


def test_taxonomies_load_by_name_and_unknown_names_are_listed(tmp_path: Path) -> None:
    assert set(TAXONOMIES) == {"mll", "mll_published"}
    assert load_taxonomy("mll") is MLL
    with pytest.raises(ValueError, match="neither a taxonomy"):
        load_taxonomy(str(tmp_path / "absent.json"))


def test_a_taxonomy_is_frozen() -> None:
    with pytest.raises(AttributeError):
        MLL.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        MLL.maturation["erythroid"] = ()  # type: ignore[index]
    with pytest.raises(TypeError):
        MLL_IMAGE_COUNTS["ABE"] = 0  # type: ignore[index]


def test_tables_given_to_a_taxonomy_are_copied() -> None:
    order = {"x": ["A", "B"]}
    own = Taxonomy("own", (CellClass("A", "a", "x"), CellClass("B", "b", "x")), order)  # type: ignore[arg-type]
    order["x"].append("C")
    assert own.maturation["x"] == ("A", "B")


def test_a_taxonomy_can_be_copied_and_sent_to_a_worker() -> None:
    import copy
    import pickle

    assert pickle.loads(pickle.dumps(MLL)) == MLL
    assert copy.deepcopy(MLL) == MLL
