"""A backbone that goes on carries what it saw: the list, the check against held-out images, the words of the card."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cytodino_hf.errors import DataError
from cytodino_hf.pretraining.backbone_folder import write_teacher
from cytodino_hf.pretraining.history import held_out_images_seen, read_history
from cytodino_hf.pretraining.model_card import card
from cytodino_hf.pretraining.pretrain import build_ibot, load_images, pretrain
from cytodino_hf.pretraining.recipe import PretrainModelSection, parse_pretrain_recipe
from cytodino_hf.recipe import HubSection

Make = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., Path]) -> Path:
    return make_images(tmp_path_factory.mktemp("history") / "images")


@pytest.fixture(scope="module")
def chain(
    images: Path,
    make_images: Callable[..., Path],
    tiny_pretraining: Make,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    """Two RUNs: from random weights, and going on from the first with other images besides."""
    folder = tmp_path_factory.mktemp("chain")
    more = make_images(folder / "more", classes=("MON", "EOS"), per_class=4)
    first = tiny_pretraining(images, folder / "first", training={"max_steps": 1})
    pretrain(parse_pretrain_recipe(first, source="first"))
    second = going_on(tiny_pretraining(images, folder / "second"), folder / "first" / "backbone")
    second["data"]["sources"]["more"] = {"root": str(more), "image_folder": {"labels": "none"}}
    second["training"]["max_steps"] = 1
    pretrain(parse_pretrain_recipe(second, source="second"))
    return folder / "first" / "backbone", folder / "second" / "backbone"


def going_on(document: dict[str, Any], base: Path) -> dict[str, Any]:
    return document | {"model": {"backbone": str(base)}}


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "images.csv").open()))


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "pretraining.json").read_text())


def test_the_list_says_which_pretraining_saw_an_image(chain: tuple[Path, Path]) -> None:
    first, second = chain
    assert {row["pretraining"] for row in rows(first)} == {"1"}
    both = rows(second)
    assert [row for row in both if row["pretraining"] == "1"] == rows(first)
    own = [row for row in both if row["pretraining"] == "2"]
    assert {row["source"] for row in own} == {"cells", "more"}
    assert len(own) == record(second)["images"]["images"]
    # grep ',2$' images.csv | cut -d, -f3 | sort | sha256sum
    lines = "".join(f"{value}\n" for value in sorted(row["sha256"] for row in own))
    assert hashlib.sha256(lines.encode()).hexdigest() == record(second)["images"]["images_sha256"]
    assert (second.parent / "images.csv").read_bytes() == (second / "images.csv").read_bytes()


def test_record_and_card_of_one_that_goes_on(chain: tuple[Path, Path]) -> None:
    first, second = chain
    kept = record(second)
    before = record(first)
    assert kept["origin"] == {
        "name": "backbone", "is_listed": True, "images": before["images"],
        "weights_sha256": before["weights_sha256"], "origin": None,
    }  # fmt: skip
    weights = (first / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == before["weights_sha256"]
    text = (second / "README.md").read_text()
    assert text.count("| cells |") == 2
    assert "the column `pretraining` counts them" in text
    assert "not known" not in text
    assert "the column" not in (first / "README.md").read_text()
    held = list(csv.DictReader((second.parent / "left_out.csv").open()))
    known = f"none of the {len(held)} images that are held out now is among the {before['images']['images']} files"
    assert [note for note in kept["images"]["notes"] if known in note] != []


def test_an_image_held_out_now_must_not_have_been_pretrained_on(
    chain: tuple[Path, Path], images: Path, tiny_pretraining: Make, tmp_path: Path
) -> None:
    """Another draw of the split: some of its held-out images were in the training fold of the first run."""
    document = going_on(tiny_pretraining(images, tmp_path / "run"), chain[1])
    document["data"]["sources"]["cells"]["split_seed"] = document["probe"]["split_seed"] = 5
    with pytest.raises(DataError) as caught:
        pretrain(parse_pretrain_recipe(document, source="test"))
    message = str(caught.value)
    listed = {row["sha256"]: row["id"] for row in rows(chain[0])}
    document["model"] = tiny_pretraining(images, tmp_path / "run")["model"]
    mixture = load_images(parse_pretrain_recipe(document, source="test"))
    drawn = {mixture.sources[0].sha256[row] for row in mixture.sources[0].rows}
    lost = [
        row for row in mixture.sources[0].left_out() if row[1] in set(listed.values()) - _ids(mixture, drawn)
    ]
    assert len(lost) > 2
    assert message.startswith(f"model.backbone: {len(lost)} images that are held out now")
    assert f"such as cells/{lost[0][1]} ({lost[0][2]}), there called 'cells/{lost[0][1]}'" in message
    assert str(chain[1] / "images.csv") in message
    assert "data.sources.NAME.split" in message
    assert not (tmp_path / "run" / "recipe.json").exists()


def _ids(mixture: Any, sums: set[str]) -> set[str]:
    (source,) = mixture.sources
    names = source.images.column("id")
    return {name for name, value in zip(names, source.sha256, strict=True) if value in sums}


def test_a_base_without_a_list_is_said_to_be_one(
    images: Path, tiny_pretraining: Make, tmp_path: Path
) -> None:
    plain = parse_pretrain_recipe(tiny_pretraining(images, tmp_path / "none"), source="test")
    write_teacher(build_ibot(plain), plain, tmp_path / "theirs")
    document = going_on(
        tiny_pretraining(images, tmp_path / "run", training={"max_steps": 1}), tmp_path / "theirs"
    )
    run = pretrain(parse_pretrain_recipe(document, source="test"))
    kept = record(run.path / "backbone")
    assert kept["origin"] == {"name": "theirs", "is_listed": False}
    assert "what images theirs saw in pretraining is not known" in kept["images"]["notes"][-1]
    text = (run.path / "backbone" / "README.md").read_text()
    assert "Which images `theirs` had seen before is not known here" in text
    # One more: its own list is complete, that of its base's base is not there.
    again = read_history(PretrainModelSection(backbone=str(run.path / "backbone")), HubSection())
    assert again is not None
    assert again.compare([]).endswith(
        "what images theirs saw in pretraining is not known (no images.csv): held-out ones may be among them"
    )
    assert "Which images `theirs` had seen" in card(kept | {"origin": again.origin()})


def test_a_backbone_of_the_hub(chain: tuple[Path, Path], tmp_path: Path) -> None:
    """As a download leaves it in the cache: one of ours with its list, and one of others."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    for name in ("ours", "theirs"):
        folder = tmp_path / f"models--me--{name}"
        shutil.copytree(chain[0], folder / "snapshots" / commit)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(commit)
    for name in ("images.csv", "pretraining.json"):
        (tmp_path / "models--me--theirs" / "snapshots" / commit / name).unlink()
    hub = HubSection(local_files_only=True, cache_dir=str(tmp_path))
    ours = read_history(PretrainModelSection(backbone="me/ours"), hub)
    theirs = read_history(PretrainModelSection(backbone="me/theirs"), hub)
    assert ours is not None
    assert theirs is not None
    assert [row[2] for row in ours.seen or ()] == [row["sha256"] for row in rows(chain[0])]
    assert ours.origin(commit)["images"] == record(chain[0])["images"]
    assert theirs.origin(commit) == {"name": "me/theirs", "commit": commit, "is_listed": False}
    assert read_history(PretrainModelSection(backbone_config={}), hub) is None


def test_the_embedded_backbone_brings_its_list(
    chain: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cytodino_hf.backbones.EMBEDDED_FOLDER", chain[1])
    found = read_history(PretrainModelSection(backbone="embedded"), HubSection())
    assert found is not None
    assert (found.name, len(found.seen or ())) == ("embedded", len(rows(chain[1])))


def test_a_report_counts_the_held_out_images_a_backbone_saw(chain: tuple[Path, Path]) -> None:
    section, hub = PretrainModelSection(backbone=str(chain[0])), HubSection()
    known = [bytes.fromhex(row["sha256"]) for row in rows(chain[0])]
    other = hashlib.sha256(b"another file").digest()
    said = held_out_images_seen(section, hub, {"test": [*known[:2], other], "validation": [other]})
    assert said == (
        f"backbone: backbone was pretrained on {len(known)} image files, 2 of 3 of the test fold, none of 1 of the "
        "validation fold among them; scores on those may flatter, though it saw no label"
    )
    clean = held_out_images_seen(section, hub, {"test": [other]})
    assert clean is not None
    assert clean.endswith("none of 1 of the test fold among them")
    assert held_out_images_seen(PretrainModelSection(backbone_config={}), hub, {"test": known}) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: "\n".join(text.splitlines()[:-1]) + "\n", "does not list the images"),
        (lambda text: text.replace("sha256", "sum"), "the column sha256 is missing"),
        (lambda text: text + "cells,x,abc,1\n", "line .*: no sha256"),
    ],
)
def test_a_list_that_is_not_whole_is_refused(
    chain: tuple[Path, Path], tmp_path: Path, change: Callable[[str], str], words: str
) -> None:
    shutil.copytree(chain[0], tmp_path / "base")
    file = tmp_path / "base" / "images.csv"
    file.write_text(change(file.read_text()))
    with pytest.raises(DataError, match=words):
        read_history(PretrainModelSection(backbone=str(tmp_path / "base")), HubSection())


def test_a_list_of_an_older_version_is_of_one_pretraining(chain: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(chain[0], tmp_path / "base")
    file = tmp_path / "base" / "images.csv"
    file.write_text("".join(line.rpartition(",")[0] + "\n" for line in file.read_text().splitlines()))
    found = read_history(PretrainModelSection(backbone=str(tmp_path / "base")), HubSection())
    assert found is not None
    assert [tuple(row.values()) for row in rows(chain[0])] == list(found.seen or ())
