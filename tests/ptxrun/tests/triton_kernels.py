"""Triton kernels of the tests (Triton reads their source from this file)."""

import triton
import triton.language as tl


@triton.jit
def gelu(y, x, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + i, mask=i < n).to(tl.float32)
    v = 0.5 * v * (1 + tl.math.erf(v * 0.7071067811865476))
    tl.store(y + i, v.to(y.dtype.element_ty), mask=i < n)


@triton.jit
def softmax(out, x, n, stride, BLOCK: tl.constexpr):
    r = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    v = tl.load(x + r * stride + c, mask=c < n, other=-float("inf")).to(tl.float32)
    e = tl.exp(v - tl.max(v, axis=0))
    tl.store(out + r * stride + c, (e / tl.sum(e, axis=0)).to(out.dtype.element_ty), mask=c < n)


@triton.jit
def cross_entropy(loss, dx, x, target, n, stride, BLOCK: tl.constexpr):
    r = tl.program_id(0).to(tl.int64)
    t = tl.load(target + r)
    top = -float("inf")
    s = 0.0
    for first in range(0, n, BLOCK):
        c = first + tl.arange(0, BLOCK)
        v = tl.load(x + r * stride + c, mask=c < n, other=-float("inf")).to(tl.float32)
        m = tl.maximum(top, tl.max(v, axis=0))
        s = s * tl.exp(top - m) + tl.sum(tl.exp(v - m), axis=0)
        top = m
    lse = top + tl.log(s)
    tl.store(loss + r, lse - tl.load(x + r * stride + t).to(tl.float32))
    for first in range(0, n, BLOCK):
        c = first + tl.arange(0, BLOCK)
        v = tl.load(x + r * stride + c, mask=c < n, other=-float("inf")).to(tl.float32)
        p = tl.exp(v - lse) - tl.where(c == t, 1.0, 0.0)
        tl.store(dx + r * stride + c, p.to(dx.dtype.element_ty), mask=c < n)


@triton.jit
def layernorm(y, x, w, b, stride, n, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    y += row * stride
    x += row * stride
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(0, n, BLOCK):
        c = first + tl.arange(0, BLOCK)
        total += tl.load(x + c, mask=c < n, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / n
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(0, n, BLOCK):
        c = first + tl.arange(0, BLOCK)
        a = tl.load(x + c, mask=c < n, other=0.0).to(tl.float32)
        a = tl.where(c < n, a - mean, 0.0)
        total += a * a
    scale = 1 / tl.sqrt(tl.sum(total, axis=0) / n + eps)
    for first in range(0, n, BLOCK):
        c = first + tl.arange(0, BLOCK)
        ww = tl.load(w + c, mask=c < n).to(tl.float32)
        bb = tl.load(b + c, mask=c < n).to(tl.float32)
        a = tl.load(x + c, mask=c < n, other=0.0).to(tl.float32)
        tl.store(y + c, ((a - mean) * scale * ww + bb).to(y.dtype.element_ty), mask=c < n)


@triton.jit
def cumsum(y, x, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    r = tl.program_id(0)
    v = tl.load(x + r * n + i, mask=i < n, other=0.0)
    tl.store(y + r * n + i, tl.cumsum(v, 0), mask=i < n)


@triton.jit
def dropout(y, x, n, p, seed, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + i, mask=i < n, other=0.0)
    keep = tl.rand(seed, i) > p
    tl.store(y + i, tl.where(keep, v / (1 - p), 0.0), mask=i < n)


@triton.jit
def total(out, x, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(out, tl.sum(tl.load(x + i, mask=i < n, other=0.0), axis=0))


@triton.jit
def softmax_rows(out, x, n, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK)
    at = r[:, None] * n + c[None, :]
    v = tl.load(x + at, mask=(c < n)[None, :], other=-float("inf")).to(tl.float32)
    e = tl.exp(v - tl.max(v, axis=1)[:, None])
    e = e / tl.sum(e, axis=1)[:, None]
    tl.store(out + at, e.to(out.dtype.element_ty), mask=(c < n)[None, :])


@triton.jit
def identity(v):
    return v


def make_identity():
    """Another function of the same name, with another body."""

    @triton.jit
    def identity(v):
        return v + 1

    return identity


@triton.jit
def affine(y, x, more, a: tl.float64, n, step, F: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK) * step
    v = F(tl.load(x + i, mask=i < n).to(tl.float64)) + a
    if more is not None:
        v += tl.load(more + i, mask=i < n)
    tl.store(y + i, v, mask=i < n)
