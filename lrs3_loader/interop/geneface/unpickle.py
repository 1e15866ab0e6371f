"""Loads untrusted pickles: runs only the pickle opcodes that arrays and plain containers need.

The standard ``Unpickler`` with a list of admitted names is not enough. Its memo can be told to grow to 64 GiB by five
bytes, a byte string to claim any length, and numpy's own ``__setstate__`` believes what a dtype says about its size
and whether it holds pointers. So the opcodes are run here, over ``pickletools.genops`` (which reads no further than
the data goes), and the names a pickle may call are stand-ins that build arrays from checked shapes and bytes.

Admitted: None, bool, int, float, str, bytes, list, tuple, dict, set, and numpy arrays, scalars and dtypes under the
module names of numpy 1 and 2. Everything else is refused by name.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from lrs3_loader.errors import RunError

MAX_OPCODES = 100_000  # an item of a binarised set has about a hundred

_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[SU][1-9]\d{0,3}|O8?")
_MAX_DIMS = 32
_MAX_SIZE = 1 << 62
_MAX_KEY = 1 << 60  # beyond it integers can be chosen whose hashes collide


class UnpickleError(RunError):
    """A pickle that is damaged, or that holds something not admitted."""


def loads(data: bytes, max_opcodes: int = MAX_OPCODES) -> Any:
    """Load the value that ``data`` holds; its arrays are read-only.

    Time and memory are proportional to ``len(data)``.

    Raises:
        UnpickleError: the message names what was refused, or says what is damaged.
    """
    machine = _Machine()
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if number >= max_opcodes:
                raise UnpickleError(f"refused: more than {max_opcodes} pickle opcodes")
            step = _STEPS.get(opcode.name)
            if step is None:
                raise UnpickleError(f"refused: pickle opcode {opcode.name}")
            step(machine, argument)
        return machine.stack.pop()
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, UnicodeError) as error:
        raise UnpickleError(f"not a whole pickle ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


class _Dtype:
    """Stands for a numpy dtype: kind and size such as ``f4``, and a byte order that arrives later."""

    def __init__(self, kind: Any, *_: Any):
        self.kind = kind.lstrip("<>=|") if isinstance(kind, str) else ""
        if not _DTYPE.fullmatch(self.kind):
            raise UnpickleError(f"refused: numpy dtype {self.kind[:100]!r}")
        self.order = "<"

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
    """Stand-in for ``_codecs.encode``, by which protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise UnpickleError("refused: _codecs.encode with another encoding than latin1")
    return text.encode("latin1")


def _set_of(values: Any = ()) -> set[Any]:
    """Stand-in for ``set``, by which protocols up to 3 write sets."""
    return {_key(value) for value in values}


def _frozenset_of(values: Any = ()) -> frozenset[Any]:
    return frozenset(_set_of(values))


_ADMITTED: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _ndarray,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _encode,
    "builtins.set": _set_of,
    "builtins.frozenset": _frozenset_of,
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _frombuffer for core in ("core", "_core")},
}


def _admit(module: Any, name: Any) -> Callable[..., Any]:
    full = f"{module}.{name}"
    if full not in _ADMITTED:
        raise UnpickleError(f"refused: {full[:200]} (only numpy arrays and plain containers are admitted)")
    return _ADMITTED[full]


def _key(value: Any) -> Any:
    if isinstance(value, (str, bytes)) or (isinstance(value, int) and abs(value) < _MAX_KEY):
        return value
    raise UnpickleError(f"refused: a {type(value).__name__} as a key")


class _Machine:
    """The stack, the marks on it and the memo; one method per opcode that does more than push its argument."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

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

    def put(self, key: int) -> None:
        if isinstance(self.stack[-1], _Array):
            self.stack[-1].memo_keys.append(key)
        self.memo[key] = self.stack[-1]

    def get(self, key: int) -> None:
        self.push(self.memo[key])

    def memoize(self, _: Any) -> None:
        self.put(len(self.memo))

    def target(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"no {kind.__name__} where one is needed")
        return self.stack[-1]

    def append(self, _: Any) -> None:
        value = self.stack.pop()
        self.target(list).append(value)

    def appends(self, _: Any) -> None:
        values = self.since_mark()
        self.target(list).extend(values)

    def set_item(self, _: Any) -> None:
        name, value = self.last(2)
        self.target(dict)[_key(name)] = value

    def set_items(self, _: Any) -> None:
        values = self.since_mark()
        target = self.target(dict)
        for name, value in zip(values[::2], values[1::2], strict=True):
            target[_key(name)] = value

    def make_dict(self, _: Any) -> None:
        values = self.since_mark()
        self.push({_key(name): value for name, value in zip(values[::2], values[1::2], strict=True)})

    def add_items(self, _: Any) -> None:
        values = self.since_mark()
        self.target(set).update(map(_key, values))

    def call_name(self, names: str) -> None:
        module, _, name = names.partition(" ")
        self.push(_admit(module, name))

    def stack_global(self, _: Any) -> None:
        self.push(_admit(*self.last(2)))

    def reduce(self, _: Any) -> None:
        function, arguments = self.last(2)
        if not callable(function) or not isinstance(arguments, tuple):
            raise ValueError("a call of something that is no admitted name")
        self.push(function(*arguments))

    def build(self, _: Any) -> None:
        target, state = self.last(2)
        if not isinstance(target, (_Array, _Dtype)) or not isinstance(state, tuple):
            raise UnpickleError(f"refused: state for a {type(target).__name__}")
        built = target.build(state)
        if isinstance(target, _Array):
            for key in target.memo_keys:
                self.memo[key] = built
        self.push(built)


_Step = Callable[[_Machine, Any], None]
_PUSHED = (
    "BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 "
    "SHORT_BINUNICODE BINUNICODE BINUNICODE8"
)
_STEPS: dict[str, _Step] = {
    **dict.fromkeys(_PUSHED.split(), _Machine.push),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.push(machine.last(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.last(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.last(3)),
    "FROZENSET": lambda machine, _: machine.push(frozenset(map(_key, machine.since_mark()))),
    "DICT": _Machine.make_dict,
    "MARK": _Machine.mark,
    "MEMOIZE": _Machine.memoize,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "ADDITEMS": _Machine.add_items,
    "GLOBAL": _Machine.call_name,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}
