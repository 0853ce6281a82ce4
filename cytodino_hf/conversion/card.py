"""The README.md of a converted backbone: where it comes from, what was done to it, what it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .convert import Converted

_ORIGIN = {
    "dinobloom": (
        "DINOv2's architecture with LayerScale. The DinoBloom models (Koch et al. 2024, arXiv 2404.05022; "
        "doi 10.5281/zenodo.10908163) are of this kind, and so are DINOv2's own."
    ),
    "ibot": (
        "A plain vision transformer, as the models of iBOT (Zhou et al. 2022, arXiv 2111.07832) and DINO are."
    ),
}
_RESAMPLED = {
    False: (
        "to the exact number of patches; the original code asks for a tenth of a patch more, so features differ a "
        "little there"
    ),
    True: "with antialiasing, as the original code does for models with registers",
}


def card(converted: Converted) -> str:
    """Markdown for the folder; it claims nothing that the file does not show."""
    sizes = converted.sizes
    rows = {
        "File": f"`{converted.source}`",
        "sha256": f"`{converted.sha256}`",
        "Class": f"`{converted.architecture}`, {converted.dtype}",
        "Blocks, width, heads": f"{sizes.depth}, {sizes.width}, {converted.heads}",
        "Patch, picture": f"{sizes.patch} px, {sizes.image_size} px",
        "Register tokens": str(sizes.registers),
        "MLP": f"{'SwiGLU' if sizes.is_swiglu else 'GELU'}, {sizes.hidden}",
    }
    place = f"under `{converted.place}`" if converted.place else "at the top"
    points = [
        f"The weights lay {place} of the file. Nothing in it was executed. "
        "q, k and v, one matrix there, are three here.",
        *converted.notes,
        f"Left out, no part of a backbone: tensors of heads, {len(converted.dropped)} in all.",
        "Pictures are normalised with the statistics of ImageNet, as these projects do it.",
        f"At {sizes.image_size} px positions are used as they are. At other sizes transformers resamples them "
        f"{_RESAMPLED[sizes.registers > 0]}.",
    ]
    head = ["library_name: transformers", "pipeline_tag: image-feature-extraction", "license: other"]
    lines = [
        "---",
        *head,
        "license_name: that-of-the-converted-weights",
        "---",
        "",
        "# Converted backbone",
        "",
        f"Weights of another project, in the layout of transformers. {_ORIGIN[converted.kind]}",
        "",
        "The file does not say which model it is, nor under which licence it may be used: the terms of whoever "
        "published it apply to this folder as well. For research; not a medical device.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
        *(f"- {point}" for point in points),
        "",
    ]
    return "\n".join(lines)
