"""The output of `cytodino predict`: parts while it runs, one whole file at the end, every id exactly once.

OUT                 Parquet with the schema of `evaluation.predictions`, or CSV
OUT.parts/          while it runs: `about.json`, and Parquet files that are whole or absent
OUT.problems.csv    path and reason of images that could not be read, where there are any
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..data.splits import safe_cell
from ..errors import DataError, FullDiskError, RunFolderError
from ..evaluation.predictions import Predictions
from ..files import read_json, whole_file, write_json
from ..folder_lock import locked
from ..taxonomy import Taxonomy

if TYPE_CHECKING:
    import pyarrow as pa

_KEY = b"cytodino_predict"


@dataclass(frozen=True)
class Scorer:
    """What gave the answers; all rows of an output have the same.

    Args:
        revision: sha256 of the weights.
        precision: Of the backbone.
        calibration: Fingerprint of the calibration that was applied; empty without one.
        detector: sha256 of what told strange images; empty where the model has nothing that does.
    """

    revision: str
    precision: str
    calibration: str = ""
    detector: str = ""

    def to_dict(self) -> dict[str, str]:
        """Plain values."""
        return {
            "model_revision": self.revision,
            "precision": self.precision,
            "calibration": self.calibration,
            "ood_detector": self.detector,
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, str]) -> Scorer:
        """Read what `to_dict` gave; earlier versions knew weights and precision only."""
        return cls(
            found["model_revision"],
            found["precision"],
            found.get("calibration") or "",
            found.get("ood_detector") or "",
        )


class PredictionOutput:
    """The file that is written, with what is there of it already.

    Args:
        path: Ends in `.parquet` or `.csv`.

    Raises:
        DataError: It ends otherwise, or is a folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.suffix.lower() not in (".parquet", ".csv") or path.is_dir():
            raise DataError(f"--output {path}: must be a file that ends in .parquet or .csv")
        self._is_csv = path.suffix.lower() == ".csv"
        self._lock: IO[str] | None = None

    @property
    def parts(self) -> Path:
        """Folder of the parts."""
        return self.path.with_name(self.path.name + ".parts")

    @property
    def problems_file(self) -> Path:
        """List of the images that could not be read."""
        return self.path.with_name(self.path.name + ".problems.csv")

    def is_begun(self) -> bool:
        """Whether parts of an unfinished call are there."""
        return self.parts.is_dir()

    def scorer(self) -> Scorer | None:
        """What gave the rows that are there; None where there are none.

        Raises:
            DataError: The file is no output of this command.
        """
        found = None
        if self.path.is_file():
            found = _csv_scorer(self.path) if self._is_csv else _parquet_scorer(self.path)
        elif any(self.parts.glob("*.parquet")):  # else nothing was scored yet
            about = self.parts / "about.json"
            found = read_json(about)
        return Scorer.from_dict(found) if found else None

    def done(self) -> set[str]:
        """Ids of the rows that are there; of a CSV as `safe_cell` writes them."""
        return {name for table in self._tables() for name in table["id"].to_pylist()}

    def written_id(self, name: str) -> str:
        """How an id stands in the file."""
        return safe_cell(name) if self._is_csv else name

    def problems(self) -> dict[str, str]:
        """Path -> reason, as the last call noted them."""
        if not self.problems_file.is_file():
            return {}
        with open(self.problems_file, encoding="utf-8", newline="") as file:
            return {row["path"]: row["reason"] for row in csv.DictReader(file)}

    @contextmanager
    def held(self, scorer: Scorer) -> Iterator[None]:
        """Keep the output for this process, and note what scores.

        Raises:
            DataError: Another process writes it.
        """
        with self._writing():
            self.parts.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = locked(self.parts)
        except RunFolderError as error:
            raise DataError(
                f"{self.path}: another process writes it; wait for its end, or give another --output"
            ) from error
        try:
            with self._writing():
                write_json(self.parts / "about.json", scorer.to_dict())
            yield
        finally:
            self._lock.close()

    def add(self, predictions: Predictions, taxonomy: Taxonomy, scorer: Scorer) -> None:
        """Write a part."""
        import pyarrow.parquet as pq

        number = len(list(self.parts.glob("*.parquet")))
        table = predictions.to_table()
        metadata = {**table.schema.metadata, _KEY: json.dumps(scorer.to_dict()).encode()}
        if self._is_csv:
            table = _as_text(predictions, taxonomy, scorer)
        with self._writing(), whole_file(self.parts / f"{number:06d}.parquet") as file:
            pq.write_table(table.replace_schema_metadata(metadata), file)

    def finish(self, ids: Sequence[str], problems: Mapping[str, str]) -> None:
        """Put the rows together in the order of the images, write the list of problems, and remove the parts."""
        import pyarrow as pa
        import pyarrow.compute as pc

        tables = self._tables()
        if tables:
            # Rows of earlier versions lack the newer columns, which stay empty there.
            rows = pa.concat_tables(tables, promote_options="default")
            # An id twice is possible only where a call ended between its last two steps; both rows say the same.
            places = pc.index_in(
                pa.array([self.written_id(name) for name in ids]), rows["id"].combine_chunks()
            )
            rows = rows.take(places.drop_null())
            with self._writing(), whole_file(self.path) as file:
                _write(rows, file, is_csv=self._is_csv)
        with self._writing():
            self._write_problems(problems)
        shutil.rmtree(self.parts)

    def _write_problems(self, problems: Mapping[str, str]) -> None:
        if not problems:
            self.problems_file.unlink(missing_ok=True)
            return
        with whole_file(self.problems_file) as file:
            lines = [("path", "reason"), *((safe_cell(path), reason) for path, reason in problems.items())]
            file.write(_csv_lines(lines))

    def _tables(self) -> list[pa.Table]:
        """The file and its parts, in that order."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        tables: list[pa.Table] = []
        if self.path.is_file():
            tables.append(_read_csv(self.path) if self._is_csv else pq.read_table(self.path))
        try:
            tables += [pq.read_table(part) for part in sorted(self.parts.glob("*.parquet"))]
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"{self.parts}: a part cannot be read ({error}); remove the folder, and start again"
            ) from error
        return tables

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FullDiskError(
                f"{self.path} cannot be written ({error.strerror or error}); make room, or check the permissions, then "
                "give the same command again: what was scored so far is kept"
            ) from error


def _parquet_scorer(path: Path) -> dict[str, str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error}); give another --output") from error
    if _KEY not in metadata:
        raise DataError(f"{path}: was not written by this command; give another --output")
    found: dict[str, str] = json.loads(metadata[_KEY])
    return found


def _csv_scorer(path: Path) -> dict[str, str]:
    with open(path, encoding="utf-8", newline="") as file:
        first = next(csv.DictReader(file), None)
    if not first or not {"id", "model_revision", "precision"} <= set(first):
        raise DataError(f"{path}: was not written by this command; give another --output")
    return first


def _as_text(predictions: Predictions, taxonomy: Taxonomy, scorer: Scorer) -> pa.Table:
    """What a spreadsheet shows of predictions: one row an image, one column a class, nothing that is a formula."""
    import pyarrow as pa

    classes = [taxonomy.classes[label] for label in predictions.predicted]
    probabilities = predictions.probabilities
    labels = [taxonomy.codes[label] if label >= 0 else None for label in predictions.labels]
    columns: dict[str, list[Any]] = {
        "id": predictions.ids,
        "path": predictions.paths,
        "source": predictions.sources,
        "group": predictions.groups,
        "fold": predictions.folds,
        "label": labels,
        "prediction": [c.code for c in classes],
        "name": [c.name for c in classes],
        "lineage": [c.lineage for c in classes],
        "is_critical": [str(c.is_critical).lower() for c in classes],
        "probability": [f"{p.max():.7g}" for p in probabilities],
        "ood": [None if v is None else str(v).lower() for v in predictions.ood or [None] * len(predictions)],
        **{f"p({code})": [f"{p:.7g}" for p in probabilities[:, i]] for i, code in enumerate(taxonomy.codes)},
        **{name: [value or None] * len(predictions) for name, value in scorer.to_dict().items()},
    }
    cells = {name: ["" if v is None else safe_cell(v) for v in values] for name, values in columns.items()}
    return pa.table({name: pa.array(values, pa.string()) for name, values in cells.items()})


def _read_csv(path: Path) -> pa.Table:
    import pyarrow as pa

    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    columns = zip(*rows, strict=True) if rows else ([] for _ in header)
    return pa.table({name: pa.array(list(c), pa.string()) for name, c in zip(header, columns, strict=True)})


def _write(rows: pa.Table, file: IO[bytes], *, is_csv: bool) -> None:
    import pyarrow.parquet as pq

    if is_csv:
        file.write(_csv_lines([rows.column_names, *zip(*rows.to_pydict().values(), strict=True)]))
    else:
        pq.write_table(rows, file)


def _csv_lines(lines: Sequence[Sequence[str]]) -> bytes:
    import io

    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()
