"""The fuzzer: one call after another is made up, made, and judged."""

from __future__ import annotations

import importlib.util
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import numpy as np

import gpuact

from .beside import LIBRARYLESS
from .calls import Args, Call, dtype_of, torch_or_none
from .judgement import FINDINGS, Outcome, Wrong, bytes_of, compare, documented, refusal
from .junk import spoil
from .meaning import Reading, Unjudged, from_tensor, snapshot
from .targets import Target, targets_of_gpuact, targets_of_torch


class Fuzz:
    """The targets, and one call after another."""

    def __init__(
        self,
        libraries: Sequence[str] | None = None,
        planted: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        there = [name for name in ("numpy", "torch") if importlib.util.find_spec(name)]
        self.libraries = tuple(libraries or there)
        targets = [*targets_of_gpuact()]
        if "torch" in self.libraries:
            targets += targets_of_torch()
        self.planted = planted or {}
        if self.planted:  # nothing else then, so that it is soon found
            targets = [t for t in targets if t.name in self.planted]
        self.of = {
            library: [t for t in targets for _ in range(t.weight) if t.only in ("", library)]
            for library in self.libraries
        }
        self.names = {"x", "axis", "dtype", "logits", "target", "weight"}
        self.names |= {n for t in targets for n in t.parameters}
        self.messages: set[str] = set()
        if not self.planted:  # what is loaded once takes seconds
            gpuact.backends()
        if "torch" in self.libraries:
            gpuact.relu(torch_or_none().ones(1, device="meta"))

    def one(self, seed: int) -> Outcome:
        """One call, and what came of it."""
        c = Call(seed, self.libraries)
        target = c.of(self.of[c.library])
        try:
            with np.errstate(all="ignore"):
                args = target.draw(c)
                if c.mode == "hostile":
                    args = spoil(c, target, args)
            what, detail = self.made(c, target, args)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            what, detail = "harness", traceback.format_exc()
        if what in FINDINGS:
            detail = f"{self.shown(c, target, locals().get('args', {}))}\n{detail}"
        return Outcome(target.name, c.library, c.mode, what, detail)

    def shown(self, c: Call, target: Target, args: Args) -> str:
        return f"{target.name}({', '.join(f'{n}={brief(a)}' for n, a in args.items())})" + (
            f"  junk: {c.spoiled}" if c.spoiled else ""
        )

    def made(self, c: Call, target: Target, args: Args) -> tuple[str, str]:
        """Make the call and judge it."""
        leaves = self.leaves(c, target, args)
        seen = {target.rename.get(n, n): snapshot(a) for n, a in args.items()}
        reading = Reading({target.rename.get(n, n): a for n, a in args.items()}, seen)
        out = args.get("out", args.get("dlogits_out"))
        if target.name.endswith("relu_") or ("inplace" in args and truthy(args["inplace"])):
            out = args["input"]
        function = self.planted.get(target.name, target.call)
        result = error = None
        with self.around(c, leaves), np.errstate(all="raise"):
            try:
                result = function(**args)
            except Exception as raised:
                error = raised
        if error is not None:
            return self.raised(c, error)
        if any(memory.written(out) for memory in c.memories):
            return "wrong", "an input was written to, or memory beside out"
        first = result[1] if "dlogits_out" in args and isinstance(result, tuple) else result
        if isinstance(out, np.ndarray) or hasattr(out, "data_ptr"):
            inplace = "out" not in args and "dlogits_out" not in args
            if first is not out and not (inplace and leaves):
                return "wrong", "out was not returned"
        try:
            try:
                with np.errstate(all="ignore"):
                    expected = target.judge(reading)
                    library = c.library
                    if target.name not in LIBRARYLESS:
                        library = reading.library() if reading.libraries else library
            except Unjudged as why:
                if c.mode == "valid":
                    return "harness", f"valid, and not judged: {why}"
                return "returned", ""
            with np.errstate(all="ignore"):
                compare(expected, result, library, out)
                if leaves and not self.backward(c, target, reading, leaves, result):
                    return "returned", ""
        except Wrong as wrong:
            return "wrong", str(wrong)
        if c.mode == "valid" and out is None and not leaves and c.chance(0.15):
            try:
                again = function(**args)
            except Exception as raised:
                return self.raised(c, raised)
            if bytes_of(again) != bytes_of(result):
                return "wrong", "the second call gave something else"
        return "right", ""

    def raised(self, c: Call, error: Exception) -> tuple[str, str]:
        if isinstance(error, Warning | FloatingPointError) and not documented(error, str(error)):
            return "warning", shown_error(error)
        if c.mode == "valid":
            return "wrong", f"what is allowed was refused: {shown_error(error)}"
        if any(memory.written(None) for memory in c.memories):
            return "wrong", f"something was written before it was refused: {shown_error(error)}"
        why = refusal(error, self.names)
        if why is not None:
            return "raw", f"{why}\n{shown_error(error)}"
        self.messages.add(re.sub(r"\([^)]*\)|'[^']*'|[-+.\de]*\d[-+.\de]*", "…", str(error)))
        return "refused", ""

    def leaves(self, c: Call, target: Target, args: Args) -> dict[str, Any]:
        """Some of the tensors made to require a gradient, where that is to be judged."""
        if not c.torch or c.mode == "hostile" or target.gradient is None or not c.chance(0.4):
            return {}
        if {"out", "dlogits_out", "inplace", "dtype"} & {*args}:
            return {}
        constants = ("mask", "target") + (
            ("weight",) if "logits" in {target.rename.get(n, n) for n in args} else ()
        )
        found = {}
        for name, a in args.items():
            own = target.rename.get(name, name)
            floats = hasattr(a, "data_ptr") and a.is_floating_point()
            if floats and own not in constants and c.chance(0.8):
                found[own] = a.requires_grad_()
        return found

    def around(self, c: Call, leaves: Args) -> AbstractContextManager[Any]:
        stack = ExitStack()
        if c.mode == "valid" and c.chance(0.05):
            stack.enter_context(gpuact.using("numpy"))
        if c.torch and not leaves and c.chance(0.05):
            stack.enter_context(torch_or_none().no_grad())
        return stack

    def backward(
        self, c: Call, target: Target, reading: Reading, leaves: Args, result: Any
    ) -> bool:
        """Judge the gradients; False if nobody can say what they must be."""
        torch, first = torch_or_none(), result[0] if isinstance(result, tuple) else result
        if not first.requires_grad:
            raise Wrong("the result does not require a gradient")
        dtype = dtype_of(first)
        dy = c.floats(tuple(first.shape), dtype, (0.0,), 1.0)
        given = c.array(dy)
        names = [*leaves]
        dy = np.asarray(snapshot(given))
        with np.errstate(all="raise"):
            got = torch.autograd.grad(first, [leaves[n] for n in names], given, allow_unused=True)
        if any(memory.written(None) for memory in c.memories):
            raise Wrong("backward wrote to an input")
        try:
            expected = target.gradient(reading, from_tensor(first), dy)  # type: ignore[misc]
        except Unjudged:
            return False
        for name, gradient in zip(names, got, strict=True):
            if gradient is None:
                raise Wrong(f"{name} has no gradient")
            try:
                compare(expected[name], gradient, "torch")
            except Wrong as wrong:
                raise Wrong(f"the gradient of {name}: {wrong}") from None
        return True


def truthy(value: Any) -> bool:
    try:
        return bool(value)
    except Exception:
        return False


def shown_error(error: BaseException) -> str:
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    return "".join(lines[-8:])


def brief(a: Any) -> str:
    try:
        if isinstance(a, np.ndarray):
            return f"{type(a).__name__}[{a.dtype}, {a.shape}, strides {a.strides}]"
        if hasattr(a, "data_ptr"):
            return f"{type(a).__name__}[{a.dtype}, {tuple(a.shape)}, {a.layout}, {a.device}]"
        text = repr(a)
        return text if len(text) < 100 else f"{text[:100]}…"
    except BaseException as error:
        return f"<{type(a).__name__}: {type(error).__name__}>"
