"""The one place that says how a picture becomes numbers: hide a mark, cut the centre, resize, rescale, normalise.

Training, evaluation and `pipeline()` all go through this class. The data workers use its parts on uint8 pictures
(`hide_center`, `crop_and_resize`, `crop_and_resize_batch`), the device `normalize_batch`. All of them resize by
`resize_pictures`, so that their pixels are equal to the last bit.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling


class CytoDinoImageProcessor(PilBackend):
    """Cut a centred square of `crop_size` (not padded where the picture is smaller), then resize, then normalise.

    Unlike most processors the crop comes before the resize: `crop_size` is in pixels of the original picture, that
    is a physical size on the slide. `do_center_crop=False` uses the whole picture.

    Args:
        hide_center_px: Side of the square in the very centre of every picture that is painted over from its border;
            0 paints nothing. For sets where some pictures carry the annotator's mark there.
        kwargs: As for every image processor.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 - the form transformers reads
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 256, "width": 256}  # noqa: RUF012
    do_convert_rgb = True
    do_center_crop = False
    do_resize = True
    do_rescale = True
    do_normalize = True

    def __init__(self, hide_center_px: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hide_center_px = hide_center_px

    def hide_center(self, image: np.ndarray) -> np.ndarray:
        """Paint over the centre of every picture alike: uint8 (height, width, 3) -> a new array of the same kind."""
        return paint_over_center(image, self.hide_center_px) if self.hide_center_px else image

    def crop_and_resize(self, image: np.ndarray) -> np.ndarray:
        """The geometry alone: uint8 (height, width, 3) -> uint8 (size, size, 3), Pillow's bilinear with antialias."""
        return self._resized(self._cut(image)[None])[0]

    def crop_and_resize_batch(self, images: Sequence[np.ndarray] | np.ndarray, out: np.ndarray) -> None:
        """`crop_and_resize` of several pictures.

        Args:
            images: uint8 (height, width, 3) each; one array of all is cheapest.
            out: uint8 (images, size, size, 3), filled.
        """
        if isinstance(images, np.ndarray):
            self._resized(self._cut(images), out)
            return
        for place, image in enumerate(images):
            self._resized(self._cut(image)[None], out[place : place + 1])

    def size_after(self, image: np.ndarray) -> tuple[int, int]:
        """Height and width that `crop_and_resize` gives this picture."""
        if self.do_resize:
            return self.size["height"], self.size["width"]
        height, width = self._cut(image).shape[:2]
        return height, width

    def _cut(self, image: np.ndarray) -> np.ndarray:
        return center_square(image, self.crop_size["height"]) if self.do_center_crop else image

    def _resized(self, pictures: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        height, width = (self.size["height"], self.size["width"]) if self.do_resize else pictures.shape[1:3]
        return resize_pictures(pictures, height, width, self.resample, out)

    def normalize_batch(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (batch, 3, height, width) -> float32, with the same mean and deviation as `__call__`."""
        mean = _per_channel(tuple(self.image_mean), pixels.device)
        std = _per_channel(tuple(self.image_std), pixels.device)
        return (pixels.to(torch.float32) * self.rescale_factor).sub_(mean).div_(std)

    def _preprocess(
        self,
        images: list[np.ndarray],
        do_resize: bool,
        size: Any,
        resample: Any,
        do_center_crop: bool,
        crop_size: Any,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Any,
        image_std: Any,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        processed = []
        for image in images:  # (channels, height, width)
            picture = self.hide_center(np.moveaxis(image, 0, -1))
            if do_center_crop:
                picture = center_square(picture, crop_size.height)
            image = np.moveaxis(picture, -1, 0)
            if do_resize and image.shape[1:] != (size.height, size.width):
                image = self._resized_as_batches_are(image, size, resample)
            if do_rescale:
                image = self.rescale(image, rescale_factor)
            if do_normalize:
                image = self.normalize(image, image_mean, image_std)
            processed.append(image)
        return BatchFeature(data={"pixel_values": processed}, tensor_type=return_tensors)

    def _resized_as_batches_are(self, image: np.ndarray, size: Any, resample: Any) -> np.ndarray:
        if image.dtype != np.uint8 or len(image) != 3:
            return self.resize(image=image, size=size, resample=resample)
        picture = np.moveaxis(image, 0, -1)
        return np.moveaxis(resize_pictures(picture[None], size.height, size.width, resample)[0], -1, 0)


@functools.lru_cache(maxsize=32)
def _per_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """(1, channels, 1, 1) on the device: made once, since each copy to a GPU would hold up the training loop."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in training
        return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)


def resize_pictures(
    pictures: np.ndarray, height: int, width: int, resample: int, out: np.ndarray | None = None
) -> np.ndarray:
    """What Pillow's resize gives for every picture, to the last bit.

    Args:
        pictures: uint8 (pictures, height, width, 3).
        height: Wanted height.
        width: Wanted width.
        resample: Pillow's number of the filter.
        out: uint8 of the wanted size, contiguous, filled and returned; None for a new array.

    Returns:
        uint8 of the wanted size; without `out` the pictures themselves where they have it.
    """
    rows, columns = pictures.shape[1:3]
    if (rows, columns) == (height, width):
        resized = pictures
    elif resample == PILImageResampling.BILINEAR and _is_exact(rows, height) and _is_exact(columns, width):
        # Pictures out of a file that is mapped into memory cannot be written to, which torch warns of.
        batch = _channels_last(np.require(pictures, requirements=["C", "W"]))
        if out is not None:
            # What `interpolate` calls; that has no way to say where the result goes.
            aten, place = torch.ops.aten, _channels_last(out)
            aten._upsample_bilinear2d_aa.out(batch, [height, width], False, None, None, out=place)
            return out
        enlarged = torch.nn.functional.interpolate(batch, (height, width), mode="bilinear", antialias=True)
        return enlarged.permute(0, 2, 3, 1).numpy()
    else:
        resized = np.stack(
            [np.asarray(Image.fromarray(p).resize((width, height), resample=resample)) for p in pictures]
        )
    if out is None:
        return resized
    out[...] = resized
    return out


def _channels_last(pictures: np.ndarray) -> torch.Tensor:
    """The same memory as (pictures, channels, height, width).

    Channels last is said by strides: for a batch of one torch would take it for channels first.
    """
    count, height, width, channels = pictures.shape
    strides = (height * width * channels, 1, width * channels, channels)
    return torch.from_numpy(pictures).as_strided((count, channels, height, width), strides)


def _is_exact(length: int, size: int) -> bool:
    """Whether torch's bilinear weights, of 14 bits, are the same as Pillow's, of 22 bits, on one axis.

    Enlarging by `size / length` in lowest terms puts pixel centres on multiples of 1 / (2 size): where that is a
    power of two, weights have few binary digits, and both libraries do the same whole-number arithmetic.
    """
    steps = size // math.gcd(length, size)
    return length <= size and steps & (steps - 1) == 0 and steps <= 1 << 12


def center_square(image: np.ndarray, side_px: int) -> np.ndarray:
    """The centred square of (height, width, channels) pictures, one or several; a shorter side is kept whole."""
    height, width = image.shape[-3:-1]
    rows, columns = min(height, side_px), min(width, side_px)
    top, left = (height - rows) // 2, (width - columns) // 2
    return image[..., top : top + rows, left : left + columns, :]


def paint_over_center(image: np.ndarray, side_px: int) -> np.ndarray:
    """Fill the centred square from the pixels around it: each pixel is the mean of the two straight lines, across and
    down, between the pixels just outside. A picture smaller than the square and its border is left as it is."""
    height, width = image.shape[:2]
    if min(height, width) < side_px + 2:
        return image
    top, left = (height - side_px) // 2, (width - side_px) // 2
    bottom, right = top + side_px, left + side_px
    painted = image.copy()
    across = np.linspace(0, 1, side_px + 2)[1:-1]
    around = image[top - 1 : bottom + 1, left - 1 : right + 1].astype(np.float32)  # with one pixel of border
    down = (1 - across)[:, None, None] * around[0, 1:-1] + across[:, None, None] * around[-1, 1:-1]
    over = (1 - across)[:, None] * around[1:-1, 0, None] + across[:, None] * around[1:-1, -1, None]
    painted[top:bottom, left:right] = np.rint((down + over) / 2).astype(image.dtype)
    return painted


CytoDinoImageProcessor.register_for_auto_class("AutoImageProcessor")
