"""Every formula of gpuact on one block of elements, in the compute dtype: float32 or float64.

Same names and same order as `gpuact/reference.py` and `kernels/cupy/formulas.cuh`; forward,
backward (which reads what its arguments are named for) and derivative stand together.
Comparisons are written so that NaN falls through to the side that keeps it.
"""

import triton
import triton.language as tl

# The interpreter rounds float32 to bfloat16 towards zero and warns where hardware is silent; the
# few lines that depend on it are compiled away everywhere else.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def exp(x, TWOS: tl.constexpr = 0):
    """e^x·2^TWOS: 2 ulp on float32, results below 2^-126 may be 0.

    `tl.exp` of float32 is 2^(x·log2 e) with the product rounded: 20 to 40 ulp for large |x|.
    Here x = n·ln 2 + r with |r| <= ln(2)/2. The upper part of ln 2 has 15 bits, so n·upper is
    exact with or without fma, and 2^n is put together from its exponent bits.
    """
    if x.dtype == tl.float64:
        return tl.exp(x) * 2.0**TWOS
    else:
        # The clamp holds n + TWOS within [-127, 128]: the exponent bits of 0 and of infinity.
        x = tl.clamp(x, -88.0 - 0.7 * TWOS, 89.0 - 0.7 * TWOS, propagate_nan=tl.PropagateNan.ALL)
        # Adding 1.5·2^23 rounds to an integer, which the low bits of the sum are: no conversion.
        shifted = x * 1.4426950408889634 + 12582912.0
        n = shifted - 12582912.0
        r = (x - n * 0.693145751953125) - n * 1.42860682030941723e-6
        power = (shifted.to(tl.int32, bitcast=True) << 23) + ((127 + TWOS) << 23)
        return tl.exp2(r * 1.4426950408889634) * power.to(tl.float32, bitcast=True)


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
def linear(x, scale, bias):
    return scale * x + bias


@triton.jit
def linear_backward(dy, scale):
    return scale * dy


@triton.jit
def linear_dscale(dy, x):
    return x * dy


@triton.jit
def linear_dbias(dy):
    return dy


@triton.jit
def linear_derivative(x, scale):
    return tl.where(x == x, scale, x)


@triton.jit
def sigmoid(x):
    # From e^-|x|, which never overflows: 1 / (1 + e^-x) is 0 below -88, where e^x is not.
    z = exp(-tl.abs(x))
    return tl.where(x < 0, z, 1.0) / (1.0 + z)


@triton.jit
def sigmoid_backward(dy, y):
    return dy * (y * (1.0 - y))


@triton.jit
def sigmoid_derivative(x):
    z = exp(-tl.abs(x))
    return z / ((1.0 + z) * (1.0 + z))


@triton.jit
def tanh(x):
    # (1 - z) / (1 + z) cancels near 0. There tanh x = x + x^3·P(x^2), P fitted for the least
    # relative error over |x| <= 0.625: 2^-27.7 with 5 terms, 2^-61 with 12.
    z = exp(-2.0 * tl.abs(x))
    far = (1.0 - z) / (1.0 + z)
    s = x * x
    if x.dtype == tl.float64:
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
    else:
        p = 2.06390778223332073e-02 + s * -5.70497774978890516e-03
        p = -5.37397117028792128e-02 + s * p
        p = 1.33314421486217198e-01 + s * p
        p = -3.33332819396143079e-01 + s * p
    near = x * (1.0 + s * p)  # keeps -0.0, as x + x·(s·p) would not
    return tl.where(tl.abs(x) <= 0.625, near, tl.where(x < 0, -far, far))


@triton.jit
def tanh_backward(dy, y):
    # 1 - y·y, whose product is never rounded: near 1 all that is left would be that error.
    return dy * ((1.0 - y) * (1.0 + y))


@triton.jit
def tanh_derivative(x):
    # 4·z is formed at once: it is a normal number still where z is below the smallest.
    z4 = exp(-2.0 * tl.abs(x), 2)
    z = 0.25 * z4
    return z4 / ((1.0 + z) * (1.0 + z))


@triton.jit
def relu(x):
    return tl.where(x <= 0, tl.zeros_like(x), x)


@triton.jit
def relu_backward(dy, y):
    return tl.where(y <= 0, tl.zeros_like(dy), dy)


@triton.jit
def relu_derivative(x):
    return tl.where(x > 0, 1.0, tl.where(x <= 0, 0.0, x))


@triton.jit
def leaky_relu(x, slope):
    return tl.where(x > 0, x, slope * x)


@triton.jit
def leaky_relu_backward(dy, x, slope):
    return tl.where(x > 0, dy, slope * dy)


@triton.jit
def leaky_relu_derivative(x, slope):
    return tl.where(x > 0, 1.0, tl.where(x <= 0, slope, x))


@triton.jit
def prelu_dweight(dy, x):
    return tl.where(x > 0, 0.0, x * dy)
