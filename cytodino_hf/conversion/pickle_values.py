"""Read a pickle as data: a small stack machine that builds plain values and calls nothing.

A pickle is a program; Python's unpickler runs it and can be made to call anything. Here the opcodes are only parsed
(`pickletools.genops`) and every name outside a short table of our own functions becomes an inert `Placeholder` with
the arguments it would have been called with. Nothing is imported by name and no attribute is set.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: More steps than any checkpoint needs (a tensor takes about 30); a small file could otherwise fill the memory.
MAX_STEPS = 2_000_000
# What a call may copy at the cost of its length.
_HAS_LENGTH = (list, tuple, dict, str, bytes, bytearray)


class PickleRefusedError(Exception):
    """The bytes are no whole pickle, or hold what is not read; without the name of the file."""


@dataclass(frozen=True, slots=True)
class Global:
    """A name that the pickle mentions; it is never looked up."""

    name: str


@dataclass(eq=False, slots=True)
class Placeholder:
    """What would have been an object of an unknown class.

    Args:
        name: Module and name of what would have been called.
        arguments: What it would have been called with.
        state: What its attributes would have been; for a configuration this is mostly what one looks for.
        content: Appended values, or (key, value) pairs.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    content: list[Any] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<{self.name}, not built>"


def read_pickle(
    data: bytes,
    calls: Mapping[str, Callable[..., Any]],
    load_stored: Callable[[Any], Any] | None = None,
) -> tuple[Any, int]:
    """Build the value of the first pickle in the bytes.

    Sets become lists. A dictionary keeps its entries under plain keys (text, numbers, bytes, None); any other key is
    replaced by a `Placeholder`.

    Args:
        data: Starts with a pickle; may go on after it.
        calls: Name -> our function that stands for it, called with the pickled arguments. It must be pure, and say
            by ValueError or TypeError what it does not take.
        load_stored: Turns a persistent id, such as that of a storage, into a value; None refuses them.

    Returns:
        The value, and how many bytes the pickle takes.

    Raises:
        PickleRefusedError: Cut short, damaged, or longer than `MAX_STEPS`.
    """
    return _Machine(calls, load_stored).run(data)


_PUSHED = frozenset(
    ["INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
     "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE",
     "BINUNICODE", "BINUNICODE8"]
)  # fmt: skip
_MADE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_MARKED: dict[str, Callable[[list[Any]], Any]] = {
    "LIST": list,
    "TUPLE": tuple,
    "FROZENSET": tuple,
    "DICT": lambda items: _with_pairs({}, items),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    def __init__(
        self, calls: Mapping[str, Callable[..., Any]], load_stored: Callable[[Any], Any] | None
    ) -> None:
        self.calls = calls
        self.load_stored = load_stored
        self.stack: list[Any] = []
        self.below_marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.steps = 0

    def count(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise PickleRefusedError(f"its pickle has more than {MAX_STEPS:,} steps")

    def run(self, data: bytes) -> tuple[Any, int]:
        try:
            for opcode, argument, position in pickletools.genops(data):
                self.count(1)
                if opcode.name == "STOP":
                    return self.stack.pop(), (position or 0) + 1
                self.step(opcode.name, argument)
        except (ValueError, TypeError, LookupError, OverflowError, struct.error) as error:
            raise PickleRefusedError(f"its pickle is damaged or cut short ({str(error)[:200]})") from error
        raise PickleRefusedError("its pickle is cut short")

    def step(self, name: str, argument: Any) -> None:
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in _MADE:
            self.stack.append(_MADE[name]())
        elif name in _MARKED:
            items = self.since_mark()
            self.stack.append(_MARKED[name](items))
        elif name in _TUPLES:
            self.stack.append(tuple(self.take(_TUPLES[name])))
        else:
            action = getattr(self, f"do_{name.lower()}", None)
            if action is None:
                raise ValueError(f"opcode {name} is not read")
            action(argument)

    def take(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below_marks.pop()
        return items

    def call(self, function: Any, arguments: Any) -> Any:
        """What stands for a call: a value of our own function, or a placeholder."""
        name = function.name if isinstance(function, Global) else repr(type(function).__name__)
        given = arguments if isinstance(arguments, tuple) else (arguments,)
        # One long value can be handed to many calls, each of which may copy it.
        self.count(len(given) + sum(len(value) for value in given if isinstance(value, _HAS_LENGTH)))
        ours = self.calls.get(name) if isinstance(function, Global) else None
        return Placeholder(name, given) if ours is None else ours(*given)

    def do_proto(self, argument: Any) -> None:
        pass

    def do_frame(self, argument: Any) -> None:
        pass

    def do_mark(self, argument: Any) -> None:
        self.below_marks.append(self.stack)
        self.stack = []

    def do_pop(self, argument: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def do_pop_mark(self, argument: Any) -> None:
        self.since_mark()

    def do_dup(self, argument: Any) -> None:
        self.stack.append(self.stack[-1])

    def do_get(self, argument: int) -> None:
        self.stack.append(self.memo[argument])

    do_binget = do_long_binget = do_get

    def do_put(self, argument: int) -> None:
        self.memo[argument] = self.stack[-1]

    do_binput = do_long_binput = do_put

    def do_memoize(self, argument: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def do_global(self, argument: str) -> None:
        self.stack.append(Global(argument.replace(" ", ".", 1)))

    def do_stack_global(self, argument: Any) -> None:
        module, name = self.take(2)
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a global is not named by text")
        self.stack.append(Global(f"{module}.{name}"))

    def do_ext1(self, argument: int) -> None:
        # A number agreed on in copyreg's table of another process; it means nothing here.
        self.stack.append(Global(f"copyreg extension {argument}"))

    do_ext2 = do_ext4 = do_ext1

    def do_reduce(self, argument: Any) -> None:
        function, arguments = self.take(2)
        self.stack.append(self.call(function, arguments))

    do_newobj = do_reduce

    def do_newobj_ex(self, argument: Any) -> None:
        function, arguments, keywords = self.take(3)
        if keywords:
            arguments = (arguments, keywords)
        self.stack.append(self.call(function, arguments))

    def do_obj(self, argument: Any) -> None:
        function, *arguments = self.since_mark()
        self.stack.append(self.call(function, tuple(arguments)))

    def do_inst(self, argument: str) -> None:
        arguments = tuple(self.since_mark())
        self.stack.append(self.call(Global(argument.replace(" ", ".", 1)), arguments))

    def do_build(self, argument: Any) -> None:
        (state,) = self.take(1)
        if isinstance(self.stack[-1], Placeholder):
            self.stack[-1].state = state
        # Else the attributes of a dictionary (`_metadata` of a state dict) or of a tensor: not needed.

    def do_append(self, argument: Any) -> None:
        self.extend(self.take(1))

    def do_appends(self, argument: Any) -> None:
        self.extend(self.since_mark())

    do_additems = do_appends

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Placeholder):
            target = target.content
        if not isinstance(target, list):
            raise ValueError(f"values are appended to a {type(target).__name__}")
        target.extend(values)

    def do_setitem(self, argument: Any) -> None:
        pair = self.take(2)
        self.set_items(pair)

    def do_setitems(self, argument: Any) -> None:
        items = self.since_mark()
        self.set_items(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Placeholder):
            target.content.extend(zip(items[::2], items[1::2], strict=True))
        elif isinstance(target, dict):
            _with_pairs(target, items)
        else:
            raise ValueError(f"entries are set in a {type(target).__name__}")

    def do_persid(self, argument: str) -> None:
        self.stack.append(self.stored(argument))

    def do_binpersid(self, argument: Any) -> None:
        (identity,) = self.take(1)
        self.stack.append(self.stored(identity))

    def stored(self, identity: Any) -> Any:
        if self.load_stored is None:
            raise ValueError("it refers to something stored elsewhere")
        return self.load_stored(identity)


def _with_pairs(target: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Hashing a deeply nested tuple can take for ever or overflow the stack of the process.
        is_plain = key is None or isinstance(key, str | int | float | bytes)
        target[key if is_plain else Placeholder("key")] = value
    return target
