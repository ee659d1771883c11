"""Compile @triton.jit kernels ahead of time and run their PTX, without a GPU.

Triton's own launcher decides what is compiled: its binder turns the arguments into a signature (an
integer 1 and None become constants, multiples of 16 are marked, annotations such as "fp64" are
obeyed), so what runs here is what would run on a GPU.  Private functions of Triton are used (the
same in 3.6, 3.7 and 3.9); it is imported only here, when a function is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .machine import run_ptx
from .memory import _extent, is_array
from .parse import PTXModule
from .stats import Stats


@dataclass(frozen=True)
class Pointer:
    """What Triton's launcher looks at in an array: the type, and the address modulo 16."""

    dtype: str
    phase: int = 0

    def data_ptr(self) -> int:
        return self.phase


class Built(NamedTuple):
    compiled: Any  # triton's CompiledKernel: .asm, .metadata
    module: PTXModule
    passed: tuple[int, ...]  # which of the arguments are still parameters of the compiled kernel


_cache: dict[Any, tuple[Built, Any]] = {}  # the last one that was used stands last
KEPT = 64  # of megabytes each


def describe(x: Any) -> Any:
    """An argument as the launcher sees it: arrays become Pointers."""
    return Pointer(str(x.dtype).split(".")[-1], _extent(x)[2] % 16) if is_array(x) else x


def compile_triton(
    kernel: Any,
    args: Sequence[Any],
    constexprs: Mapping[str, Any] | None = None,
    cap: int = 90,
    **options: Any,
) -> Built:
    """Compile for sm_<cap> as `kernel[grid](*args, **constexprs, **options)` would.

    args: arrays, Pointers, numbers or None, for the leading parameters.
    """
    from triton import JITFunction, compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    target = GPUTarget("cuda", cap, 32)
    backend = make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    given = {**options, **(constexprs or {}), "debug": False, "instrumentation_mode": ""}
    bound, types, rest = bind(*[describe(a) for a in args], **given)

    def constant(value: Any) -> Any:  # two functions of one name differ, and 1 is not True
        return id(value) if isinstance(value, JITFunction) else repr(value)

    key = (id(kernel), cap, tuple((t, constant(v)) for t, v in types), repr(sorted(rest.items())))
    found = _cache.pop(key, None)
    if found is None:
        parsed, signature, constants, attributes = kernel._pack_args(
            backend, given, bound, types, rest
        )
        source = ASTSource(kernel, signature, constants, attributes)
        compiled = compile(source, target=target, options=parsed.__dict__)
        passed = tuple(k for k, (t, _) in enumerate(types[: len(args)]) if t != "constexpr")
        # the source is kept, so that no id in a key is ever used again
        found = Built(compiled, PTXModule(compiled.asm["ptx"]), passed), source
    _cache[key] = found
    if len(_cache) > KEPT:
        del _cache[next(iter(_cache))]
    return found[0]


def run_triton(
    kernel: Any,
    grid: Any,
    args: Sequence[Any],
    constexprs: Mapping[str, Any] | None = None,
    *,
    cap: int = 90,
    run: Mapping[str, Any] | None = None,
    **options: Any,
) -> Stats | None:
    """Run a kernel on numpy arrays or CPU torch tensors.

    args are the leading parameters; `run` holds options of run_ptx, `options` those of Triton's
    compiler (num_warps, num_ctas, ...).
    """
    options = {"enable_fp_fusion": True, **options}  # Triton 3.9 warns where nobody says
    built = compile_triton(kernel, args, constexprs, cap, **options)
    return run_built(built, built.module, grid, [args[k] for k in built.passed], **(run or {}))


def run_built(
    built: Built, module: PTXModule, grid: Any, args: Sequence[Any], **run: Any
) -> Stats | None:
    """Run a compiled kernel (or a changed copy of its PTX) on the arguments it still takes."""
    metadata = built.compiled.metadata
    scratch = len(module.program(metadata.name).params) - len(args)
    ctas = getattr(metadata, "num_ctas", 1)  # CTAs per program: a cluster
    first, *rest = np.atleast_1d(grid).tolist()
    return run_ptx(
        module,
        metadata.name,
        [first * ctas, *rest],
        32 * metadata.num_warps,
        [*args, *[None] * scratch],
        metadata.shared,
        cluster=ctas,
        **run,
    )
