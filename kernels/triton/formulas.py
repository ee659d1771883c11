"""Every formula of gpuact on one block of elements, in the compute dtype: float32 or float64.

Same names and same order as `gpuact/reference.py` and `kernels/cupy/formulas.cuh`; forward,
backward (which reads what its arguments are named for) and derivative stand together.
Comparisons are written so that NaN falls through to the side that keeps it.

A formula's last parameter is the dtype that its result is stored in. Half types round off 13 bits
and more of a float32: a formula that costs less there errs by at most 0.01 ulp of the half type.
"""

import triton
import triton.language as tl

# The interpreter rounds float32 to bfloat16 towards zero, warns where hardware is silent, and
# knows no PTX; the few lines that depend on it are compiled away everywhere else.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def is_half(x, STORED: tl.constexpr):
    """Whether x, of float32, becomes a half type."""
    return x.dtype == tl.float32 and STORED.primitive_bitwidth == 16


@triton.jit
def reciprocal(x):
    """1/x of float32, 1 ulp, in one instruction where division takes ten; what is below 2^-126, be
    it x or the result, counts as 0."""
    if INTERPRETED:
        return 1.0 / x
    else:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def over_square(x, y, STORED: tl.constexpr):
    """x / y^2"""
    if x.dtype == tl.float64:
        return x / (y * y)
    else:
        r = reciprocal(y)
        if not is_half(x, STORED):
            r = tl.fma(r, tl.fma(-y, r, 1.0), r)  # its error would count twice
        return x * r * r


@triton.jit
def exp(x, TWOS: tl.constexpr = 0):
    """e^x·2^TWOS: 2.5 ulp on float32; below 2^-126 it is 0, and it stops growing at 88.7.

    2^t with t = x·log2 e rounded would be wrong by 64 ulp for x = -87. What the rounding cost is
    known exactly by fma: 2^(t + d) = 2^t·(1 + d·ln 2), d being at most 2^-17.
    """
    if INTERPRETED or x.dtype == tl.float64:
        return tl.exp(x) * 2.0**TWOS
    else:
        return exp_below(tl.minimum(x, 88.72 - 0.7 * TWOS, tl.PropagateNan.ALL), TWOS)


@triton.jit
def exp_below(x, TWOS: tl.constexpr = 0):
    """`exp` of what is known to be negative, or too small to overflow."""
    if INTERPRETED or x.dtype == tl.float64:
        return tl.exp(x) * 2.0**TWOS
    else:
        x = tl.maximum(x, -104.0, tl.PropagateNan.ALL)  # -inf·log2 e - -inf would be NaN
        t = tl.fma(x, 1.44269502162933349609375, 0.0)  # a product would be fused with + TWOS
        d = tl.fma(x, 1.44269502162933349609375, -t)
        # log2 e is that constant and 1.926e-8, here times ln 2; adding TWOS is exact from -4 down.
        d = tl.fma(d, 0.693147182464599609375, x * 1.33497585e-8)
        power = tl.exp2(t + TWOS if TWOS else t)
        return tl.fma(power, d, power)


@triton.jit
def log(x):
    """ln x, 1 ulp on float32 for normal x > 0; 0 gives -inf and NaN stays NaN.

    `tl.log` of float32 is log2(x)·ln 2 with an absolute error of 2^-22 around x = 1. Here
    x = 2^k·(1 + f) with 1 + f within [sqrt(1/2), sqrt(2)], and ln(1 + f) = 2·artanh(f / (2 + f)).
    """
    if x.dtype == tl.float64:
        return tl.log(x)
    else:
        bits = x.to(tl.int32, bitcast=True)
        k = (bits - 0x3F3504F3) >> 23
        f = (bits - (k << 23)).to(tl.float32, bitcast=True) - 1.0
        s = f / (2.0 + f)
        z = s * s
        tail = z * (0.666666850396 + z * (0.39988780566 + z * 0.29579949392))
        half = 0.5 * f * f
        e = k.to(tl.float32)
        y = e * 0.693145751953125 - ((half - (s * (half + tail) + e * 1.42860682030941723e-6)) - f)
        return tl.where(x > 0, y, tl.where(x == 0, -float("inf"), x))


@triton.jit
def rounded(y, dtype: tl.constexpr):
    """y in the dtype it is stored in, rounded to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:
        y = y.to(tl.float32)
        bits = y.to(tl.int32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(y == y, nearest, 0x7FC0).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return y.to(dtype)


@triton.jit
def linear(x, scale, bias, STORED: tl.constexpr):
    return scale * x + bias


@triton.jit
def linear_backward(dy, scale, STORED: tl.constexpr):
    return scale * dy


@triton.jit
def linear_dscale(dy, x, STORED: tl.constexpr):
    return x * dy


@triton.jit
def linear_dbias(dy, STORED: tl.constexpr):
    return dy


@triton.jit
def linear_derivative(x, scale, STORED: tl.constexpr):
    return tl.where(x == x, scale, x)


# log2 e·x rounded is off by |x|·2^-24 at most and so is e^x, as a share of itself: with the
# constant's error, 2^-18.6 where float16 has normal results, 2^-16.5 for bfloat16.
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def sigmoid(x, STORED: tl.constexpr):
    if x.dtype == tl.float64:  # first: Triton 3.6 compiles what is_half leaves out, too
        # From e^-|x|, which never overflows: 1 / (1 + e^-x) is 0 below -709, where e^x is not.
        z = exp(-tl.abs(x))
        return tl.where(x < 0, z, 1.0) / (1.0 + z)
    elif is_half(x, STORED):
        return reciprocal(1.0 + tl.exp2(x * -LOG2_E))
    else:
        # Where e^-x overflows, what float32 has for e^x is below 2^-126.
        return reciprocal(1.0 + exp(-x))


@triton.jit
def sigmoid_backward(dy, y, STORED: tl.constexpr):
    return dy * (y * (1.0 - y))


@triton.jit
def sigmoid_derivative(x, STORED: tl.constexpr):
    if is_half(x, STORED):
        z = tl.exp2(tl.abs(x) * -LOG2_E)
    else:
        z = exp_below(-tl.abs(x))
    return over_square(z, 1.0 + z, STORED)


@triton.jit
def tanh(x, STORED: tl.constexpr):
    # 1 - 2 / (1 + e^2x) cancels near 0. There tanh x = x + x^3·P(x^2), P fitted for the least
    # relative error: 2^-19 with 1 term up to 0.09, which half types need no better; up to 0.625
    # 2^-27.7 with 4 terms, 2^-61 with 11.
    s = x * x
    if x.dtype == tl.float64:
        z = exp(-2.0 * tl.abs(x))
        far = (1.0 - z) / (1.0 + z)
        p = -3.01869320244076429e-05 + s * 6.04235231917113504e-06
        p = 9.15580965971145908e-05 + s * p
        p = -2.37011531377039997e-04 + s * p
        p = 5.89451718991336369e-04 + s * p
        p = -1.45572592668223498e-03 + s * p
        p = 3.59211399602972868e-03 + s * p
        p = -8.86323431211845552e-03 + s * p
        p = 2.18694884686800183e-02 + s * p
        p = -5.39682539660572692e-02 + s * p
        p = 1.33333333333297388e-01 + s * p
        p = -3.33333333333333128e-01 + s * p
        near = x * (1.0 + s * p)  # keeps -0.0, as x + x·(s·p) would not
        return tl.where(tl.abs(x) <= 0.625, near, tl.where(x < 0, -far, far))
    elif is_half(x, STORED):
        far = 1.0 - 2.0 * reciprocal(1.0 + tl.exp2(x * (2.0 * LOG2_E)))
        near = x * (1.0 + s * -0.33244)
        return tl.where(tl.abs(x) <= 0.09, near, far)
    else:
        # The error of e^2x, rounded argument and all, counts as the share 2 / (1 + e^2|x|) of the
        # result has it: half an ulp. From 9.01 on that share is lost in 1.
        a = tl.minimum(tl.abs(x), 10.0, tl.PropagateNan.ALL)
        far = 1.0 - 2.0 * reciprocal(1.0 + tl.exp2(a * (2.0 * LOG2_E)))
        p = 2.06390778223332073e-02 + s * -5.70497774978890516e-03
        p = -5.37397117028792128e-02 + s * p
        p = 1.33314421486217198e-01 + s * p
        p = -3.33332819396143079e-01 + s * p
        y = tl.where(a <= 0.625, a + a * (s * p), far)
        # x's sign as a bit: one instruction for the two of a choice, and -0.0 keeps its own
        bits = y.to(tl.int32, bitcast=True) | (x.to(tl.int32, bitcast=True) & -0x80000000)
        return bits.to(tl.float32, bitcast=True)


@triton.jit
def tanh_backward(dy, y, STORED: tl.constexpr):
    if is_half(y, STORED):
        return dy * (1.0 - y * y)  # the square of a half type is exact in float32
    else:
        # 1 - y·y, whose product is never rounded: near 1 all that is left would be that error.
        return dy * ((1.0 - y) * (1.0 + y))


@triton.jit
def tanh_derivative(x, STORED: tl.constexpr):
    # 4·z is formed at once: it is a normal number still where z is below the smallest.
    if is_half(x, STORED):
        z4 = tl.exp2(tl.abs(x) * (-2.0 * LOG2_E) + 2.0)
    else:
        z4 = exp_below(-2.0 * tl.abs(x), 2)
    return over_square(z4, 1.0 + 0.25 * z4, STORED)


@triton.jit
def relu(x, STORED: tl.constexpr):
    return tl.where(x <= 0, tl.zeros_like(x), x)


@triton.jit
def relu_backward(dy, y, STORED: tl.constexpr):
    return tl.where(y <= 0, tl.zeros_like(dy), dy)


@triton.jit
def relu_derivative(x, STORED: tl.constexpr):
    return tl.where(x > 0, 1.0, tl.where(x <= 0, 0.0, x))


@triton.jit
def leaky_relu(x, slope, STORED: tl.constexpr):
    return tl.where(x > 0, x, slope * x)


@triton.jit
def leaky_relu_backward(dy, x, slope, STORED: tl.constexpr):
    return tl.where(x > 0, dy, slope * dy)


@triton.jit
def leaky_relu_derivative(x, slope, STORED: tl.constexpr):
    return tl.where(x > 0, 1.0, tl.where(x <= 0, slope, x))


@triton.jit
def prelu_dweight(dy, x, STORED: tl.constexpr):
    return tl.where(x > 0, 0.0, x * dy)
