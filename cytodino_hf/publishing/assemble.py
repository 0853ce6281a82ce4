"""Put together what is sent: the allowed files of a RUN, and those that are written for the publication."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..binding import finish_binding
from ..errors import PublishError
from ..files import file_sha256, without_places, write_json
from .allow_list import CARD, CONFUSION, ENVIRONMENT, LICENCE, RECIPE, Kind, allowed_files, find_model
from .card import model_card, scored_fold
from .licences import Base, base_of, base_of_backbone, licence_text

Storage = Literal["float32", "bfloat16"]
_CONFIG, _PROCESSOR = "config.json", "preprocessor_config.json"


@dataclass(frozen=True)
class Publication:
    """What will lie in the repository.

    Args:
        kind: Kind of the model.
        files: Path in the repository -> file.
        public: Paths whose text is public already and is not looked through.
    """

    kind: Kind
    files: dict[str, Path]
    public: frozenset[str] = frozenset()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files.values())

    def to_text(self) -> str:
        """Every file with its size, and the card."""
        width = max(len(name) for name in self.files)
        lines = [f"{name:<{width}}  {file.stat().st_size:>13,}" for name, file in sorted(self.files.items())]
        card = self.files[CARD].read_text(encoding="utf-8")
        return "\n".join([*lines, f"{'in all':<{width}}  {self.size:>13,} bytes", "", card])


def assemble(run: Path, work: Path, repo_id: str, *, merged: bool, storage: Storage) -> Publication:
    """Gather what is sent; the RUN is only read.

    Args:
        run: The RUN.
        work: An empty folder for what is written.
        repo_id: Where it will lie.
        merged: Publish whole weights instead of an adapter.
        storage: Type of the published weights.

    Raises:
        PublishError: The RUN is not finished, not whole, or its base or licence cannot be had.
    """
    folder, kind = find_model(run)
    if kind.name == "backbone":
        if merged or storage != "float32":
            raise PublishError(
                f"{folder} is a backbone: it is published as it is, without --merged or --storage"
            )
        return _backbone(folder, kind, work)
    return _classifier(folder, kind, work, repo_id, merged, storage)


def _backbone(folder: Path, kind: Kind, work: Path) -> Publication:
    record = _json(folder / "pretraining.json")
    if (wanted := record.get("weights_sha256")) not in (
        None,
        found := file_sha256(folder / "model.safetensors"),
    ):
        raise PublishError(
            f"{folder / 'model.safetensors'} has sha256 {found}, the pretraining wrote {wanted}"
        )
    files = allowed_files(folder, kind)
    base = base_of_backbone(record, _json(folder / _CONFIG))
    public = _add_licence(folder, base, {}, work, files)
    return Publication(kind, files, public)


def _classifier(
    folder: Path, kind: Kind, work: Path, repo_id: str, merged: bool, storage: Storage
) -> Publication:
    recipe, report = _json(folder / RECIPE), _report(folder)
    config = _check_whole(folder)
    hub = {key: recipe["hub"][key] for key in ("cache_dir", "local_files_only")}
    is_adapter = config["adapter_subfolder"] is not None
    if (merged and is_adapter) or (storage != "float32" and not is_adapter):
        _write_whole(folder, work, storage, hub)
        files = _bound_files(work, kind)
    else:
        files = _bound_files(folder, kind)
        if storage != "float32":
            files |= _narrow_adapter(folder, work, config, storage)
    base = base_of(folder, config, recipe)
    public = _add_licence(folder, base, hub, work, files)
    _write_about(folder, work, report, recipe, files)
    card = model_card(
        repo_id, report, _json(files[_CONFIG]), _json(files[_PROCESSOR]), base,
        is_merged=_json(files[_CONFIG])["adapter_subfolder"] is None, storage=storage,
    )  # fmt: skip
    (work / CARD).write_text(card, encoding="utf-8")
    files[CARD] = work / CARD
    return Publication(kind, files, public)


def _bound_files(folder: Path, kind: Kind) -> dict[str, Path]:
    """Allowed files of a folder, without weights that are not those of its model."""
    config = _json(folder / _CONFIG)
    named = {*config["binding"]["weights"], _CONFIG, _PROCESSOR, f"{config['base_subfolder']}/{_CONFIG}"}
    return {n: f for n, f in allowed_files(folder, kind).items() if n in named or n.endswith(".py")}


def _check_whole(folder: Path) -> dict[str, Any]:
    """The configuration, after every file of weights was compared with its sha256 there."""
    config = _json(folder / _CONFIG)
    weights = (config.get("binding") or {}).get("weights")
    if not weights:
        raise PublishError(
            f"{folder / _CONFIG} does not say which weights belong to it (`binding`): an earlier version wrote it; "
            "run the recipe again into another folder"
        )
    for name, wanted in weights.items():
        if not (folder / name).is_file():
            raise PublishError(f"{folder / name} is missing; run the recipe again")
        if (found := file_sha256(folder / name)) != wanted:
            raise PublishError(
                f"{folder / name} has sha256 {found}, the run wrote {wanted}; it was changed since"
            )
    return config


def _write_whole(folder: Path, work: Path, storage: Storage, hub: dict[str, Any]) -> None:
    """Base and adapter as one model, in `work`."""
    import torch

    from ..model.binding_cytodino import BaseUnavailableError, BindingError
    from ..model.image_processing_cytodino import CytoDinoImageProcessor
    from ..model.modeling_cytodino import CytoDinoForImageClassification
    from ..model_builder import save_model

    try:
        model = CytoDinoForImageClassification.from_pretrained(folder, dtype=torch.float32, **hub)
    except (BaseUnavailableError, BindingError) as error:
        raise PublishError(str(error)) from error
    processor = CytoDinoImageProcessor.from_pretrained(folder)
    save_model(model.to(getattr(torch, storage)), processor, work, "full")


def _narrow_adapter(folder: Path, work: Path, config: dict[str, Any], storage: Storage) -> dict[str, Path]:
    """The trained part in a narrower type, and a configuration that is bound to it."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    from ..model.configuration_cytodino import CytoDinoConfig

    adapter = config["adapter_subfolder"]
    (work / adapter).mkdir()
    names = [name for name in config["binding"]["weights"] if name.startswith(f"{adapter}/")]
    for name in names:
        if not name.endswith(".safetensors"):
            shutil.copyfile(folder / name, work / name)
            continue
        with safe_open(folder / name, framework="pt") as file:
            tensors = {key: file.get_tensor(key).to(getattr(torch, storage)) for key in file.keys()}  # noqa: SIM118
            save_file(tensors, work / name, metadata=file.metadata())
    shutil.copyfile(folder / _PROCESSOR, work / _PROCESSOR)
    bound = CytoDinoConfig.from_pretrained(folder)
    finish_binding(bound, work, names, bound.base_subfolder)
    write_json(work / _CONFIG, config | {"binding": bound.binding})
    return {name: work / name for name in (*names, _CONFIG)}


def _add_licence(
    folder: Path, base: Base, hub: dict[str, Any], work: Path, files: dict[str, Path]
) -> frozenset[str]:
    text = licence_text(folder, base, hub)
    if text is None:
        return frozenset()
    (work / LICENCE).write_bytes(text)
    files[LICENCE] = work / LICENCE
    return frozenset({LICENCE})


def _write_about(
    folder: Path, work: Path, report: dict[str, Any], recipe: dict[str, Any], files: dict[str, Path]
) -> None:
    """Recipe, environment and the picture of the confusions."""
    environment = without_places(_json(folder / ENVIRONMENT))
    environment.pop("command", None)  # it may name folders of the author's
    asked = {name: keys for name, keys in without_places(recipe).items() if name != "hub"}
    for name, document in ((RECIPE, asked), (ENVIRONMENT, environment)):
        write_json(work / name, document)
        files[name] = work / name
    if (fold := scored_fold(report)) is not None:
        (work / CONFUSION).write_bytes(_confusion_picture(report, fold))
        files[CONFUSION] = work / CONFUSION


def _confusion_picture(report: dict[str, Any], fold: str) -> bytes:
    import numpy as np

    from ..evaluation.plots import draw_confusion_matrix, figure_bytes
    from ..evaluation.report import lineage_order
    from ..taxonomy import Taxonomy

    taxonomy = Taxonomy.from_dict(report["taxonomy"])
    order = lineage_order(taxonomy)
    dangerous = np.zeros((len(taxonomy), len(taxonomy)), dtype=bool)
    dangerous[np.ix_(taxonomy.critical, taxonomy.safe)] = True
    figure = draw_confusion_matrix(
        np.array(report[fold]["confusion_matrix"])[np.ix_(order, order)],
        [taxonomy.codes[label] for label in order],
        [taxonomy.lineages[label] for label in order],
        dangerous[np.ix_(order, order)],
    )
    return figure_bytes(figure, "png")


def _report(folder: Path) -> dict[str, Any]:
    path = folder / "report" / "report.json"
    if not path.is_file():
        raise PublishError(f"{path} is missing: the card is filled from it; run the recipe again")
    report: dict[str, Any] = without_places(_json(path))
    return report


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
