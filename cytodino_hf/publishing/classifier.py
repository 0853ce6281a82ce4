"""A fine-tuned classifier: its adapter or its whole weights, with a card filled from its run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..binding import finish_binding
from ..errors import ModelUnavailableError, PublishError
from ..evaluation.companions import COMPANIONS, BoundCompanions
from ..files import file_sha256, read_json, without_places, write_json
from .allow_list import CARD, CONFIG, LICENCE, PROCESSOR, WHOLE_WEIGHTS, Gathered, Kind, Storage, Wish
from .card import CONFUSION, model_card, scored_fold
from .licences import add_licence, base_of

_RECIPE, _ENVIRONMENT = "recipe.json", "environment.json"


def _is_classifier(folder: Path, config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "cytodino"


def _gather(kind: Kind, folder: Path, work: Path, wish: Wish) -> Gathered:
    recipe, report = read_json(folder / _RECIPE), _report(folder)
    config = _check_whole(folder)
    hub = {key: recipe["hub"][key] for key in ("cache_dir", "local_files_only")}
    is_adapter = config["adapter_subfolder"] is not None
    if (wish.merged and is_adapter) or (wish.storage != "float32" and not is_adapter):
        _write_whole(folder, work, wish.storage, hub)
        files = _bound_files(work, kind)
    else:
        files = _bound_files(folder, kind)
        if wish.storage != "float32":
            files |= _narrow_adapter(folder, work, config, wish.storage)
    files |= _companions(folder, config)
    base = base_of(folder, config, recipe)
    public = add_licence(folder, base, hub, work, files)
    _write_about(folder, work, report, recipe, files)
    published = read_json(files[CONFIG])
    card = model_card(
        wish.repo_id, report, published, read_json(files[PROCESSOR]), base,
        is_merged=published["adapter_subfolder"] is None, storage=wish.storage,
    )  # fmt: skip
    (work / CARD).write_text(card, encoding="utf-8")
    files[CARD] = work / CARD
    return Gathered(files, public)


def _bound_files(folder: Path, kind: Kind) -> dict[str, Path]:
    """Allowed files of a folder, without weights that are not those of its model."""
    config = read_json(folder / CONFIG)
    named = {*config["binding"]["weights"], CONFIG, PROCESSOR, f"{config['base_subfolder']}/{CONFIG}"}
    return {n: f for n, f in kind.allowed_files(folder).items() if n in named or n.endswith(".py")}


def _companions(folder: Path, config: Mapping[str, Any]) -> dict[str, Path]:
    """Calibration and the like, which belong to the model in whatever form its weights are stored."""
    bound = BoundCompanions.of(config)
    for name in bound.sha256:
        if not (folder / name).is_file():
            raise PublishError(f"{folder / name} is missing; run `cytodino evaluate` on the RUN again")
        try:
            bound.check(str(folder), name, folder / name)
        except ModelUnavailableError as error:
            raise PublishError(f"{error}; it was changed since the run") from error
    return {name: folder / name for name in bound.sha256}


def _check_whole(folder: Path) -> dict[str, Any]:
    """The configuration, after every file of weights was compared with its sha256 there."""
    config = read_json(folder / CONFIG)
    weights = (config.get("binding") or {}).get("weights")
    if not weights:
        raise PublishError(
            f"{folder / CONFIG} does not say which weights belong to it (`binding`): an earlier version wrote it; "
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

    from ..model_builder import save_model
    from ..model_loading import load_classifier

    model, processor = load_classifier(folder, **hub)
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
    shutil.copyfile(folder / PROCESSOR, work / PROCESSOR)
    bound = CytoDinoConfig.from_pretrained(folder)
    finish_binding(bound, work, names, bound.base_subfolder)
    write_json(work / CONFIG, config | {"binding": bound.binding})
    return {name: work / name for name in (*names, CONFIG)}


def _write_about(
    folder: Path, work: Path, report: dict[str, Any], recipe: dict[str, Any], files: dict[str, Path]
) -> None:
    """Recipe, environment and the picture of the confusions."""
    environment = without_places(read_json(folder / _ENVIRONMENT))
    environment.pop("command", None)  # it may name folders of the author's
    asked = {name: keys for name, keys in without_places(recipe).items() if name != "hub"}
    for name, document in ((_RECIPE, asked), (_ENVIRONMENT, environment)):
        write_json(work / name, document)
        files[name] = work / name
    if (fold := scored_fold(report)) is not None:
        (work / CONFUSION).write_bytes(_confusion_picture(report, fold))
        files[CONFUSION] = work / CONFUSION


def _confusion_picture(report: dict[str, Any], fold: str) -> bytes:
    from ..evaluation.confusion import draw_class_confusion
    from ..evaluation.plots import figure_bytes
    from ..taxonomy import Taxonomy

    taxonomy = Taxonomy.from_dict(report["taxonomy"])
    return figure_bytes(draw_class_confusion(report[fold]["confusion_matrix"], taxonomy), "png")


def _report(folder: Path) -> dict[str, Any]:
    path = folder / "report" / "report.json"
    if not path.is_file():
        raise PublishError(f"{path} is missing: the card is filled from it; run the recipe again")
    report: dict[str, Any] = without_places(read_json(path))
    return report


CLASSIFIER = Kind(
    "classifier",
    rf"config\.json|preprocessor_config\.json|(?:binding|configuration|image_processing|modeling)_cytodino\.py"
    rf"|adapter/(?:adapter_config\.json|adapter_model\.safetensors|trained\.safetensors)"
    rf"|base/(?:config\.json|{WHOLE_WEIGHTS})|{WHOLE_WEIGHTS}|{'|'.join(map(re.escape, COMPANIONS))}",
    (CARD, LICENCE, CONFUSION, _RECIPE, _ENVIRONMENT),
    _is_classifier,
    _gather,
)
