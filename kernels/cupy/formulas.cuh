// The formulas of gpuact in CUDA C++: forward, backward and derivative adjacent, in the order of
// reference.py and kernels/triton/formulas.py, but written without looking at them.
//
// T is the type of the computation: float (for half types too), double, or an integer type for
// relu. exp, tanh and fma are CUDA's own (at most 2 ulp) and division is IEEE's. Backward
// arguments are named for what they read: x or y. NaN in gives NaN out.
//
// CuPy always compiles with -ftz=true: arithmetic and comparisons take float32 subnormals for 0.
// An exponential below 2^-126 becomes 0 therefore; but no kink moves, and no product is lost for
// a factor that is subnormal: the helpers before the formulas see to that.
//
// NVRTC and a host's C++17 compiler both take this file, so that every formula can be tested on
// all values of a half type without a GPU.
#pragma once

#ifdef __CUDACC__
#define GPUACT_INLINE __host__ __device__ inline
#else
#include <math.h>
#define GPUACT_INLINE inline
#endif
#define GPUACT_FORMULA template <typename T> GPUACT_INLINE

class float16;  // CuPy's own half types, as ElementwiseKernel names them
class bfloat16;

namespace gpuact {

template <typename T>
struct compute {
  using type = T;
};
template <>
struct compute<float16> {
  using type = float;
};
template <>
struct compute<bfloat16> {
  using type = float;
};
template <typename T>
using compute_t = typename compute<T>::type;

// a·b + c and a·b in one rounding. Subnormals count, for -ftz=true does not reach __fmaf_ieee_rn;
// adding -0.0 leaves a product as it is, +0.0 would turn -0.0 into itself.
GPUACT_FORMULA T multiply_add(T a, T b, T c) { return fma(a, b, c); }
GPUACT_FORMULA T product(T a, T b) { return a * b; }
#ifdef __CUDACC__
GPUACT_INLINE float multiply_add(float a, float b, float c) { return __fmaf_ieee_rn(a, b, c); }
GPUACT_INLINE float product(float a, float b) { return __fmaf_ieee_rn(a, b, -0.0f); }
#endif

GPUACT_FORMULA bool is_nan(T x) { return x != x; }

// x > 0. A float is tested by its bits, 1 (the smallest subnormal) to 0x7f800000 (inf).
GPUACT_FORMULA bool is_positive(T x) { return x > T(0); }
GPUACT_INLINE bool is_positive(float x) {
  return __builtin_bit_cast(unsigned, x) - 1u < 0x7f800000u;
}

// x <= 0: where relu is 0. A NaN is not.
GPUACT_FORMULA bool is_clipped(T x) { return !is_positive(x) && !is_nan(x); }

// -- linear ---------------------------------------------------------------------------------------

GPUACT_FORMULA T linear(T x, T scale, T bias) { return multiply_add(scale, x, bias); }

GPUACT_FORMULA T linear_backward(T dy, T scale) { return product(scale, dy); }

// The terms whose sums are the gradients of scale and bias.
GPUACT_FORMULA T linear_dscale(T dy, T x) { return product(x, dy); }
GPUACT_FORMULA T linear_dbias(T dy) { return dy; }

GPUACT_FORMULA T linear_derivative(T x, T scale) { return is_nan(x) ? x : scale; }

// -- sigmoid --------------------------------------------------------------------------------------

// 1 / (1 + e^-x) overflows below -88 and is wrong there; e^-|x| never overflows.
GPUACT_FORMULA T sigmoid(T x) {
  const T z = exp(-fabs(x));
  return (x < T(0) ? z : T(1)) / (T(1) + z);
}

GPUACT_FORMULA T sigmoid_backward(T dy, T y) { return product(dy, product(y, T(1) - y)); }

// s (1 - s) would cancel where s rounds to 1.
GPUACT_FORMULA T sigmoid_derivative(T x) {
  const T z = exp(-fabs(x));
  return z / ((T(1) + z) * (T(1) + z));
}

// -- tanh -----------------------------------------------------------------------------------------

// Spelled with e^x it would cancel near 0; :: because this function hides CUDA's.
GPUACT_FORMULA T tanh(T x) { return ::tanh(x); }

// 1 - y^2 in one rounding: rounding y^2 first would cost half the digits where |y| is nearly 1.
GPUACT_FORMULA T tanh_backward(T dy, T y) { return product(dy, multiply_add(-y, y, T(1))); }

// 1 - t^2 would cancel where t rounds to 1. In the tail e^-2|x| is flushed before 4 e^-2|x| would
// be, but (2 e^-|x|)^2 is not; elsewhere the square would double the exponential's error.
GPUACT_FORMULA T tanh_derivative(T x) {
  if (fabs(x) > T(43)) {
    const T root = T(2) * exp(-fabs(x));
    return product(root, root);
  }
  const T z = exp(T(-2) * fabs(x));
  return T(4) * z / ((T(1) + z) * (T(1) + z));
}

// -- relu -----------------------------------------------------------------------------------------

// Not max(x, 0): that drops a NaN, and may keep -0.0.
GPUACT_FORMULA T relu(T x) { return is_clipped(x) ? T(0) : x; }

GPUACT_FORMULA T relu_backward(T dy, T y) { return is_clipped(y) ? T(0) : dy; }

GPUACT_FORMULA T relu_derivative(T x) { return is_nan(x) ? x : T(is_positive(x)); }

// -- leaky_relu, prelu ----------------------------------------------------------------------------

GPUACT_FORMULA T leaky_relu(T x, T slope) { return is_positive(x) ? x : product(slope, x); }

GPUACT_FORMULA T leaky_relu_backward(T dy, T x, T slope) {
  return is_positive(x) ? dy : product(slope, dy);
}

GPUACT_FORMULA T leaky_relu_derivative(T x, T slope) {
  return is_positive(x) ? T(1) : is_nan(x) ? x : slope;
}

// The terms whose sum is the gradient of the slope. x is tested, never y: slopes may be negative.
GPUACT_FORMULA T prelu_dweight(T dy, T x) { return is_positive(x) ? T(0) : product(x, dy); }

}  // namespace gpuact
