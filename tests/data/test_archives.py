"""Archives from outside: whole and in their folder, or refused before a byte is written."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cytodino_hf.data import archives
from cytodino_hf.data.archives import Limits, RefusedArchiveError, unpack
from cytodino_hf.errors import DataError

LIMITS = Limits(files=20, total_bytes=1_000_000, ratio=50)
GOOD = {"BLA/a.jpg": b"one", "BLA/deep/b.jpg": b"two", "notes.txt": b""}


def zip_file(
    path: Path, files: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] | None = None
) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if change is not None:
                change(info)
            archive.writestr(info, content)
    return path


def tar_file(path: Path, *entries: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info, content in entries:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def everything_below(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def as_zip(path: Path) -> Path:
    return zip_file(path, GOOD)


def as_tar(path: Path) -> Path:
    return tar_file(path, *((tarfile.TarInfo(name), content) for name, content in GOOD.items()))


@pytest.mark.parametrize("make", [as_zip, as_tar])
def test_a_plain_archive_is_unpacked_whole(make: Callable[[Path], Path], tmp_path: Path) -> None:
    out = tmp_path / "cache" / "out"
    out.mkdir(parents=True)
    (out / "left_by_a_killed_start").touch()
    unpack(make(tmp_path / "archive"), out, LIMITS)
    assert everything_below(out) == GOOD
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def one_link(info: zipfile.ZipInfo) -> None:
    info.external_attr = (stat.S_IFLNK | 0o777) << 16


def tar_link(kind: bytes) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        info = tarfile.TarInfo("BLA")
        info.type, info.linkname = kind, "../.."
        return tar_file(path, (info, b""), (tarfile.TarInfo("BLA/x"), b"x"))

    return make


HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "parent": (lambda p: zip_file(p, {"BLA/a.jpg": b"", "../x": b"x"}), "leads outside"),
    "parent inside": (lambda p: zip_file(p, {"BLA/../../x": b"x"}), "leads outside"),
    "absolute": (lambda p: zip_file(p, {"/tmp/x": b"x"}), "absolute"),
    "drive": (lambda p: zip_file(p, {"C:/x": b"x"}), "absolute"),
    "backslash": (lambda p: zip_file(p, {"..\\x": b"x"}), "no plain name"),
    "link": (lambda p: zip_file(p, {"BLA": b"../.."}, one_link), "link"),
    "twice": (lambda p: zip_file(p, {"BLA/a": b"1", "bla/A": b"2"}), "twice"),
    "tar parent": (lambda p: tar_file(p, (tarfile.TarInfo("../x"), b"x")), "leads outside"),
    "tar absolute": (lambda p: tar_file(p, (tarfile.TarInfo("/tmp/x"), b"x")), "absolute"),
    "tar link": (tar_link(tarfile.SYMTYPE), "link"),
    "tar hard link": (tar_link(tarfile.LNKTYPE), "link"),
    "tar device": (tar_link(tarfile.CHRTYPE), "device"),
    "bomb by ratio": (lambda p: zip_file(p, {"a": bytes(500_000)}), "more than"),
    "bomb by files": (lambda p: zip_file(p, {f"{i}": b"x" for i in range(21)}), "more than 20 entries"),
    "tar bomb": (lambda p: tar_file(p, (tarfile.TarInfo("a"), bytes(500_000))), "more than"),
    "no archive": (lambda p: p.write_bytes(b"<html>") and p, "neither"),
}


@pytest.mark.parametrize(("make", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_archive_is_refused_before_anything_is_written(
    make: Callable[[Path], Path], reason: str, tmp_path: Path
) -> None:
    archive = make(tmp_path / "archive")
    before = everything_below(tmp_path)
    with pytest.raises(RefusedArchiveError, match=reason):
        unpack(archive, tmp_path / "cache" / "out", LIMITS)
    assert everything_below(tmp_path) == before
    assert not (tmp_path / "cache" / "out").exists()


def test_a_large_total_is_refused_whatever_the_ratio(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a", bytes(1_000_001))
    with pytest.raises(RefusedArchiveError, match="at most 1,000,000"):
        unpack(tmp_path / "a.zip", tmp_path / "out", LIMITS)


@pytest.mark.parametrize("where", ["data", "size", "cut"])
def test_a_damaged_archive_leaves_nothing(where: str, tmp_path: Path) -> None:
    content = bytearray(zip_file(tmp_path / "a.zip", {"BLA/a.jpg": bytes(range(256)) * 9}).read_bytes())
    if where == "data":
        content[60] ^= 0xFF
    elif where == "size":  # the directory at the end says a smaller size than the data have
        at = content.index(b"PK\x01\x02") + 24
        content[at : at + 4] = (100).to_bytes(4, "little")
    else:
        del content[100:]
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(RefusedArchiveError):
        unpack(tmp_path / "a.zip", tmp_path / "out", LIMITS)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_a_small_disk_is_told_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 5})
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="GB are free") as caught:
        unpack(as_zip(tmp_path / "a.zip"), tmp_path / "out", LIMITS)
    assert not isinstance(caught.value, RefusedArchiveError), "the archive is good; it must be kept"
