"""The card of a pretrained backbone: what it is, what it saw, whose images those were, what it may be used for."""

from __future__ import annotations

from typing import Any

from ..environment import hardware
from ..publishing.licences import inherited_licence
from .history import unlisted


def card(record: dict[str, Any]) -> str:
    """README.md of the folder.

    Args:
        record: What `pretraining.json` holds.
    """
    return "\n".join([*_front_matter(record), "", *_body(record)]) + "\n"


def _front_matter(record: dict[str, Any]) -> list[str]:
    lines = ["---", "library_name: transformers", "pipeline_tag: image-feature-extraction"]
    lines += ["tags:", "- cytology", "- bone-marrow", "- self-supervised", "- ibot"]
    if (licence := inherited_licence(record["origin"])) is not None:
        base, name, link = licence
        is_own = name.endswith("-license")
        lines += (
            ["license: other", f"license_name: {name}", f"license_link: {link}"]
            if is_own
            else [f"license: {name}"]
        )
        lines += [f"base_model: {base}"]
    return [*lines, "---"]


def _body(record: dict[str, Any]) -> list[str]:
    recipe, training = record["recipe"], record["training"]
    views = recipe["views"]
    return [
        "# A backbone pretrained on cell images",
        "",
        f"A ViT of {record['parameters']:,} parameters, the teacher of an iBOT pretraining (self-distillation and "
        "masked patches; no label was used). It gives features of single cells and knows no class by itself.",
        "",
        "**Research use. Not a medical device; no diagnosis may rest on it.**",
        "",
        "```python",
        "from transformers import AutoModel",
        "",
        'backbone = AutoModel.from_pretrained("path/to/this/folder")',
        "```",
        "",
        'In a recipe of cytodino_hf: `"model": {"backbone": "path/to/this/folder"}`.',
        "",
        "## Where it began",
        "",
        *_origin(record["origin"]),
        "",
        "## Images",
        "",
        *_images(record["images"]),
        "",
        _lists(record["origin"]),
        "",
        "## Training",
        "",
        f"{training['steps']:,} steps of {training['images_seen'] // max(training['steps'], 1)} images "
        f"({training['images_seen']:,} drawn in all), two views of {views['global_size_px']} px each, "
        f"{training['seconds'] / 60:,.1f} minutes on {_hardware(record)}.",
        *_worth(training["log_history"]),
        "",
        "![loss, teacher's answers, rank of its features, neighbours](pretraining.png)",
        "",
        "The whole recipe, the log and the versions stand in `pretraining.json`.",
        "",
        "## Licence",
        "",
        _licence_in_words(record["origin"]),
    ]


def _origin(origin: dict[str, Any] | None) -> list[str]:
    if origin is None:
        return ["Random weights: it has seen no image but those below."]
    lines = [f"It goes on from `{origin['name']}`{_commit(origin)}, and has seen what that has seen."]
    while origin is not None:
        if "images" in origin:
            lines += ["", f"`{origin['name']}` was pretrained on:", "", *_images(origin["images"])]
        before = origin.get("origin")
        if before is not None:
            lines += ["", f"It went on from `{before['name']}`{_commit(before)} in its turn."]
        origin = before
    return lines


def _commit(origin: dict[str, Any]) -> str:
    return f" (commit {origin['commit']})" if origin.get("commit") else ""


def _lists(origin: dict[str, Any] | None) -> str:
    """What `images.csv` can be asked, and what nobody can say."""
    doubt = unlisted(origin)
    earlier = (
        ", and every one of earlier pretrainings (the column `pretraining` counts them; this is the last),"
        if origin is not None and origin.get("is_listed")
        else ""
    )
    text = (
        f"`images.csv` names every image of this pretraining{earlier} with its sha256, so that anybody can check that "
        "a test image was not among them."
    )
    if not doubt:
        return text
    names = " and ".join(f"`{name}`" for name in doubt)
    return f"{text} Which images {names} had seen before is not known here: no list of them came with it."


def _images(images: dict[str, Any]) -> list[str]:
    lines = ["| source | images | share of the draws | left out | whose |", "|---|---|---|---|---|"]
    for source in images["sources"]:
        left_out = "; ".join(f"{count:,} {reason}" for reason, count in source["left_out"].items())
        share, whose = f"{source['share_of_draws']:.0%}", source["attribution"] or "not stated"
        lines.append(
            f"| {source['name']} | {source['images']:,} | {share} | {left_out or 'none'} | {whose} |"
        )
    return [*lines, "", f"Never drawn: {images['held_out']}."]


def _hardware(record: dict[str, Any]) -> str:
    environment, training = record["environment"], record["training"]
    if not training["device"].startswith("cuda"):
        environment = environment | {"gpus": []}  # it had one, and did not use it
    return hardware(environment, processes=training["processes"])


def _worth(log: list[dict[str, Any]]) -> list[str]:
    """The first and the newest scores by neighbours."""
    scores = [row for row in log if "knn_images" in row]
    if not scores:
        return []
    first, last = scores[0], scores[-1]
    lines = [
        "",
        f"Nearest neighbours on the labelled set of the recipe: {last['knn_images']:,.0f} images of its validation "
        "fold by those of its training fold, 95 % interval over images, one seed:",
        "",
    ]
    lines += ["| | before | after |", "|---|---|---|"]
    for key in (key for key in last if key.startswith("knn") and key.endswith("accuracy")):
        neighbours, _, metric = key.removeprefix("knn").partition("_")
        name = f"{metric.replace('_', ' ')}, {neighbours} neighbour{'s' if neighbours != '1' else ''}"
        lines.append(f"| {name} | {_with_interval(first, key)} | {_with_interval(last, key)} |")
    return lines


def _with_interval(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.3f} ({row[f'{key}_low']:.3f} to {row[f'{key}_high']:.3f})"


def _licence_in_words(origin: dict[str, Any] | None) -> str:
    if (licence := inherited_licence(origin)) is not None:
        base, name, link = licence
        return f"The weights are derived from `{base}` and stand under its licence, {name} ({link})."
    return (
        "The images above are used under the licences named beside them; where these ask for attribution, give it with "
        "these weights."
    )
