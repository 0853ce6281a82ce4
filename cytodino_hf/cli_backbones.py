"""`cytodino convert` and `cytodino explain`: backbones of others, and pictures of what a backbone sees."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    file: Annotated[Path, typer.Argument(help="Checkpoint: .pth, .pt or .safetensors.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist.", show_default=False)],
    kind: Annotated[
        str, typer.Option(help="dinobloom (DINOv2's architecture), ibot (a plain ViT), or auto.")
    ] = "auto",
    architecture: Annotated[
        str,
        typer.Option(help="dinov2 is what recipes take; vit writes a plain ViT as transformers' ViTModel."),
    ] = "dinov2",
    dtype: Annotated[
        str, typer.Option(help="Type of the written weights: keep, float32, bfloat16, float16.")
    ] = "keep",
    heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads; by default one for each 64 of the width.")
    ] = None,
) -> None:
    """Turn a checkpoint of DinoBloom, DINOv2 or iBOT into a folder for model.backbone; nothing in it is executed."""
    from .conversion.convert import convert as convert_file

    done = convert_file(file, out, kind=kind, architecture=architecture, dtype=dtype, heads=heads)
    sizes = done.sizes
    typer.echo(
        f"{out}: {done.architecture} in {done.dtype}, {sizes.depth} blocks, {sizes.width} wide, {done.heads} heads, "
        f"patches of {sizes.patch} px, pictures of {sizes.image_size} px; {len(done.dropped)} tensors of heads left out"
    )


def explain(
    backbone: Annotated[
        str,
        typer.Argument(
            help="Backbone: Hub id or folder; random:NAME is the same untrained. Or a classifier, such as a RUN.",
            show_default=False,
        ),
    ],
    images: Annotated[list[Path], typer.Argument(help="Image files.", show_default=False)],
    output: Annotated[Path, typer.Option(help="Folder for the pictures.", show_default=False)],
    image_size_px: Annotated[
        int | None,
        typer.Option(min=1, help="Longer side the model sees; by default 32 patches, or a classifier's own."),
    ] = None,
    pca: Annotated[
        str, typer.Option(help="Colours mean the same in all pictures (together), or in each its own (each).")
    ] = "together",
) -> None:
    """Draw what a backbone sees: patch features as colours (PCA), attention of the CLS token, head by head.

    Of a classifier it is the attention of its head's query, and its answer stands above the picture.

    "to 12 x even" says that the brightest patch gets 12 times what it would if all patches got the same.
    """
    from .evaluation.explain import explain_images

    done = explain_images(backbone, images, output, image_size_px=image_size_px, pca=pca)
    for problem in done.problems:
        typer.echo(f"problem: {problem}", err=True)
    if done.sheet:
        typer.echo(f"{output}: pictures of {len(done.pictures)} images; see {done.sheet}")
    if done.problems:
        raise typer.Exit(1)
