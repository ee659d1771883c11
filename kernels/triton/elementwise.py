"""One kernel for every elementwise formula: arrays that lie alike in memory, run in its order."""

import triton
import triton.language as tl

from .formulas import rounded

BLOCK = 1024  # 4 warps with 8 elements a thread: one 16-byte access of a half type, two of float32
WARPS = 4


@triton.jit
def parameter(p, array, offset, inner, count, mask, DTYPE: tl.constexpr):
    """A formula's parameter at these offsets: one for all, or the entry of their channel."""
    if array is None:
        return tl.full((), p, DTYPE)
    else:
        return tl.load(array + (offset // inner) % count, mask=mask).to(DTYPE)


@triton.jit
def elementwise(
    a,
    b,  # None where the formula reads one array
    out,
    p: tl.float64,
    p_array,  # None: p holds for every element; else entry (offset // p_inner) % p_count
    p_inner,
    p_count,
    q: tl.float64,
    q_array,
    q_inner,
    q_count,
    size,
    FORMULA: tl.constexpr,
    PARAMETERS: tl.constexpr,  # how many of p and q the formula takes
    INDEX: tl.constexpr,  # the type of offsets
    DTYPE: tl.constexpr,  # what it computes in
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(INDEX) * BLOCK
    offset = start + tl.arange(0, BLOCK)
    # A mask that no multiple of 16 bounds cuts every access down to one element: full blocks,
    # all but the last, go without.
    if start + BLOCK <= size:
        whole_or_masked(
            a, b, out, offset, None,
            p, p_array, p_inner, p_count, q, q_array, q_inner, q_count,
            FORMULA, PARAMETERS, DTYPE,
        )  # fmt: skip
    else:
        whole_or_masked(
            a, b, out, offset, offset < size,
            p, p_array, p_inner, p_count, q, q_array, q_inner, q_count,
            FORMULA, PARAMETERS, DTYPE,
        )  # fmt: skip


@triton.jit
def whole_or_masked(
    a,
    b,
    out,
    offset,
    mask,
    p,
    p_array,
    p_inner,
    p_count,
    q,
    q_array,
    q_inner,
    q_count,
    FORMULA: tl.constexpr,
    PARAMETERS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """One block; mask is None where all of it exists."""
    values = (tl.load(a + offset, mask=mask).to(DTYPE),)
    if b is not None:
        values = values + (tl.load(b + offset, mask=mask).to(DTYPE),)
    if PARAMETERS >= 1:
        values = values + (parameter(p, p_array, offset, p_inner, p_count, mask, DTYPE),)
    if PARAMETERS == 2:
        values = values + (parameter(q, q_array, offset, q_inner, q_count, mask, DTYPE),)
    tl.store(out + offset, rounded(FORMULA(*values), out.dtype.element_ty), mask=mask)
