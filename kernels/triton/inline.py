"""Kernels that torch.compile launches by itself: one an elementwise formula, which it names.

Inductor copies a kernel's text, and that of the functions and constants it names, into one module
of one namespace; a formula handed to the launch as `elementwise` has it would be lost. So each
kernel names its own, and no kernel has the name of a formula. What is known here are the dtype,
which all arrays share, and that they lie alike without gaps; not where they begin, nor, with
symbolic shapes, how many elements there are. Whether pointers are divisible by 16 Inductor tells
Triton, and accesses are as wide as that allows.
"""

import triton
import triton.language as tl

from .formulas import (
    leaky_relu,
    leaky_relu_backward,
    leaky_relu_derivative,
    linear,
    linear_backward,
    linear_derivative,
    relu,
    relu_backward,
    relu_derivative,
    rounded,
    sigmoid,
    sigmoid_backward,
    sigmoid_derivative,
    tanh,
    tanh_backward,
    tanh_derivative,
)


@triton.jit
def tile(arrays, out, whole, rest, numbers, FORMULA: tl.constexpr, BLOCK: tl.constexpr):
    """out = FORMULA(*arrays, *numbers) for one tile; there are `whole` ones of BLOCK elements, and
    behind them one of `rest`.

    Only where a tile begins is counted in 64 bits. The size itself comes nowhere: one that does
    not fit into 32 bits would be of another type, and Inductor of torch 2.10 fails over it.
    """
    first = tl.program_id(0).to(tl.int64) * BLOCK
    if tl.program_id(0) < whole:
        elements(arrays, out, first, None, numbers, FORMULA, BLOCK)
    else:
        elements(arrays, out, first, rest, numbers, FORMULA, BLOCK)


@triton.jit
def elements(arrays, out, first, count, numbers, FORMULA: tl.constexpr, BLOCK: tl.constexpr):
    """count: how many, or None for BLOCK, where no mask is to narrow the accesses."""
    k = tl.arange(0, BLOCK)
    mask = None if count is None else k < count
    values = ()
    for i in tl.static_range(len(arrays)):
        values = values + (tl.load(arrays[i] + first + k, mask=mask).to(tl.float32),)
    for i in tl.static_range(len(numbers)):
        values = values + (tl.full((1,), numbers[i], tl.float32),)
    STORED: tl.constexpr = out.dtype.element_ty
    tl.store(out + first + k, rounded(FORMULA(*values, STORED), STORED), mask=mask)


@triton.jit
def gpuact_linear(x, out, whole, rest, scale, bias, BLOCK: tl.constexpr):
    tile((x,), out, whole, rest, (scale, bias), linear, BLOCK)


@triton.jit
def gpuact_linear_backward(dy, out, whole, rest, scale, BLOCK: tl.constexpr):
    tile((dy,), out, whole, rest, (scale,), linear_backward, BLOCK)


@triton.jit
def gpuact_linear_derivative(x, out, whole, rest, scale, BLOCK: tl.constexpr):
    tile((x,), out, whole, rest, (scale,), linear_derivative, BLOCK)


@triton.jit
def gpuact_sigmoid(x, out, whole, rest, BLOCK: tl.constexpr):
    tile((x,), out, whole, rest, (), sigmoid, BLOCK)


@triton.jit
def gpuact_sigmoid_backward(dy, y, out, whole, rest, BLOCK: tl.constexpr):
    tile((dy, y), out, whole, rest, (), sigmoid_backward, BLOCK)


@triton.jit
def gpuact_sigmoid_derivative(x, out, whole, rest, BLOCK: tl.constexpr):
    tile((x,), out, whole, rest, (), sigmoid_derivative, BLOCK)


@triton.jit
def gpuact_tanh(x, out, whole, rest, BLOCK: tl.constexpr):
    tile((x,), out, whole, rest, (), tanh, BLOCK)


@triton.jit
def gpuact_tanh_backward(dy, y, out, whole, rest, BLOCK: tl.constexpr):
    tile((dy, y), out, whole, rest, (), tanh_backward, BLOCK)


@triton.jit
def gpuact_tanh_derivative(x, out, whole, rest, BLOCK: tl.constexpr):
    tile((x,), out, whole, rest, (), tanh_derivative, BLOCK)


@triton.jit
def gpuact_relu(x, out, whole, rest, BLOCK: tl.constexpr):
    tile((x,), out, whole, rest, (), relu, BLOCK)


@triton.jit
def gpuact_relu_backward(dy, y, out, whole, rest, BLOCK: tl.constexpr):
    tile((dy, y), out, whole, rest, (), relu_backward, BLOCK)


@triton.jit
def gpuact_relu_derivative(x, out, whole, rest, BLOCK: tl.constexpr):
    tile((x,), out, whole, rest, (), relu_derivative, BLOCK)


@triton.jit
def gpuact_leaky_relu(x, out, whole, rest, slope, BLOCK: tl.constexpr):
    tile((x,), out, whole, rest, (slope,), leaky_relu, BLOCK)


@triton.jit
def gpuact_leaky_relu_backward(dy, x, out, whole, rest, slope, BLOCK: tl.constexpr):
    tile((dy, x), out, whole, rest, (slope,), leaky_relu_backward, BLOCK)


@triton.jit
def gpuact_leaky_relu_derivative(x, out, whole, rest, slope, BLOCK: tl.constexpr):
    tile((x,), out, whole, rest, (slope,), leaky_relu_derivative, BLOCK)


# By formula. Arguments: the arrays it reads, out, tiles, the formula's numbers, BLOCK.
KERNELS = {
    "linear": gpuact_linear,
    "linear_backward": gpuact_linear_backward,
    "linear_derivative": gpuact_linear_derivative,
    "sigmoid": gpuact_sigmoid,
    "sigmoid_backward": gpuact_sigmoid_backward,
    "sigmoid_derivative": gpuact_sigmoid_derivative,
    "tanh": gpuact_tanh,
    "tanh_backward": gpuact_tanh_backward,
    "tanh_derivative": gpuact_tanh_derivative,
    "relu": gpuact_relu,
    "relu_backward": gpuact_relu_backward,
    "relu_derivative": gpuact_relu_derivative,
    "leaky_relu": gpuact_leaky_relu,
    "leaky_relu_backward": gpuact_leaky_relu_backward,
    "leaky_relu_derivative": gpuact_leaky_relu_derivative,
}
