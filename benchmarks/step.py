"""`cytodino benchmark step`: one optimizer step, published and ours, from the same weights on the same pictures."""

from __future__ import annotations

import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .cells import memory_of_cells, model_result, time_cells
from .machine import limit_threads
from .models import (
    benchmark_recipe,
    build_ours,
    build_published,
    flops_of,
    give_weights,
    load_batches,
    published_batch,
    published_loss,
)
from .pictures import Pictures, load_folder, open_pictures
from .published_model import ACCUMULATION, PublishedStep
from .results import Images, Result
from .rounds import Work
from .settings import StepSettings

if TYPE_CHECKING:
    from cytodino_hf.data.samples import CellImages

_PUBLISHED = f"published: batch 1 x {ACCUMULATION}, float32"
_TABLE = "training step"
_COMPARED_PICTURES = 16
_KINDS = {"compiled": ", compiled", "checkpointed": ", activation checkpointing"}


def run(settings: StepSettings, command: str) -> Result:
    """Time an optimizer step of both ways."""
    limit_threads(settings.threads)
    with open_pictures(settings) as pictures:
        chosen = pictures.some(max(*settings.batch_sizes, ACCUMULATION))
        names = [_PUBLISHED, *_our_cells(settings)]
        memory, failed = memory_of_cells("step", settings, chosen.root, names)
        works = {name: _make(name, settings, chosen) for name in names if name not in failed}
        rounds, products = time_cells(works, settings, label="step")
        compared = pictures.some(ACCUMULATION if settings.quick else _COMPARED_PICTURES)
        notes = _notes(settings, compared)
        about = Images(name=pictures.name, is_drawn=pictures.images.is_drawn, count=len(chosen.labels))
    return model_result(
        "step",
        "Training step",
        names,
        settings,
        command=command,
        table=_TABLE,
        units=_batch_size,
        flops=flops_of(settings.backbone, with_backward=True),
        memory=memory,
        failed=failed,
        rounds=rounds,
        products=products,
        images=about,
        notes=notes,
    )


def _our_cells(settings: StepSettings) -> list[str]:
    names = []
    for batch_size in settings.batch_sizes:
        for precision in settings.precisions:
            name = f"ours: batch {batch_size}, {precision}"
            names.append(name)
            if precision == settings.precisions[-1]:
                names += [name + _KINDS["compiled"]] * settings.compile
                names += [name + _KINDS["checkpointed"]] * settings.checkpointing
    return names


def _batch_size(name: str) -> int:
    return ACCUMULATION if name == _PUBLISHED else int(name.split("batch ")[1].split(",")[0])


def build(settings: dict[str, Any], name: str) -> Work:
    """One cell by its name, for `peak`."""
    images = Pictures(load_folder(Path(settings["root"])), "").some(_batch_size(name))
    values = {key: value for key, value in settings.items() if key != "root"}
    return _make(name, StepSettings.model_validate(values), images)


def _make(name: str, settings: StepSettings, images: CellImages) -> Work:
    if name == _PUBLISHED:
        return _published(settings, images)
    return _ours(
        settings,
        images,
        batch_size=_batch_size(name),
        autocast="bfloat16" in name,
        compiled=name.endswith(_KINDS["compiled"]),
        checkpointed=name.endswith(_KINDS["checkpointed"]),
    )


def _published(settings: StepSettings, images: CellImages) -> Work:
    model = build_published(settings.backbone).to(settings.device)
    step = PublishedStep(model, published_loss().to(settings.device))
    pixels, labels = published_batch(images.select(range(ACCUMULATION)), settings.device)
    return lambda number: step(pixels, labels)


def _ours(
    settings: StepSettings,
    images: CellImages,
    *,
    batch_size: int,
    autocast: bool,
    compiled: bool,
    checkpointed: bool,
) -> Work:
    """One optimizer step through the parts of CytoTrainer: its loss, its optimizer, its clipping."""
    recipe = benchmark_recipe(
        settings.backbone, batch_size, Path(tempfile.gettempdir()) / "cytodino-benchmark"
    )
    trainer = _build_trainer(recipe, build_ours(recipe), images)
    if checkpointed:
        trainer.model.activation_checkpointing_enable()
    trainer.model.to(settings.device).train()
    model = torch.compile(trainer.model) if compiled else trainer.model
    optimizer = trainer.create_optimizer()
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    batch = load_batches(images.select(range(batch_size)), batch_size, recipe, settings.device)[0]

    def work(number: int) -> None:
        with bf16_autocast(settings.device, autocast):
            loss = trainer.compute_loss(model, dict(batch))
        loss.backward()
        nn.utils.clip_grad_norm_(trained, trainer.args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return work


def bf16_autocast(device: str, enabled: bool) -> AbstractContextManager[object]:
    """What accelerate wraps the model in for `mixed_precision: bf16`."""
    return torch.autocast(device, torch.bfloat16) if enabled else nullcontext()


def _build_trainer(recipe: Any, model: nn.Module, images: CellImages) -> Any:
    from cytodino_hf.data.dataset import CellDataset
    from cytodino_hf.model_builder import build_processor
    from cytodino_hf.trainer import build_trainer

    processor = build_processor(recipe.data)
    return build_trainer(
        recipe,
        model=model,
        loss=published_loss(),
        processor=processor,
        train=CellDataset(images, processor),
        validation=None,
        taxonomy=images.taxonomy,
    )


def _notes(settings: StepSettings, images: CellImages) -> list[str]:
    losses = compare_losses(settings.backbone, images, settings.device)
    theirs, ours, half = losses["published"], losses["ours float32"], losses["ours bfloat16"]
    return [
        "Published: four pictures one by one, then clip and AdamW. Ours: one batch through the loss, the clipping and "
        "the fused AdamW of CytoTrainer, uint8 pictures normalised inside the step; bfloat16 is autocast. LoRA rank "
        "64 with dropout 0.1 on every linear layer, published loss, in both.",
        f"Same weights, same {len(images.labels)} pictures, dropout off: loss {theirs:.6f} published; {ours:.6f} ours "
        f"(difference {abs(ours - theirs):.1e}); {half:.6f} ours in bfloat16 autocast (difference "
        f"{abs(half - ours):.1e}).",
        "Share of the matrix peak: operations of the row's own forward and backward pass, by torch's flop counter; "
        "what checkpointing computes again is not counted.",
    ]


@torch.no_grad()
def compare_losses(backbone: str, images: CellImages, device: str) -> dict[str, float]:
    """The loss of the same pictures by the same weights: the published way, ours, and ours under bf16 autocast."""
    recipe = benchmark_recipe(backbone, len(images.labels), Path("unused"))
    ours = build_ours(recipe).to(device).eval()
    published = build_published(backbone).to(device).eval()
    give_weights(ours, published)
    loss = published_loss().to(device)
    pixels, labels = published_batch(images, device)
    found = {"published": loss(published(pixels), labels).item()}
    for name, autocast in (("ours float32", False), ("ours bfloat16", True)):
        with bf16_autocast(device, autocast):
            logits = ours(pixel_values=pixels).logits
        found[name] = loss(logits.float(), labels).item()
    return found
