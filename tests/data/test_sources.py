"""One battery for all data sources: whatever a source reads, later stages may rely on the same table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import set_layouts
from pydantic import ValidationError

from cytodino_hf.data.images import read_rgb
from cytodino_hf.data.samples import CellImages
from cytodino_hf.data.sources import SOURCES, Source
from cytodino_hf.data.sources.synthetic import draw_image_set
from cytodino_hf.errors import DataError
from cytodino_hf.other_sets import OTHER_TAXONOMIES
from cytodino_hf.taxonomy import MLL, Taxonomy

COLUMNS = {"id", "path", "source", "group", "fold", "label", "image"}
# Options under which a source makes a small set; most need none.
SMALL = {"synthetic": {"cells": 420, "patients": 8}}
# A class that the taxonomy of these sets has, and a taxonomy without it.
OWN = {"aml_hehr": ("control", ["NPM1", "PML_RARA"]), "pcam": ("normal", ["tumour"])}
LACKING = {"acevedo": "MYB", "mll23": "EBO"}
# These name the class otherwise than by a first folder of its code.
NO_CLASS_FOLDERS = {"acevedo", "aml_hehr", "matek19", "mll23", "pcam"}


def fill(name: str, root: Path) -> Path:
    """Give a source something to read, in its own layout; `synthetic` makes its own."""
    if name != "synthetic":
        getattr(set_layouts, name, set_layouts.class_folders)(root)
    return root


def taxonomy_for(name: str) -> Taxonomy:
    """MLL's, into which most sources can translate; else the set's own."""
    return OTHER_TAXONOMIES[name] if name in OWN else MLL


def lacking(name: str) -> tuple[str, Taxonomy]:
    """A class that the filled set has, and the taxonomy without it."""
    if name in OWN:
        code, rest = OWN[name]
        return code, OTHER_TAXONOMIES[name].subset(rest)
    return LACKING.get(name, "BLA"), MLL.subset(["LYT"])


def load(name: str, root: Path | None, taxonomy: Taxonomy | None = None) -> CellImages:
    source = SOURCES[name]
    return source.load(root, taxonomy or taxonomy_for(name), source.options(**SMALL.get(name, {})))


@pytest.fixture(scope="module", params=sorted(SOURCES))
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, CellImages]:
    name: str = request.param
    root = fill(name, tmp_path_factory.mktemp(name) / "root")
    return name, root, load(name, root)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_options_explain_themselves_and_refuse_what_they_do_not_know(source: Source) -> None:
    assert source.summary
    assert "\n" not in source.summary
    for name, field in source.options.model_fields.items():
        assert field.description, f"{name} has no description"
        assert not field.is_required(), f"{name}: a source must work without options"
    with pytest.raises(ValidationError):
        source.options(no_such_option=1)
    options = source.options()
    for name in type(options).model_fields:
        with pytest.raises(ValidationError):
            setattr(options, name, getattr(options, name))
    json.dumps(options.model_dump())  # a recipe is JSON


def test_table_has_the_agreed_columns_and_a_stable_order(loaded: tuple[str, Path, CellImages]) -> None:
    name, root, images = loaded
    assert set(images.dataset.column_names) == COLUMNS
    assert images.source == name
    assert set(images.column("source")) == {name}
    paths = images.column("path")
    assert paths == sorted(paths)
    assert len(set(images.column("id"))) == len(set(paths)) == len(paths)
    assert not any(path.startswith("/") or "\\" in path for path in paths)
    assert all(read_rgb(images.root / path).shape[2] == 3 for path in paths)
    assert images.root.is_relative_to(root)


def test_labels_are_the_taxonomy_in_its_order(loaded: tuple[str, Path, CellImages]) -> None:
    name, _, images = loaded
    assert images.dataset.features["label"].names == list(images.taxonomy.codes)
    in_order = [code for code in taxonomy_for(name).codes if code in images.taxonomy.codes]
    assert list(images.taxonomy.codes) == in_order
    assert set(images.labels) == set(range(len(images.taxonomy)))
    if name not in NO_CLASS_FOLDERS:
        folders = [path.split("/")[0] for path in images.column("path")]
        assert folders == [images.taxonomy.codes[label] for label in images.labels]


def test_images_are_read_only_when_asked_for(loaded: tuple[str, Path, CellImages]) -> None:
    _, _, images = loaded
    row = images.dataset[0]["image"]
    assert row["bytes"] is None
    assert read_rgb(row).shape[2] == 3


def test_groups_and_their_kind_come_together(loaded: tuple[str, Path, CellImages]) -> None:
    _, _, images = loaded
    assert (images.group_kind is None) == (images.column("group").count(None) == len(images.dataset))
    assert "\n" not in images.attribution


def test_loading_twice_gives_the_same_table(loaded: tuple[str, Path, CellImages]) -> None:
    name, root, images = loaded
    again = load(name, root)
    assert again.fingerprint() == images.fingerprint()


def test_a_class_unknown_to_the_taxonomy_stops_with_its_name(loaded: tuple[str, Path, CellImages]) -> None:
    name, root, _ = loaded
    code, narrower = lacking(name)
    with pytest.raises(DataError, match=code):
        load(name, root, narrower)


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"synthetic"}))
def test_a_missing_folder_stops_with_its_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        load(name, tmp_path / "nowhere")


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_drawn_set_is_called_drawn_whatever_reads_it(name: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    if name in NO_CLASS_FOLDERS:
        (load(name, fill(name, root)).root / "drawn.json").touch()
    else:
        draw_image_set(root, cells=420, seed=0, imbalance_power=0.25, patients=8, progress=False)
    images = load(name, root)
    assert images.is_drawn
    assert "no real patient" in images.attribution
    if name != "synthetic":
        (images.root / "drawn.json").unlink()
        images = load(name, root)
        assert not images.is_drawn
        assert "no real patient" not in images.attribution


def test_the_table_of_sources_is_light_to_import() -> None:
    heavy = (
        "torch",
        "datasets",
        "transformers",
        "albumentations",
        "pandas",
        "kagglehub",
        "cv2",
        "pyarrow",
        "h5py",
    )
    code = (
        "import sys, cytodino_hf.data.sources, cytodino_hf.data.splits;"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
