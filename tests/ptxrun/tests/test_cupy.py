"""CuPy's own generated kernels, without a GPU."""

import ml_dtypes
import numpy as np
import pytest

from tests.ptxrun import PTXError

cupy = pytest.importorskip("cupy")
from tests.ptxrun.cupyrun import elementwise, raw


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("dtype, tolerance", (("f4", 1.5e-7), ("f8", 3e-16), ("f2", 3e-4)))
def test_elementwise(rng, dtype, tolerance):
    k = cupy.ElementwiseKernel("T x", "T y", "y = T(1) / (T(1) + exp(-x))", "sigmoid")
    x = (rng.standard_normal((33, 57)) * 3).astype(dtype)
    y = np.zeros_like(x)
    s = elementwise(k, [x], [y], stats=True)
    assert np.abs(y - 1 / (1 + np.exp(-x.astype("f8")))).max() < tolerance
    assert s.load_bytes == s.store_bytes == x.nbytes


def test_strided_broadcast_and_scalar(rng):
    k = cupy.ElementwiseKernel(
        "T x, T g, float32 a",
        "T y, T z",
        "T t = tanh(x); y = g * (1 - t * t) * a; z = x > 0 ? x : a * x",
        "t",
    )
    x = rng.standard_normal((40, 50)).astype("f4")[::2, ::3]
    g = rng.standard_normal((1, 17)).astype("f4")
    y, z = np.zeros((20, 17), "f4"), np.zeros((17, 20), "f4").T
    elementwise(k, [x, g, 0.25], [y, z])
    assert np.abs(y - g.astype("f8") * (1 - np.tanh(x.astype("f8")) ** 2) * 0.25).max() < 3e-7
    assert (z == np.where(x > 0, x, np.float32(0.25) * x)).all()


PACK = cupy.ElementwiseKernel(
    "raw T x, int32 n",
    "raw T y",
    """
    const int base = 8 * i;
    if (base + 8 <= n) {
        uint4 v = *reinterpret_cast<const uint4*>(&x[base]), w;
        const T* a = reinterpret_cast<const T*>(&v);
        T* b = reinterpret_cast<T*>(&w);
        #pragma unroll
        for (int k = 0; k < 8; k++) b[k] = a[k] > T(0) ? a[k] : T(0);
        *reinterpret_cast<uint4*>(&y[base]) = w;
    } else {
        for (int k = base; k < n; k++) y[k] = x[k] > T(0) ? x[k] : T(0);
    }
    """,
    "relu_pack",
)


@pytest.mark.parametrize("n", (8, 1000, 1003))
def test_packs_through_raw_pointers(rng, n):
    x, y = rng.standard_normal(n).astype("f2"), np.zeros(n, "f2")
    s = elementwise(PACK, [x, n], [y], size=-(-n // 8), stats=True)
    assert (y == np.maximum(x, 0)).all()
    assert s.load_widths[16] == s.store_widths[16] == n // 8
    assert s.load_bytes == x.nbytes


def test_pack_on_an_offset_view(rng):
    x, y = rng.standard_normal(1001).astype("f2"), np.zeros(1000, "f2")
    with pytest.raises(PTXError, match="misaligned load of 16 bytes"):
        elementwise(PACK, [x[1:], 1000], [y], size=125)


def test_pack_past_the_end(rng):
    x, y = rng.standard_normal(1000).astype("f2"), np.zeros(1000, "f2")
    with pytest.raises(PTXError, match="out of bounds"):
        elementwise(PACK, [x[:996], 1000], [y], size=125)


def test_bfloat16(rng):
    k = cupy.ElementwiseKernel("T x, S a", "T y", "y = T(float(x) * float(a))", "scale")
    x = rng.standard_normal(1000).astype(ml_dtypes.bfloat16)
    y = np.zeros_like(x)
    elementwise(k, [x, np.full(1000, 3, "f4")], [y])
    assert (y == (x.astype("f4") * np.float32(3)).astype(x.dtype)).all()


MODULE = cupy.RawModule(
    code="""
    extern "C" __global__ void scale(const float* x, float* y, long long n, double a) {
        long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) y[i] = float(a * x[i]);
    }
    """,
    options=("-std=c++17",),
)


def test_raw_module(rng):
    x, y = rng.standard_normal(300).astype("f4"), np.zeros(300, "f4")
    raw(MODULE, "scale", (3,), (128,), (x, y, np.int64(300), 0.1))
    assert (y == (0.1 * x.astype("f8")).astype("f4")).all()


@pytest.mark.parametrize("n, a", ((np.int32(300), 0.1), (300, np.float32(0.1))))
def test_raw_scalars_have_the_width_of_their_parameter(n, a):
    x = np.zeros(300, "f4")
    with pytest.raises(PTXError, match=r"argument \d has 4 bytes, the parameter 8"):
        raw(MODULE, "scale", (3,), (128,), (x, x, n, a))
