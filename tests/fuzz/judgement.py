"""Judgement of what a call gave: results against what was expected, refusals by their errors."""

from __future__ import annotations

import linecache
import os
import re
from dataclasses import dataclass
from dis import opmap
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

import gpuact
from tests import truth
from tests.bounds import check
from tests.test_functions import as_rows
from tests.truth import Array

from .calls import torch_or_none
from .junk import Mine
from .meaning import Expected, Rows, from_tensor

FINDINGS = ("crash", "hang", "harness", "raw", "warning", "wrong")
HERE = str(Path(gpuact.__file__).parent) + os.sep
OWN = (TypeError, ValueError, IndexError, gpuact.BackendError)

# Errors that are documented to be PyTorch's own, or of another kind
DOCUMENTED = (
    (RuntimeError, "a leaf Variable that requires grad"),
    (RuntimeError, "a view of a leaf Variable that requires grad"),
    (UserWarning, "Implicit dimension choice"),
    (UserWarning, "size_average and reduce args will be deprecated"),
    (NotImplementedError, "differentiat"),
    (RuntimeError, "Inference tensors cannot be saved for backward"),
    (RuntimeError, "more than one element of the written-to tensor refers to a single memory"),
    (RuntimeError, "Inplace update to inference tensor outside InferenceMode"),
)


class Wrong(Exception):
    """The result is not what it must be."""


@dataclass(frozen=True)
class Outcome:
    function: str
    library: str
    mode: str
    what: str  # "right" (all its values), "returned", "refused", or one of FINDINGS
    detail: str = ""

    @property
    def finding(self) -> bool:
        return self.what in FINDINGS


def refusal(error: BaseException, names: set[str]) -> str | None:
    """What is wrong with an error as a refusal; None if nothing is."""
    if isinstance(error, Mine) or isinstance(error.__cause__, Mine):
        return None
    step: TracebackType | None = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    if step is None:
        return "it has no traceback"
    code, text = step.tb_frame.f_code, str(error)
    if documented(error, text):
        return None
    if not code.co_filename.startswith(HERE):
        return f"raised in {code.co_filename}:{step.tb_lineno}"
    if code.co_code[step.tb_lasti] != opmap["RAISE_VARARGS"]:
        line = linecache.getline(code.co_filename, step.tb_lineno).strip()
        return f"not raised by gpuact itself, but by what it calls: {line}"
    if not isinstance(error, OWN):
        return f"{type(error).__name__} is no class of gpuact's errors"
    if isinstance(error, gpuact.BackendError):
        return None
    name = re.match(r"([a-z_]+): \S", text)
    if name is None or name[1] not in names:
        return "its message names no argument first"
    if re.search(r"\n|\.$|  ", text):
        return "its message is no sentence in one line"
    return None


def documented(error: BaseException, text: str) -> bool:
    return any(isinstance(error, kind) and part in text for kind, part in DOCUMENTED)


def compare(expected: Any, result: Any, library: str, out: Any = None) -> None:
    """Raise Wrong unless the result is what it must be."""
    if isinstance(expected, tuple):
        if not isinstance(result, tuple) or len(result) != len(expected):
            raise Wrong(f"{type(result).__name__} came out, {len(expected)} results were expected")
        for e, r in zip(expected, result, strict=True):
            compare(e, r, library, out)
        return
    if isinstance(expected, dict):
        if not isinstance(result, dict) or set(result) != set(expected):
            raise Wrong(
                f"{result if not isinstance(result, dict) else [*result]} for {[*expected]}"
            )
        for name, e in expected.items():
            compare(e, result[name], library)
        return
    if not isinstance(expected, Expected):
        if result != expected:
            raise Wrong(f"{result!r} came out, {expected!r} was expected")
        return
    got = result_of(result, library, out)
    if got.shape != expected.shape or got.dtype.name != expected.dtype:
        raise Wrong(f"{got.dtype} {got.shape} came out for {expected.dtype} {expected.shape}")
    if not got.size:
        return
    if expected.allowed is None:
        same = np.array_equal(truth.long(got), truth.long(expected.value), equal_nan=True)
        if not same:
            raise Wrong(f"{got} came out, {expected.value} was expected")
        return
    if isinstance(expected, Rows):
        got = as_rows(got, expected.axis)
    try:
        check(got, np.asarray(expected.value), expected.allowed, expected.dtype)
    except AssertionError as error:
        raise Wrong(str(error)) from None


def result_of(result: Any, library: str, out: Any) -> Array:
    """A result's values; it must be a plain array of the library."""
    if library == "numpy":
        if type(result) is not np.ndarray and result is not out:
            raise Wrong(f"{type(result).__name__} came out, an ndarray was expected")
        return np.asarray(result)
    torch = torch_or_none()
    if not isinstance(result, torch.Tensor):
        raise Wrong(f"{type(result).__name__} came out, a tensor was expected")
    return from_tensor(result)


def bytes_of(result: Any) -> Any:
    """To tell two results apart."""
    if isinstance(result, dict):
        return {k: bytes_of(v) for k, v in result.items()}
    if isinstance(result, tuple | list):
        return [bytes_of(v) for v in result]
    if isinstance(result, np.ndarray):
        return result.tobytes()
    if hasattr(result, "data_ptr"):
        return from_tensor(result).tobytes()
    return result
