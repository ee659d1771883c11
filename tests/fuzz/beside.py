"""What there is beside the functions: asarray, warmup, describe, using, backends, Dropout."""

from __future__ import annotations

from typing import Any

import numpy as np

import gpuact
from gpuact.catalogue import FUNCTIONS
from gpuact.fusion import Dropout

from .calls import FLOATING, INTEGERS, TENSORS, Args, Call, dtype_of
from .meaning import Expected, Reading, Unjudged

LIBRARYLESS = ("describe", "warmup", "using", "backends", "Dropout")


def draw_asarray(c: Call) -> Args:
    args: Args = {"obj": c.given(c.shape())}
    if c.chance(0.5):
        args["dtype"] = c.of((*FLOATING, np.float32, float))
        if dtype_of(args["obj"]) in (*INTEGERS, "bool"):
            args["dtype"] = c.of(("int64", np.int8, "float16", "bool"))
    return args if c.chance(0.8) else {"obj": c.number()}


def judge_asarray(r: Reading) -> Any:
    a = r.array("obj")
    dtype = r.raw("dtype")
    if dtype is not None:
        text = str(dtype).removeprefix("torch.")
        try:
            name = text if text in TENSORS else np.dtype(dtype).name
        except TypeError:
            raise Unjudged("dtype") from None
        if name not in (*FLOATING, *INTEGERS, "bool"):
            raise Unjudged("dtype")
        with np.errstate(all="ignore"):
            if a.dtype.kind == "f" and name not in FLOATING:
                raise Unjudged("what NaN is as an integer")
            a = r.cast(a, name)
    return Expected(a, a.dtype.name, a.shape)


def draw_warmup(c: Call) -> Args:
    args: Args = {
        "shapes": c.of((((2, 3),), [(4,)], [[2, 3], [1, 2, 2]], [()], [])),
        "dtypes": c.of((["float32"], ("float16", "bfloat16"), [])),
        "functions": [c.of([*FUNCTIONS])],
        "like": c.array(np.zeros(1, np.float32)),
    }
    return args


def judge_warmup(r: Reading) -> Any:
    calls = {"rows": 2}
    try:
        each = sum(calls.get(FUNCTIONS[f].kind, 3) for f in r.raw("functions"))
        return len(r.raw("shapes")) * len(r.raw("dtypes")) * each
    except (TypeError, KeyError):
        raise Unjudged("warmup") from None


def judge_describe(r: Reading) -> Any:
    if r.raw("name") not in (*FUNCTIONS,):
        raise Unjudged("name")
    return FUNCTIONS[r.raw("name")]


def use(backend: Any) -> str:
    with gpuact.using(backend):
        return "used"


def judge_dropout(r: Reading) -> Any:
    p, seed, offset = r.number("p"), r.whole("seed"), r.whole("offset", 0)
    if not 0 <= p <= 1 or min(seed, offset) < 0:
        raise Unjudged("p")
    return Dropout(p, seed, offset)
