"""The pickles of every protocol, and of Python 2; hostile ones are in ``tests/interop/test_geneface.py``, too."""

from __future__ import annotations

import collections
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csc_matrix

from lrs3_loader.io.unpickle import Placeholder, UnpickleError, loads

#: [1.0, 2.0] as Python 2 wrote it with protocol 0.
PYTHON_2 = (
    b"cnumpy.core.multiarray\n_reconstruct\np0\n(cnumpy\nndarray\np1\n(I0\ntp2\nS'b'\np3\ntp4\nRp5\n(I1\n(I2\ntp6\n"
    b"cnumpy\ndtype\np7\n(S'f8'\np8\nI0\nI1\ntp9\nRp10\n(I3\nS'<'\np11\nNNNI-1\nI-1\nI0\ntp12\nbI00\n"
    b"S'\\x00\\x00\\x00\\x00\\x00\\x00\\xf0?\\x00\\x00\\x00\\x00\\x00\\x00\\x00@'\np13\ntp14\nb."
)
SPARSE = csc_matrix(np.eye(3))
SPARSE_NAME = f"{csc_matrix.__module__}.csc_matrix"


def test_arrays_of_python_2_are_read() -> None:
    assert loads(PYTHON_2).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_is_read(protocol: int) -> None:
    value = {
        "arrays": [np.arange(6, dtype=dtype).reshape(2, 3) for dtype in ("<i4", ">i4", ">f8", "<f2", "u1")],
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "scalar": np.float64(2.5),
        "plain": (1, -(2**40), 3.5, None, True, False, "text \xe9", {"a": 1}),
        "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
    }
    back = loads(pickle.dumps(value, protocol))
    for found, expected in zip((*back["arrays"], back["fortran"]), (*value["arrays"], value["fortran"]), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype.byteorder == expected.dtype.byteorder
    assert (back["scalar"], back["plain"]) == (2.5, value["plain"])
    assert list(back["ordered"].items()) == [("b", 1), ("a", 2)]


@pytest.mark.parametrize("protocol", range(6))
def test_placeholders_hold_what_the_caller_asks_for(protocol: int) -> None:
    data = pickle.dumps([SPARSE, SPARSE], protocol)
    first, second = loads(data, placeholders={SPARSE_NAME})
    assert isinstance(first, Placeholder)
    assert first is second
    assert first.name == SPARSE_NAME
    np.testing.assert_array_equal(first.state["data"], np.ones(3))
    with pytest.raises(UnpickleError, match=r"refused: scipy\.sparse"):
        loads(data)


def test_tensors_can_be_passed_over() -> None:
    names = {"torch._utils._rebuild_tensor_v2", "torch.storage._load_from_bytes"}
    back = loads(pickle.dumps({"tensor": torch.zeros(3), "array": np.arange(3)}, 2), placeholders=names)
    assert isinstance(back["tensor"], Placeholder)
    assert back["array"].tolist() == [0, 1, 2]


def dtype_of(text: bytes, state: bytes = b"") -> bytes:
    return b"cnumpy\ndtype\n(S'" + text + b"'\nI0\nI1\ntR" + (b"(" + state + b"tb" if state else b"")


def array_of(dtype: bytes, contents: bytes = b"\\x00\\x00\\x00\\x01", shape: bytes = b"I1\n") -> bytes:
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    return made + b"(I1\n(" + shape + b"t" + dtype + b"I00\nS'" + contents + b"'\ntb."


def test_byte_orders_are_told_apart_wherever_they_are_said() -> None:
    plain = b"NNNI-1\nI-1\nI0\n"
    assert loads(array_of(dtype_of(b">i4"))).tolist() == [1]
    assert loads(array_of(dtype_of(b"<i4"))).tolist() == [1 << 24]
    assert loads(array_of(dtype_of(b"i4", b"I3\nS'>'\n" + plain))).tolist() == [1]
    assert loads(array_of(dtype_of(b"i4", b"I3\nS'<'\n" + plain))).tolist() == [1 << 24]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        # What numpy's own __setstate__ would believe: an itemsize, an alignment, and that the bytes are pointers.
        (array_of(dtype_of(b"i4", b"I3\nS'|'\nNNNI1\nI1\nI63\n")), None),
        (array_of(dtype_of(b"i4", b"I3\nS'|'\nNNNI1048576\nI1\nI0\n")), None),
        (array_of(dtype_of(b"i4", b"I3\nS'|'\nN(S'a'\nt}I4\nI1\nI0\n")), "with fields"),
        (array_of(dtype_of(b"i4", b"I3\nS'|'\n(" + dtype_of(b"i4") + b"(I9\nttNNI4\nI1\nI0\n")), "with fields"),
        (array_of(dtype_of(b"i4", b"I3\n")), "not a whole pickle"),
        (array_of(dtype_of(b"V4")), "dtype 'V4'"),
        (array_of(dtype_of(b"M8[ns]")), "dtype 'M8"),
        (array_of(dtype_of(b"i4,i4")), "dtype 'i4,i4'"),
        (array_of(dtype_of(b"O")), "object array"),
        (array_of(dtype_of(b"i4"), shape=b"I1000000000000\n"), "without as many bytes"),
        (array_of(dtype_of(b"i4"), shape=b"L" + b"9" * 30 + b"L\n"), "shape is not"),
        (array_of(dtype_of(b"i4"), contents=b"\\u2603"), None),
        (b"(S'a'\ncbuiltins\nobject\nR.", "not a whole pickle"),
        (b"cbuiltins\nobject\n(tR.", "a call of object"),
        (b"ccopy_reg\n_reconstructor\n(cnumpy\nndarray\nc__builtin__\nobject\nNtR.", "a class that is none"),
        (b"cnumpy\nndarray\n(t\x81.", "a class that is none"),
        (b"(lp0\n" + b"(g0\ng0\nlp0\n" * 60 + b"S'a'\n\x93.", "a name that is no text"),
        (b"\x80\x04]" + b"\x94h\x00\x86" * 9 + b"S'a'\n\x93.", None),
        (b"I" + b"9" * 5000 + b"\n.", "not a whole pickle"),
        (b"S'open\n.", "not a whole pickle"),
        (b"r\xff\xff\xff\xff.", "not a whole pickle"),
        (b"Nr\xff\xff\xff\xff.", None),
        (b"T\xff\xff\xff\x7fabc.", "not a whole pickle"),
        (b"\xff.", "no opcode at byte 0"),
        (b"(i__main__\nA\n.", "opcode INST"),
        (b"\x8c\x03a\nb\x8c\x01c\x93.", "refused: a b.c (only"),
    ],
)
def test_hostile_pickles_end_at_once(data: bytes, message: str | None) -> None:
    value: Any = None
    try:
        value = loads(data)
    except UnpickleError as error:
        assert message is None or message in str(error)  # noqa: PT017
    else:
        assert message is None
    if isinstance(value, np.ndarray):
        assert not value.dtype.hasobject
        assert value.nbytes == 4
