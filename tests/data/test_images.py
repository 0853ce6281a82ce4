"""One image to pixels: the same as transformers reads, or an error with the file's name."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cytodino_hf.data.images import MAX_PIXELS, read_rgb
from cytodino_hf.errors import DataError


def picture(mode: str = "RGB", size: tuple[int, int] = (16, 12)) -> Image.Image:
    rows, columns = np.mgrid[: size[1], : size[0]]
    pixels = np.stack([rows * 15, columns * 13, (rows + columns) * 7], axis=2).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def oriented(number: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif.tobytes()


def good_files(folder: Path) -> dict[str, Path]:
    transparent = picture("RGBA")
    transparent.putalpha(Image.fromarray(np.arange(192, dtype=np.uint8).reshape(12, 16)))
    return {
        "rgb": save(folder / "rgb.png", picture()),
        "grey": save(folder / "grey.jpg", picture("L")),
        "grey and alpha": save(folder / "la.png", picture("LA")),
        "alpha": save(folder / "rgba.png", transparent),
        "palette": save(folder / "palette.png", picture("P")),
        "one bit": save(folder / "bit.png", picture("1")),
        "cmyk": save(folder / "cmyk.jpg", picture("CMYK")),
        "webp": save(folder / "cell.webp", picture(), lossless=True),
        "wrong suffix": save(folder / "png.jpg", picture(), format="PNG"),
        "frames": save(folder / "many.tif", picture(), save_all=True, append_images=[picture().rotate(180)]),
        **{f"turned {n}": save(folder / f"{n}.jpg", picture(), exif=oriented(n)) for n in (1, 3, 6, 8)},
    }


def test_pixels_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers.image_utils import load_image

    for name, path in good_files(tmp_path).items():
        pixels = read_rgb(path)
        assert pixels.dtype == np.uint8, name
        assert pixels.flags.writeable, name
        np.testing.assert_array_equal(pixels, np.asarray(load_image(str(path))), err_msg=name)


def test_pixels_are_right_where_we_can_tell(tmp_path: Path) -> None:
    files = good_files(tmp_path)
    expected = np.asarray(picture())
    np.testing.assert_array_equal(read_rgb(files["rgb"]), expected)
    np.testing.assert_array_equal(
        read_rgb(str(files["alpha"])), expected
    )  # alpha dropped, not mixed with black
    assert read_rgb(files["turned 6"]).shape == (16, 12, 3)
    row = {"path": None, "bytes": files["rgb"].read_bytes()}
    np.testing.assert_array_equal(read_rgb(row), expected)
    np.testing.assert_array_equal(read_rgb({"path": str(files["rgb"]), "bytes": None}), expected)


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def flat_png(side: int) -> bytes:
    """A small PNG file of side x side black pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(side * (side + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def bad_files() -> dict[str, tuple[bytes, str]]:
    jpeg, png = encoded(picture(size=(64, 64)), "JPEG"), encoded(picture(size=(64, 64)), "PNG")
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0x5A
    deep = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
    real = Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8))
    side = int(MAX_PIXELS**0.5) + 1
    return {
        "empty": (b"", "not an image"),
        "text": (b"<html>403</html>", "not an image"),
        "header only": (jpeg[:200], "cannot be decoded|not an image"),
        "cut short": (jpeg[:-40], "cannot be decoded"),
        "two bytes short": (png[: len(png) // 2], "cannot be decoded"),
        "one byte flipped": (bytes(flipped), "cannot be decoded"),
        "16 bit": (encoded(deep, "TIFF"), "deeper than 8 bits"),
        "16 bit png": (encoded(deep, "PNG"), "deeper than 8 bits"),
        "float": (encoded(real, "TIFF"), "deeper than 8 bits"),
        "huge": (flat_png(side), f"{side} x {side} pixels are more than {MAX_PIXELS}"),
    }


@pytest.mark.parametrize(("content", "message"), bad_files().values(), ids=bad_files())
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "cell.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_rgb(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_rgb(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match="cannot be decoded"):
        read_rgb(tmp_path)


def test_garbled_orientation_data_is_no_reason_to_stop(tmp_path: Path) -> None:
    good = encoded(picture(), "JPEG")
    segment = b"Exif\0\0" + b"II*\0\xff\xff\xff\xff" + b"\x07" * 40
    garbled = good[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + good[2:]
    path = tmp_path / "cell.jpg"
    path.write_bytes(garbled)
    np.testing.assert_array_equal(read_rgb(path), np.asarray(Image.open(io.BytesIO(good))))


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["mll7", "wbc_tecom"])
def test_real_images_are_read(real_data: Path, name: str) -> None:
    files = [p for p in sorted((real_data / name).rglob("*")) if p.suffix in (".jpg", ".png")][::29]
    assert files
    for path in files:
        height, width, channels = read_rgb(path).shape
        assert channels == 3
        assert min(height, width) > 100
