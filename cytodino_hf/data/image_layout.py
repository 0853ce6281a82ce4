"""What the header and the structure of a JPEG or PNG say before a pixel is decoded."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_SOF = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # start of a frame; ITU T.81, table B.1
_BASELINE, _EXTENDED, _PROGRESSIVE, _SCAN, _END = 0xC0, 0xC1, 0xC2, 0xDA, 0xD9
# Tables, JFIF and Adobe headers, comments. Others (EXIF, profiles, further pictures) need Pillow's eye.
_PLAIN_SEGMENTS = frozenset({_BASELINE, _EXTENDED, _PROGRESSIVE, 0xC4, 0xDB, 0xDD, 0xE0, 0xEE, 0xFE})
# Ordinary progressive files have about ten scans; thousands of empty ones in a small file cost hours.
_MAX_SCANS = 100
_GREY, _RGB, _RGBA = 0, 2, 6  # colour types of PNG
_PNG_CHANNELS = {_RGB: 3, 4: 2, _RGBA: 4}
# Chunks that change no pixel in any decoder, and their only right length.
_PLAIN_CHUNKS = {b"pHYs": 9, b"sRGB": 1, b"gAMA": 4, b"cHRM": 32, b"tIME": 7}


class BadLayoutError(ValueError):
    """The file is cut short or damaged; says how it shows."""


@dataclass(frozen=True)
class Layout:
    """A header, as far as it is needed to decide how to decode.

    Args:
        kind: "JPEG" or "PNG".
        width: Pixels.
        height: Pixels.
        bits: Bits of one value of one channel.
        channels: Channels as stored; 1 for a palette.
        is_plain: Nothing in the file could make two decoders differ: 8 bits, grey or three colours, no EXIF, no
            transparency by palette, one picture.
    """

    kind: str
    width: int
    height: int
    bits: int
    channels: int
    is_plain: bool


def read_layout(content: bytes) -> Layout | None:
    """Header and structure of a file in memory.

    Args:
        content: The whole file.

    Returns:
        None for all but JPEG and PNG.

    Raises:
        BadLayoutError: A JPEG without its end marker, a PNG with a chunk that is cut short or fails its checksum.
    """
    if content.startswith(_JPEG):
        return _jpeg_layout(content)
    if content.startswith(_PNG):
        return _png_layout(content)
    return None


def _jpeg_layout(content: bytes) -> Layout:
    """Walk the segments up to the first scan."""
    position = 2
    frame: Layout | None = None
    frame_marker = 0
    is_plain = True
    while True:
        marker, position = _next_marker(content, position)
        if marker == _END:
            raise BadLayoutError("cut short: no picture before its end")
        length = int.from_bytes(content[position : position + 2], "big")
        if length < 2 or position + length > len(content):
            raise BadLayoutError("cut short inside its header")
        if marker == _SCAN:
            break
        if marker in _SOF:
            is_plain &= frame is None
            frame = _jpeg_frame(content[position + 2 : position + length])
            frame_marker = marker
        is_plain &= marker in _PLAIN_SEGMENTS
        position += length
    if frame is None:
        raise BadLayoutError("damaged: no frame header before the picture")
    if content.rfind(b"\xff\xd9", position) < 0:
        raise BadLayoutError("cut short: its end marker is missing")
    # Coded data never hold a bare marker, so that counting bytes counts scans; one scan of all channels is the last.
    is_single = frame_marker != _PROGRESSIVE and content[position + 2] == frame.channels
    if not is_single and content.count(b"\xff\xda", position - 2) > _MAX_SCANS:
        raise BadLayoutError(f"more than {_MAX_SCANS} scans")
    return Layout("JPEG", frame.width, frame.height, frame.bits, frame.channels, is_plain and frame.is_plain)


def _next_marker(content: bytes, position: int) -> tuple[int, int]:
    """The marker at a position and the place after it; a marker may be preceded by fill bytes."""
    if content[position : position + 1] != b"\xff":
        raise BadLayoutError("damaged inside its header")
    while content[position : position + 1] == b"\xff":
        position += 1
    if position >= len(content):
        raise BadLayoutError("cut short inside its header")
    return content[position], position + 1


def _jpeg_frame(segment: bytes) -> Layout:
    if len(segment) < 6:
        raise BadLayoutError("cut short inside its header")
    bits, height, width, channels = struct.unpack(">BHHB", segment[:6])
    is_plain = bits == 8 and channels in (1, 3) and height > 0 and width > 0
    return Layout("JPEG", width, height, bits, channels, is_plain)


def _png_layout(content: bytes) -> Layout:
    """Walk all chunks: decoders differ in which checksums they look at and whether they miss the last chunk."""
    names: set[bytes] = set()
    is_plain = True
    header = b""
    for name, chunk in _png_chunks(content):
        if not names:
            if name != b"IHDR" or len(chunk) != 13:
                raise BadLayoutError("damaged inside its header")
            header = bytes(chunk)
        elif name not in (b"IDAT", b"IEND"):
            is_plain &= _PLAIN_CHUNKS.get(name) == len(chunk) and name not in names
        names.add(name)
    if b"IDAT" not in names:
        raise BadLayoutError("damaged: it has no pixels")
    width, height, bits, colours, _, _, interlace = struct.unpack(">IIBBBBB", header)
    is_plain &= bits == 8 and colours in (_GREY, _RGB, _RGBA) and interlace == 0
    return Layout("PNG", width, height, bits, _PNG_CHANNELS.get(colours, 1), is_plain)


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Name and data of every chunk up to the last, each checked."""
    view = memoryview(content)
    position = len(_PNG)
    while True:
        if position + 12 > len(content):
            raise BadLayoutError("cut short")
        length = int.from_bytes(view[position : position + 4], "big")
        end = position + 8 + length
        if end + 4 > len(content):
            raise BadLayoutError("cut short")
        name = bytes(view[position + 4 : position + 8])
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise BadLayoutError(f"damaged: the checksum of its part {name.decode('latin-1')!r} is wrong")
        yield name, view[position + 8 : end]
        if name == b"IEND":
            return
        position = end + 4
