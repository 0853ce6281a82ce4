"""Splits: quotas by hand, groups whole, files checked, promises that say no more than is true."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from cytodino_hf.data.allotment import draw_folds, fold_quotas
from cytodino_hf.data.inspection.near_duplicates import Duplicates, cluster
from cytodino_hf.data.samples import FOLDS, CellImages, RejectedImage, build_cell_images
from cytodino_hf.data.sources import mll
from cytodino_hf.data.split_files import held_out_names
from cytodino_hf.data.splits import Split, assign_folds
from cytodino_hf.errors import DataError
from cytodino_hf.taxonomy import MLL

FRACTIONS = {"train": 0.65, "validation": 0.10, "calibration": 0.05, "test": 0.20}


def images(counts: dict[str, int], **changes: object) -> CellImages:
    paths = [f"{code}/{code}_{number:05d}.jpg" for code, count in counts.items() for number in range(count)]
    arguments: dict = {"root": Path("/data"), "source": "test", "taxonomy": MLL, **changes}
    return build_cell_images(paths, [path[:3] for path in paths], **arguments)


def assign(cells: CellImages, split: str | Path = "stratified", seed: int = 0, **fractions: float) -> Split:
    return assign_folds(cells, split=str(split), fractions=fractions or FRACTIONS, seed=seed)


def fold_of_path(split: Split) -> dict[str, str]:
    return dict(zip(split.images.column("path"), split.images.folds, strict=True))


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


# Worked out by hand for .65 / .10 / .05 / .20; order train, validation, calibration, test.
QUOTAS = {
    0: (0, 0, 0, 0),
    1: (1, 0, 0, 0),
    2: (1, 0, 0, 1),
    3: (1, 1, 0, 1),
    4: (1, 1, 1, 1),  # shares 2.6 .4 .2 .8 -> 2 0 0 0, then test and train -> 3 0 0 1, then one each
    8: (4, 1, 1, 2),  # shares 5.2 .8 .4 1.6 -> 5 0 0 1, then validation and test -> 5 1 0 2
    20: (13, 2, 1, 4),  # exact
    27: (18, 3, 1, 5),  # shares 17.55 2.7 1.35 5.4 -> 17 2 1 5, then validation and train
    100: (65, 10, 5, 20),
}


@pytest.mark.parametrize(("count", "expected"), QUOTAS.items())
def test_quotas_by_largest_remainder(count: int, expected: tuple[int, ...]) -> None:
    assert tuple(fold_quotas(count, np.array(list(FRACTIONS.values())))) == expected


@pytest.mark.parametrize(
    "shares", [(0.65, 0.1, 0.05, 0.2), (0.5, 0.5, 0, 0), (1, 0, 0, 0), (0.97, 0.01, 0.01, 0.01)]
)
def test_quotas_hold_for_every_count(shares: tuple[float, ...]) -> None:
    active = sum(share > 0 for share in shares)
    for count in range(300):
        quotas = fold_quotas(count, np.array(shares))
        assert quotas.sum() == count
        assert all(quota == 0 for quota, share in zip(quotas, shares, strict=True) if share == 0)
        if count >= active:
            assert all(quota >= 1 for quota, share in zip(quotas, shares, strict=True) if share > 0)
            # No fold is further from its share than rounding and the guaranteed images explain.
            assert np.all(np.abs(quotas - np.array(shares) * count) < active)


def test_a_stratified_draw_meets_the_quotas_of_every_class() -> None:
    split = assign(images({"BLA": 100, "LYT": 27, "ABE": 8, "KSC": 2}))
    for code, count in {"BLA": 100, "LYT": 27, "ABE": 8, "KSC": 2}.items():
        assert tuple(split.counts()[fold][code] for fold in FOLDS) == QUOTAS[count]
    assert split.promise.startswith("not patient-safe")
    assert split.notes == ("classes missing from a fold: KSC (2 images: none in validation, calibration)",)


def test_the_draw_depends_on_the_seed_and_on_nothing_else() -> None:
    cells = images({"BLA": 60, "LYT": 40})
    first = fold_of_path(assign(cells))
    assert first == fold_of_path(assign(cells))
    assert first == fold_of_path(assign(cells.select(np.random.default_rng(1).permutation(100).tolist())))
    assert first != fold_of_path(assign(cells, seed=1))
    # Classes are drawn apart: another class does not move the images of this one.
    alone = fold_of_path(assign(images({"BLA": 60})))
    assert alone == {path: fold for path, fold in first.items() if path.startswith("BLA")}


def test_the_draw_is_the_same_in_another_process() -> None:
    code = (
        "import numpy as np; from cytodino_hf.data.allotment import draw_folds;"
        "print(draw_folds([f'cell {i}' for i in range(40)], np.zeros(40, dtype=int), [f'g{i % 15}' for i in range(40)],"
        f"{FRACTIONS!r}, 7).tolist())"
    )
    outputs = set()
    for hash_seed in ("0", "12345"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        outputs.add(subprocess.check_output([sys.executable, "-c", code], env=environment, text=True))
    assert len(outputs) == 1


def grouped(sizes: dict[str, dict[str, int]], kind: str = "patient") -> CellImages:
    """Images by group and class."""
    paths = [
        f"{c}/{g}_{i}.png" for g, of_class in sizes.items() for c, n in of_class.items() for i in range(n)
    ]
    groups = [path[4:].rsplit("_", 1)[0] for path in paths]
    return build_cell_images(
        paths,
        [path[:3] for path in paths],
        root=Path("/data"),
        source="test",
        taxonomy=MLL,
        groups=groups,
        group_kind=kind,
    )


def folds_by_group(split: Split) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for group, fold in zip(split.images.groups or [], split.images.folds, strict=True):
        found[group].add(fold)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole_and_the_quotas_are_met_closely(seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = ("BLA", "LYT", "NGS", "EOS")
    cells = grouped(
        {f"p{i}": dict(zip(codes, rng.integers(0, 12, 4).tolist(), strict=True)) for i in range(80)}
    )
    split = assign(cells, seed=seed)
    assert all(len(folds) == 1 for folds in folds_by_group(split).values())
    assert split.promise == "by patient: no patient is in two folds"
    assert split.notes == ()
    for fold, fraction in FRACTIONS.items():
        for code, total in cells.counts().items():
            assert split.counts()[fold][code] == pytest.approx(fraction * total, abs=0.05 * total), (
                fold,
                code,
            )


def test_another_seed_moves_groups() -> None:
    cells = grouped({f"p{i}": {"BLA": i + 1, "LYT": 3} for i in range(30)})
    assert len({str(sorted(fold_of_path(assign(cells, seed=seed)).items())) for seed in range(6)}) > 3


@pytest.mark.parametrize("patients", [4, 5, 7])
def test_few_groups_leave_no_fold_empty(patients: int) -> None:
    split = assign(grouped({f"p{i}": {"BLA": 20, "LYT": 30} for i in range(patients)}))
    assert all(sum(counts.values()) for counts in split.counts().values())
    assert all(len(folds) == 1 for folds in folds_by_group(split).values())


def test_images_without_a_group_fill_what_the_groups_leave() -> None:
    names = [f"cell {number}" for number in range(200)]
    groups = [f"g{number // 10}" if number < 60 else f"alone {number}" for number in range(200)]
    folds = draw_folds(names, np.zeros(200, dtype=np.int64), groups, FRACTIONS, 0)
    assert np.bincount(folds).tolist() == [130, 20, 10, 40]
    for start in range(0, 60, 10):
        assert len(set(folds[start : start + 10])) == 1


def test_a_class_in_too_few_groups_is_named() -> None:
    sizes = {f"p{i}": {"LYT": 10} for i in range(20)} | {"q1": {"ABE": 9}, "q2": {"ABE": 5}}
    split = assign(grouped(sizes))
    assert any(
        note.startswith("classes missing from a fold: ABE (14 images: none in") for note in split.notes
    )


@pytest.mark.parametrize(
    ("kind", "promise"),
    [
        ("patient", "by patient: no patient is in two folds"),
        ("slide", "by slide: no slide is in two folds; not by patient"),
    ],
)
def test_the_promise_names_the_kind_of_group(kind: str, promise: str) -> None:
    assert assign(grouped({f"g{i}": {"BLA": 2} for i in range(20)}, kind)).promise == promise


def test_the_promise_is_weaker_where_patients_are_unknown() -> None:
    groups = [f"p{i // 4}" if i < 80 else None for i in range(100)]
    split = assign(images({"BLA": 100}, groups=groups, group_kind="patient"))
    assert split.promise == "by patient where the patient is known (20 of 100 images: unknown)"
    assert "20 images have no patient id; each counts as a patient of its own" in split.notes


def test_folds_of_the_source() -> None:
    folds = ["train"] * 5 + ["test"] * 3 + [None] * 2
    split = assign(images({"BLA": 10}, folds=folds), "source")
    assert split.images.folds == folds[:8]
    assert split.notes == (
        "2 images without a fold were left out",
        "the fold validation has no images",
        "the fold calibration has no images",
    )
    drawn = assign(images({"BLA": 10}, folds=folds), "stratified")
    assert "the folds that the source gives are not used (split 'stratified')" in drawn.notes
    with pytest.raises(DataError, match="gives no folds for split 'source'"):
        assign(images({"BLA": 10}), "source")


def test_a_group_in_two_given_folds_stops() -> None:
    groups = ["p1", "p1", "p2", "p2", "p3"]
    cells = images(
        {"BLA": 5}, folds=["train", "test", "train", "train", "test"], groups=groups, group_kind="patient"
    )
    with pytest.raises(DataError, match=r"puts 1 groups \(patient\) into more than one fold: p1"):
        assign(cells, "source")
    # An image that is left out divides nothing.
    cells = images(
        {"BLA": 5}, folds=["train", None, "train", "train", "test"], groups=groups, group_kind="patient"
    )
    assert assign(cells, "source").promise.startswith("by patient")


def test_a_written_split_is_read_back(tmp_path: Path) -> None:
    cells = images({"BLA": 30, "LYT": 30})
    first = assign(cells)
    first.to_csv(tmp_path / "run" / "split.csv")
    lines = (tmp_path / "run" / "split.csv").read_text().splitlines()
    assert lines[0] == "path,label,fold,group"
    assert len(lines) == 61
    again = assign(cells, tmp_path / "run" / "split.csv", seed=99)
    assert again.images.fingerprint() == first.images.fingerprint()
    assert again.notes == ()


def test_awkward_names_survive_the_file(tmp_path: Path) -> None:
    paths = [
        " leading.jpg",
        "comma,semi;colon.jpg",
        "quote\"'.jpg",
        "new\nline.jpg",
        "ünïcødé_细胞.jpg",
        "=1+1.jpg",
    ]
    cells = build_cell_images(
        paths,
        ["BLA"] * 6,
        root=Path("/data"),
        source="test",
        taxonomy=MLL,
        groups=list("aabbcd"),
        group_kind="slide",
    )
    split = assign(cells)
    split.to_csv(tmp_path / "split.csv")
    assert fold_of_path(assign(cells, tmp_path / "split.csv")) == fold_of_path(split)


def test_unlisted_images_and_their_classes_are_left_out(tmp_path: Path) -> None:
    rows = [f"BLA/BLA_{i:05d}.jpg,BLA,{fold}" for i, fold in enumerate(FOLDS)]
    file = write(tmp_path / "split.csv", "path,label,fold", *rows, "LYT/LYT_00000.jpg,LYT,train")
    split = assign(images({"BLA": 5, "EOS": 3, "LYT": 2}), file)
    assert split.images.taxonomy.codes == ("BLA", "LYT")
    assert split.images.labels == [0, 0, 0, 0, 1]
    assert split.notes == (
        "5 images are not listed in split.csv and were left out",
        "classes without an image in any fold were left out: EOS",
        "classes missing from a fold: LYT (1 image: none in validation, calibration, test)",
    )


FILES = {
    "missing images": (
        ["path,label,fold", "BLA/BLA_00000.jpg,BLA,train", *(f"BLA/x{i}.jpg,BLA,test" for i in range(6))],
        r"6 listed images are not among the images in /data: BLA/x0\.jpg, .*BLA/x4\.jpg, \.\.\.$",
    ),
    "only a name": (["path,fold", "BLA_00000.jpg,train"], "1 listed images are not among"),
    "an image twice": (
        ["path,label,fold", "BLA/BLA_00000.jpg,BLA,train", "BLA/BLA_00000.jpg,BLA,train"],
        r"1 images are listed more than once: BLA/BLA_00000\.jpg",
    ),
    "another label": (
        ["path,label,fold", "BLA/BLA_00000.jpg,LYT,train"],
        r"1 images have another label than in /data: BLA/BLA_00000\.jpg \(LYT, here BLA\)",
    ),
    "an unknown fold": (["path,fold", "BLA/BLA_00000.jpg,val"], "unknown fold 'val'; folds are train, "),
    "an empty fold": (["path,fold", "BLA/BLA_00000.jpg,"], "unknown fold ''"),
    "no training images": (
        ["path,fold", "BLA/BLA_00000.jpg,test"],
        r"no image for training \(folds used: \['test'\]",
    ),
    "no paths": (["cell,fold", "BLA/BLA_00000.jpg,train"], r"no column with paths \(found: cell, fold\)"),
    "nothing": ([""], "has no rows"),
}


@pytest.mark.parametrize(("lines", "message"), FILES.values(), ids=FILES)
def test_a_split_file_that_does_not_fit_says_why(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        assign(images({"BLA": 10, "LYT": 10}), write(tmp_path / "split.csv", *lines))


TEST_LISTS = {
    "names": ("list.txt", ["# test images", "BLA_00003.jpg", "", "LYT_00001.jpg"]),
    "paths": ("list.txt", ["BLA/BLA_00003.jpg", "LYT/LYT_00001.jpg"]),
    "names without suffix": ("list.txt", ["BLA_00003", "LYT_00001"]),
    "one column with a heading": ("list.csv", ["filename", "BLA_00003.jpg", "LYT_00001.jpg"]),
    "one column without": ("list.csv", ['"BLA_00003.jpg"', '"LYT_00001.jpg"']),
    # The form of DinoBloom's published list: paths of another machine, and the label.
    "paths of others": (
        "list.csv",
        ["Image Path,Label", "/far/test/BLA/BLA_00003.jpg,BLA", "/far/LYT_00001.jpg,LYT"],
    ),
}


@pytest.mark.parametrize(("name", "lines"), TEST_LISTS.values(), ids=TEST_LISTS)
def test_a_list_of_test_images(tmp_path: Path, name: str, lines: list[str]) -> None:
    cells = images({"BLA": 41, "LYT": 41})
    split = assign(cells, write(tmp_path / name, *lines))
    assert split.images.fold("test").column("path") == ["BLA/BLA_00003.jpg", "LYT/LYT_00001.jpg"]
    # 40 images remain of each class for .65 : .10 : .05 -> 32.5, 5, 2.5; the tie goes to train.
    for code in ("BLA", "LYT"):
        assert [split.counts()[fold][code] for fold in FOLDS] == [33, 5, 2, 1]
    assert f"test images are those named in {name}; the other folds are drawn" in split.notes
    assert any("by file name alone" in note for note in split.notes) == ("/far" in lines[1])
    assert fold_of_path(split) == fold_of_path(assign(cells, tmp_path / name))
    assert fold_of_path(split) != fold_of_path(assign(cells, tmp_path / name, seed=1))


def test_a_test_list_is_checked_as_well(tmp_path: Path) -> None:
    cells = images({"BLA": 10, "LYT": 10}, rejected=[RejectedImage("BLA/BLA_99999.jpg", "damaged")])
    with pytest.raises(DataError, match="1 listed images are not among the images in /data: gone"):
        assign(cells, write(tmp_path / "a.txt", "BLA_00001.jpg", "gone.jpg"))
    with pytest.raises(DataError, match="listed more than once"):
        assign(cells, write(tmp_path / "b.txt", "BLA_00001.jpg", "BLA/BLA_00001.jpg"))
    with pytest.raises(DataError, match="another label"):
        assign(cells, write(tmp_path / "c.csv", "name,label", "BLA_00001.jpg,LYT"))
    split = assign(cells, write(tmp_path / "d.txt", "BLA_00001.jpg", "BLA_99999.jpg"))
    assert "1 images listed in d.txt were left out by the source: BLA_99999.jpg" in split.notes


def test_names_outside_the_training_fold_without_any_images(tmp_path: Path) -> None:
    file = tmp_path / "split.csv"
    file.write_text("path,label,fold\na/1.png,BLA,train\na/2.png,BLA,test\na/3.png,BLA,calibration\n")
    assert held_out_names(file) == ["a/2.png", "a/3.png"]
    file.write_text("# test images\n1.png\nb/2.png\n")
    assert held_out_names(file) == ["1.png", "b/2.png"]
    file.write_text("path,fold\n1.png,tset\n")
    with pytest.raises(DataError, match="unknown fold 'tset'"):
        held_out_names(file)
    file.write_text("picture,fold\n1.png,test\n")
    with pytest.raises(DataError, match="no column with paths"):
        held_out_names(file)


def test_a_file_name_that_fits_two_images_is_refused(tmp_path: Path) -> None:
    paths = ["BLA/p1/1.jpg", "BLA/p2/1.jpg", "BLA/p2/2.jpg"]
    cells = build_cell_images(paths, ["BLA"] * 3, root=Path("/data"), source="test", taxonomy=MLL)
    with pytest.raises(DataError, match="1 file names fit several images"):
        assign(cells, write(tmp_path / "list.txt", "1.jpg"))
    split = assign(cells, write(tmp_path / "list.txt", "BLA/p2/1.jpg"))
    assert split.images.fold("test").column("path") == ["BLA/p2/1.jpg"]


def test_a_test_list_that_divides_a_group_stops(tmp_path: Path) -> None:
    groups = [f"p{i // 5}" for i in range(40)]
    cells = images({"BLA": 40}, groups=groups, group_kind="patient")
    with pytest.raises(DataError, match=r"1 groups \(patient\) into more than one fold: p0"):
        assign(cells, write(tmp_path / "list.txt", "BLA_00000.jpg"))
    split = assign(cells, write(tmp_path / "list.txt", *(f"BLA_{i:05d}.jpg" for i in range(5))))
    assert all(len(folds) == 1 for folds in folds_by_group(split).values())


def test_words_and_fractions_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    cells = images({"BLA": 10})
    with pytest.raises(
        DataError, match="neither 'stratified' nor 'source' nor a file that exists; did you mean 'stra"
    ):
        assign(cells, "stratifed")
    with pytest.raises(DataError, match="neither"):
        assign(cells, tmp_path)
    with pytest.raises(DataError, match="unknown folds: val"):
        assign(cells, train=0.5, val=0.5)
    with pytest.raises(DataError, match=r"sum to 1, not 0\.9"):
        assign(cells, train=0.5, test=0.4)
    with pytest.raises(DataError, match=r"in 0\.\.1"):
        assign(cells, train=1.5, test=-0.5)
    with pytest.raises(DataError, match="fraction of train must be above 0"):
        assign(cells, test=1.0)


def test_no_image_is_in_two_folds_or_in_none() -> None:
    cells = images({"BLA": 33, "LYT": 5, "ABE": 1})
    split = assign(cells)
    assert Counter(path for fold in FOLDS for path in split.images.fold(fold).column("path")) == Counter(
        cells.column("path")
    )


@pytest.mark.real_data
def test_the_real_subset_with_its_split(real_data: Path, tmp_path: Path) -> None:
    cells = mll.load(real_data / "mll7", MLL, mll.Options())
    split = assign(cells, real_data / "mll7" / "split.csv")
    assert {fold: sum(counts.values()) for fold, counts in split.counts().items()} == {
        "train": 840, "validation": 175, "calibration": 105, "test": 280,
    }  # fmt: skip
    assert [set(counts.values()) for counts in split.counts().values()] == [{120}, {25}, {15}, {40}]
    assert split.notes == ()
    assert split.promise.startswith("not patient-safe")
    split.to_csv(tmp_path / "split.csv")
    assert assign(cells, tmp_path / "split.csv").images.fingerprint() == split.images.fingerprint()


def duplicates(count: int, *clusters: tuple[int, ...]) -> Duplicates:
    """Near-duplicates as a scan would find them: each row of a cluster with its first."""
    pairs = [(rows[0], row) for rows in clusters for row in rows[1:]]
    first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    nothing = np.array(["near"] * len(pairs))
    return Duplicates(first, second, nothing, np.ones(len(pairs)), cluster(count, first, second))


def assign_with(
    cells: CellImages, found: Duplicates, split: str | Path = "stratified", seed: int = 0
) -> Split:
    return assign_folds(cells, split=str(split), fractions=FRACTIONS, seed=seed, duplicates=found)


@pytest.mark.parametrize("seed", range(10))
def test_images_of_one_picture_share_a_fold_in_a_draw(seed: int) -> None:
    """Five random clusters of up to six images, within and across classes; the quotas stay close."""
    cells = images({"BLA": 60, "LYT": 40})
    rows = np.random.default_rng(seed).permutation(100).tolist()
    clusters = [tuple(rows[i * 6 : i * 6 + 2 + i]) for i in range(5)]
    split = assign_with(cells, duplicates(100, *clusters), seed=seed)
    for members in clusters:
        assert len({split.images.folds[row] for row in members}) == 1
    assert split.promise.endswith("; near-duplicates share a fold")
    assert {tuple(sorted(members)) for members in clusters} == set(split.duplicates)
    # 100 images with fractions .65 .10 .05 .20; a cluster has six at most.
    for fold, expected in zip(FOLDS, (65, 10, 5, 20), strict=True):
        assert abs(split.images.folds.count(fold) - expected) <= 6


def test_without_duplicates_the_draw_is_the_one_nobody_looked_for() -> None:
    cells = images({"BLA": 60, "LYT": 40})
    looked = assign_with(cells, duplicates(100), seed=3)
    assert fold_of_path(looked) == fold_of_path(assign(cells, seed=3))
    assert looked.notes == assign(cells, seed=3).notes
    assert "near-duplicates" not in assign(cells).promise


def test_patients_with_one_picture_count_as_one() -> None:
    sizes = {f"p{number:02d}": {"BLA": 4, "LYT": 4} for number in range(20)}
    cells = grouped(sizes)
    groups = cells.groups
    assert groups is not None
    rows = {name: groups.index(name) for name in sizes}
    # p03 = p07 and p07 = p11 through another picture: all three are one.
    other = rows["p07"] + 1
    found = duplicates(160, (rows["p03"], rows["p07"]), (other, rows["p11"]))
    for seed in range(5):
        split = assign_with(cells, found, seed=seed)
        folds = dict(zip(split.images.column("group"), split.images.folds, strict=True))
        assert folds["p03"] == folds["p07"] == folds["p11"]
        for group in sizes:
            assert {f for g, f in zip(groups, split.images.folds, strict=True) if g == group} == {
                folds[group]
            }
    assert split.promise == "by patient: no patient is in two folds; near-duplicates share a fold"
    joined = next(note for note in split.notes if note.startswith("a patient"))
    assert "p03 and p07" in joined
    assert "p07 and p11" in joined


def test_given_folds_that_divide_a_picture_stop(tmp_path: Path) -> None:
    cells = images({"BLA": 4, "LYT": 2}, folds=["train", "train", "test", "validation", "train", None])
    with pytest.raises(DataError) as stopped:
        assign_with(cells, duplicates(6, (0, 2), (1, 4)), "source")
    message = str(stopped.value)
    assert "divides 1 clusters" in message
    assert "BLA/BLA_00000.jpg (train) and BLA/BLA_00002.jpg (test)" in message
    assert "'ignore'" in message
    # Images left out divide nothing, and clusters of what is left are kept.
    split = assign_with(cells, duplicates(6, (0, 1, 5)), "source")
    assert split.duplicates == ((0, 1),)
    file = write(tmp_path / "s.csv", "path,fold", "BLA/BLA_00000.jpg,train", "BLA/BLA_00003.jpg,test")
    with pytest.raises(DataError, match=r"s\.csv.*BLA_00000\.jpg \(train\) and .*BLA_00003\.jpg \(test\)"):
        assign_with(cells, duplicates(6, (0, 3)), file)


def test_a_test_list_that_divides_a_picture_stops(tmp_path: Path) -> None:
    cells = images({"BLA": 20, "LYT": 20})
    names = write(tmp_path / "test.txt", "BLA_00000.jpg", "LYT_00003.jpg")
    with pytest.raises(DataError, match=r"BLA_00000\.jpg \(test\) and BLA/BLA_00007\.jpg \(not listed\)"):
        assign_with(cells, duplicates(40, (0, 7)), names)
    split = assign_with(cells, duplicates(40, (0, 23), (5, 6, 30)), names)
    assert split.images.folds[0] == split.images.folds[23] == "test"
    assert len({split.images.folds[row] for row in (5, 6, 30)}) == 1


def test_one_picture_under_two_labels_is_noted() -> None:
    split = assign_with(images({"BLA": 30, "LYT": 30}), duplicates(60, (2, 5), (7, 31, 8)))
    assert "5 images show the same picture as another one (2 clusters); each shares a fold" in split.notes
    assert (
        "the same picture under two labels (1): BLA/BLA_00007.jpg (BLA) = LYT/LYT_00001.jpg (LYT)"
        in split.notes
    )


def test_what_a_run_keeps_about_files_that_were_left_out_and_pictures_seen_twice(tmp_path: Path) -> None:
    cells = build_cell_images(
        ["=1+1.jpg", "BLA/a,b.jpg", "BLA/c.jpg", "LYT/d.jpg"],
        ["BLA", "BLA", "BLA", "LYT"],
        root=Path("/data"),
        source="test",
        taxonomy=MLL,
        folds=["train"] * 4,
        rejected=[RejectedImage("@x.jpg", 'cut "short"'), RejectedImage("BLA/z.jpg", "empty")],
    )
    split = assign_with(cells, duplicates(4, (0, 3)), "source")
    split.rejected_to_csv(tmp_path / "rejected.csv")
    split.duplicates_to_csv(tmp_path / "duplicates.csv")
    # Nothing that a spreadsheet would take for a formula, and still the path of the file.
    assert (tmp_path / "rejected.csv").read_text().splitlines() == [
        "path,reason", './@x.jpg,"cut ""short"""', "BLA/z.jpg,empty",
    ]  # fmt: skip
    assert (tmp_path / "duplicates.csv").read_text().splitlines() == [
        "cluster,path,label,fold", "1,./=1+1.jpg,BLA,train", "1,LYT/d.jpg,LYT,train",
    ]  # fmt: skip
