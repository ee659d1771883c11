"""Junk, and how it takes the place of arguments."""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np

from gpuact.fusion import Dropout
from tests.truth import Array

from .calls import FLOATING, INF, INTEGERS, TENSORS, Args, Call, torch_or_none
from .meaning import cast, snapshot
from .targets import Target


class Mine(Exception):
    """Raised by what the caller brought along."""


def raises(*_: Any, **__: Any) -> Any:
    raise Mine("not today")


def dunders(name: str, base: type = object, **methods: Any) -> Any:
    made = type(name, (base,), {"__hash__": object.__hash__, **methods})
    return made(0.5) if base in (float, int) else made()


class Subclass(np.ndarray):
    pass


class Giver:
    """Gives an array if asked."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.array([1.0, 2.0])


class Index:
    def __init__(self, n: int) -> None:
        self.n = n

    def __index__(self) -> int:
        return self.n


# name → what makes it; of no library
ANYTHING: dict[str, Callable[[Call], Any]] = {
    "None": lambda c: None,
    "text": lambda c: c.of(("text", "", "0", "mean", "2.0", "x\ny", "float32")),
    "bytes": lambda c: c.of((b"bytes", bytearray(b"1234"), memoryview(b"12345678"))),
    "object": lambda c: object(),
    "a dictionary": lambda c: c.of(({}, {"x": 1})),
    "a set": lambda c: c.of(({1}, frozenset())),
    "an empty list": lambda c: c.of(([], (), [[]], [[], []])),
    "a ragged list": lambda c: c.of(([[1.0], [1.0, 2.0]], [1.0, [2.0]], ([1], 2))),
    "a list of junk": lambda c: c.of(([None], ["a"], [object()], [1j], [b"1"], [{}], [10**400])),
    "a list": lambda c: c.of(([1.0, 2.0], [0], (0, 1), [[1.0, 2.0]], [True], [2**63, 1], [2**70])),
    "a huge int": lambda c: c.of((10**400, -(10**400), 2**63, 2**64, -(2**63) - 1, 2**31, 2**1023)),
    "a huge float": lambda c: c.of((1e308, -1e308, 1e39, 1e-320, 5e-324)),
    "NaN or inf": lambda c: c.of((np.nan, INF, -INF, np.float32(np.nan), np.float16(INF))),
    "a number": lambda c: c.of((0, 1, -1, 2, 3, -0.0, 0.5, -0.1, 1.5, 1.0, 100)),
    "a bool": lambda c: c.of((True, False, np.True_, np.False_)),
    "complex": lambda c: c.of((1j, np.complex64(1j), complex(1, 0))),
    "a scalar of NumPy": lambda c: c.of(
        (
            np.longdouble(2),
            np.str_("2"),
            np.bytes_(b"2"),
            np.datetime64("2020"),
            np.timedelta64(3, "s"),
            np.int64(0),
            np.uint8(1),
            np.float16(0.5),
            np.void(b"12"),
            ml_dtypes.bfloat16(0.5),
            ml_dtypes.float8_e4m3fn(1),
            np.int64(-1),
        )
    ),
    "another number": lambda c: c.of((Fraction(1, 3), Decimal("0.5"), Decimal("nan"))),
    "a generator": lambda c: (k for k in range(3)),
    "a range": lambda c: c.of((range(3), range(0), slice(None), ...)),
    "a type": lambda c: c.of((float, int, np.float32, np.dtype("f4"), np.ndarray, object)),
    "a function": lambda c: raises,
    "array.array": lambda c: array("f", [1.0, 2.0]),
    "an index": lambda c: Index(c.of((0, 1, -1, 5, 2**70))),
    "gives an array": lambda c: Giver(),
    "raises in __array__": lambda c: dunders("A", __array__=raises),
    "raises in __len__": lambda c: dunders("L", __len__=raises, __getitem__=raises),
    "raises in __iter__": lambda c: dunders("I", __iter__=raises, __len__=lambda s: 2),
    "raises in __index__": lambda c: dunders("I", __index__=raises),
    "raises in __float__": lambda c: dunders("F", __float__=raises),
    "a float that raises": lambda c: dunders("F", float, __float__=raises),
    "raises in __eq__": lambda c: dunders("E", __eq__=raises),
    "equal to all": lambda c: dunders("E", __eq__=lambda s, o: True),
    "an array of comparisons": lambda c: dunders("E", __eq__=lambda s, o: np.array([1, 0])),
    "raises in __bool__": lambda c: dunders("B", __bool__=raises, __eq__=lambda s, o: s),
    "no hash": lambda c: dunders("H", __hash__=None),
    "raises in __hash__": lambda c: dunders("H", __hash__=raises),
    "raises in __repr__": lambda c: dunders("R", __repr__=raises, __str__=raises),
    "raises in __getattr__": lambda c: dunders("G", __getattr__=raises),
    "a false shape": lambda c: dunders("S", shape=(2, 3), dtype="float32", ndim=2),
    "an interface": lambda c: dunders("S", __array_interface__={"version": 3}),
    "a float of its own": lambda c: dunders("MyFloat", float),
    "an str of its own": lambda c: type("MyStr", (str,), {})("mean"),
    "a Dropout": lambda c: Dropout(0.5, 1),
}


def _of_dtype(*dtypes: Any) -> Callable[[Call, Array], Any]:
    def make(c: Call, x: Array) -> Any:
        with np.errstate(all="ignore"):
            return np.zeros(x.shape, c.of(dtypes))

    return make


def _strange_shape(c: Call, x: Array) -> Array:
    made: Array = c.of(
        (
            lambda: x[None],
            lambda: x.T,
            lambda: x[..., :0] if x.ndim else x[None][:0],
            lambda: x.ravel(),
            lambda: x.reshape(-1)[:1].reshape(()) if x.size else np.zeros((), x.dtype),
            lambda: x[:-1] if x.ndim else x[None],
            lambda: x[..., None],
            lambda: np.concatenate([x, x]) if x.ndim else np.stack([x, x]),
            lambda: np.zeros((0, 3), x.dtype),
            lambda: np.zeros((3, 0, 2**20), x.dtype),
            lambda: x.reshape((1,) * 32 + x.shape)[..., None][..., 0],
        )
    )()
    return made


# name → what makes it of the values of the argument whose place it takes
ARRAYS: dict[str, Callable[[Call, Array], Any]] = {
    "complex numbers": _of_dtype(np.complex64, np.complex128),
    "objects": _of_dtype(object),
    "records": _of_dtype([("a", "f4")], "V4"),
    "dates": _of_dtype("M8[s]", "m8[s]"),
    "strings": _of_dtype("U3", "S3", np.dtypes.StringDType()),
    "a strange float": _of_dtype(
        np.longdouble, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4
    ),
    "another dtype": lambda c, x: c.array(cast(x, c.of((*FLOATING, *INTEGERS, "bool")))),
    "a masked array": lambda c, x: np.ma.MaskedArray(x, x != x),
    "a matrix": lambda c, x: np.asmatrix(x) if x.ndim <= 2 and x.dtype.name != "bfloat16" else x,
    "a subclass": lambda c, x: x.view(Subclass),
    "a memoryview": lambda c, x: memoryview(x) if x.dtype.kind in "fiu" else None,
    "another byte order": lambda c, x: (
        c.array(x.astype(x.dtype.newbyteorder(">")))
        if x.dtype.kind in "fiu" and x.dtype.name != "bfloat16" and not c.torch
        else x
    ),
    "read-only": lambda c, x: _read_only(x),
    "another shape": lambda c, x: c.array(_strange_shape(c, x), (1,)),
    "a broadcast": lambda c, x: (
        np.broadcast_to(x.reshape(-1)[:1].reshape((1,) * x.ndim), x.shape) if x.size else x
    ),
    "a list of it": lambda c, x: x.tolist(),
    "the other library's": lambda c, x: x if c.torch else _tensor(x),
    "a tuple around it": lambda c, x: (c.array(x),),
    "a scalar of it": lambda c, x: x.reshape(-1)[0] if x.size else x,
    "wild values": lambda c, x: c.array(_wild(c, x)),
}


def _read_only(x: Array) -> Array:
    x = x.view()
    x.flags.writeable = False
    return x


def _wild(c: Call, x: Array) -> Array:
    if x.dtype.kind in "iu":
        info = np.iinfo(x.dtype)
        return np.where(c.rng.random(x.shape) < 0.5, c.of((info.max, info.min, 99)), x).astype(
            x.dtype
        )
    special = [np.nan, INF, -INF, 0.0, 1e-45, 3e38, -3e38, 6e4, 1e308]
    return c.floats(x.shape, x.dtype.name if x.dtype.name in FLOATING else "float32", special)


def _tensor(x: Array) -> Any:
    torch = torch_or_none()
    if torch is None or x.dtype.name not in TENSORS:
        return x
    if x.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(x).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(x))


@cache
def _subclass() -> Any:
    return type("Subclass", (torch_or_none().Tensor,), {})


def _tensor_subclass(c: Call, x: Any) -> Any:
    return x.as_subclass(_subclass())


# name → what makes it of a tensor
OF_TENSORS: dict[str, Callable[[Call, Any], Any]] = {
    "sparse": lambda c, x: c.of((lambda: x.to_sparse(), lambda: x.to_sparse_csr()))(),
    "meta": lambda c, x: x.to("meta"),
    "quantized": lambda c, x: torch_or_none().quantize_per_tensor(
        x.float(), 0.1, 0, torch_or_none().qint8
    ),
    "a strange float": lambda c, x: x.to(
        c.of((torch_or_none().float8_e4m3fn, torch_or_none().float8_e5m2))
    ),
    "bits": lambda c, x: x.float().view(torch_or_none().uint8).view(torch_or_none().bits8),
    "complex numbers": lambda c, x: x.float().to(torch_or_none().complex64),
    "a real part": lambda c, x: torch_or_none().complex(x.float(), x.float()).conj().imag,
    "a negative view": lambda c, x: torch_or_none()._neg_view(x) if x.dtype.is_signed else x,
    "a conjugate": lambda c, x: torch_or_none().complex(x.float(), x.float()).conj(),
    "a subclass": _tensor_subclass,
    "a parameter": lambda c, x: torch_or_none().nn.Parameter(
        x.detach(), requires_grad=c.chance(0.5) and x.is_floating_point()
    ),
    "requires grad": lambda c, x: x.detach().clone().requires_grad_(),
    "no leaf": lambda c, x: x.detach().clone().requires_grad_() * 1,
    "nested": lambda c, x: torch_or_none().nested.nested_tensor([x.reshape(-1), x.reshape(-1)[:1]]),
    "of inference mode": lambda c, x: _inference(x),
    "expanded": lambda c, x: x.reshape(-1)[:1].reshape((1,) * x.ndim).expand(x.shape),
    "of mkldnn": lambda c, x: x.float().to_mkldnn(),
}


def _inference(x: Any) -> Any:
    with torch_or_none().inference_mode():
        return x.clone()


AXES: dict[str, Callable[[Call], Any]] = {
    "a bool as axis": lambda c: c.of((True, False, np.True_)),
    "an int of NumPy": lambda c: c.of((np.int64(0), np.int8(-1), np.uint8(1), np.int32(7))),
    "a float as axis": lambda c: c.of((0.0, 1.0, -1.0, np.float32(0), np.nan)),
    "out of range": lambda c: c.of((5, -6, 99, 2**31, 2**63, -(2**63), 2**100)),
    "repeated axes": lambda c: c.of(((0, 0), (0, -1), (1, 1), [0, 0], (0, 1, -1))),
    "strange axes": lambda c: c.of(((True,), (0.0,), (None,), ((0,),), ([0],), ("0",), (0, 2**70))),
    "an array as axis": lambda c: c.of(
        (np.array(0), np.array([0]), np.array([0, 1]), np.array(0.0))
    ),
    "an iterable of axes": lambda c: c.of((range(1), {0}, {0: 1}, Index(0), (Index(0),))),
    "a tensor as axis": lambda c: _tensor(np.array(c.of((0, -1)))),
}
WORDS: dict[str, Sequence[Any]] = {
    "reduction": ("avg", "MEAN", "elementwise_mean", "", None, "sum\n"),
    "all_masked": ("one", "NaN", 0, None, ["nan"]),
    "activation": ("gelu", "softmax", "RELU", "", None, ["relu"], "prelu", "leaky_relu", "relu"),
    "dtype": ("float9", "int32", "f4", "f8", "bfloat16", "complex64", ">f4", "O", "U", "", 3.5,
              [("a", "f4")], "float8_e4m3fn", "f4,f4", np.dtype(">f4"), bool, int, float, "M8[s]"),
    "target": (0, 1.0),
    "ignore_index": (-1, 0, 2, -(2**63), 2**63, 1.5, "0", np.int8(1), True),
    "causal": (1, 0, "yes", None, np.True_),
    "return_lse": (1, "yes", None, []),
    "gradient_in_forward": (True, 1, None, np.True_),
    "inplace": (True, 1, None, "yes"),
    "shapes": (5, None, [5], [(2.0,)], ["ab"], [(-1,)], [[None]], "ab", (2, 3)),
    "dtypes": (5, None, [5], ["int8"], "float32", ["float9"], [None], [np.float32], "", [[]]),
    "functions": (5, "relu", ["gelu"], [5], [None], [[]], {"relu"}, "", ()),
    "like": (5, None, "x", [1.0]),
    "name": ("gelu", 5, [], {}, None, np.array(["relu"]), ("relu",)),
    "backend": ("cupy", "triton", "numpy ", "cuda", 5, [], None, np.array(["numpy"])),
    "channel_axis": (7, -9, 1.0, "1", None, True, 2**70, (1,), np.int64(0)),
    "p": (1.5, -0.1, np.nan, "half", None, 10**400, True),
    "seed": (-1, 2**64, 1.0, "1", None, True, np.int64(3)),
    "offset": (-1, 2**64, 1.0, None, np.uint64(2**64 - 1)),
    "reduce": (True, False, None, 1), "size_average": (True, False, None),
}  # fmt: skip


def spoil(c: Call, target: Target, args: Args) -> Args:
    """Junk in the place of one to three arguments."""
    args = dict(args)
    names = [n for n in target.parameters if n in args or c.chance(0.3)] or target.parameters
    for _ in range(c.of((1, 1, 1, 2, 2, 3))):
        if not names:
            break
        name = c.of(names)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            what, args[name] = junk(c, target, name, args)
        c.spoiled[name] = what
    return args


def junk(c: Call, target: Target, name: str, args: Args) -> tuple[str, Any]:
    own = target.rename.get(name, name)
    kind = c.rng.random()
    if own in WORDS and kind < 0.6:
        return "a word", c.of(WORDS[own])
    if own in ("axis", "channel_axis") and kind < 0.7:
        what = c.of([*AXES])
        return what, AXES[what](c)
    old = args.get(name)
    if old is None and own in ("out", "dlogits_out", "gate", "residual", "mask", "weight"):
        old = args.get("x", args.get("logits", args.get("input")))
    values = snapshot(old)
    if isinstance(values, np.ndarray) and kind < 0.8:
        if isinstance(old, torch_or_none().Tensor if c.torch else ()) and c.chance(0.6):
            what = c.of([*OF_TENSORS])
            try:
                return what, OF_TENSORS[what](c, old.detach())
            except (RuntimeError, IndexError, TypeError, ValueError):
                return "the same", old  # there is no such tensor
        what = c.of([*ARRAYS])
        try:
            return what, ARRAYS[what](c, values)
        except (ValueError, TypeError):
            return "the same", old
    what = c.of([*ANYTHING])
    return what, ANYTHING[what](c)
