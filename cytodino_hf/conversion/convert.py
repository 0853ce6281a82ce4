"""A checkpoint of DinoBloom, DINOv2 or iBOT becomes a folder that transformers loads."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import WeightsFileError
from ..files import file_sha256, push_to_disk
from .layouts import (
    HEAD_WIDTH,
    Kind,
    Sizes,
    dinov2_config,
    dinov2_names,
    listed,
    measure,
    vit_config,
    vit_tensors,
)
from .pickled_tensors import open_weights
from .stored_tensors import StoredTensor

if TYPE_CHECKING:
    import torch

Architecture = Literal["dinov2", "vit"]
#: Types the weights can be written in; "keep" is the file's own.
DTYPES = ("keep", "float32", "bfloat16", "float16")

# Where checkpoints keep the weights: the teacher is what is used after pretraining.
_PLACES = ("teacher", "state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")
_BACKBONE = "backbone."
# Projection heads and classifiers; what they were trained for is over.
_HEADS = re.compile(r"(head|dino_head|ibot_head|fc)\d*\.")


@dataclass(frozen=True)
class Converted:
    """What was written, as the card says it.

    Args:
        folder: The folder of transformers.
        source: Name of the file.
        sha256: Of the file.
        place: Key of the checkpoint that held the weights; empty for the whole file.
        kind: What the tensors are.
        architecture: Class of transformers it was written for.
        sizes: Read off the shapes.
        heads: Attention heads.
        dtype: Type of the written weights.
        dropped: Tensors that are no part of a backbone.
        notes: What was added because the file does not have it.
    """

    folder: Path
    source: str
    sha256: str
    place: str
    kind: Kind
    architecture: str
    sizes: Sizes
    heads: int
    dtype: str
    dropped: tuple[str, ...]
    notes: tuple[str, ...]


def convert(
    source: Path,
    folder: Path,
    *,
    kind: str = "auto",
    architecture: str = "dinov2",
    dtype: str = "keep",
    heads: int | None = None,
) -> Converted:
    """Write the backbone in a checkpoint as a folder for `AutoModel.from_pretrained`; nothing in the file is executed.

    Args:
        source: File of `torch.save` or safetensors.
        folder: Must not exist, or be empty.
        kind: "dinobloom" (DINOv2's architecture, with LayerScale), "ibot" (a plain ViT, as DINO, iBOT and timm have
            it), or "auto".
        architecture: "dinov2" is what recipes, the probe and the pictures take; a plain ViT is then scaled by ones,
            which changes no number. "vit" writes a plain ViT as `ViTModel`.
        dtype: One of `DTYPES`.
        heads: Attention heads; None takes one for each 64 of the width, as all of these models have.

    Raises:
        WeightsFileError: The file cannot be read, is of another kind, lacks tensors or has unknown ones; names them.
    """
    _check_options(source, folder, kind, architecture, dtype)
    with open_weights(source) as values:
        place, stored = _state_dict(values, str(source))
        tensors, dropped = _backbone_tensors(stored, str(source))
        _refuse_shared(tensors, source)
        sizes = measure({name: tensor.shape for name, tensor in tensors.items()}, str(source))
        _check_kind(sizes, kind, architecture, str(source))
        heads = _check_heads(sizes, heads, str(source))
        named, notes = _as_dinov2(tensors, sizes, dtype, str(source))
    if architecture == "vit":
        config, named = vit_config(sizes, heads), vit_tensors(named)
        notes = ["The pooler hands the CLS token on unchanged; the file has none."]
    else:
        config = dinov2_config(sizes, heads, str(source))
    model = _build(config, named, str(source))
    converted = Converted(
        folder=folder,
        source=source.name,
        sha256=file_sha256(source),
        place=place,
        kind=sizes.kind,
        architecture=type(model).__name__,
        sizes=sizes,
        heads=heads,
        dtype=str(model.dtype).removeprefix("torch."),
        dropped=tuple(dropped),
        notes=tuple(notes),
    )
    _write(converted, model)
    return converted


def _check_options(source: Path, folder: Path, kind: str, architecture: str, dtype: str) -> None:
    options = (
        ("kind", kind, ("auto", *get_args(Kind))),
        ("architecture", architecture, get_args(Architecture)),
        ("dtype", dtype, DTYPES),
    )
    for name, value, allowed in options:
        if value not in allowed:
            raise WeightsFileError(f"--{name} {value}: must be one of {', '.join(allowed)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WeightsFileError(f"{folder}: exists already; name another folder to convert {source} into")


def _state_dict(values: Any, source: str) -> tuple[str, dict[str, StoredTensor]]:
    """Where the weights lie in a checkpoint, and they themselves."""
    if not isinstance(values, Mapping):
        raise WeightsFileError(f"{source}: holds a {type(values).__name__}, not a dictionary of tensors")
    for place in (*_PLACES, ""):
        found = values.get(place) if place else values
        if isinstance(found, Mapping):
            tensors = {
                name: t for name, t in found.items() if isinstance(name, str) and isinstance(t, StoredTensor)
            }
            if tensors:
                return place, tensors
    raise WeightsFileError(
        f"{source}: no tensors under {', '.join(_PLACES)} nor at the top; its keys are {listed(map(str, values))}"
    )


def _backbone_tensors(
    stored: Mapping[str, StoredTensor], source: str
) -> tuple[dict[str, StoredTensor], list[str]]:
    """Tensors of the backbone without prefixes, and the names of those that belong to heads."""
    bare = {_unwrapped(name): tensor for name, tensor in stored.items()}
    if len(bare) != len(stored):
        raise WeightsFileError(f"{source}: some tensors are there twice, with and without a prefix")
    if any(name.startswith(_BACKBONE) for name in bare):
        inside = {n.removeprefix(_BACKBONE): t for n, t in bare.items() if n.startswith(_BACKBONE)}
        outside = [name for name in bare if not name.startswith(_BACKBONE)]
    else:
        inside, outside = dict(bare), []
    outside += [name for name in inside if _HEADS.match(name)]
    inside = {name: tensor for name, tensor in inside.items() if not _HEADS.match(name)}
    return inside, outside


def _refuse_shared(tensors: Mapping[str, StoredTensor], source: Path) -> None:
    """A small file can name the same numbers again and again; read, each of them would be a copy."""
    wanted = sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors.values())
    if wanted > source.stat().st_size:
        raise WeightsFileError(
            f"{source}: its tensors take {wanted:,} bytes, more than the file has; it is no checkpoint of a backbone"
        )


def _unwrapped(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.removeprefix(next(wrapper for wrapper in _WRAPPERS if name.startswith(wrapper)))
    return name


def _check_kind(sizes: Sizes, kind: str, architecture: str, source: str) -> None:
    parts = "LayerScale (ls1.gamma), as DINOv2 and DinoBloom have it"
    if kind != "auto" and kind != sizes.kind:
        has = "has" if sizes.has_layer_scale else "has no"
        raise WeightsFileError(
            f"{source}: --kind {kind}, but it {has} {parts}; use --kind {sizes.kind} or auto"
        )
    if architecture == "vit" and (sizes.has_layer_scale or sizes.is_swiglu or sizes.registers):
        raise WeightsFileError(
            f"{source}: more than a plain ViT (LayerScale, SwiGLU or registers); use --architecture dinov2"
        )


def _check_heads(sizes: Sizes, heads: int | None, source: str) -> int:
    if heads is None:
        if sizes.width % HEAD_WIDTH == 0:
            return sizes.width // HEAD_WIDTH
        raise WeightsFileError(
            f"{source}: a width of {sizes.width} is no multiple of {HEAD_WIDTH}, so the number of attention heads is "
            "not known; give it with --heads"
        )
    if heads < 1 or sizes.width % heads:
        raise WeightsFileError(f"{source}: --heads {heads} does not divide the width of {sizes.width}")
    return heads


def _as_dinov2(
    tensors: Mapping[str, StoredTensor], sizes: Sizes, dtype: str, source: str
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Read every tensor under its names in `Dinov2Model`; what the file lacks and has a neutral value is added."""
    import torch

    targets = {name: dinov2_names(name) for name in tensors}
    if unknown := [name for name, names in targets.items() if names is None]:
        raise WeightsFileError(f"{source}: tensors that no such model has: {listed(unknown)}")
    written = _written_dtype([tensor.dtype for tensor in tensors.values()], dtype)
    found: dict[str, torch.Tensor] = {}
    for name, stored in tensors.items():
        tensor = stored.read().to(written)
        if not torch.isfinite(tensor).all():
            raise WeightsFileError(
                f"{source}: {name} holds NaN or infinite values in {written}; use another file or --dtype"
            )
        names = targets[name] or ()
        if len(names) > 1 and (not tensor.ndim or len(tensor) % len(names)):
            raise WeightsFileError(
                f"{source}: {name} has the shape {tuple(tensor.shape)}, which cannot be parted into {len(names)}"
            )
        if again := [target for target in names if target in found]:
            raise WeightsFileError(f"{source}: {name} is there under a second name too ({again[0]})")
        parts = [part.clone() for part in tensor.chunk(len(names))] if len(names) > 1 else [tensor]
        found |= dict(zip(names, parts, strict=True))
    notes = []
    if "embeddings.mask_token" not in found:
        found["embeddings.mask_token"] = torch.zeros(1, sizes.width, dtype=written)
        notes.append("The mask token, which only pretraining uses, is zero.")
    found["embeddings.mask_token"] = found["embeddings.mask_token"].flatten()[
        None
    ]  # timm has one dimension more
    if not sizes.has_layer_scale:
        ones = {f"encoder.layer.{i}.layer_scale{j}.lambda1" for i in range(sizes.depth) for j in (1, 2)}
        found |= {name: torch.ones(sizes.width, dtype=written) for name in sorted(ones)}
        notes.append("LayerScale, which the model does not have, is one everywhere, which changes no number.")
    return found, notes


def _written_dtype(stored: list[torch.dtype], dtype: str) -> torch.dtype:
    import torch

    if dtype != "keep":
        chosen: torch.dtype = getattr(torch, dtype)
        return chosen
    # float64 is nobody's training type, and a mixture has to become one type.
    known = {torch.float32, torch.bfloat16, torch.float16}
    return stored[0] if len(set(stored)) == 1 and stored[0] in known else torch.float32


def _build(config: Any, tensors: Mapping[str, torch.Tensor], source: str) -> Any:
    """The model with these weights; every name and shape must fit."""
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(config, dtype=next(iter(tensors.values())).dtype)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = [name for name in wanted if name not in tensors]
    odd = [name for name in tensors if name not in wanted]
    other = [
        f"{name} {tuple(tensor.shape)} instead of {wanted[name]}"
        for name, tensor in tensors.items()
        if name in wanted and tuple(tensor.shape) != wanted[name]
    ]
    told = [
        f"{word}: {listed(names)}"
        for word, names in (("missing", missing), ("unknown", odd), ("of other shapes", other))
        if names
    ]
    if told:
        raise WeightsFileError(f"{source}: does not hold a whole {type(model).__name__}; {'; '.join(told)}")
    model.load_state_dict(tensors, assign=True)
    return model


def _write(converted: Converted, model: Any) -> None:
    """All files into a folder beside, then rename it: a folder of this name is always whole."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
    from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    from .card import card

    folder, side = converted.folder, converted.sizes.image_size
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial)
        # All of these models saw pictures with the statistics of ImageNet.
        ViTImageProcessorPil(
            image_mean=IMAGENET_DEFAULT_MEAN,
            image_std=IMAGENET_DEFAULT_STD,
            size={"height": side, "width": side},
            do_convert_rgb=True,
        ).save_pretrained(partial)
        (partial / "README.md").write_text(card(converted), encoding="utf-8")
        for file in partial.iterdir():
            push_to_disk(file)
        if folder.is_dir():
            folder.rmdir()  # empty, as was checked
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    push_to_disk(folder.parent)
