"""The predictions object and its Parquet form."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cytodino_hf.data.dataset import CellDataset
from cytodino_hf.data.samples import CellImages
from cytodino_hf.data.sources import SOURCES
from cytodino_hf.errors import DataError
from cytodino_hf.evaluation.predictions import (
    Predictions,
    foreign_embeddings,
    read_embeddings,
    write_embeddings,
)
from cytodino_hf.evaluation.scoring import predict
from cytodino_hf.model.configuration_cytodino import CytoDinoConfig
from cytodino_hf.model.image_processing_cytodino import CytoDinoImageProcessor
from cytodino_hf.model.modeling_cytodino import CytoDinoForImageClassification
from cytodino_hf.taxonomy import MLL

COLUMNS = [
    "id",
    "path",
    "source",
    "group",
    "fold",
    "label",
    "logits",
    "probabilities",
    "prediction",
    "ood",
    "model_revision",
]


@pytest.fixture
def predictions() -> Predictions:
    return Predictions(
        ids=["a", "b", "ç/3"],
        paths=["BLA/a.jpg", "LYT/b.jpg", "LYT/ç 3.jpg"],
        sources=["mll", "mll", "mll"],
        groups=["p1", None, "p2"],
        folds=["test", "validation", None],
        labels=np.array([0, 1, -1]),
        logits=np.array([[2.0, 0.0], [-1.5, 1.5], [1000.0, -1000.0]], dtype=np.float32),
        classes=("BLA", "LYT"),
        model_revision="abc",
        group_kind="patient",
    )


def test_probabilities_are_the_softmax_and_predictions_its_maximum(predictions: Predictions) -> None:
    expected = [
        [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2))],
        [1 / (1 + np.exp(3)), 1 / (1 + np.exp(-3))],
        [1, 0],
    ]
    np.testing.assert_allclose(predictions.probabilities, expected, rtol=1e-6)
    assert predictions.predicted.tolist() == [0, 1, 0]


def test_parquet_round_trip_keeps_every_value(predictions: Predictions, tmp_path: Path) -> None:
    path = tmp_path / "predictions" / "test.parquet"
    predictions.to_parquet(path)
    back = Predictions.from_parquet(path)
    for name in ("ids", "paths", "sources", "groups", "folds", "classes", "model_revision", "group_kind"):
        assert getattr(back, name) == getattr(predictions, name), name
    np.testing.assert_array_equal(back.labels, predictions.labels)
    np.testing.assert_array_equal(back.logits, predictions.logits)
    assert back.labels.dtype == np.int64
    assert back.logits.dtype == np.float32


def test_what_is_strange_and_calibrated_goes_through_parquet(
    predictions: Predictions, tmp_path: Path
) -> None:
    path = tmp_path / "p.parquet"
    known = replace(predictions, ood=[True, None, False], calibration="f" * 64)
    known.to_parquet(path)
    back = Predictions.from_parquet(path)
    assert (back.ood, back.calibration) == ([True, None, False], "f" * 64)
    assert back.select([2, 0]).ood == [False, True]
    assert back.fold("validation").ood == [None]
    predictions.to_parquet(path)
    assert (Predictions.from_parquet(path).ood, Predictions.from_parquet(path).calibration) == (None, None)
    with pytest.raises(ValueError, match="disagree in length"):
        replace(predictions, ood=[True])


def test_a_file_of_an_earlier_version_is_read(predictions: Predictions, tmp_path: Path) -> None:
    """It has no column `ood`, and its metadata no calibration."""
    path = tmp_path / "p.parquet"
    table = predictions.to_table().drop_columns(["ood"])
    about = json.loads(table.schema.metadata[b"cytodino"])
    del about["calibration"]
    pq.write_table(table.replace_schema_metadata({"cytodino": json.dumps(about)}), path)
    back = Predictions.from_parquet(path)
    assert (back.ids, back.ood, back.calibration) == (predictions.ids, None, None)


def test_parquet_has_the_one_schema(predictions: Predictions, tmp_path: Path) -> None:
    predictions.to_parquet(tmp_path / "p.parquet")
    table = pq.read_table(tmp_path / "p.parquet")
    assert table.column_names == COLUMNS
    assert table["label"].to_pylist() == [0, 1, None]
    assert table["prediction"].to_pylist() == [0, 1, 0]
    assert table["group"].to_pylist() == ["p1", None, "p2"]


def test_no_image_round_trips(predictions: Predictions, tmp_path: Path) -> None:
    predictions.select([]).to_parquet(tmp_path / "p.parquet")
    back = Predictions.from_parquet(tmp_path / "p.parquet")
    assert len(back) == 0
    assert back.logits.shape == (0, 2)
    assert back.probabilities.shape == (0, 2)


def test_fold_and_select_keep_rows_together(predictions: Predictions) -> None:
    assert predictions.fold("validation").ids == ["b"]
    chosen = predictions.select([2, 0])
    assert chosen.paths == ["LYT/ç 3.jpg", "BLA/a.jpg"]
    assert chosen.labels.tolist() == [-1, 0]
    assert chosen.logits[1].tolist() == [2.0, 0.0]


def test_columns_of_different_length_are_refused(predictions: Predictions) -> None:
    with pytest.raises(ValueError, match="disagree in length"):
        replace(predictions, paths=["a"])
    with pytest.raises(ValueError, match="disagree in length"):
        replace(predictions, classes=("BLA", "LYT", "MON"))


def test_another_file_is_refused_by_name(predictions: Predictions, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder or file"):
        Predictions.from_parquet(tmp_path / "absent.parquet")
    write_embeddings(tmp_path / "e.parquet", ["a"], np.zeros((1, 2)), model_revision="r")
    with pytest.raises(DataError, match=r"e\.parquet: no predictions of this project"):
        Predictions.from_parquet(tmp_path / "e.parquet")
    (tmp_path / "cells.csv").write_text("id,p(BLA)\n")
    with pytest.raises(DataError, match=r"cells\.csv: a CSV file holds rounded probabilities"):
        Predictions.from_parquet(tmp_path / "cells.csv")


def test_embeddings_round_trip(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(3, 2) / 7
    write_embeddings(tmp_path / "new" / "embeddings.parquet", ["a", "b", "c"], values, model_revision="r")
    ids, back = read_embeddings(tmp_path / "new" / "embeddings.parquet")
    assert ids == ["a", "b", "c"]
    np.testing.assert_array_equal(back, values)


def test_embeddings_say_whose_they_are(predictions: Predictions, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    file, ids = tmp_path / "embeddings.parquet", predictions.ids
    values = np.zeros((len(ids), 2))
    write_embeddings(file, ids, values, model_revision=predictions.model_revision)
    assert foreign_embeddings(file, predictions) is None
    why = foreign_embeddings(file, replace(predictions, model_revision="another"))
    assert why == f"they are of the weights {predictions.model_revision}, the answers of another"
    changed = replace(predictions, prepared="resized by 2")
    why = foreign_embeddings(file, changed)
    assert why == "they are of pictures as they are, the answers of pictures resized by 2"
    write_embeddings(file, ids, values, model_revision=changed.model_revision, prepared=changed.prepared)
    assert foreign_embeddings(file, changed) is None
    assert foreign_embeddings(file, predictions) is not None
    changed.to_parquet(tmp_path / "changed.parquet")
    assert Predictions.from_parquet(tmp_path / "changed.parquet").prepared == "resized by 2"
    earlier = pq.read_table(file).replace_schema_metadata(None)
    pq.write_table(earlier, file)
    assert foreign_embeddings(file, predictions) is None


def tiny_model() -> CytoDinoForImageClassification:
    backbone = {
        "model_type": "dinov3_vit", "patch_size": 8, "image_size": 32, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 64,
    }  # fmt: skip
    torch.manual_seed(0)
    config = CytoDinoConfig(
        backbone_config=backbone, id2label={0: "BLA", 1: "LYT", 2: "NGS"}, decoder_layers=1, decoder_heads=2
    )
    return CytoDinoForImageClassification(config).eval()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_is_that_of_the_backbone_for_a_while(
    precision: Literal["float32", "bfloat16"], tmp_path: Path, make_images: Callable[..., Path]
) -> None:
    """Against the model called by hand, and against float32; afterwards the very same weights are back."""
    images = load_images(make_images(tmp_path / "images", per_class=5))
    model, processor = tiny_model(), CytoDinoImageProcessor(size={"height": 32, "width": 32})
    before = {n: (p.data_ptr(), p.detach().clone()) for n, p in model.named_parameters()}
    dtypes: set[torch.dtype] = set()
    model.backbone.register_forward_hook(lambda m, i, output: dtypes.add(output.last_hidden_state.dtype))
    model.head.register_forward_hook(lambda m, i, output: dtypes.add(output[0].dtype))
    allowed = torch.backends.cudnn.allow_tf32
    scored, embeddings = predict(
        model, processor, images, model_revision="r", batch_size=4, precision=precision
    )
    assert dtypes == {torch.float32, getattr(torch, precision)}
    assert torch.backends.cudnn.allow_tf32 == allowed
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == before[name][0]
        assert torch.equal(parameter, before[name][1])
    pictures = [CellDataset(images, processor).pixels(row) for row in range(len(images.labels))]
    with torch.no_grad():
        wanted = model(processor(pictures, return_tensors="pt")["pixel_values"])
    tolerance = 1e-5 if precision == "float32" else 0.05
    np.testing.assert_allclose(scored.logits, wanted.logits, atol=tolerance)
    np.testing.assert_allclose(embeddings, wanted.embedding, atol=10 * tolerance)
    assert scored.ids == images.column("id")
    assert scored.folds == images.folds


def load_images(root: Path) -> CellImages:
    spec = SOURCES["image_folder"]
    return spec.load(root, MLL, spec.options())
