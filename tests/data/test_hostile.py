"""Every hostile file and tree gives the answer that docs/data_policy.md promises, whichever decoder is asked."""

from __future__ import annotations

import csv
import io
import os
import random
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
from hostile import IGNORED, NOTED, READ, REJECTED, STOPS, HostileFile, HostileTree
from PIL import Image

from cytodino_hf.data import images as decoder
from cytodino_hf.data.images import read_rgb, read_rgb_and_notes
from cytodino_hf.data.samples import CellImages
from cytodino_hf.data.sources import SOURCES
from cytodino_hf.errors import DataError
from cytodino_hf.taxonomy import MLL

FILES = list(hostile.files())
TREES = list(hostile.trees())
SOURCE_NAMES = ("mll", "image_folder")
POLICY = Path(__file__).parents[2] / "docs" / "data_policy.md"
# Rows of the policy that other tests keep, or that are tested below without a case of their own.
ELSEWHERE = {
    "file that may not be read", "file that the machine cannot read now", "folder that may not be listed",
    "class whose images all turn out unusable",
    "class folders further down", "the same image twice", "class with one image", "one class only",
    "no image at all", "the ten damaged files of the MLL set", "image not named by the table",
    "picture of an HDF5 file of source `pcam`",
}  # fmt: skip


def index(name: str, root: Path) -> CellImages:
    source = SOURCES[name]
    return source.load(root, MLL, source.options())


def name_of(case: HostileFile | HostileTree) -> str:
    return ascii(case.name) if isinstance(case, HostileFile) else case.kind


def policy_rows() -> dict[str, str]:
    rows = re.findall(r"^\| (.+?) \| (.+?) \|", POLICY.read_text(), flags=re.M)
    return {kind: answer for kind, answer in rows if kind not in ("kind", "---")}


def test_the_policy_and_the_cases_name_the_same_kinds_and_answers() -> None:
    rows = policy_rows()
    cases = {case.kind for case in [*FILES, *TREES]}
    assert cases | ELSEWHERE == set(rows)
    assert not cases & ELSEWHERE
    for case in [*FILES, *TREES]:
        assert case.answer in rows[case.kind], f"{name_of(case)}: {case.answer}"


@pytest.mark.parametrize("case", FILES, ids=name_of)
def test_a_hostile_file_gets_the_answer_of_the_policy(tmp_path: Path, case: HostileFile) -> None:
    hostile.good_tree(tmp_path)
    folder = tmp_path / "BLA"
    try:
        with open(os.path.join(os.fsencode(folder), os.fsencode(case.name)), "wb") as file:
            file.write(case.content)
    except OSError:
        pytest.skip("this file system refuses such a name")
    for source in SOURCE_NAMES:
        images = index(source, tmp_path)
        added = [path for path in images.column("path") if not re.fullmatch(r"(BLA|LYT)/\1_\d{5}\.jpg", path)]
        said = [f"{image.path}: {image.reason}" for image in images.rejected]
        assert not any(image.on_purpose for image in images.rejected)
        if case.answer == IGNORED:
            assert (added, said) == ([], [])
        elif case.answer == REJECTED:
            assert len(said) + len(added) == 1, "lost in silence"
            if added:
                with pytest.raises(DataError) as caught:
                    read_rgb(folder.parent / added[0])
                said = [str(caught.value)]
            assert re.search(case.reason, said[0]), said
        else:
            assert (added, said) == ([f"BLA/{os.fsdecode(case.name)}"], [])
            check_pixels(tmp_path / added[0], case)


def check_pixels(path: Path, case: HostileFile) -> None:
    from transformers.image_utils import load_image

    pixels, notes = read_rgb_and_notes(path)
    np.testing.assert_array_equal(pixels, np.asarray(load_image(Image.open(io.BytesIO(case.content)))))
    assert len(notes) == (case.answer == NOTED)
    assert re.search(case.reason, "; ".join(notes))
    assert 20 < pixels.mean() < 235, "turned black or white"


@pytest.mark.parametrize("source", SOURCE_NAMES)
@pytest.mark.parametrize("case", TREES, ids=name_of)
def test_a_hostile_tree_gets_the_answer_of_the_policy(tmp_path: Path, case: HostileTree, source: str) -> None:
    root = hostile.good_tree(tmp_path / "root")
    clean = set(index(source, root).column("path"))
    case.make(root)
    if case.answer == STOPS:
        with pytest.raises(DataError, match=case.reason):
            index(source, root)
        return
    images = index(source, root)
    assert set(images.column("path")) == clean | set(case.extra)
    assert {image.path for image in images.rejected} == set(case.rejected)
    assert all(re.search(case.reason, image.reason) for image in images.rejected)


@pytest.mark.parametrize("source", SOURCE_NAMES)
def test_an_empty_root_and_a_root_too_high_say_what_to_do(tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images found|no class folder"):
        index(source, tmp_path / "empty")
    inner = hostile.good_tree(tmp_path / "high/wrapper/bone_marrow_cell_dataset")
    hostile.put(tmp_path / "high", "beside.jpg", "wrapper/beside.gif")
    if source == "image_folder":
        with pytest.raises(DataError, match=rf"set data\.root to {inner}"):
            index(source, tmp_path / "high")
        return
    images = index(source, tmp_path / "high")
    assert images.root == inner
    assert {image.path for image in images.rejected} == {"../../beside.jpg", "../beside.gif"}


@pytest.mark.parametrize("source", SOURCE_NAMES)
def test_a_folder_that_may_not_be_listed_stops(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile.good_tree(tmp_path)
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if str(path).endswith("/LYT"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)  # root may list everything
    with pytest.raises(
        DataError, match=r"LYT: cannot be listed .Permission denied.; check .* the permissions"
    ):
        index(source, tmp_path)


def test_a_root_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad_\xff"))
    try:
        hostile.good_tree(root)
    except OSError:
        pytest.skip("this file system refuses such a name")
    with pytest.raises(DataError, match="is not UTF-8; rename the folder"):
        index("image_folder", root)


def verdict(content: bytes) -> np.ndarray | None:
    try:
        return read_rgb({"path": "x", "bytes": content})
    except DataError:
        return None


def verdict_of_pillow(content: bytes, monkeypatch: pytest.MonkeyPatch) -> np.ndarray | None:
    """The careful way alone: the quick decoders' pixels are withheld; OpenCV may complain."""
    fast = decoder._decode_with_opencv
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "_decode_sound_jpeg", lambda content, buffer: None)
        patch.setattr(decoder, "_decode_with_opencv", lambda content: (None, fast(content)[1]))
        return verdict(content)


def sources_of_mutants() -> dict[str, bytes]:
    cell, encoded = hostile.cell(side=64), hostile.encoded
    maker = Image.Exif()
    maker[0x010F] = "maker"
    return {
        "jpeg": encoded(cell, "JPEG"),
        "large": encoded(hostile.cell(side=160), "JPEG", quality=95),
        "progressive": encoded(cell, "JPEG", progressive=True),
        "4:4:4": encoded(cell, "JPEG", subsampling=0),
        "grey": encoded(cell.convert("L"), "JPEG"),
        "restarts": encoded(cell, "JPEG", restart_marker_blocks=3),
        "comment": encoded(cell, "JPEG", optimize=True, comment=b"comment"),
        "rgb": encoded(cell, "JPEG", keep_rgb=True),
        "exif": encoded(cell, "JPEG", exif=maker.tobytes()),
        "turned": encoded(cell, "JPEG", exif=hostile.exif(6)),
        "profile": encoded(cell, "JPEG", icc_profile=b"x" * 300),
        "cmyk": encoded(cell.convert("CMYK"), "JPEG"),
        "png": encoded(cell, "PNG"),
        "png dpi": encoded(cell, "PNG", dpi=(100, 100)),
        "png grey": encoded(cell.convert("L"), "PNG"),
        "png alpha": encoded(cell.convert("RGBA"), "PNG"),
        "png palette": encoded(cell.quantize(16), "PNG"),
    }


def compare_decoders(count: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Mutants accepted and refused; both ways must agree on each, and see what Pillow alone sees."""
    rng = random.Random(seed)
    files = sources_of_mutants()
    accepted = 0
    for number in range(count):
        name = rng.choice(list(files))
        content = hostile.mutated(files[name], rng)
        if name.startswith("png") and rng.random() < 0.8:
            content = hostile.with_right_checksums(content)
        fast, careful = verdict(content), verdict_of_pillow(content, monkeypatch)
        where = f"mutant {number} of seed {seed} ({name})"
        assert (fast is None) == (careful is None), where
        if fast is not None:
            accepted += 1
            np.testing.assert_array_equal(fast, careful, err_msg=where)
    return accepted, count - accepted


def test_both_decoders_agree_on_files_that_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in sources_of_mutants().items():
        fast = verdict(content)
        assert fast is not None, name
        np.testing.assert_array_equal(fast, verdict_of_pillow(content, monkeypatch), err_msg=name)


def test_both_decoders_agree_on_hostile_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for case in FILES:
        fast, careful = verdict(case.content), verdict_of_pillow(case.content, monkeypatch)
        assert (fast is None) == (careful is None), name_of(case)
        assert fast is None or np.array_equal(fast, careful), name_of(case)


def test_both_decoders_agree_on_mutants(monkeypatch: pytest.MonkeyPatch) -> None:
    accepted, refused = compare_decoders(3000, 0, monkeypatch)
    assert min(accepted, refused) > 300, "the mutants are too tame or too wild to tell anything"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_both_decoders_agree_on_many_mutants(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    compare_decoders(30_000, seed, monkeypatch)


def test_a_mutant_of_any_kind_is_read_or_refused_and_nothing_else() -> None:
    cell, encoded, rng = hostile.cell(side=64), hostile.encoded, random.Random(0)
    files = [
        encoded(cell, "TIFF"),
        encoded(cell, "TIFF", compression="tiff_lzw"),
        encoded(cell, "TIFF", compression="jpeg"),
        encoded(cell.convert("RGBA"), "TIFF", compression="tiff_adobe_deflate"),
        encoded(cell, "BMP"),
        encoded(cell, "WEBP"),
        encoded(cell, "WEBP", save_all=True, append_images=[hostile.cell(1, 64)]),
        encoded(cell, "PNG", save_all=True, append_images=[hostile.cell(1, 64)]),
        encoded(cell, "MPO", save_all=True, append_images=[hostile.cell(1, 64)]),
    ]
    accepted = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is to be heard outside of the notes
        for _ in range(1500):
            pixels = verdict(hostile.mutated(rng.choice(files), rng))
            if pixels is not None:
                accepted += 1
                assert pixels.dtype == np.uint8
                assert pixels.shape[2:] == (3,)
    assert 100 < accepted < 1400


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_an_end_marker_put_back_hides_no_cut(share: float) -> None:
    for number in range(10):
        for options in ({"quality": 75}, {"quality": 95, "subsampling": 0}, {"restart_marker_blocks": 2}):
            whole = hostile.encoded(hostile.cell(number), "JPEG", **options)
            start = whole.index(b"\xff\xda") + 14
            cut = start + int(share * (len(whole) - start))
            assert verdict(whole[:cut] + b"\xff\xd9") is None


#: What the policy says where the tool leaves the answer open.
OPEN_FILES = {
    "truncated_40pct_eoi.jpg": REJECTED, "dropped_100_bytes.jpg": REJECTED, "grey16.tif": REJECTED,
    "grey16.png": REJECTED, "float32.tif": REJECTED, "lossless.webp": READ, "animated.gif": REJECTED,
    "animated_apng.png": NOTED, "multipage.tiff": NOTED, "size_1x1.png": REJECTED, "size_1x2000.png": REJECTED,
    "size_3000x2.png": REJECTED, "bomb_8000x8000.png": REJECTED, "bomb_ztxt.png": REJECTED,
    "flat_black.png": REJECTED, "flat_white.png": REJECTED, "no_suffix": IGNORED,
    "not_utf8_\\udcff\\udcfe.jpg": REJECTED,
}  # fmt: skip
#: Images that are used and paths that are listed for each tree; a text is found in the error that stops.
TREE_ANSWERS: dict[str, tuple[int, list[str]] | str] = {
    "symlink_loop": (6, ["BLA/loop"]), "symlink_dangling": (6, ["BLA/BLA_00009.jpg"]),
    "symlink_outside": (6, ["BLA/BLA_00009.jpg"]), "dir_named_jpg": (6, []), "fifo": (6, ["BLA/pipe.jpg"]),
    "empty_class": "without a usable image: MON", "single_image_class": (7, []),
    "all_bad_class": (6, ["MON/MON_00001.jpg", "MON/MON_00002.jpg"]), "duplicates_across_classes": (7, []),
    "duplicates_in_class": (7, []), "same_name_two_buckets": (8, []), "case_collision": "bla for BLA",
    "images_at_root": (6, ["BLA_00042.jpg"]), "junk_dirs": (6, []), "one_class": (3, []),
    "empty_root": "no class folder", "wrapper": (6, []),
}  # fmt: skip
# Permissions, which root has anyway, are tested apart.
NOT_FOR_ROOT = {"unreadable_file", "unreadable_dir"}


@pytest.mark.real_data
def test_the_cases_of_an_outside_tool(real_data: Path, tmp_path: Path) -> None:
    tool = os.environ.get("CYTODINO_HOSTILE_TOOL")
    if not tool:
        pytest.skip("needs a tool that writes hostile files: set CYTODINO_HOSTILE_TOOL to it")
    jpeg = sorted((real_data / "mll7").rglob("*.jpg"))[0]
    subprocess.run([sys.executable, tool, str(jpeg), str(tmp_path)], check=True, capture_output=True)
    with open(tmp_path / "expected.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 95
    one_class = tmp_path / "both"
    one_class.mkdir()
    for folder in ("files", "names"):
        (tmp_path / folder).rename(one_class / {"files": "BLA", "names": "LYT"}[folder])
    found = index("mll", one_class)
    listed = {os.path.basename(image.path) for image in found.rejected}
    used = {os.path.basename(path): found.root / path for path in found.column("path")}
    wrong = []
    for row in rows:
        folder, name = row["path"].split("/", 1)
        if folder == "tree":
            if name not in NOT_FOR_ROOT:
                check_tree(tmp_path / "tree" / name)
            continue
        wanted = {"accept": READ, "reject": REJECTED, "ignore": IGNORED, "policy": OPEN_FILES.get(name)}[
            row["want"]
        ]
        if (answer := answer_for(name, used, listed)) != wanted:
            wrong.append((name, wanted, answer))
    assert not wrong


def answer_for(name: str, used: dict[str, Path], listed: set[str]) -> str:
    if name not in used and "\\" in name:
        name = name.encode().decode("unicode_escape")  # as the tool writes line breaks and odd bytes
    if name in used:
        try:
            notes = read_rgb_and_notes(used[name])[1]
        except DataError:
            return REJECTED
        return NOTED if "more than one picture" in "".join(notes) else READ
    return REJECTED if os.fsencode(name).decode("utf-8", "backslashreplace") in listed else IGNORED


def check_tree(root: Path) -> None:
    wanted = TREE_ANSWERS[root.name]
    if isinstance(wanted, str):
        with pytest.raises(DataError, match=wanted):
            index("mll", root)
        return
    found = index("mll", root)
    paths = found.column("path")
    unreadable = [path for path in paths if verdict((found.root / path).read_bytes()) is None]
    listed = sorted([image.path for image in found.rejected] + unreadable)
    assert (len(paths) - len(unreadable), listed) == wanted, root.name
