"""One image to pixels: the same as transformers reads, or an error with the file's name."""

from __future__ import annotations

import errno
import io
import os
import pickle
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hostile import cell, encoded
from PIL import Image, ImageFile

from cytodino_hf.data import images
from cytodino_hf.data.image_layout import read_layout
from cytodino_hf.data.images import MAX_BYTES, MAX_PIXELS, read_rgb, read_rgb_and_notes
from cytodino_hf.data.inspection.scan import look_at
from cytodino_hf.data.native_stderr import decoder_lines
from cytodino_hf.errors import DataError, MachineError


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
        assert pixels.flags.c_contiguous, name
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


def test_a_plain_jpeg_is_decoded_into_a_buffer_of_its_size_and_into_no_other(tmp_path: Path) -> None:
    jpeg = save(tmp_path / "cell.jpg", picture())
    turned = save(tmp_path / "turned.jpg", picture(), exif=oriented(6))
    png = save(tmp_path / "cell.png", picture())
    exact = 16 * 12 * 3
    cases = [(jpeg, exact, True), (jpeg, exact - 1, False), (jpeg, exact + 1, False)]
    for path, size, is_taken in [*cases, (png, exact, False), (turned, exact, False)]:
        buffer = np.zeros(size, np.uint8)
        pixels = read_rgb(path, buffer)
        np.testing.assert_array_equal(pixels, read_rgb(path))
        assert pixels.flags.c_contiguous
        assert pixels.flags.writeable
        assert np.shares_memory(pixels, buffer) == is_taken == buffer.any(), (path, size)


def test_a_failed_attempt_at_a_buffer_leaves_the_verdict_as_it_is() -> None:
    broken = {"path": "broken.jpg", "bytes": damaged_jpeg()}
    with pytest.raises(DataError) as plain:
        read_rgb(broken)
    with Image.open(io.BytesIO(broken["bytes"])) as header:
        size = header.width * header.height * 3
    with pytest.raises(DataError) as buffered:
        read_rgb(broken, np.zeros(size, np.uint8))
    assert str(buffered.value) == str(plain.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_rgb(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match="no regular file"):
        read_rgb(tmp_path)
    with pytest.raises(DataError, match="an image in memory: not an image"):
        read_rgb({"path": None, "bytes": b"text"})


def test_garbled_orientation_data_is_no_reason_to_stop(tmp_path: Path) -> None:
    good = encoded(picture(), "JPEG")
    segment = b"Exif\0\0" + b"II*\0\xff\xff\xff\xff" + b"\x07" * 40
    garbled = good[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + good[2:]
    path = tmp_path / "cell.jpg"
    path.write_bytes(garbled)
    np.testing.assert_array_equal(read_rgb(path), np.asarray(Image.open(io.BytesIO(good))))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cell.jpg")
    with pytest.raises(DataError, match="no regular file"):
        read_rgb(tmp_path / "cell.jpg")


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)  # root may read everything
    with pytest.raises(DataError, match=r"cell\.jpg: cannot be read .*Permission denied"):
        read_rgb(tmp_path / "cell.jpg")


def test_a_disk_that_fails_while_reading_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: int) -> os.stat_result:
        raise OSError(5, "Input/output error")

    path = save(tmp_path / "cell.jpg", picture())
    before = os.listdir("/proc/self/fd") if sys.platform == "linux" else []
    monkeypatch.setattr(os, "fstat", fail)
    with pytest.raises(MachineError, match=r"cell\.jpg: cannot be read now \(Input/output error\)"):
        read_rgb(path)
    monkeypatch.undo()
    assert len(before) == (len(os.listdir("/proc/self/fd")) if before else 0), "the file was left open"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EMFILE, "ulimit -n"),
        (errno.ENFILE, "fs.file-max"),
        (errno.ENOMEM, "free some memory"),
        (errno.EIO, "check the disk"),
    ],
)
def test_a_machine_in_trouble_does_not_cost_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    """A scan leaves out what raises a `DataError`; this must stop it, and is still told as a user reads errors."""

    def refuse(path: str, flags: int) -> int:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(MachineError, match=r"cell\.jpg: cannot be read now .*" + remedy) as raised:
        look_at(str(tmp_path / "cell.jpg"))
    assert not isinstance(raised.value, DataError)
    assert pickle.loads(pickle.dumps(raised.value)).args == raised.value.args  # it crosses from a worker


def claims(kind: str, width: int, height: int) -> bytes:
    """A small file whose header claims a size."""
    content = bytearray(encoded(cell(), kind))
    if kind == "JPEG":
        place = content.index(b"\xff\xc0") + 5
        content[place : place + 4] = struct.pack(">HH", height, width)
    elif kind == "BMP":
        content[18:26] = struct.pack("<ii", width, height)
    else:
        for tag, value in ((256, width), (257, height)):
            place = content.index(struct.pack("<HHI", tag, 4, 1)) + 8
            content[place : place + 4] = struct.pack("<I", value)
    return bytes(content)


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "TIFF"])
def test_size_is_judged_before_a_pixel_is_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(cv2, "imdecode", decode)
    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    side = 4097
    assert side * (side - 1) > MAX_PIXELS
    with pytest.raises(DataError, match=f"{side} x {side} pixels are more than {MAX_PIXELS}"):
        read_rgb({"path": "x", "bytes": claims(kind, side, side)})
    with pytest.raises(DataError, match="less than 8 on a side"):
        read_rgb({"path": "x", "bytes": claims(kind, side, 7)})
    with pytest.raises(DataError, match="a strip"):
        read_rgb({"path": "x", "bytes": claims(kind, 81, 10)})
    with pytest.raises((AssertionError, DataError), match="decoded"):
        read_rgb({"path": "x", "bytes": claims(kind, 80, 10)})


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    with open(path, "wb") as file:
        file.truncate(MAX_BYTES + 1)  # a hole: no disk is used
    start = time.process_time()
    with pytest.raises(DataError, match="cut single cells out"):
        read_rgb(path)
    assert time.process_time() - start < 0.05


def test_what_is_plain_is_decoded_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("Pillow was asked")

    plain = [("JPEG", "RGB", {}), ("JPEG", "L", {}), ("JPEG", "RGB", {"progressive": True, "quality": 95})]
    plain += [("PNG", "RGB", {"dpi": (300, 300)}), ("PNG", "RGBA", {}), ("PNG", "L", {})]
    files = [encoded(cell().convert(mode), kind, **options) for kind, mode, options in plain]
    expected = [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in files]
    monkeypatch.setattr(Image, "open", refuse)
    for content, pixels in zip(files, expected, strict=True):
        layout = read_layout(content)
        assert layout is not None
        assert (layout.width, layout.height, layout.bits) == (96, 96, 8)
        np.testing.assert_array_equal(read_rgb({"path": None, "bytes": content}), pixels)


def test_upright_photographs_with_exif_are_not_decoded_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(cell(), "JPEG", exif=oriented(1), icc_profile=b"profile" * 40)
    expected = np.asarray(Image.open(io.BytesIO(content)))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded by Pillow"))
    np.testing.assert_array_equal(read_rgb({"path": None, "bytes": content}), expected)


def test_the_verdict_does_not_hang_on_a_setting_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for kind in ("JPEG", "PNG"):
        content = encoded(cell(), kind)
        with pytest.raises(DataError, match="cut short"):
            read_rgb({"path": "x", "bytes": content[: len(content) // 2]})


def damaged_jpeg() -> bytes:
    content = encoded(cell(), "JPEG")
    return content[: len(content) // 2] + b"\xff\xd9"


def test_decoders_are_heard_and_stderr_stays_clean(capfd: pytest.CaptureFixture[str]) -> None:
    content = damaged_jpeg()
    cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert "premature end of data segment" in capfd.readouterr().err  # what is kept from the user's screen
    with pytest.raises(DataError, match="premature end of data segment"):
        read_rgb({"path": "x", "bytes": content})
    truncated = encoded(cell(), "TIFF")[:-3000]
    with pytest.raises(DataError, match="cannot be decoded"):
        read_rgb({"path": "x", "bytes": truncated})
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_what_others_write_to_stderr_meanwhile_arrives(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        os.write(2, b"a line of another thread\nlibpng warning: odd\nhalf a line")
        return 7

    result, lines = decoder_lines(work)
    assert result == 7
    assert lines == ("libpng warning: odd",)
    assert capfd.readouterr().err == "a line of another thread\nhalf a line"
    with pytest.raises(ZeroDivisionError):
        decoder_lines(lambda: 1 // 0)
    os.write(2, b"still there\n")
    assert capfd.readouterr().err == "still there\n"


def in_threads(work: Callable[[], None], count: int) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_do_not_hear_each_other() -> None:
    good, bad = encoded(cell(), "JPEG"), damaged_jpeg()
    verdicts: list[bool] = []

    def work() -> None:
        for number in range(40):
            content = bad if number % 2 else good
            try:
                read_rgb({"path": "x", "bytes": content})
                verdicts.append(content is good)
            except DataError:
                verdicts.append(content is bad)

    in_threads(work, 4)
    assert verdicts == [True] * 160


IN_FORKS = """
import os, sys, threading
sys.path.insert(0, sys.argv[1])
from test_images import damaged_jpeg, cell, encoded
from cytodino_hf.data.images import read_rgb
from cytodino_hf.errors import DataError
good, bad = encoded(cell(), "JPEG"), damaged_jpeg()
def verdict(content):
    try:
        read_rgb({"path": "x", "bytes": content})
        return True
    except DataError:
        return False
def right(times):
    return all(verdict(good) and not verdict(bad) for _ in range(times))
assert right(2)
stop = threading.Event()
busy = threading.Thread(target=lambda: [verdict(bad) for _ in iter(stop.is_set, True)])
busy.start()
children = []
for number in range(8):
    child = os.fork()
    if child == 0:
        fine = right(20)
        os.write(2, b"said by a child\\n")
        os._exit(0 if fine else 3)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
fine = right(20)
stop.set()
busy.join()
sys.exit(0 if fine and codes == [0] * 8 else 1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_forked_in_the_middle_decode_and_keep_their_stderr() -> None:
    here = Path(__file__).parent
    command = [sys.executable, "-W", "ignore", "-c", IN_FORKS, str(here)]
    environment = {**os.environ, "PYTHONPATH": str(here.parent)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "said by a child\n" * 8


def test_a_service_without_stderr_decodes_too() -> None:
    code = (
        "import os, sys; os.close(2); sys.path.insert(0, sys.argv[1])\n"
        "from test_images import damaged_jpeg, cell, encoded\n"
        "from cytodino_hf.data.images import read_rgb\n"
        "from cytodino_hf.errors import DataError\n"
        "read_rgb({'path': None, 'bytes': encoded(cell(), 'JPEG')})\n"
        "try: read_rgb({'path': None, 'bytes': damaged_jpeg()})\n"
        "except DataError: print('rejected')\n"
    )
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(here.parent)}
    command = [sys.executable, "-c", code, str(here)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, env=environment)
    assert result.stdout == "rejected\n"


def test_notes_tell_what_is_odd_of_an_image_that_is_read() -> None:
    two = encoded(cell(), "TIFF", save_all=True, append_images=[cell(1)])
    pixels, notes = read_rgb_and_notes({"path": None, "bytes": two})
    np.testing.assert_array_equal(pixels, np.asarray(cell()))
    assert notes == ("holds more than one picture; only the first is read",)
    assert read_rgb_and_notes({"path": None, "bytes": encoded(cell(), "TIFF")})[1] == ()


@pytest.mark.slow
def test_decoding_costs_little_more_than_opencv_alone(tmp_path: Path) -> None:
    from cytodino_hf.data.drawing import draw_cell, slide_look

    paths = []
    for number in range(40):
        pixels = draw_cell("BLA", slide_look(0, number, 0), np.random.default_rng(number))
        paths.append(str(save(tmp_path / f"{number}.jpg", Image.fromarray(pixels), quality=95)))

    def opencv(path: str) -> np.ndarray:
        with open(path, "rb") as file:
            return cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR_RGB)

    def seconds(work: Callable[[str], np.ndarray]) -> float:
        start = time.process_time()
        for path in paths:
            work(path)
        return time.process_time() - start

    rounds = [(seconds(read_rgb), seconds(opencv)) for _ in range(15)]
    ratio = float(np.median([ours / plain for ours, plain in rounds]))
    assert ratio < 1.25, f"{ratio:.2f} times the cost of cv2.imdecode; 1.06 were usual"


@pytest.mark.real_data
def test_every_real_jpeg_is_bit_equal_to_pillow(real_data: Path) -> None:
    paths = sorted((real_data / "mll7").rglob("*.jpg"))
    assert len(paths) == 1400
    for path in paths:
        pixels, notes = images.read_rgb_and_notes(path)
        assert notes == ()
        assert np.array_equal(pixels, np.asarray(Image.open(path).convert("RGB"))), path.name


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["mll7", "wbc_tecom"])
def test_real_images_are_read(real_data: Path, name: str) -> None:
    files = [p for p in sorted((real_data / name).rglob("*")) if p.suffix in (".jpg", ".png")][::29]
    assert files
    for path in files:
        height, width, channels = read_rgb(path).shape
        assert channels == 3
        assert min(height, width) > 100
