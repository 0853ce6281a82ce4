"""Files and trees that try to break a data set, each with the answer of docs/data_policy.md.

Everything is made from drawn cells: nothing is downloaded, nothing lies in the repository.
"""

from __future__ import annotations

import functools
import io
import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cytodino_hf.data.drawing import draw_cell, slide_look

READ, NOTED, REJECTED, IGNORED, STOPS = "read", "read, with a note", "rejected", "ignored", "stops"


@dataclass(frozen=True)
class HostileFile:
    """One file in a class folder.

    Args:
        name: File name; bytes where it is no text.
        content: What is in it.
        kind: Its row in docs/data_policy.md.
        answer: One of the words above.
        reason: Regular expression found in the reason, or in the note.
    """

    name: str | bytes
    content: bytes
    kind: str
    answer: str
    reason: str = ""


@dataclass(frozen=True)
class HostileTree:
    """One folder of class folders; BLA and LYT hold three good images each unless `make` says otherwise.

    Args:
        kind: Its row in docs/data_policy.md.
        answer: `STOPS` raises on indexing; else what becomes of the odd entry.
        make: Adds what is odd to the root.
        reason: Regular expression found in the error or in the reason.
        extra: Paths of images that join the set.
        rejected: Paths that must be reported.
    """

    kind: str
    answer: str
    make: Callable[[Path], None]
    reason: str = ""
    extra: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()


def cell(number: int = 0, side: int = 96) -> Image.Image:
    """A drawn cell, a copy for each caller: saving leaves settings of the format on an image."""
    return _drawn(number, side).copy()


@functools.cache
def _drawn(number: int, side: int) -> Image.Image:
    picture = draw_cell("BLA", slide_look(0, number, 0), np.random.default_rng(number))
    return Image.fromarray(picture).resize((side, side))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The image as a file in memory."""
    buffer = io.BytesIO()
    image.copy().save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def flat_png(width: int, height: int) -> bytes:
    """A small PNG file of many black pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packer = zlib.compressobj(1)
    rows = bytes(100 * (width + 1))
    pixels = b"".join(packer.compress(rows) for _ in range(height // 100)) + packer.flush()
    body = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def exif(orientation: int) -> bytes:
    """EXIF data that say how the camera was held."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def without_bytes(jpeg: bytes, count: int) -> bytes:
    """A JPEG that lost bytes in its middle such that the decoder ends with bytes left over or too few."""
    start = len(jpeg) // 2
    return jpeg[:start] + jpeg[start + count :]


def files() -> Iterator[HostileFile]:
    """Every hostile file."""
    yield from _damaged()
    yield from _kinds_of_content()
    yield from _sizes()
    yield from _names()


def _damaged() -> Iterator[HostileFile]:
    jpeg, png = encoded(cell(side=160), "JPEG", quality=90), encoded(cell(), "PNG")
    progressive = encoded(cell(), "JPEG", quality=90, progressive=True)
    part = len(jpeg) * 2 // 5
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0x5A
    cut = "cut short"
    for name, content in {
        "cut.jpg": jpeg[:part],
        "cut_progressive.jpg": progressive[:part],
        "two_bytes_short.jpg": jpeg[:-2],
        "header_only.jpg": jpeg[:200],
        "start_only.jpg": jpeg[:3],
        "cut.png": png[: len(png) // 2],
        "without_its_last_chunk.png": png[:-12],
        "signature_only.png": png[:8],
    }.items():
        yield HostileFile(name, content, "file cut short", REJECTED, cut)
    for name, content in {
        "cut.bmp": encoded(cell(), "BMP")[:part],
        "cut.webp": encoded(cell(), "WEBP")[:500],
        "cut.tif": encoded(cell(), "TIFF", compression="tiff_adobe_deflate")[:part],
        "cut_inside_the_pixels.tif": encoded(cell(), "TIFF")[:-2000],
    }.items():
        yield HostileFile(name, content, "file cut short", REJECTED, "cannot be decoded|not an image")
    ended = "JPEG cut short with an end marker put back"
    yield HostileFile("ended.jpg", jpeg[:part] + b"\xff\xd9", ended, REJECTED, "premature end")
    half = progressive[: len(progressive) * 3 // 4] + b"\xff\xd9"
    yield HostileFile("ended_progressive.jpg", half, ended, REJECTED, "premature end")
    lost = "JPEG with bytes missing or changed"
    yield HostileFile("lost_500_bytes.jpg", without_bytes(jpeg, 500), lost, REJECTED, "damaged")
    twice = jpeg[: 2 * part] + jpeg[2 * part - 400 : 2 * part] + jpeg[2 * part :]
    yield HostileFile("twice.jpg", twice, lost, REJECTED, "damaged")
    yield HostileFile("flipped.png", bytes(flipped), "PNG with a wrong checksum", REJECTED, "checksum")
    text = "no image inside"
    for name, content, reason in (
        ("empty.jpg", b"", "an empty file"),
        ("text.jpg", b"this is not an image\n", "not an image"),
        ("error_page.jpg", b"<!DOCTYPE html><html><body>403</body></html>", "a web page"),
        (
            "pointer.jpg",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "git lfs pull",
        ),
        ("zeros.png", bytes(5000), "not an image"),
    ):
        yield HostileFile(name, content, text, REJECTED, reason)
    after = "bytes after the end"
    yield HostileFile("trailing.jpg", jpeg + bytes(512) + b"GARBAGE", after, READ)
    yield HostileFile("trailing.png", png + b"GARBAGE", after, READ)
    padded = jpeg[:-2] + bytes(40) + jpeg[-2:]
    yield HostileFile("padded_with_zeros.jpg", padded, "JPEG padded with zeros before its end", READ)
    bomb = progressive[:-2] + progressive[progressive.rindex(b"\xff\xda") : -2] * 200 + b"\xff\xd9"
    yield HostileFile("scans.jpg", bomb, "JPEG with more than 100 scans", REJECTED, "100 scans")
    comment = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"A" * 20_000_000, 9))
    text_bomb = png[:33] + comment + png[33:]
    yield HostileFile("text.png", text_bomb, "PNG with a huge compressed text", REJECTED, "too large")


def _kinds_of_content() -> Iterator[HostileFile]:
    image = cell()
    ramp = Image.fromarray(np.add.outer(np.arange(96), 2 * np.arange(96)).astype(np.uint8))
    seen, opaque = image.copy(), image.copy()
    seen.putalpha(ramp)
    opaque.putalpha(255)
    palette = image.quantize(32)
    plain = "plain JPEG, PNG, TIFF, BMP or WebP"
    yield HostileFile("plain.jpg", encoded(image, "JPEG"), plain, READ)
    yield HostileFile("progressive.jpg", encoded(image, "JPEG", progressive=True), plain, READ)
    yield HostileFile("restarts.jpg", encoded(image, "JPEG", restart_marker_blocks=3), plain, READ)
    yield HostileFile("plain.png", encoded(image, "PNG", dpi=(300, 300)), plain, READ)
    yield HostileFile("plain.tiff", encoded(image, "TIFF", compression="tiff_lzw"), plain, READ)
    yield HostileFile("plain.bmp", encoded(image, "BMP"), plain, READ)
    yield HostileFile("lossless.webp", encoded(image, "WEBP", lossless=True), plain, READ)
    wrong = "suffix of another kind that is read"
    yield HostileFile("png_inside.jpg", encoded(image, "PNG"), wrong, READ)
    yield HostileFile("jpeg_inside.png", encoded(image, "JPEG"), wrong, READ)
    grey = "grey, palette, one bit, transparency"
    for name, content in {
        "grey.jpg": encoded(image.convert("L"), "JPEG"),
        "grey.png": encoded(image.convert("L"), "PNG"),
        "alpha.png": encoded(seen, "PNG"),
        "grey_alpha.png": encoded(seen.convert("LA"), "PNG"),
        "opaque.tiff": encoded(opaque, "TIFF", compression="tiff_adobe_deflate"),
        "palette.png": encoded(palette, "PNG"),
        "palette_transparent.png": encoded(palette, "PNG", transparency=0),
        "one_bit.png": encoded(image.convert("1"), "PNG"),
    }.items():
        yield HostileFile(name, content, grey, READ)
    yield HostileFile("cmyk.jpg", encoded(image.convert("CMYK"), "JPEG"), "CMYK", NOTED, "colour profile")
    wide = image.resize((120, 96))
    for number in range(1, 9):
        turned = encoded(wide, "JPEG", exif=exif(number))
        yield HostileFile(f"turned_{number}.jpg", turned, "turned by EXIF", READ)
    deep = "more than 8 bits a channel"
    steps = np.asarray(image.convert("L"), np.uint16)
    yield HostileFile(
        "grey16.tif", encoded(Image.fromarray(steps * 257), "TIFF"), deep, REJECTED, "deeper than 8 bits"
    )
    yield HostileFile(
        "grey16.png", encoded(Image.fromarray(steps * 257), "PNG"), deep, REJECTED, "deeper than 8 bits"
    )
    real = Image.fromarray(steps.astype(np.float32) / 255)
    yield HostileFile("float.tif", encoded(real, "TIFF"), deep, REJECTED, "deeper than 8 bits")
    yield HostileFile(
        "int32.tif", encoded(Image.fromarray(steps.astype(np.int32)), "TIFF"), deep, REJECTED, "deeper"
    )
    yield HostileFile("colour12.png", _colour16(image, ".png"), deep, REJECTED, "deeper than 8 bits")
    yield HostileFile("colour12.tif", _colour16(image, ".tif"), deep, REJECTED, "deeper than 8 bits")
    frames = [cell(number) for number in (1, 2)]
    several = "several pictures in one file"
    for name, kind, options in (
        ("animated.png", "PNG", {}),
        ("pages.tif", "TIFF", {}),
        ("two.jpg", "MPO", {}),
    ):
        content = encoded(image, kind, save_all=True, append_images=frames, **options)
        yield HostileFile(name, content, several, NOTED, "only the first")
    animated = encoded(image, "WEBP", save_all=True, append_images=frames, lossless=True)
    yield HostileFile("animated.webp", animated, several, NOTED, "only the first")
    gif = encoded(image, "GIF", save_all=True, append_images=frames)
    other = "GIF, JPEG 2000, HEIC, SVS, CZI, DICOM and others"
    yield HostileFile("animated.gif", gif, other, REJECTED, r"\.gif files are not read")
    yield HostileFile("gif_inside.png", gif, other, REJECTED, "GIF")
    yield HostileFile("cell.JP2", encoded(image, "JPEG2000"), other, REJECTED, r"\.jp2 files are not read")
    yield HostileFile("jp2_inside.png", encoded(image, "JPEG2000"), other, REJECTED, "not an image of a kind")
    yield HostileFile(
        "program.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", other, REJECTED, "not an image"
    )


def _colour16(image: Image.Image, suffix: str) -> bytes:
    """12-bit colour in 16-bit numbers, as cameras save it; Pillow would make it nearly black."""
    import cv2

    _, content = cv2.imencode(suffix, np.asarray(image).astype(np.uint16) * 16)
    return content.tobytes()


def _sizes() -> Iterator[HostileFile]:
    image = cell()
    small = "smaller than 8 pixels on a side"
    for size in ((1, 1), (1, 2000), (3000, 2), (7, 7)):
        content = encoded(image.resize(size), "PNG")
        yield HostileFile("{}x{}.png".format(*size), content, small, REJECTED, "less than 8 on a side")
    yield HostileFile(
        "8x8.png", encoded(image.resize((8, 8)), "PNG"), "plain JPEG, PNG, TIFF, BMP or WebP", READ
    )
    strip = encoded(image.resize((16, 160)), "PNG")
    yield HostileFile("strip.png", strip, "more than 8 times as long as wide", REJECTED, "a strip")
    huge = "more than 4096 x 4096 pixels"
    yield HostileFile(
        "64_megapixels.png", flat_png(8000, 8000), huge, REJECTED, "8000 x 8000 pixels are more than"
    )
    bitmap = bytearray(encoded(image, "BMP"))
    bitmap[18:26] = struct.pack("<ii", 30000, 30000)
    yield HostileFile("900_megapixels.bmp", bytes(bitmap), huge, REJECTED, "more than 16777216 pixels")
    one = "one colour all over"
    for name, colour in (("black.png", "black"), ("white.png", "white"), ("pink.jpg", (200, 120, 160))):
        kind = "PNG" if name.endswith("png") else "JPEG"
        content = encoded(Image.new("RGB", (64, 64), colour), kind)
        yield HostileFile(name, content, one, REJECTED, "every pixel has the colour")


def _names() -> Iterator[HostileFile]:
    jpeg = encoded(cell(), "JPEG")
    side_car = bytes.fromhex("00051607000200004d6163204f532058") + bytes(106)
    beside = "files beside the images"
    for name, content in {
        "._plain.jpg": side_car,
        ".hidden.jpg": jpeg[:500],
        ".DS_Store": b"\0\0\0\1Bud1" + bytes(24),
        "Thumbs.db": bytes.fromhex("d0cf11e0a1b11ae1"),
        "desktop.ini": b"[.ShellClassInfo]\r\n",
        "notes.txt": b"notes\n",
        "plain.jpg.part": jpeg[:500],
        "no_suffix": jpeg,
    }.items():
        yield HostileFile(name, content, beside, IGNORED)
    odd = [
        "name with spaces.jpg", " leading.jpg", "trailing .jpg", "UPPER.JPG", "MiXed.JpEg", "ünï_细胞_🩸.jpg",
        "cafe\u0301.jpg", "caf\u00e9.jpg", "comma,semi;colon.jpg", "quote\"'.jpg", "-rf.jpg", "--help.jpg",
        "%s_%d{0}.jpg", "$(id).jpg", "=1+1.jpg", "a&b<c>.jpg", "two.dots.jpg", "new\nline.jpg", "tab\tname.jpg",
        "back\\slash.jpg", "x" * 251 + ".jpg", "~tilde.jpg", "#hash?.jpg", "CON.jpg", "photo.jfif",
    ]  # fmt: skip
    for name in odd:
        yield HostileFile(name, jpeg, "any name in UTF-8", READ)
    yield HostileFile(b"bad_\xff\xfe.jpg", jpeg, "a name that is not UTF-8", REJECTED, "not UTF-8")


def good_tree(root: Path, classes: tuple[str, ...] = ("BLA", "LYT")) -> Path:
    """Three good images a class."""
    for place, code in enumerate(classes):
        (root / code).mkdir(parents=True, exist_ok=True)
        for number in range(3):
            content = encoded(cell(10 * place + number, 64), "JPEG")
            (root / code / f"{code}_{number:05d}.jpg").write_bytes(content)
    return root


def put(root: Path, *paths: str, content: bytes | None = None) -> None:
    """Write a good image, or other content, under each path."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(encoded(cell(50 + number, 64), "JPEG") if content is None else content)


def link(root: Path, name: str, target: str | Path) -> None:
    """A symbolic link."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).symlink_to(target)


def outside(root: Path) -> Path:
    """A folder beside the root."""
    folder = root.parent / f"{root.name}_outside"
    folder.mkdir()
    return folder


def _link_to_a_file(root: Path) -> None:
    put(far := outside(root), "far.jpg")
    link(root, "BLA/near.jpg", far / "far.jpg")


def _link_to_no_image(root: Path) -> None:
    put(far := outside(root), "hostname", content=b"host\n")
    link(root, "BLA/near.jpg", far / "hostname")


def _class_folder_elsewhere(root: Path) -> None:
    put(far := outside(root), "MON_00001.jpg")
    link(root, "MON", far)


def trees() -> Iterator[HostileTree]:
    """Every hostile tree."""
    follow, loop = "link to a file", "link to a folder inside a class folder"
    yield HostileTree(follow, READ, _link_to_a_file, extra=("BLA/near.jpg",))
    dangling = "dangling link"
    yield HostileTree(
        dangling, REJECTED, lambda r: link(r, "BLA/x.jpg", "gone.jpg"), "dangling", rejected=("BLA/x.jpg",)
    )
    yield HostileTree(
        loop, REJECTED, lambda r: link(r, "BLA/loop", ".."), "not followed", rejected=("BLA/loop",)
    )
    yield HostileTree(
        "class folder that is a link elsewhere", READ, _class_folder_elsewhere, extra=("MON/MON_00001.jpg",)
    )
    back = "class folder that is a link to a folder of the set"
    yield HostileTree(back, REJECTED, lambda r: link(r, "MON", "."), "not followed", rejected=("MON",))
    yield HostileTree(back, REJECTED, lambda r: link(r, "MON", "LYT"), "not followed", rejected=("MON",))
    yield HostileTree(back, REJECTED, lambda r: link(r, "MON", "../.."), "not followed", rejected=("MON",))
    pipe = "pipe, socket or device"
    yield HostileTree(
        pipe, REJECTED, lambda r: os.mkfifo(r / "BLA/pipe.jpg"), "no regular file", rejected=("BLA/pipe.jpg",)
    )
    yield HostileTree(
        pipe,
        REJECTED,
        lambda r: link(r, "BLA/zero.jpg", "/dev/zero"),
        "no regular",
        rejected=("BLA/zero.jpg",),
    )
    folder = "folder with the name of an image"
    yield HostileTree(folder, READ, lambda r: put(r, "BLA/x.jpg/a.jpg"), extra=("BLA/x.jpg/a.jpg",))
    yield HostileTree(folder, IGNORED, lambda r: (r / "BLA/empty.jpg").mkdir())
    empty = "class folder without a usable name"
    yield HostileTree(empty, STOPS, lambda r: (r / "MON").mkdir(), "without a usable image: MON")
    yield HostileTree(empty, STOPS, lambda r: put(r, "MON/a.gif"), r"MON/a\.gif: \.gif files are not read")
    unknown = "class folder unknown to the taxonomy"
    yield HostileTree(unknown, STOPS, lambda r: put(r, "bla/a.jpg"), "Only the case differs: bla for BLA")
    yield HostileTree(unknown, STOPS, lambda r: put(r, "NEU/a.jpg"), "unknown to taxonomy 'mll': NEU")
    yield HostileTree(unknown, IGNORED, lambda r: put(r, "docs/readme.txt", content=b"text"))
    yield HostileTree(
        "image in no class folder",
        REJECTED,
        lambda r: put(r, "a.jpg"),
        "no class folder",
        rejected=("a.jpg",),
    )
    yield HostileTree(
        "folders of archives, editors and servers",
        IGNORED,
        lambda r: put(
            r, "__MACOSX/BLA/a.jpg", ".ipynb_checkpoints/a.jpg", "@eaDir/a.jpg", "BLA/.ipynb_checkpoints/a.jpg",
            "$RECYCLE.BIN/a.jpg", "BLA/@eaDir/a.jpg",
        ),
    )  # fmt: skip
    buckets = ("BLA/0001-1000/BLA_00001.jpg", "BLA/1001-2000/BLA_00001.jpg")
    yield HostileTree("one file name in two folders", READ, lambda r: put(r, *buckets), extra=buckets)
    twice = ("BLA/a.jpg", "BLA/a.png")
    yield HostileTree("one name with two suffixes", READ, lambda r: put(r, *twice), extra=twice)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """A file after one to five accidents: bits and bytes changed, lost, zeroed or put in, the end cut off."""
    bytes_ = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        if len(bytes_) < 30:
            break
        # Half of the accidents hit the header, which is short.
        place = rng.randrange(len(bytes_) if rng.random() < 0.5 else min(len(bytes_), 700))
        accident = rng.choice(("bit", "byte", "lose", "insert", "cut", "zero"))
        if accident == "bit":
            bytes_[place] ^= 1 << rng.randrange(8)
        elif accident == "byte":
            bytes_[place] = rng.choice((0, 255, rng.randrange(256)))
        elif accident == "lose":
            del bytes_[place : place + rng.choice((1, 2, 10, 100))]
        elif accident == "insert":
            bytes_[place:place] = rng.randbytes(rng.choice((1, 2, 8)))
        elif accident == "cut":
            del bytes_[max(place, 20) :]
        else:
            bytes_[place : place + 16] = bytes(len(bytes_[place : place + 16]))
    if rng.random() < 0.3:
        bytes_ += b"\xff\xd9"
    return bytes(bytes_)


def with_right_checksums(png: bytes) -> bytes:
    """A PNG whose checksums fit again, so that the damage is the decoder's to find."""
    parts, place = [png[:8]], 8
    while place + 12 <= len(png):
        length = int.from_bytes(png[place : place + 4], "big")
        if place + 12 + length > len(png):
            break
        parts.append(chunk(png[place + 4 : place + 8], png[place + 8 : place + 8 + length]))
        place += 12 + length
    return b"".join(parts)
