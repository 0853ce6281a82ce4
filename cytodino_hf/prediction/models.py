"""Find and load a finished model, a RUN or a repository of the Hub, and say which weights it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..binding import digest_of_several
from ..data.tables import first_few
from ..errors import ModelUnavailableError
from ..evaluation.scoring import Precision
from ..files import file_sha256, read_json
from ..model_loading import load_classifier, model_explained
from ..taxonomy import Taxonomy

if TYPE_CHECKING:
    from ..model.image_processing_cytodino import CytoDinoImageProcessor
    from ..model.modeling_cytodino import CytoDinoForImageClassification

_INDEX = "model.safetensors.index.json"
# bfloat16 is taken where it is quicker by this factor: below it, the exact answers are worth more.
_WORTH_IT = 1.3


@dataclass(frozen=True)
class ModelPlace:
    """Where a model lies.

    Args:
        name: Folder or Hub id.
        commit: Of the Hub repository, 40 hexadecimal digits; None for a folder.
        config: Its `config.json`.
        hub: More arguments of `from_pretrained` (`cache_dir`, `local_files_only`, `token`).
    """

    name: str
    commit: str | None
    config: dict[str, Any]
    hub: dict[str, Any] = field(default_factory=dict)

    def file(self, name: str) -> Path | None:
        """A file of the model, downloaded where it must be; None where the model has none of this name."""
        from transformers.utils import cached_file

        found = cached_file(
            self.name,
            name,
            revision=self.commit,
            _raise_exceptions_for_missing_entries=False,
            **self.hub,
        )
        return Path(found) if found else None

    def classes(self) -> tuple[str, ...]:
        """Its class codes in label order."""
        labels = self.config.get("id2label") or {}
        return tuple(str(labels[key]) for key in sorted(labels, key=int))

    def revision(self) -> str:
        """Which weights these are: sha256 of the file with what was trained, as the RUN's own predictions say it.

        Raises:
            ModelUnavailableError: The model has no weights.
        """
        adapter = self.config.get("adapter_subfolder")
        names = ["model.safetensors"]
        if adapter:
            is_lora = self.config.get("adapter_type") == "lora"
            names = [f"{adapter}/{'adapter_model' if is_lora else 'trained'}.safetensors"]
        with model_explained(self.name):
            files = [self.file(name) for name in names]
            if files[0] is None and not adapter:
                files = self._shards()
        if not files or None in files:
            raise ModelUnavailableError(
                f"model {self.name}: {names[0]} is missing; give a RUN that is finished, or fetch it anew"
            )
        digests = [file_sha256(file) for file in files if file]
        return digest_of_several(digests)

    def _shards(self) -> list[Path | None]:
        index = self.file(_INDEX)
        if index is None:
            return []
        names = set(read_json(index)["weight_map"].values())
        return [self.file(name) for name in sorted(names)]


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to score: merged, in eval mode, on its device.

    Args:
        model, processor: As `pipeline()` would load them.
        taxonomy: What its labels mean, in label order.
    """

    model: CytoDinoForImageClassification
    processor: CytoDinoImageProcessor
    taxonomy: Taxonomy


def find_model(
    name: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | None = None,
) -> ModelPlace:
    """Look up a model; of one on the Hub, the commit that `revision` means now, so that no part comes of another.

    Args:
        name: RUN, folder or Hub id.
        revision: Branch, tag or commit on the Hub; None for the newest.
        cache_dir: Of the Hub's files.
        local_files_only: Ask the Hub for nothing.
        token: Of the Hub, where the one that is set must not be used.

    Raises:
        ModelUnavailableError: There is none, or it is of another kind.
    """
    from transformers.utils import cached_file
    from transformers.utils.hub import extract_commit_hash

    place = str(name)
    if place.startswith(("/", ".", "~")) and not Path(place).is_dir():
        raise ModelUnavailableError(f"model {place}: no such folder")
    hub: dict[str, Any] = {"cache_dir": cache_dir, "token": token}
    hub = {key: value for key, value in hub.items() if value is not None}
    if local_files_only:
        hub["local_files_only"] = True
    with model_explained(place):
        file = cached_file(place, "config.json", revision=revision, **hub)
        if file is None:
            raise OSError(
                f"it is not in the local cache; fetch it once with a connection (`hf download {place}`)"
            )
        commit = extract_commit_hash(file, None)
        config = read_json(Path(file))
    if config.get("model_type") != "cytodino":
        raise ModelUnavailableError(
            f"model {place} is a {config.get('model_type')!r} model, not one of this project; give a RUN or what was "
            "published from one"
        )
    return ModelPlace(place, None if Path(place).is_dir() else commit, config, hub)


def load_model(place: ModelPlace, device: str | None = None) -> LoadedModel:
    """Load model and processor, by the package's own code: nothing of the model's folder is executed.

    Args:
        place: From `find_model`.
        device: Of torch; by default the GPU where there is one.

    Raises:
        ModelUnavailableError: It cannot be had, or does not say what its labels mean.
    """
    import torch

    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    taxonomy = _taxonomy(place)
    model, processor = load_classifier(place.name, revision=place.commit, **place.hub)
    return LoadedModel(model.to(where), processor, taxonomy)


def cast_backbone(model: CytoDinoForImageClassification, precision: Precision) -> None:
    """Cast the backbone's weights for good; its buffers, the positions among them, keep theirs."""
    import torch

    for parameter in model.backbone.parameters():
        parameter.data = parameter.data.to(getattr(torch, precision))


def not_finite(model: str, names: Sequence[str]) -> str:
    """What to say where a model's answers are NaN or infinite."""
    return (
        f"{model}: the answer is not finite for {len(names)} of the pictures: {first_few(names)}. The weights are "
        "damaged or do not bear bfloat16: fetch the model anew, or compute in float32"
    )


def quickest_precision(device: str) -> Precision:
    """bfloat16 where the device computes in it markedly faster, else float32.

    Instructions alone say little: a processor that knows bfloat16 may convert it to float32 and back. On a CPU a
    product of the size of a ViT-S layer is timed, which takes some hundredths of a second.
    """
    import torch

    from ..launch import bf16_obstacle

    if bf16_obstacle() is not None:
        return "float32"
    if torch.device(device).type != "cpu":
        return "bfloat16"
    seconds = {dtype: _seconds_of_product(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return "bfloat16" if seconds[torch.float32] > _WORTH_IT * seconds[torch.bfloat16] else "float32"


def _seconds_of_product(dtype: Any) -> float:
    import time

    import torch

    tokens, weights = torch.ones(2048, 384, dtype=dtype), torch.ones(1536, 384, dtype=dtype)
    times = []
    with torch.inference_mode():
        for _ in range(6):
            started = time.perf_counter()
            torch.nn.functional.linear(tokens, weights)
            times.append(time.perf_counter() - started)
    return min(times)


def _taxonomy(place: ModelPlace) -> Taxonomy:
    codes = place.classes()
    try:
        taxonomy = Taxonomy.from_dict(place.config.get("taxonomy") or {})
    except ValueError as error:
        raise ModelUnavailableError(
            f"model {place.name}: its config.json does not say what the labels mean ({error}); give an unchanged model"
        ) from error
    if taxonomy.codes != codes:
        raise ModelUnavailableError(
            f"model {place.name}: its config.json names the labels {', '.join(codes)} in one place and "
            f"{', '.join(taxonomy.codes)} in another; give an unchanged model"
        )
    return taxonomy
