"""Sets of the Hub with the real clients against a Hub on loopback: the way of the data, refusals, damage, the cache."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import DROP, WRONG_BYTES, Hub, hub_server
from PIL import Image

from cytodino_hf.data.samples import CellImages
from cytodino_hf.data.sources import hub_dataset
from cytodino_hf.data.splits import assign_folds
from cytodino_hf.errors import DataError
from cytodino_hf.taxonomy import MLL

NAME = "someone/cells"
CARD = "---\nlicense: cc-by-4.0\n---\n# Cells\n"
FRACTIONS = {"train": 0.65, "validation": 0.10, "calibration": 0.05, "test": 0.20}


def png(number: int, side: int = 8) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def parquet(rows: list[tuple[bytes | None, str | None, int]], names: list[str], **more: list) -> bytes:
    """A Parquet file as `push_to_hub` writes it: bytes and name of each image, labels with their names."""
    features = {
        "image": {"_type": "Image"},
        "label": {"names": names, "_type": "ClassLabel"},
        **{name: {"dtype": "string", "_type": "Value"} for name in more},
    }
    images = [{"bytes": content, "path": path} for content, path, _ in rows]
    table = pa.table(
        {
            "image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "label": pa.array([label for _, _, label in rows], pa.int64()),
            **{name: pa.array(values, pa.string()) for name, values in more.items()},
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    content = io.BytesIO()
    pq.write_table(table, content)
    return content.getvalue()


CODES = ["BLA", "LYT"]
TRAIN = [(png(i), f"{CODES[i % 2]}_{i:05d}.png", i % 2) for i in range(6)]
FILES = {
    "README.md": CARD.encode(),
    "data/train-00000-of-00001.parquet": parquet(TRAIN, CODES),
    "data/validation-00000-of-00001.parquet": parquet([(png(10), "BLA_00010.png", 0)], CODES),
    "data/test-00000-of-00001.parquet": parquet([(png(11), None, 1), (png(12), "x.png", -1)], CODES),
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that the client of this process asks; it took its address when it was imported."""
    with hub_server() as server:
        server.asked_from_here(monkeypatch, tmp_path)
        monkeypatch.setenv("CYTODINO_CACHE", str(tmp_path / "cache"))
        yield server


def go_offline(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()


def published(hub: Hub, files: dict[str, bytes]) -> str:
    """The commit with these files; the same one the second time."""
    repo = hub.repos.get(("dataset", NAME))
    if repo is not None and hub.files(NAME, kind="dataset") == files:
        return repo.revisions["main"]
    return hub.commit(NAME, files, kind="dataset")


def load(hub: Hub, files: dict[str, bytes] = FILES, **options: object) -> CellImages:
    revision = published(hub, files)
    return hub_dataset.load(None, MLL, hub_dataset.Options(**{"id": NAME, "revision": revision} | options))


def bytes_of(images: CellImages) -> dict[str, bytes]:
    return {Path(path).name: (images.root / path).read_bytes() for path in images.column("path")}


def test_rows_become_files_with_their_very_bytes_and_the_folds_of_the_set(hub: Hub) -> None:
    images = load(hub)
    assert images.column("path") == [
        "BLA/train/0000000-BLA_00000.png", "BLA/train/0000002-BLA_00002.png", "BLA/train/0000004-BLA_00004.png",
        "BLA/validation/0000000-BLA_00010.png", "LYT/test/0000000.png", "LYT/train/0000001-LYT_00001.png",
        "LYT/train/0000003-LYT_00003.png", "LYT/train/0000005-LYT_00005.png",
    ]  # fmt: skip
    by_number = {int(name[:7]): content for name, content in bytes_of(images).items() if "_0000" in name}
    assert by_number == {i: content for i, (content, _, _) in enumerate(TRAIN)}
    assert images.counts() == {"BLA": 4, "LYT": 4}
    assert [fold[:2] for fold in images.folds] == ["tr", "tr", "tr", "va", "te", "tr", "tr", "tr"]
    assert "licence cc-by-4.0" in images.attribution
    assert [(image.path, image.reason) for image in images.rejected] == [("test", "1 images without a label")]
    split = assign_folds(images, split="source", fractions=FRACTIONS, seed=0)
    assert sum(split.counts()["train"].values()) == 6


def test_the_second_time_nobody_is_asked(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(hub)
    hub.requests.clear()
    assert load(hub).fingerprint() == first.fingerprint()
    go_offline(monkeypatch, hub)
    assert load(hub).fingerprint() == first.fingerprint()
    assert hub.requests == []


def test_offline_a_whole_download_is_enough_and_a_part_is_not(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import snapshot_download

    revision = published(hub, FILES)
    snapshot = Path(snapshot_download(NAME, repo_type="dataset", revision=revision))
    go_offline(monkeypatch, hub)
    assert len(load(hub).dataset) == 8
    (snapshot / "data/test-00000-of-00001.parquet").unlink()
    monkeypatch.setenv("CYTODINO_CACHE", str(tmp_path / "another"))
    with pytest.raises(
        DataError, match=r"not whole in the local cache, and HF_HUB_OFFLINE is set; `hf download"
    ):
        load(hub)
    assert hub.requests == []


def test_a_hub_out_of_reach_is_no_matter_where_the_cache_has_all(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    load(hub)
    monkeypatch.setenv("CYTODINO_CACHE", str(tmp_path / "another"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda _: None)
    assert len(load(hub).dataset) == 8


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: Hub) -> None:
    name = "data/train-00000-of-00001.parquet"
    hub.fail("train-00000", DROP)
    assert len(load(hub).dataset) == 8
    size = len(FILES[name])
    assert size <= hub.bytes_sent[f"{NAME}/{name}"] <= 1.5 * size + 1


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("pattern", "method"), [("/tree/", "GET"), ("train-0", "HEAD"), ("train-0", "GET")])
def test_busy_answers_are_tried_again(
    hub: Hub, status: int, pattern: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.fail(pattern, status, method=method, times=2)
    assert len(load(hub).dataset) == 8


def test_a_hub_that_stays_busy_is_left_alone_after_a_while(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.fail("train-0", 503, times=1000)
    with pytest.raises(DataError, match=r"HTTP 503.*is kept: start again later"):
        load(hub)
    assert sum("train-0" in path and method == "GET" for method, path in hub.requests) == 5


def test_wrong_bytes_of_the_right_size_are_refused_and_fetched_anew(hub: Hub) -> None:
    hub.fail("train-00000", WRONG_BYTES)
    with pytest.raises(
        DataError, match=r"train-00000-of-00001\.parquet arrived with other bytes.*start again"
    ):
        load(hub)
    hub.requests.clear()
    assert len(load(hub).dataset) == 8
    fetched = {path for method, path in hub.requests if method == "GET" and "/resolve/" in path}
    assert {path.rpartition("/")[2] for path in fetched} == {"train-00000-of-00001.parquet"}


def test_a_small_file_is_compared_as_well(hub: Hub) -> None:
    hub.fail("README.md", WRONG_BYTES)
    with pytest.raises(DataError, match=r"README\.md arrived with other bytes"):
        load(hub)


def test_gated_missing_and_moving(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit("someone/gated", FILES, kind="dataset", gated=True)
    hub.members = set()
    revision = hub.repos["dataset", "someone/gated"].resolve("main")
    with pytest.raises(
        DataError, match=r"gated .*accept its terms on https://huggingface\.co/datasets/someone/gated"
    ):
        load(hub, id="someone/gated", revision=revision)
    with pytest.raises(DataError, match=f"has no revision {'f' * 40}"):
        load(hub, revision="f" * 40)
    with pytest.raises(DataError, match=r"does not exist on the Hub.*data\.hub_dataset\.id"):
        load(hub, id="someone/nothing")
    newest = published(hub, FILES)
    with pytest.raises(DataError, match=rf"set data\.hub_dataset\.revision \(now it would be {newest}\)"):
        load(hub, revision=None)
    with pytest.raises(ValueError, match="must be a commit, 40 hexadecimal digits"):
        hub_dataset.Options(id=NAME, revision="main")


def test_too_much_is_refused_before_a_file_is_asked_for(hub: Hub) -> None:
    with pytest.raises(DataError, match="max_gigabytes = 1e-06 allows"):
        load(hub, max_gigabytes=1e-6)
    assert not any("/resolve/" in path for _, path in hub.requests)


def test_labels_groups_and_columns_as_asked(hub: Hub) -> None:
    rows = [(png(i), None, i % 2) for i in range(4)]
    files = {"data/train.parquet": parquet(rows, ["blast", "<b>../x"], patient=["a", "a", "b", None])}
    names = {"blast": "BLA", "<b>../x": "LYT"}
    images = load(hub, files, label_map=names, group_column="patient", group_kind="patient")
    assert images.counts() == {"BLA": 2, "LYT": 2}
    assert images.group_kind == "patient"
    assert dict(zip(images.column("path"), images.column("group"), strict=True)) == {
        "blast/train/0000000.png": "a", "blast/train/0000002.png": "b",
        "_b_x/train/0000001.png": "a", "_b_x/train/0000003.png": None,
    }  # fmt: skip
    with pytest.raises(DataError, match="blast"):
        load(hub, files)
    with pytest.raises(DataError, match=r"group_column = 'smear'.*columns: image, label, patient"):
        load(hub, files, group_column="smear")
    with pytest.raises(DataError, match="label_column = 'kind'"):
        load(hub, files, label_column="kind")
    with pytest.raises(DataError, match="do not occur: lymph"):
        load(hub, files, label_map=names | {"lymph": "LYT"})


def test_image_files_in_folders_are_a_set_as_well(hub: Hub) -> None:
    files = {f"train/{code}/{i}.png": png(i) for i, code in enumerate(["BLA", "LYT", "BLA"])}
    images = load(hub, files | {"test/LYT/9.png": png(9)})
    assert images.counts() == {"BLA": 2, "LYT": 2}
    assert set(images.folds) == {"train", "test"}


OUTSIDE = {
    "absolute": "---\nconfigs:\n- config_name: default\n  data_files: {secret}\n---\n",
    "parent": "---\nconfigs:\n- config_name: default\n  data_files: ../../../../../secret/*.parquet\n---\n",
    "in a list": "---\nconfigs:\n- config_name: a\n  data_files:\n  - split: train\n    path: [x, '{secret}']\n---\n",
    "another address": "---\nconfigs:\n- config_name: a\n  data_files: http://127.0.0.1:9/a.parquet\n---\n",
}


@pytest.mark.parametrize("card", OUTSIDE.values(), ids=OUTSIDE)
def test_a_card_that_names_other_files_of_this_machine_is_refused(
    hub: Hub, tmp_path: Path, card: str
) -> None:
    secret = tmp_path / "secret" / "mine.parquet"
    secret.parent.mkdir()
    secret.write_bytes(FILES["data/train-00000-of-00001.parquet"])
    with pytest.raises(DataError, match=r"leads to '.*', outside the data set"):
        load(
            hub,
            {
                "README.md": card.format(secret=secret).encode(),
                "a.parquet": FILES["data/test-00000-of-00001.parquet"],
            },
        )
    assert not list((tmp_path / "cache").rglob("*.png"))


def test_a_row_that_names_another_file_of_this_machine_is_refused(hub: Hub, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(1))
    with pytest.raises(DataError, match="outside the data set"):
        load(hub, {"data/train.parquet": parquet([(None, str(secret), 0), (png(2), None, 1)], CODES)})
    assert not list((tmp_path / "cache").rglob("*.png"))


def test_the_mll_set_of_the_hub_is_pinned_and_loses_its_damaged_files(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(png(1), "BLA_09522.jpg", 3), (png(2), "BLA_00001.jpg", 3), (png(3), "LYT_00001.jpg", 10)]
    revision = hub.commit(
        hub_dataset.MLL_ON_HUB, {"data/train.parquet": parquet(rows, sorted(MLL.codes))}, kind="dataset"
    )
    assert len(hub_dataset.Options().commit or "") == 40
    images = hub_dataset.load(None, MLL, hub_dataset.Options(revision=revision))
    assert images.counts() == {"BLA": 1, "LYT": 1}
    assert [image.path for image in images.rejected] == ["BLA/train/0000000-BLA_09522.jpg"]
    assert "10.7937/TCIA.AXH3-T579, CC BY 4.0" in images.attribution


def test_a_root_holds_the_set_that_is_asked_for(hub: Hub) -> None:
    images = load(hub)
    options = hub_dataset.Options(id=NAME, revision=hub.repos["dataset", NAME].resolve("main"))
    assert hub_dataset.load(images.root, MLL, options).fingerprint() == images.fingerprint()
    with pytest.raises(DataError, match=f"holds {NAME} at .*; asked for is {hub_dataset.MLL_ON_HUB}"):
        hub_dataset.load(images.root, MLL, hub_dataset.Options())
    (images.root / "images.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match=r"images\.parquet: cannot be read"):
        hub_dataset.load(images.root, MLL, options)


def test_an_unpacking_that_is_stopped_leaves_no_half(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cytodino_hf.data.sources.hub_unpack._write_table", stop)
        with pytest.raises(KeyboardInterrupt):
            load(hub)
    assert list((tmp_path / "cache" / "hub_datasets").iterdir()) == []
    assert len(load(hub).dataset) == 8
