"""`cytodino benchmark data`: images of a folder become batches, the published way and ours."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .machine import limit_threads
from .pictures import Pictures, load_folder, open_pictures
from .results import Images, Result, Row, new_result
from .rounds import Work, interleave, spread
from .settings import DataSettings

if TYPE_CHECKING:
    from cytodino_hf.data.dataset import CellDataset
    from cytodino_hf.data.samples import CellImages

Cache = Literal["none", "bytes", "pixels"]
_DECODE = "decode alone (cv2.imdecode)"
_ITEM = "published, items alone"
_PUBLISHED = "published, batch 1"
_CACHES: dict[Cache, str] = {"none": "no cache", "bytes": "files cached", "pixels": "pixels cached"}
_DEFAULT_PRESET_CACHES: tuple[Cache, ...] = ("none", "pixels")
_TABLES = {"training": "training images", "evaluation": "evaluation images"}
# What an item of the published way cost in units of decoding alone, on a quiet machine, one thread: 250 x 250 JPEGs
# of 18.8 kB, 400 images x 5. A reference that costs more than a fifth more or less is not the same work.
_EXPECTED_OVER_DECODE = {"training": 7.9, "evaluation": 3.0}
_TOLERANCE = 0.2
# Tables on drawn cells of the size that expectation was measured on, where the images are others.
_YARDSTICK = "(drawn cells)"
_INDEX_TABLE = "index of a folder"


@dataclass(frozen=True)
class _Cell:
    """One line of a table: what is timed on which images."""

    table: str
    kind: str
    name: str
    images: CellImages

    @property
    def key(self) -> str:
        return f"{self.table}: {self.name}"


def run(settings: DataSettings, command: str) -> Result:
    """Time both data paths on the same images, and the indexing of a folder of the full size."""
    limit_threads(settings.threads)
    with ExitStack() as stack:
        pictures = drawn = stack.enter_context(open_pictures(settings))
        if settings.images is not None:
            drawn = stack.enter_context(open_pictures(settings.model_copy(update={"images": None})))
        rows = _time_rows(settings, _cells(settings, pictures, drawn))
        rows += _time_index(settings)
        about = Images(name=pictures.name, is_drawn=pictures.images.is_drawn, count=settings.pictures)
    result = new_result(
        "data",
        f"Data path, {about.name}",
        command=command,
        clock="cpu_s",
        settings=settings.model_dump(),
        images=about,
        rows=rows,
        notes=[],
    )
    return result.model_copy(update={"notes": _notes(result, settings, drawn.name)})


def _cells(settings: DataSettings, pictures: Pictures, drawn: Pictures) -> list[_Cell]:
    chosen = pictures.some(settings.pictures)
    cells = [
        _Cell(table, kind, name, chosen) for kind, table in _TABLES.items() for name in _cell_names(kind)
    ]
    if drawn is not pictures:
        yardstick = drawn.some(settings.pictures)
        cells += [
            _Cell(f"{table} {_YARDSTICK}", kind, name, yardstick)
            for kind, table in _TABLES.items()
            for name in (_DECODE, _ITEM)
        ]
    return cells


def _time_rows(settings: DataSettings, cells: list[_Cell]) -> list[Row]:
    memory = (
        {cell.key: _peak_memory(settings, cell) for cell in _with_progress(cells)} if settings.memory else {}
    )
    works = {cell.key: _make(cell.kind, cell.name, cell.images, settings.batch_size) for cell in cells}
    rounds = interleave(works, rounds=settings.rounds, label="data")
    return [
        Row(
            table=cell.table,
            name=cell.name,
            against=_PUBLISHED if _is_same_work(cell.name) else None,
            units=settings.pictures,
            memory_bytes=memory.get(cell.key),
            rounds=rounds[cell.key],
        )
        for cell in cells
    ]


def _with_progress(cells: list[_Cell]) -> Iterable[_Cell]:
    from tqdm.auto import tqdm

    return tqdm(cells, desc="peak memory", unit="cell")


def _peak_memory(settings: DataSettings, cell: _Cell) -> int | None:
    from .peak import peak_memory

    if not _is_same_work(cell.name):
        return None
    task = settings.model_dump() | {"root": str(cell.images.root), "kind": cell.kind}
    return peak_memory("data", task, cell.name)


def build(settings: dict[str, Any], name: str) -> Work:
    """One cell by its name, for `peak`."""
    chosen = Pictures(load_folder(Path(settings["root"])), "").some(settings["pictures"])
    return _make(settings["kind"], name, chosen, settings["batch_size"])


def _cell_names(kind: str) -> list[str]:
    names = [
        _DECODE,
        _ITEM,
        _PUBLISHED,
        "published, batch 16",
        *(f"ours, {text}" for text in _CACHES.values()),
    ]
    if kind == "training":
        names += [f"ours, default preset, {_CACHES[mode]}" for mode in _DEFAULT_PRESET_CACHES]
    return names


def _is_same_work(name: str) -> bool:
    return name not in (_DECODE, _ITEM) and "default preset" not in name


def _make(kind: str, name: str, images: CellImages, batch_size: int) -> Work:
    if name == _DECODE:
        return _decode_alone(images)
    if name.startswith("published"):
        return _published(kind, images, 0 if name == _ITEM else 1 if name == _PUBLISHED else batch_size)
    mode = next(mode for mode, text in _CACHES.items() if name.endswith(text))
    return _ours(kind, images, mode, "default" if "default preset" in name else "published", batch_size)


def _paths(images: CellImages) -> list[str]:
    return [str(images.root / path) for path in images.column("path")]


def _decode_alone(images: CellImages) -> Work:
    import cv2
    import numpy as np

    encoded = [np.frombuffer(Path(path).read_bytes(), np.uint8) for path in _paths(images)]

    def work(number: int) -> None:
        for content in encoded:
            cv2.imdecode(content, cv2.IMREAD_COLOR_RGB)

    return work


def _published(kind: str, images: CellImages, batch_size: int) -> Work:
    """The published items one after another (batch size 0), or through a DataLoader without workers."""
    from torch.utils.data import DataLoader

    from .published_data import PublishedDataset, evaluation_transform, training_transform

    transform = training_transform() if kind == "training" else evaluation_transform()
    dataset = PublishedDataset(_paths(images), images.labels, transform)
    batches: Any = DataLoader(dataset, batch_size) if batch_size else None

    def work(number: int) -> None:
        for _ in batches if batch_size else map(dataset.__getitem__, range(len(dataset))):
            pass

    return work


def _ours(kind: str, images: CellImages, mode: Cache, preset: str, batch_size: int) -> Work:
    """Our batches through a DataLoader without workers, as training and evaluation make them."""
    from torch.utils.data import DataLoader

    from cytodino_hf.data.dataset import collate

    dataset = our_dataset(images, mode, preset if kind == "training" else None)

    def work(number: int) -> None:
        # The warm-up has a negative number, an epoch has not.
        keys: list[Any] = list(range(len(dataset)))
        if kind == "training":
            keys = [(row, number + 1, row) for row in keys]
        for _ in DataLoader(dataset, batch_size, sampler=keys, collate_fn=collate):
            pass

    return work


def our_dataset(images: CellImages, mode: Cache, preset: str | None) -> CellDataset:
    """Our data set of these images, cached as `data.cache` of a recipe would have it."""
    from cytodino_hf.data.cache import pack_images
    from cytodino_hf.data.dataset import CellDataset
    from cytodino_hf.data.transforms import build_augmentation
    from cytodino_hf.model_builder import build_processor
    from cytodino_hf.recipe import DataSection

    from .published_data import IMAGE_MEAN, IMAGE_SIZE_PX, IMAGE_STD

    section = DataSection(image_size_px=IMAGE_SIZE_PX, image_mean=list(IMAGE_MEAN), image_std=list(IMAGE_STD))
    if mode != "none":
        images = pack_images(images, mode)
    augmentation = None
    if preset is not None:
        augmentation = build_augmentation(preset, image_size_px=IMAGE_SIZE_PX, center_crop_px=None)
    return CellDataset(images, build_processor(section), augmentation, seed=0)


def _time_index(settings: DataSettings) -> list[Row]:
    """Index a folder of empty files in the layout of the MLL set."""
    if not settings.index_files:
        return []
    with tempfile.TemporaryDirectory(prefix="cytodino-index-") as folder:
        count = _write_empty_files(Path(folder), settings.index_files)
        works: dict[str, Callable[[int], object]] = {
            "published (12 globs a class)": lambda number: _index_published(Path(folder), count),
            "ours (an Arrow-backed Dataset)": lambda number: _index_ours(Path(folder), count),
        }
        rounds = interleave(works, rounds=settings.rounds, label="index")
    first = next(iter(works))
    return [
        Row(
            table=f"{_INDEX_TABLE}, {count:,} empty files",
            name=name,
            against=first,
            unit="folder",
            units=1,
            rounds=r,
        )
        for name, r in rounds.items()
    ]


def _write_empty_files(root: Path, count: int) -> int:
    from cytodino_hf.taxonomy import load_taxonomy

    codes = load_taxonomy("mll").codes
    each = max(1, count // len(codes))
    for code in codes:
        for begin in range(0, each, 1000):
            folder = root / code / f"{begin + 1:04d}-{begin + 1000:04d}"
            folder.mkdir(parents=True)
            for number in range(begin + 1, min(begin + 1000, each) + 1):
                (folder / f"{code}_{number:05d}.jpg").touch()
    return each * len(codes)


def _index_published(root: Path, count: int) -> None:
    from .published_data import index_folder

    assert len(index_folder(root)) == count


def _index_ours(root: Path, count: int) -> None:
    assert len(load_folder(root).dataset) == count


def _notes(result: Result, settings: DataSettings, drawn: str) -> list[str]:
    notes = [
        "Published: Pillow and albumentations, float32. Ours: uint8, normalised later, on the device; batches of "
        f"{settings.batch_size}; no workers. `times as fast` compares with the published way at batch 1."
    ]
    yardstick = [table for table in dict.fromkeys(r.table for r in result.rows) if _YARDSTICK in table]
    for kind, table in _TABLES.items():
        named = next((other for other in yardstick if other.startswith(table)), table)
        expected, found = _EXPECTED_OVER_DECODE[kind], _over_decode(result, named)
        share = found / expected - 1
        verdict = f"within {_TOLERANCE:.0%}" if abs(share) <= _TOLERANCE else f"OFF by {share:+.0%}"
        note = (
            f"Fairness of the reference, {table}: one costs {found:.1f} x decoding alone on {drawn} "
            f"(expected {expected:g} x: {verdict})"
        )
        if named != table:
            note += f"; {_over_decode(result, table):.1f} x on the images of this table, whose files differ in size"
        notes.append(note + ".")
    return notes


def _over_decode(result: Result, table: str) -> float:
    item, decode = (result.seconds_per_unit(result.row(table, name)) for name in (_ITEM, _DECODE))
    return spread([one / other for one, other in zip(item, decode, strict=True)]).median
