"""Tensors out of files of weights: equal to what torch reads, and nothing in hostile files is executed."""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cytodino_hf.conversion.pickle_values import PickleRefusedError, Placeholder, read_pickle
from cytodino_hf.conversion.pickled_tensors import MAX_PICKLE_BYTES, open_weights
from cytodino_hf.conversion.stored_tensors import StoredTensor, rebuild_functions
from cytodino_hf.errors import WeightsFileError

FORMATS: dict[str, dict[str, Any]] = {
    "zip": {},
    "zip, protocol 4": {"pickle_protocol": 4},
    "stream": {"_use_new_zipfile_serialization": False},
    "stream, protocol 5": {"_use_new_zipfile_serialization": False, "pickle_protocol": 5},
}


class Config:
    """Stands for a class of somebody else's."""

    def __init__(self) -> None:
        self.expansion = 64
        self.module_name = "resid"


def everything() -> dict[str, Any]:
    layer = torch.nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    shared = torch.arange(24.0)
    return {
        "teacher": layer.state_dict(),
        "optimizer": optimizer.state_dict(),
        "parameter": torch.nn.Parameter(torch.tensor([1.5, -2.0]).bfloat16()),
        "half": torch.tensor([1.0, 65504.0]).half(),
        "double": torch.tensor([1e300], dtype=torch.float64),
        "integers": torch.tensor([[-1, 2**40]]),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 3),
        "transposed": torch.arange(12).reshape(3, 4).t()[1:],
        "shared": [shared[2:5], shared[10:], shared.reshape(4, 6)[:, 1]],
        "plain": (None, True, 1.5, "text", b"bytes", -(2**70), {1, 2}, torch.Size([2, 3])),
        "default": collections.defaultdict(list, {"a": [1]}),
        "args": argparse.Namespace(arch="vit_small", patch_size=16),
        "cfg": Config(),
    }


def assert_same(saved: Any, read: Any, where: str = "") -> None:
    if isinstance(saved, torch.Tensor):
        assert isinstance(read, StoredTensor), where
        assert (read.shape, read.dtype) == (tuple(saved.shape), saved.dtype), where
        tensor = read.read()
        assert tensor.is_contiguous(), where
        assert tensor.dtype == saved.dtype, where
        assert torch.equal(tensor, saved), where
    elif isinstance(saved, dict):
        assert list(saved) == list(read), where
        for key, value in saved.items():
            assert_same(value, read[key], f"{where}/{key}")
    elif isinstance(saved, set):
        assert set(read) == saved
    elif isinstance(saved, list | tuple):
        assert len(saved) == len(read)
        for i, value in enumerate(saved):
            assert_same(value, read[i], f"{where}[{i}]")
    elif isinstance(saved, argparse.Namespace | Config):
        assert isinstance(read, Placeholder), where
        assert read.name.endswith(type(saved).__name__)
        assert read.state == vars(saved)
    elif isinstance(saved, bytes) and isinstance(read, Placeholder):
        assert read.name == "_codecs.encode"  # how protocol 2 writes bytes: a call like any other
    else:
        assert saved == read, where


@pytest.mark.parametrize("options", FORMATS.values(), ids=list(FORMATS))
def test_everything_that_was_saved_is_read(tmp_path: Path, options: dict[str, Any]) -> None:
    saved = everything()
    torch.save(saved, tmp_path / "weights.pt", **options)
    with open_weights(tmp_path / "weights.pt") as values:
        assert_same(saved, values)


def test_untyped_storages_and_safetensors_are_read(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2]).to(torch.int16)}
    save_file(tensors, tmp_path / "weights.pth")  # the suffix says nothing
    with open_weights(tmp_path / "weights.pth") as values:
        assert_same(tensors, values)


def test_a_new_type_of_number_is_read_through_an_untyped_storage(tmp_path: Path) -> None:
    content = pickle_of_a_tensor(
        rebuild="_rebuild_tensor_v3", storage="torch.storage UntypedStorage", elements=8
    )
    write_zip(tmp_path / "w.pt", content, {"0": struct.pack("<2i", 7, -9)})
    with open_weights(tmp_path / "w.pt") as values:
        assert values["x"].read().tolist() == [7, -9]


def pickle_of_a_tensor(
    *,
    rebuild: str = "_rebuild_tensor_v2",
    storage: str = "torch FloatStorage",
    elements: int = 2,
    offset: int = 0,
    shape: tuple[int, ...] = (2,),
    stride: tuple[int, ...] = (1,),
    key: str = "0",
) -> bytes:
    """`{"x": tensor}` as torch.save writes it, with every number ours to choose."""

    def value(v: Any) -> bytes:
        return pickle.dumps(v, protocol=2)[2:-1]

    module, name = storage.split()
    persistent = (
        b"("
        + value("storage")
        + f"c{module}\n{name}\n".encode()
        + value(key)
        + value("cpu")
        + value(elements)
        + b"tQ"
    )
    last = b"ctorch\nint32\n" if rebuild.endswith("v3") else b""
    call = (
        f"ctorch._utils\n{rebuild}\n".encode()
        + b"("
        + persistent
        + value(offset)
        + value(shape)
        + value(stride)
    )
    return b"\x80\x02}" + value("x") + call + b"\x89N" + last + b"tRs."


def write_zip(path: Path, content: bytes, data: dict[str, bytes], compress: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr("archive/data.pkl", content)
        for key, numbers in data.items():
            archive.writestr(f"archive/data/{key}", numbers)


class Payload:
    """Makes a file when a real unpickler meets it."""

    def __init__(self, call: tuple[Any, ...]) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


def hostile_pickles(target: Path) -> dict[str, bytes]:
    """Programs that make `target` if they are run, in as many ways as opcodes and standard functions give."""
    command, code = f"touch {target}", f"open({str(target)!r}, 'w').close()"
    calls = {
        "os.system": (os.system, (command,)),
        "eval": (eval, (code,)),
        "exec": (exec, (code,)),
        "getattr": (__import__("subprocess").call, (["touch", str(target)],)),
    }
    made = {
        f"{name}, protocol {protocol}": pickle.dumps({"x": [Payload(call)]}, protocol=protocol)
        for name, call in calls.items()
        for protocol in (0, 1, 2, 4)
    }
    text = command.encode()
    made |= {
        "INST": b"(S'" + text + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'" + text + b"'\no.",
        "in a dictionary's key": b"}cos\nsystem\n(S'" + text + b"'\ntRNs.",
        "nested in arguments": b"cbuiltins\nlist\n((cos\nsystem\n(S'" + text + b"'\ntRltR.",
        "apply": b"cbuiltins\nmap\n(cos\nsystem\n](S'" + text + b"'\netR.",
        "as a storage": b"(S'storage'\ncos\nsystem\n(S'" + text + b"'\ntRS'0'\nS'cpu'\nK\x02tQ.",
        "as an OrderedDict": b"ccollections\nOrderedDict\n(cos\nsystem\n(S'" + text + b"'\ntRtR.",
        "copyreg": b"ccopyreg\n_reconstructor\n(cos\nsystem\nc__builtin__\nobject\nNtR(S'" + text + b"'\ntb.",
        "code object": b"cbuiltins\neval\n(S'" + code.replace("'", '"').encode() + b"'\ntR.",
    }
    return made


@pytest.mark.parametrize("where", ["zip", "stream", "bare"])
def test_nothing_in_a_hostile_file_is_executed(tmp_path: Path, where: str) -> None:
    target = tmp_path / "executed"
    ran = 0
    for name, content in hostile_pickles(target).items():
        path = tmp_path / "weights.pt"
        if where == "zip":
            write_zip(path, content, {})
        else:
            start = b"".join(
                pickle.dumps(v, protocol=2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
            )
            path.write_bytes((start if where == "stream" else b"") + content)
        with contextlib.suppress(WeightsFileError), open_weights(path) as values:
            assert repr(values)
        assert not target.exists(), name
        # The payload is real: Python's own unpickler runs it.
        with contextlib.suppress(Exception):  # whatever comes after the payload
            pickle.loads(content)
        ran += target.exists()
        target.unlink(missing_ok=True)
    assert ran >= 18


def test_what_would_have_been_called_can_be_looked_at() -> None:
    value, length = read_pickle(pickle.dumps({"x": Payload((os.system, ("touch /nowhere",)))}) + b"rest", {})
    assert isinstance(value["x"], Placeholder)
    assert value["x"].name.endswith(".system")
    assert value["x"].arguments == ("touch /nowhere",)
    assert length == len(pickle.dumps({"x": Payload((os.system, ("touch /nowhere",)))}))


def test_a_small_file_cannot_fill_the_memory_or_take_for_ever() -> None:
    # Doubled tuples as a key would be hashed 2^60 times; 300,000 nested ones would overflow the C stack.
    doubled = b"\x80\x02})" + b"2\x86" * 60 + b"Ns."
    nested = b"\x80\x02})" + b"\x85" * 300_000 + b"Ns."
    for content in (doubled, nested):
        value, _ = read_pickle(content, {})
        assert [type(key) for key in value] == [Placeholder]
        del value
    with pytest.raises(PickleRefusedError, match="steps"):
        read_pickle(b"\x80\x02" + b"}" * 2_000_100 + b".", {})
    # A list of 3,000 handed to 3,000 calls that copy it.
    many = b"\x80\x02](" + b"N" * 3000 + b"eq\x000" + b"cbuiltins\nset\nh\x00\x85R0" * 3000 + b"N."
    with pytest.raises(PickleRefusedError, match="steps"):
        read_pickle(many, {"builtins.set": lambda values: list(values)})
    # A megabyte handed to calls that make a tuple of its bytes.
    text = b"\x80\x02B" + struct.pack("<i", 10**6) + bytes(10**6) + b"q\x000"
    text += b"ctorch\nSize\nh\x00\x85R0" * 20 + b"N."
    with pytest.raises(PickleRefusedError, match="steps"):
        read_pickle(text, {"torch.Size": tuple})


def test_a_type_that_is_none_is_named_without_its_text() -> None:
    doubled: Any = ()
    for _ in range(60):  # its text would have 2^60 brackets
        doubled = (doubled, doubled)
    with pytest.raises(ValueError, match="a tensor of the type tuple"):
        rebuild_functions()["torch._utils._rebuild_tensor_v3"](None, 0, (), (), False, None, doubled)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x80", b"\x80\x02", b"\x80\x02.", b"\x80\x02}", b"\x80\x02t.", b"\x80\x02K\x01s.", b"\x80\x02h\x07.",
        b"\x80\x02NR.", b"\x80\x02X\xff\xff\xff\xffab.", b"\x80\x02\x8a\xff\x01.", b"\x80\x02N(e.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"x.", b"\x80\x02\x8b\xff\xff\xff\x7f\x00.", b"\x80\x02N\x97.",
        b"\x80\x02K\x00K\x01\x93.", b"\x80\x02(NNd0(Nd.", b"I99x\n.", b"\xff\xfe",
    ],
)  # fmt: skip
def test_damaged_pickles_are_refused_by_name(content: bytes) -> None:
    with pytest.raises(PickleRefusedError) as raised:
        read_pickle(content, {})
    assert len(str(raised.value)) < 300


def read_all(path: Path) -> None:
    with open_weights(path) as values:
        found = values.get("teacher") if isinstance(values, dict) else None
        for tensor in found.values() if isinstance(found, dict) else ():
            if isinstance(tensor, StoredTensor):
                tensor.read()


def test_every_cut_of_a_file_is_noticed(tmp_path: Path) -> None:
    tensors = {"teacher": {f"w{i}": torch.arange(40.0) + i for i in range(3)}}
    for options in FORMATS.values():
        buffer = io.BytesIO()
        torch.save(tensors, buffer, **options)
        whole = buffer.getvalue()
        path = tmp_path / "weights.pt"
        for length in range(0, len(whole), max(1, len(whole) // 60)):
            path.write_bytes(whole[:length])
            with pytest.raises(WeightsFileError, match=r"weights\.pt"):
                read_all(path)


def test_changed_bytes_give_the_same_numbers_or_a_named_error(tmp_path: Path) -> None:
    tensors = {"teacher": {f"w{i}": torch.arange(10.0) + i for i in range(2)}}
    for options in FORMATS.values():
        buffer = io.BytesIO()
        torch.save(tensors, buffer, **options)
        whole = buffer.getvalue()
        path = tmp_path / "weights.pt"
        for place in range(0, len(whole), max(1, len(whole) // 150)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
            with contextlib.suppress(WeightsFileError):  # any other error fails the test
                read_all(path)


def _overlapping(path: Path) -> None:
    write_zip(path, pickle_of_a_tensor(), {"0": bytes(8)})
    content = bytearray(path.read_bytes())
    place = content.rfind(b"PK\x01\x02")
    content[place + 20 : place + 28] = struct.pack("<2I", 10**6, 10**6)  # sizes in the central directory
    path.write_bytes(content)


def _any_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")


def _big_pickle(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(MAX_PICKLE_BYTES + 1))


HOSTILE_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "compressed": (
        lambda p: write_zip(p, pickle_of_a_tensor(), {"0": bytes(10**7)}, zipfile.ZIP_DEFLATED), "compressed"
    ),
    "entries over each other": (_overlapping, "lie over each other|damaged"),
    "a huge pickle": (_big_pickle, "larger than"),
    "one number repeated": (
        lambda p: write_zip(p, pickle_of_a_tensor(shape=(10**12,), stride=(0,)), {"0": bytes(8)}), "not enough"
    ),
    "beyond its storage": (lambda p: write_zip(p, pickle_of_a_tensor(offset=1), {"0": bytes(8)}), "not enough"),
    "an endless empty shape": (
        lambda p: write_zip(p, pickle_of_a_tensor(shape=(2**70, 0), stride=(1, 1)), {"0": bytes(8)}), "shape"
    ),
    "negative offset": (lambda p: write_zip(p, pickle_of_a_tensor(offset=-1), {"0": bytes(8)}), "offset"),
    "storage shorter than said": (
        lambda p: write_zip(p, pickle_of_a_tensor(elements=99), {"0": bytes(8)}), "not enough"
    ),
    "no storage": (lambda p: write_zip(p, pickle_of_a_tensor(), {}), "cut short"),
    "a path out of the archive": (
        lambda p: write_zip(p, pickle_of_a_tensor(key="../../../etc/passwd"), {"0": bytes(8)}), "cut short"
    ),
    "unknown numbers": (
        lambda p: write_zip(p, pickle_of_a_tensor(storage="torch QInt8Storage"), {"0": bytes(8)}), "QInt8"
    ),
    "TorchScript": (
        lambda p: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(p)), "TorchScript"
    ),
    "any zip": (_any_zip, "none that torch.save wrote"),
    "any pickle": (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "none that torch.save wrote"),
    "a web page": (lambda p: p.write_text("<!DOCTYPE html><html></html>"), "web page"),
    "a git LFS pointer": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs"),
    "an empty file": (lambda p: p.write_bytes(b""), "empty"),
    "a folder": (lambda p: p.mkdir(), "no regular file"),
    "nothing": (lambda p: None, "no such file"),
    "a pipe": (lambda p: os.mkfifo(p), "no regular file"),
    "safetensors cut short": (
        lambda p: (save_file({"a": torch.ones(9)}, p), p.write_bytes(p.read_bytes()[:-4])), "cut short"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_FILES)
def test_hostile_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    make, words = HOSTILE_FILES[name]
    path = tmp_path / "weights.pt"
    make(path)
    with pytest.raises(WeightsFileError, match=words) as raised, open_weights(path) as values:
        values["x"].read()
    assert "weights.pt" in str(raised.value)


def test_an_error_of_the_reader_of_the_values_is_its_own(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(OSError, match="disk is full"), open_weights(tmp_path / "w.pt"):
        raise OSError("disk is full")
