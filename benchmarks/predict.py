"""`cytodino benchmark predict`: scoring pictures, the published way and ours, with the same weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from cytodino_hf.evaluation.scoring import ScoredBatch, computing_in, score
from cytodino_hf.model_builder import build_processor, merge
from cytodino_hf.prediction.pictures import InputPictures

from .cells import memory_of_cells, model_result, time_cells
from .machine import limit_threads
from .models import benchmark_recipe, build_ours, build_published, flops_of, give_weights, load_batches
from .pictures import Pictures, load_folder, open_pictures
from .published_data import PublishedDataset, evaluation_transform
from .published_model import PublishedClassifier, evaluate
from .results import Images, Result
from .rounds import Work
from .settings import Precision, PredictSettings

if TYPE_CHECKING:
    from cytodino_hf.data.samples import CellImages
    from cytodino_hf.model.modeling_cytodino import CytoDinoForImageClassification

_PUBLISHED = "published: batch 1, float32, LoRA beside the weights"
_TABLE = "scoring"
# Enough for a head that tells the few pictures apart by leads like those of a trained network, so that no logits tie.
_FIT_STEPS, _FIT_BATCH, _FIT_RATE = 200, 40, 5e-4

#: Logits of each cell by round.
_Answers = dict[str, dict[int, torch.Tensor]]


def run(settings: PredictSettings, command: str) -> Result:
    """Time both ways of scoring and compare what they say."""
    limit_threads(settings.threads)
    answers: _Answers = {}
    with open_pictures(settings) as pictures:
        scored = pictures.some(settings.rounds * settings.pictures)
        # Rows are sorted by class; a fixed shuffle lets every round hold many classes.
        scored = scored.select(np.random.default_rng(0).permutation(len(scored.labels)).tolist())
        names = [_PUBLISHED, *_our_cells(settings)]
        memory, failed = memory_of_cells("predict", settings, scored.root, names)
        model = build_ours(benchmark_recipe(settings.backbone, 1, Path("unused"))).to(settings.device).eval()
        right = _fit_head(model, scored, settings)
        works = {
            name: _make(name, model, scored, settings, answers.setdefault(name, {}))
            for name in names
            if name not in failed
        }
        rounds, products = time_cells(works, settings, label="predict")
        about = Images(name=pictures.name, is_drawn=pictures.images.is_drawn, count=settings.pictures)
    return model_result(
        "predict",
        "Scoring files" if settings.files else "Scoring",
        names,
        settings,
        command=command,
        table=_TABLE,
        units=lambda name: settings.pictures,
        flops=flops_of(settings.backbone, with_backward=False, merged=True),
        memory=memory,
        failed=failed,
        rounds=rounds,
        products=products,
        images=about,
        notes=_notes(settings, answers, right),
    )


def _our_cells(settings: PredictSettings) -> list[str]:
    return [
        f"ours: batch {batch_size}, {precision}, merged"
        for batch_size in settings.batch_sizes
        for precision in settings.precisions
    ]


def _batch_size(name: str) -> int:
    return int(name.split("batch ")[1].split(",")[0])


def build(settings: dict[str, Any], name: str) -> Work:
    """One cell by its name, for `peak`."""
    values = {key: value for key, value in settings.items() if key != "root"}
    checked = PredictSettings.model_validate(values)
    # One batch has the peak already.
    images = Pictures(load_folder(Path(settings["root"])), "").some(_batch_size(name))
    model = build_ours(benchmark_recipe(checked.backbone, 1, Path("unused"))).to(checked.device).eval()
    return _make(name, model, images, checked, {})


def _make(
    name: str, model: Any, images: CellImages, settings: PredictSettings, answers: dict[int, torch.Tensor]
) -> Work:
    if name == _PUBLISHED:
        return _published(model, images, settings, answers)
    precision: Precision = "bfloat16" if "bfloat16" in name else "float32"
    merged = merge(copy.deepcopy(model))  # in place, and the model is needed again
    ours = _ours_from_files if settings.files else _ours
    return ours(merged, images, settings, _batch_size(name), precision, answers)


def _published(
    model: Any, images: CellImages, settings: PredictSettings, answers: dict[int, torch.Tensor]
) -> Work:
    published = build_published(settings.backbone).to(settings.device).eval()
    give_weights(model, published)
    if settings.files:
        return _published_from_files(published, images, settings, answers)
    recipe = benchmark_recipe(settings.backbone, 1, Path("unused"))
    normalize = build_processor(recipe.data).normalize_batch
    ready = [
        normalize(load_batches(part, settings.pictures, recipe, settings.device)[0]["pixel_values"])
        for part in _parts(images, settings)
    ]

    def work(number: int) -> None:
        answers[number] = evaluate(published, ready[max(number, 0) % len(ready)])

    return work


def _published_from_files(
    published: PublishedClassifier,
    images: CellImages,
    settings: PredictSettings,
    answers: dict[int, torch.Tensor],
) -> Work:
    transform = evaluation_transform()
    parts = [PublishedDataset(_files(p), p.labels, transform) for p in _parts(images, settings)]

    def work(number: int) -> None:
        part = parts[max(number, 0) % len(parts)]
        pixels = (part[row][0][None].to(settings.device) for row in range(len(part)))
        answers[number] = torch.cat([evaluate(published, picture) for picture in pixels])

    return work


def _files(images: CellImages) -> list[str]:
    return [f"{images.root}/{path}" for path in images.column("path")]


def _ours_from_files(
    model: CytoDinoForImageClassification,
    images: CellImages,
    settings: PredictSettings,
    batch_size: int,
    precision: Precision,
    answers: dict[int, torch.Tensor],
) -> Work:
    """What `cytodino predict` does once the model is loaded."""
    processor = build_processor(benchmark_recipe(settings.backbone, batch_size, Path("unused")).data)
    parts = [_files(part) for part in _parts(images, settings)]

    def work(number: int) -> None:
        paths = parts[max(number, 0) % len(parts)]
        scored: list[ScoredBatch] = []
        score(
            model,
            processor,
            InputPictures(paths, paths, range(len(paths)), processor),
            scored.append,
            batch_size=batch_size,
            precision=precision,
            show_progress=False,
        )
        answers[number] = torch.from_numpy(np.concatenate([batch.logits for batch in scored]))

    return work


def _ours(
    model: CytoDinoForImageClassification,
    images: CellImages,
    settings: PredictSettings,
    batch_size: int,
    precision: Precision,
    answers: dict[int, torch.Tensor],
) -> Work:
    recipe = benchmark_recipe(settings.backbone, batch_size, Path("unused"))
    processor = build_processor(recipe.data)
    ready = [load_batches(part, batch_size, recipe, settings.device) for part in _parts(images, settings)]

    def work(number: int) -> None:
        logits = []
        with computing_in(model, precision) as dtype, torch.inference_mode():
            for batch in ready[max(number, 0) % len(ready)]:
                pixels = processor.normalize_batch(batch["pixel_values"])
                logits.append(model(pixel_values=pixels.to(dtype)).logits)
        answers[number] = torch.cat(logits).float()

    return work


def _parts(images: CellImages, settings: PredictSettings) -> list[CellImages]:
    """The pictures of each round."""
    starts = range(0, len(images.labels), settings.pictures)
    return [images.select(range(s, min(s + settings.pictures, len(images.labels)))) for s in starts]


def _fit_head(model: Any, images: CellImages, settings: PredictSettings) -> float:
    """Fit the head on tokens computed once; the share of the same pictures it then gets right."""
    classifier = model.get_base_model()
    recipe = benchmark_recipe(settings.backbone, 1, Path("unused"))
    normalize = build_processor(recipe.data).normalize_batch
    batches = load_batches(images, 16, recipe, settings.device)
    labels = torch.cat([batch["labels"] for batch in batches])
    with torch.no_grad():
        tokens = torch.cat([_tokens(classifier, normalize(batch["pixel_values"])) for batch in batches])
    torch.manual_seed(0)  # of the dropout
    head = classifier.head.train()
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=_FIT_RATE)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2 if settings.quick else _FIT_STEPS):
        rows = torch.randperm(len(labels), generator=generator)[:_FIT_BATCH].to(labels.device)
        F.cross_entropy(head(tokens[rows])[0], labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    head.eval()
    with torch.no_grad():
        return (head(tokens)[0].argmax(-1) == labels).float().mean().item()


def _tokens(classifier: Any, pixels: torch.Tensor) -> torch.Tensor:
    tokens = classifier.backbone(pixels).last_hidden_state
    assert isinstance(tokens, torch.Tensor)
    return tokens


def _notes(settings: PredictSettings, answers: _Answers, right: float) -> list[str]:
    notes = [
        "Published: one picture at a time, float32, LoRA computed beside the frozen weights. Ours: LoRA merged, uint8 "
        "batches normalised inside the timing; in bfloat16 the backbone's weights are cast once a round and the head "
        "computes in float32. "
        + (
            "Both begin with the files: Pillow and albumentations' resize, against the decoder and the batches of "
            "`cytodino predict`, whose resize is Pillow's: their logits differ by the resize too."
            if settings.files
            else "Pictures decoded before."
        ),
        f"The head was fitted for {_FIT_STEPS} steps on the tokens of these pictures ({right:.0%} of them right "
        "afterwards), so that no logits tie; the backbone's weights are random.",
    ]
    whole = {name: _all_rounds(rounds) for name, rounds in answers.items() if rounds}
    if _PUBLISHED not in whole:
        return [*notes, "The published way did not fit into memory, so there is nothing to compare with."]
    reference = whole[_PUBLISHED]
    for name in _our_cells(settings):
        if name in whole:
            notes.append(f"{name}, against published: {compare_logits(reference, whole[name])}.")
    return notes


def _all_rounds(rounds: dict[int, torch.Tensor]) -> np.ndarray:
    kept: Sequence[torch.Tensor] = [rounds[number] for number in sorted(rounds) if number >= 0]
    return torch.cat(list(kept)).cpu().numpy()


def compare_logits(reference: np.ndarray, ours: np.ndarray) -> str:
    """How far two sets of logits (pictures, classes) agree, in words."""
    equal = int((reference.argmax(1) == ours.argmax(1)).sum())
    top = np.sort(reference, axis=1)
    margin = float(np.median(top[:, -1] - top[:, -2]))
    return (
        f"{equal} of {len(ours)} pictures with equal arg max ({equal / len(ours):.1%}), largest difference of a logit "
        f"{np.abs(reference - ours).max():.1e} (median lead of the first class {margin:.2g}, largest logit "
        f"{np.abs(reference).max():.2g})"
    )
