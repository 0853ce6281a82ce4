"""The one place that says how a picture becomes numbers: hide a mark, cut the centre, resize, rescale, normalise.

Training, evaluation and `pipeline()` all go through this class. Training uses its parts: `hide_center` and
`crop_and_resize` in the data workers (uint8), `normalize_batch` once on the device.
"""

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
        if self.do_center_crop:
            image = center_square(image, self.crop_size["height"])
        if not self.do_resize:
            return image
        width, height = self.size["width"], self.size["height"]
        if image.shape[:2] == (height, width):
            return image
        return np.asarray(Image.fromarray(image).resize((width, height), resample=self.resample))

    def normalize_batch(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (batch, 3, height, width) -> float32, with the same mean and deviation as `__call__`."""
        mean = torch.tensor(self.image_mean, dtype=torch.float32, device=pixels.device).view(1, -1, 1, 1)
        std = torch.tensor(self.image_std, dtype=torch.float32, device=pixels.device).view(1, -1, 1, 1)
        return (pixels.to(torch.float32) * self.rescale_factor - mean) / std

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
                image = self.resize(image=image, size=size, resample=resample)
            if do_rescale:
                image = self.rescale(image, rescale_factor)
            if do_normalize:
                image = self.normalize(image, image_mean, image_std)
            processed.append(image)
        return BatchFeature(data={"pixel_values": processed}, tensor_type=return_tensors)


def center_square(image: np.ndarray, side_px: int) -> np.ndarray:
    """The centred square of a (height, width, channels) picture; a shorter side is kept whole."""
    height, width = image.shape[:2]
    rows, columns = min(height, side_px), min(width, side_px)
    top, left = (height - rows) // 2, (width - columns) // 2
    return image[top : top + rows, left : left + columns]


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
    around = image.astype(np.float32)
    rows, columns = slice(top, bottom), slice(left, right)
    down = (1 - across)[:, None, None] * around[top - 1, columns] + across[:, None, None] * around[
        bottom, columns
    ]
    over = (1 - across)[:, None] * around[rows, left - 1, None] + across[:, None] * around[rows, right, None]
    painted[rows, columns] = np.rint((down + over) / 2).astype(image.dtype)
    return painted


CytoDinoImageProcessor.register_for_auto_class("AutoImageProcessor")
