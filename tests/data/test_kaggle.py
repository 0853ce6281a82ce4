"""Kaggle's download with the real client against a server on loopback: breaks, refusals, archives not to be trusted."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from kaggle_server import DROP, TOKEN, WRONG_BYTES, Kaggle, kaggle_server, zipped

from cytodino_hf.data.archives import Limits
from cytodino_hf.data.sources import kaggle as source
from cytodino_hf.data.sources.kaggle import KaggleSet, download
from cytodino_hf.errors import DataError

HANDLE = "owner/cells"
# Several of the client's blocks of 1 MiB, so that half of it is something that was kept.
FILES = {f"cells/BLA/BLA_{i:05d}.jpg": bytes([i]) * 1_000_000 for i in range(8)}
ARCHIVE = zipped(FILES)
SET = KaggleSet(
    HANDLE, 1, "data.mll.version", Limits(100, 20_000_000, 50), 1, "Or download it by hand and set data.root."
)


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kaggle]:
    monkeypatch.setattr(source.time, "sleep", lambda _: None)
    with kaggle_server() as server:
        server.add(HANDLE, 1, ARCHIVE)
        for name, value in server.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        yield server


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def gets(kaggle: Kaggle) -> list[str]:
    """The Range headers of the requests for the archive, in order."""
    return [wanted for method, _, wanted in kaggle.requests if method == "GET"]


def test_a_version_is_downloaded_once_and_then_served_from_the_cache(kaggle: Kaggle, tmp_path: Path) -> None:
    folder = download(SET)
    assert content(folder) == FILES
    assert folder.is_relative_to(tmp_path / "kagglehub")
    assert [p.name for p in folder.parent.iterdir()] == ["1"], "neither the archive nor a half stays"
    kaggle.requests.clear()
    kaggle.faults = [(".", 500)] * 100
    assert download(SET) == folder
    assert kaggle.requests == []


def test_a_connection_that_breaks_is_taken_up_where_it_broke(kaggle: Kaggle) -> None:
    kaggle.fail("/storage/", DROP, times=2)
    assert content(download(SET)) == FILES
    ranges = [wanted for wanted in gets(kaggle) if wanted]
    starts = [int(wanted[len("bytes=") : -1]) for wanted in ranges]
    assert starts == sorted(starts)
    assert starts[0] >= len(ARCHIVE) // 2 - 2**20, "the first half is kept, but for a block of the client's"


def test_what_arrived_before_a_killed_start_is_not_asked_for_again(kaggle: Kaggle, tmp_path: Path) -> None:
    part = tmp_path / "kagglehub" / "datasets" / HANDLE / "1.archive"
    part.parent.mkdir(parents=True)
    part.write_bytes(ARCHIVE[:5_000_000])
    assert content(download(SET)) == FILES
    assert "bytes=5000000-" in gets(kaggle)


def test_busy_answers_are_tried_again_and_never_become_part_of_the_file(kaggle: Kaggle) -> None:
    kaggle.fail("DownloadDataset", 429, times=2)
    kaggle.fail("DownloadDataset", 503)
    kaggle.fail("/storage/", DROP)
    kaggle.fail("/storage/", 503, times=2)
    assert content(download(SET)) == FILES


def test_a_busy_answer_to_the_rest_of_a_file_costs_nothing_of_it(kaggle: Kaggle) -> None:
    kaggle.fail("/storage/", DROP)
    kaggle.fail("bytes=", 503, times=2)
    assert content(download(SET)) == FILES
    ranges = {wanted for wanted in gets(kaggle) if wanted}
    assert len(ranges) == 1, f"what was there before is there afterwards, no more and no less: {ranges}"


def test_a_server_that_cannot_go_on_gives_no_mixed_file(kaggle: Kaggle) -> None:
    kaggle.publishes_checksum = False
    kaggle.ignores_range = True
    kaggle.fail("/storage/", DROP)
    with pytest.raises(DataError, match="cannot be reached"):
        download(SET)
    assert content(download(SET)) == FILES


def test_a_server_that_stays_busy_is_left_alone_after_a_while(kaggle: Kaggle) -> None:
    kaggle.fail("DownloadDataset", 503, times=100)
    with pytest.raises(DataError, match=r"HTTP 503.*later.*by hand"):
        download(SET)
    assert len(kaggle.requests) == 5


@pytest.mark.parametrize("has_checksum", [True, False])
def test_wrong_bytes_of_the_right_size_are_refused_and_not_kept(kaggle: Kaggle, has_checksum: bool) -> None:
    # Without a checksum the zip file's own sums are all there is; the last byte is in its directory's end.
    kaggle.publishes_checksum = has_checksum
    if has_checksum:
        kaggle.fail("/storage/", WRONG_BYTES)
    else:
        broken = bytearray(ARCHIVE)
        broken[500_000] ^= 0xFF
        kaggle.add(HANDLE, 1, bytes(broken))
    with pytest.raises(DataError, match=r"damaged.*[Ss]tart again"):
        download(SET)
    kaggle.add(HANDLE, 1, ARCHIVE)
    assert content(download(SET)) == FILES


def test_missing_and_wrong_credentials_are_told_apart(
    kaggle: Kaggle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kaggle.needs_token = True
    with pytest.raises(DataError, match=r"HTTP 403.*are missing: create a token .* set KAGGLE_API_TOKEN"):
        download(SET)
    monkeypatch.setenv("KAGGLE_API_TOKEN", "another")
    with pytest.raises(
        DataError, match=r"wrong or not allowed: open https://www\.kaggle\.com/datasets/owner/cells"
    ):
        download(SET)
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    assert content(download(SET)) == FILES


def test_a_broken_credentials_file_is_named(
    kaggle: Kaggle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "kaggle_config").mkdir()
    (tmp_path / "kaggle_config" / "kaggle.json").write_text("{")
    with pytest.raises(DataError, match=r"kaggle\.json; mend or delete it"):
        download(SET)


def test_a_missing_version_names_its_key(kaggle: Kaggle) -> None:
    with pytest.raises(DataError, match=r"no version 2 of owner/cells \(data\.mll\.version"):
        download(KaggleSet(HANDLE, 2, SET.version_key, SET.limits, 1, SET.by_hand))


def link() -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo("cells/BLA")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, b"../../.."


HOSTILE = {
    "parent": ("../../../../x", b"x"),
    "absolute": ("/x", b"x"),
    "link": link(),
    "bomb": ("a", bytes(20_000_001)),
}


@pytest.mark.parametrize(("name", "data"), HOSTILE.values(), ids=HOSTILE)
def test_an_archive_not_to_be_trusted_writes_nothing(
    kaggle: Kaggle, tmp_path: Path, name: str | zipfile.ZipInfo, data: bytes
) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    kaggle.add(HANDLE, 1, (tmp_path / "a.zip").read_bytes())
    (tmp_path / "a.zip").unlink()
    with pytest.raises(DataError, match="nothing was unpacked"):
        download(SET)
    assert content(tmp_path) == {}


def test_a_client_that_unpacks_otherwise_is_refused(kaggle: Kaggle, monkeypatch: pytest.MonkeyPatch) -> None:
    from kagglehub import http_resolver

    monkeypatch.delattr(http_resolver, "_extract_archive")
    with pytest.raises(DataError, match="_extract_archive is not there"):
        download(SET)
    assert kaggle.requests == []


def test_the_client_is_left_as_it_was(kaggle: Kaggle) -> None:
    from kagglehub import clients, http_resolver

    before = http_resolver._extract_archive, clients._download_file
    download(SET)
    assert (http_resolver._extract_archive, clients._download_file) == before
