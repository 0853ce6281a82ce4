"""The same probabilities from `pipeline()`, the Auto classes and `CellClassifier`: a RUN, and what is published of it.

transformers alone runs in a process where our package cannot be imported, once against a Hub on loopback and once from
its cache, with not one request.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import Hub, hub_server
from PIL import Image

from cytodino_hf import CellClassifier
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.finetune import finetune
from cytodino_hf.model_builder import save_model
from cytodino_hf.prediction.command import PredictOptions, predict_images
from cytodino_hf.publishing.assemble import KINDS
from cytodino_hf.recipe import parse_recipe

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Published:
    """A Hub with models on it.

    Args:
        hub: The server.
        home: Cache of the client.
        models: Every form of a model by its name; folders and Hub ids.
        commits: Hub id -> commit.
    """

    hub: Hub
    home: Path
    models: dict[str, str]
    commits: dict[str, str]

    def with_package(self, pictures: Path, rows: Path) -> dict[str, Any]:
        """The same by our package, in this process; and the rows of the command for one of them."""
        answers = {}
        cache = str(self.home / "hub")
        for name in self.models.values():
            classifier = CellClassifier.from_pretrained(name, cache_dir=cache, local_files_only=True)
            found = classifier.predict(sorted(pictures.iterdir()))
            assert not found.problems, found.problems
            answers[name] = {
                "codes": list(found.classes),
                "probabilities": found.probabilities,
                "commit": classifier.place.commit,
            }
        predict_images(
            "me/own-base", [str(pictures)], rows, PredictOptions(precision="float32", cache_dir=cache)
        )
        return answers

    def run(self, program: list[str], out: Path, pictures: Path, *, offline: bool) -> dict[str, Any]:
        """Answers of a process about the pictures by every model."""
        environment = os.environ | self.hub.environment(self.home, token=None, offline=offline)
        command = [sys.executable, *program, str(out), str(pictures), *self.models.values()]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        answers: dict[str, Any] = json.loads(out.read_text())
        return answers


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, cells: Path) -> Path:
    """One picture in the forms files have: PNG, JPEG, grey, with transparency, turned by EXIF, another size."""
    folder = tmp_path_factory.mktemp("pictures")
    picture = Image.open(cells / "BLA" / "BLA_00001.png")
    picture.save(folder / "plain.png")
    picture.save(folder / "photograph.jpg", quality=92)
    picture.convert("L").save(folder / "grey.png")
    picture.convert("L").save(folder / "grey.jpg", quality=92)
    picture.convert("RGBA").save(folder / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "turned.jpg", exif=exif, quality=92)
    picture.resize((53, 41)).save(folder / "other_size.png")
    shutil.copy(cells / "NGS" / "NGS_00001.png", folder / "zzz.png")
    return folder


@pytest.fixture(scope="module")
def published(
    tmp_path_factory: pytest.TempPathFactory, run: Path, cells: Path, tiny_recipe: Callable[..., dict]
) -> Iterator[Published]:
    folder = tmp_path_factory.mktemp("published")
    with hub_server() as hub:
        commits = {"lab/base": hub.commit("lab/base", run / "base")}
        on_hub = train_on_hub_base(
            folder, run / "base", commits["lab/base"], tiny_recipe(cells, folder / "run")
        )
        commits["me/own-base"] = hub.commit("me/own-base", what_leaves(run))
        commits["me/hub-base"] = hub.commit("me/hub-base", what_leaves(on_hub))
        commits["me/merged"] = hub.commit("me/merged", merged(run, folder / "merged"))
        models = {"run": str(run), **{name: name for name in commits if name.startswith("me/")}}
        yield Published(hub, folder / "home", models, commits)


def train_on_hub_base(folder: Path, base: Path, commit: str, document: dict[str, Any]) -> Path:
    """A RUN whose backbone lies on the Hub, trained with the backbone in the cache, as a download would leave it."""
    repository = folder / "cache" / "models--lab--base"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(base, repository / "snapshots" / commit)
    del document["model"]["backbone_config"]
    document["model"]["backbone"] = "lab/base"
    document["hub"] = {"cache_dir": str(folder / "cache"), "local_files_only": True}
    return finetune(parse_recipe(document, source="test")).path


def what_leaves(run: Path) -> dict[str, bytes]:
    """The files of a RUN that are published as they are."""
    files = {path.relative_to(run).as_posix(): path for path in run.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if KINDS["classifier"].allows(name)}


def merged(run: Path, folder: Path) -> Path:
    """The whole model in one file."""
    classifier = CellClassifier.from_pretrained(run)
    config = classifier.model.config
    config.adapter_subfolder = config.base_subfolder = config.adapter_type = None
    save_model(classifier.model, classifier.processor, folder, "full")
    return folder


def test_every_way_gives_the_same_probabilities_online_and_offline(
    published: Published, pictures: Path, run: Path, tmp_path: Path
) -> None:
    alone = [str(HERE / "answer_without_package.py")]
    online = published.run(alone, tmp_path / "online.json", pictures, offline=False)
    assert any(path.endswith("adapter/adapter_model.safetensors") for _, path in published.hub.requests)
    published.hub.requests.clear()
    offline = published.run(alone, tmp_path / "offline.json", pictures, offline=True)
    ours = published.with_package(pictures, tmp_path / "ours.parquet")
    assert published.hub.requests == [], "HF_HUB_OFFLINE asks for nothing"
    for name, model in published.models.items():
        wanted = np.array(ours[model]["probabilities"])
        assert wanted.shape == (8, 3)
        assert ours[model]["commit"] == published.commits.get(model)
        for answers in (online[model], offline[model]):
            assert answers["codes"] == ours[model]["codes"]
            assert answers["module"].startswith("transformers_modules")
            for way in ("pipeline", "auto"):
                np.testing.assert_allclose(answers[way], wanted, atol=1e-5, err_msg=f"{name}, {way}")
    by_name = {name: np.array(ours[model]["probabilities"]) for name, model in published.models.items()}
    np.testing.assert_allclose(by_name["me/own-base"], by_name["run"], atol=1e-6)
    np.testing.assert_allclose(by_name["me/merged"], by_name["run"], atol=1e-5)
    # The rows of the command, by Hub id, name the same weights as those of the RUN.
    rows = Predictions.from_parquet(tmp_path / "ours.parquet")
    assert rows.model_revision == CellClassifier.from_pretrained(run).place.revision()
    np.testing.assert_allclose(rows.probabilities, by_name["run"], atol=1e-6)
    assert np.abs(by_name["me/hub-base"] - by_name["run"]).max() > 1e-3, "another training"
