"""Loads untrusted pickles: runs only the pickle opcodes that arrays and plain containers need.

The standard ``Unpickler`` with a list of admitted names is not enough. Its memo can be told to grow to 64 GiB by five
bytes, a byte string to claim any length, and numpy's own ``__setstate__`` believes what a dtype says about its size
and whether it holds pointers. So the opcodes are run here, over the readers of ``pickletools`` (which read no further
than the data goes), and the names a pickle may call are stand-ins that build arrays from checked shapes and bytes.

Admitted: None, bool, int, float, str, bytes, list, tuple, dict, set, and numpy arrays, scalars and dtypes under the
module names of numpy 1 and 2. Everything else is refused by name, save what the caller wants as a placeholder. The
strings of Python 2 are read as Latin-1, and as bytes where an array has them for its contents.
"""

from __future__ import annotations

import codecs
import io
import math
import pickletools
import re
import reprlib
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from lrs3_loader.errors import RunError

MAX_OPCODES = 100_000  # an item of a binarised set has about a hundred

_DTYPE = re.compile(r"([<>=|]?)(b1|[iu][1248]|f[248]|c8|c16|[SU][1-9]\d{0,3}|O8?)")
_BY_CODE = {opcode.code: opcode for opcode in pickletools.opcodes}
_PYTHON_2 = {"copy_reg": "copyreg", "__builtin__": "builtins"}
_MAX_DIMS = 32
_MAX_SIZE = 1 << 62
_MAX_KEY = 1 << 60  # beyond it integers can be chosen whose hashes collide


class UnpickleError(RunError):
    """A pickle that is damaged, or that holds something not admitted."""


class Placeholder:
    """Stands for an object of another package: holds its class's name and its state, and does nothing."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name = name
        self.state: Any = None


def loads(data: bytes, max_opcodes: int = MAX_OPCODES, placeholders: Collection[str] = ()) -> Any:
    """Load the value that ``data`` holds; its arrays are read-only.

    Time and memory are proportional to ``len(data)``.

    Args:
        data: the pickle, of any protocol.
        max_opcodes: how many it may have.
        placeholders: names (``package.module.Class``) that are loaded as a ``Placeholder``.

    Raises:
        UnpickleError: the message names what was refused, or says what is damaged.
    """
    machine = _Machine(placeholders)
    try:
        for number, (opcode, argument) in enumerate(_opcodes(data)):
            if number >= max_opcodes:
                raise UnpickleError(f"refused: more than {max_opcodes} pickle opcodes")
            machine.run(opcode, argument)
        return machine.stack.pop()
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, UnicodeError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise UnpickleError(f"not a whole pickle ({reason})") from error


def _opcodes(data: bytes) -> Iterator[tuple[str, Any]]:
    """Yield name and argument of every opcode up to STOP."""
    stream = io.BytesIO(data)
    name = ""
    while name != "STOP":
        opcode = _BY_CODE.get(stream.read(1).decode("latin1"))
        if opcode is None:
            raise ValueError(f"no opcode at byte {max(stream.tell() - 1, 0)} of {len(data)}")
        name, argument = opcode.name, None
        if name == "STRING":  # its own reader takes ASCII only
            text: Any = pickletools.read_stringnl(stream, decode=False)
            argument = codecs.escape_decode(text)[0].decode("latin1")
        elif opcode.arg is not None:
            argument = opcode.arg.reader(stream)
        yield name, argument


class _Dtype:
    """Stands for a numpy dtype: kind and size such as ``f4``, and a byte order that arrives later."""

    def __init__(self, kind: Any, *_: Any):
        found = _DTYPE.fullmatch(kind) if isinstance(kind, str) else None
        if found is None:
            raise UnpickleError(f"refused: numpy dtype {reprlib.repr(kind)}")
        self.order, self.kind = found[1] or "=", found[2]

    @property
    def is_object(self) -> bool:
        return self.kind[0] == "O"

    def build(self, state: Any) -> _Dtype:
        _, order, subdtype, names, fields, *_ = state
        if order not in ("<", ">", "=", "|") or (subdtype, names, fields) != (None, None, None):
            raise UnpickleError("refused: a numpy dtype with fields")
        self.order = order
        return self

    def numpy(self) -> np.dtype:
        return np.dtype(self.order + self.kind)


class _Array:
    """Stands for an array from its making until its state arrives."""

    def __init__(self) -> None:
        self.memo_keys: list[int] = []

    def build(self, state: Any) -> np.ndarray:
        *_, shape, dtype, is_fortran, data = state
        return _make_array(shape, dtype, "F" if is_fortran else "C", data)


def _make_array(shape: Any, dtype: Any, order: str, data: Any) -> np.ndarray:
    sizes = shape if isinstance(shape, tuple) else (shape,)
    # Nothing unchecked is ever printed: containers that hold one another print without end.
    if len(sizes) > _MAX_DIMS or not all(type(size) is int and 0 <= size <= _MAX_SIZE for size in sizes):
        raise UnpickleError(f"refused: an array whose shape is not up to {_MAX_DIMS} whole numbers")
    if not isinstance(dtype, _Dtype):
        raise UnpickleError("refused: an array without a numpy dtype")
    count = math.prod(sizes)
    if dtype.is_object:
        if not isinstance(data, list) or len(data) != count:
            raise UnpickleError(f"an object array of shape {sizes} without as many entries")
        array = np.empty(count, dtype=object)
        for index, entry in enumerate(data):
            array[index] = entry
        return array.reshape(sizes)
    kind = dtype.numpy()
    if isinstance(data, str):
        data = data.encode("latin1")
    if not isinstance(data, (bytes, bytearray)) or len(data) != count * kind.itemsize:
        raise UnpickleError(f"an array of shape {sizes} without as many bytes")
    return np.frombuffer(data, dtype=kind).reshape(sizes, order="F" if order == "F" else "C")


def _ndarray(*_: Any) -> Any:
    raise UnpickleError("refused: a direct call of numpy.ndarray")


def _reconstruct(kind: Any, *_: Any) -> _Array:
    if kind is not _ndarray:
        raise UnpickleError("refused: an array class other than numpy.ndarray")
    return _Array()


def _scalar(dtype: Any, data: Any) -> Any:
    if isinstance(dtype, _Dtype) and dtype.is_object:
        raise UnpickleError("refused: an object scalar")
    return _make_array((1,), dtype, "C", data)[0]


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> np.ndarray:
    return _make_array(shape, dtype, order, data)


def _encode(text: Any, encoding: Any) -> bytes:
    """Protocol 2 writes bytes by ``_codecs.encode``."""
    if not isinstance(text, str) or encoding != "latin1":
        raise UnpickleError("refused: _codecs.encode with another encoding than latin1")
    return text.encode("latin1")


def _object(*_: Any) -> Any:
    raise UnpickleError("refused: a call of object")


def _new(kind: Any, *_: Any) -> Placeholder:
    """Objects are made by ``copyreg._reconstructor`` or the opcode NEWOBJ."""
    if not isinstance(kind, partial):
        raise UnpickleError("refused: an object of a class that is none")
    return kind()


_ADMITTED: dict[str, Callable[..., Any]] = {
    "builtins.object": _object,
    "collections.OrderedDict": lambda pairs=(): {_key(name): value for name, value in pairs},
    "copyreg._reconstructor": _new,
    "numpy.ndarray": _ndarray,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _encode,
    "builtins.set": lambda values=(): set(map(_key, values)),  # by protocols up to 3
    "builtins.frozenset": lambda values=(): frozenset(map(_key, values)),
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _frombuffer for core in ("core", "_core")},
}


def _key(value: Any) -> Any:
    if isinstance(value, (str, bytes)) or (isinstance(value, int) and abs(value) < _MAX_KEY):
        return value
    raise UnpickleError(f"refused: a {type(value).__name__} as a key")


class _Machine:
    """The stack, the marks on it and the memo."""

    def __init__(self, placeholders: Collection[str]) -> None:
        self.placeholders = placeholders
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, opcode: str, argument: Any) -> None:
        """Run one opcode of the pickle protocol, named as ``pickletools`` names it."""
        stack = self.stack
        match opcode:
            case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4" | "FLOAT" | "BINFLOAT":
                stack.append(argument)
            case "STRING" | "BINSTRING" | "SHORT_BINSTRING" | "UNICODE" | "SHORT_BINUNICODE" | "BINUNICODE":
                stack.append(argument)
            case "BINUNICODE8" | "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                stack.append(argument)
            case "POP":
                stack.pop()
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case "EMPTY_LIST" | "EMPTY_TUPLE" | "EMPTY_DICT" | "EMPTY_SET":
                stack.append({"LIST": list, "TUPLE": tuple, "DICT": dict, "SET": set}[opcode[6:]]())
            case "MARK":
                self.marks.append(len(stack))
            case "LIST":
                stack.append(self.since_mark())
            case "TUPLE":
                stack.append(tuple(self.since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(self.last(int(opcode[-1])))
            case "FROZENSET":
                stack.append(frozenset(map(_key, self.since_mark())))
            case "DICT":
                stack.append(dict(_pairs(self.since_mark())))
            case "APPEND":
                value = stack.pop()
                self.top(list).append(value)
            case "APPENDS":
                values = self.since_mark()
                self.top(list).extend(values)
            case "SETITEM":
                pair = self.last(2)
                self.top(dict).update(_pairs(pair))
            case "SETITEMS":
                values = self.since_mark()
                self.top(dict).update(_pairs(values))
            case "ADDITEMS":
                values = self.since_mark()
                self.top(set).update(map(_key, values))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.put(argument)
            case "MEMOIZE":
                self.put(len(self.memo))
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "GLOBAL":
                stack.append(self.find(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(self.find(*self.last(2)))
            case "NEWOBJ":
                stack.append(_new(*self.last(2)))
            case "REDUCE":
                function, arguments = self.last(2)
                if not callable(function) or not isinstance(arguments, tuple):
                    raise ValueError("a call of something that is no admitted name")
                stack.append(function(*arguments))
            case "BUILD":
                self.build(*self.last(2))
            case _:
                raise UnpickleError(f"refused: pickle opcode {opcode}")

    def find(self, module: Any, name: Any) -> Callable[..., Any]:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        full = f"{_PYTHON_2.get(module, module)}.{name}"
        if full in self.placeholders:
            return partial(Placeholder, full)
        if full not in _ADMITTED:
            shown = " ".join(full[:200].split())
            raise UnpickleError(f"refused: {shown} (only numpy arrays and plain containers are admitted)")
        return _ADMITTED[full]

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def last(self, count: int) -> tuple[Any, ...]:
        values = tuple(self.stack[-count:])
        if len(values) < count:
            raise ValueError("stack underflow")
        del self.stack[-count:]
        return values

    def top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"no {kind.__name__} where one is needed")
        return self.stack[-1]

    def put(self, key: int) -> None:
        if isinstance(self.stack[-1], _Array):
            self.stack[-1].memo_keys.append(key)
        self.memo[key] = self.stack[-1]

    def build(self, target: Any, state: Any) -> None:
        if isinstance(target, Placeholder):
            target.state = state
            self.stack.append(target)
            return
        if not isinstance(target, (_Array, _Dtype)) or not isinstance(state, tuple):
            raise UnpickleError(f"refused: state for a {type(target).__name__}")
        built = target.build(state)
        if isinstance(target, _Array):
            self.memo |= dict.fromkeys(target.memo_keys, built)
        self.stack.append(built)


def _pairs(values: Sequence[Any]) -> list[tuple[Any, Any]]:
    return [(_key(name), value) for name, value in zip(values[::2], values[1::2], strict=True)]
