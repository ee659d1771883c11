// The formulas of gpuact in CUDA C++: forward, backward and derivative adjacent, in the order of
// reference.py and kernels/triton/formulas.py, but written without looking at them.
//
// STORED is the type that the result is stored in. T is the type of the computation: float (for
// half types too), double, or an integer type for relu. Backward arguments are named for what they
// read: x or y. NaN in gives NaN out.
//
// Arithmetic is as dear as the rounding at the store can show. Half types take the hardware's
// exponential (2 ulp) and reciprocal (1 ulp) as they are: together with what they multiply, 2^-20 of
// the result, 0.002 ulp of a float16 and less of a bfloat16. A float takes CUDA's exp (2 ulp) and
// a quotient corrected once; a double, CUDA's own functions and IEEE's division.
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
#define GPUACT_HELPER template <typename T> GPUACT_INLINE
#define GPUACT_FORMULA template <typename STORED, typename T> GPUACT_INLINE

class float16;  // CuPy's own half types, as ElementwiseKernel names them
class bfloat16;
struct __half;  // CUDA's
struct __nv_bfloat16;

namespace gpuact {

template <typename T>
constexpr bool is_half = false;
template <>
constexpr bool is_half<float16> = true;
template <>
constexpr bool is_half<bfloat16> = true;
template <>
constexpr bool is_half<__half> = true;
template <>
constexpr bool is_half<__nv_bfloat16> = true;

// What values of a type are computed in.
template <typename T, bool = is_half<T>>
struct compute {
  using type = T;
};
template <typename T>
struct compute<T, true> {
  using type = float;
};
template <typename T>
using compute_t = typename compute<T>::type;

// a·b + c and a·b in one rounding. Subnormals count, for -ftz=true does not reach __fmaf_ieee_rn;
// adding -0.0 leaves a product as it is, +0.0 would turn -0.0 into itself.
GPUACT_HELPER T multiply_add(T a, T b, T c) { return fma(a, b, c); }
GPUACT_HELPER T product(T a, T b) { return a * b; }
#ifdef __CUDACC__
GPUACT_INLINE float multiply_add(float a, float b, float c) { return __fmaf_ieee_rn(a, b, c); }
GPUACT_INLINE float product(float a, float b) { return __fmaf_ieee_rn(a, b, -0.0f); }
#endif

GPUACT_HELPER bool is_nan(T x) { return x != x; }

// x > 0. A float is tested by its bits, 1 (the smallest subnormal) to 0x7f800000 (inf).
GPUACT_HELPER bool is_positive(T x) { return x > T(0); }
GPUACT_INLINE bool is_positive(float x) {
  return __builtin_bit_cast(unsigned, x) - 1u < 0x7f800000u;
}

// x <= 0: where relu is 0. A NaN is not.
GPUACT_HELPER bool is_clipped(T x) { return !is_positive(x) && !is_nan(x); }

// 2^x and 1 / x, an instruction each: 2 and 1 ulp.
#ifdef __CUDA_ARCH__
GPUACT_INLINE float exp2_fast(float x) {
  asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
}
GPUACT_INLINE float reciprocal_fast(float x) {
  asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
}
#else
GPUACT_INLINE float exp2_fast(float x) { return exp2f(x); }
GPUACT_INLINE float reciprocal_fast(float x) { return 1 / x; }
#endif

constexpr float LOG2_E = 1.44269504f;

// e^x. Rounding x·log2(e) costs a float half the digits where x is large; a half type bears it.
GPUACT_FORMULA T exponential(T x) {
  if constexpr (is_half<STORED>) {
    return exp2_fast(x * LOG2_E);
  } else {
    return exp(x);
  }
}

// n / d for d in [1, 4], where the reciprocal can neither overflow nor vanish. A float's quotient
// is corrected by its remainder: nearly a division's rounding for 4 instructions, not about ten.
GPUACT_FORMULA T quotient(T n, T d) {
  if constexpr (sizeof(T) == sizeof(double)) {
    return n / d;
  } else if constexpr (is_half<STORED>) {
    return n * reciprocal_fast(d);
  } else {
    const T r = reciprocal_fast(d);
    const T q = n * r;
    return multiply_add(multiply_add(-q, d, n), r, q);
  }
}

// -- linear ---------------------------------------------------------------------------------------

GPUACT_FORMULA T linear(T x, T scale, T bias) { return multiply_add(scale, x, bias); }

GPUACT_FORMULA T linear_backward(T dy, T scale) { return product(scale, dy); }

// The terms whose sums are the gradients of scale and bias.
GPUACT_FORMULA T linear_dscale(T dy, T x) { return product(x, dy); }
GPUACT_FORMULA T linear_dbias(T dy) { return dy; }

GPUACT_FORMULA T linear_derivative(T x, T scale) { return is_nan(x) ? x : scale; }

// -- sigmoid --------------------------------------------------------------------------------------

// 1 / (1 + e^-x) overflows below -88, and makes 0 of what is below 2^-127 and flushed anyway; but
// there the quotient's correction would be inf·0. e^-|x| never overflows.
GPUACT_FORMULA T sigmoid(T x) {
  if constexpr (is_half<STORED>) {
    return reciprocal_fast(T(1) + exponential<STORED>(-x));
  } else {
    const T z = exponential<STORED>(-fabs(x));
    return quotient<STORED>(x < T(0) ? z : T(1), T(1) + z);
  }
}

GPUACT_FORMULA T sigmoid_backward(T dy, T y) { return product(dy, product(y, T(1) - y)); }

// s (1 - s) would cancel where s rounds to 1.
GPUACT_FORMULA T sigmoid_derivative(T x) {
  const T z = exponential<STORED>(-fabs(x));
  return quotient<STORED>(z, (T(1) + z) * (T(1) + z));
}

// -- tanh -----------------------------------------------------------------------------------------

// Away from 0, 1 - 2 / (e^2x + 1): where the quotient is less than 1/2 its error counts for less,
// so the fast instructions do for a float too, of |x|. Near 0 that cancels: there x (1 + x² P(x²)),
// P minimax (relative error 2^-19 up to 1/10, 2^-29 up to 3/4). Both are computed and one chosen,
// for neighbours differ. At infinity e^2x is inf and its reciprocal 0.
GPUACT_FORMULA T tanh(T x) {
  if constexpr (sizeof(T) == sizeof(double)) {
    return ::tanh(x);  // :: because this function hides CUDA's
  } else if constexpr (is_half<STORED>) {
    const T far = T(1) - T(2) * reciprocal_fast(T(1) + exp2_fast(2 * LOG2_E * x));
    const T s = x * x;
    const T near = product(x, multiply_add(s, -0.332232522f, T(1)));
    return fabs(x) < T(0.1) ? near : far;
  } else {
    const T far = T(1) - T(2) * reciprocal_fast(T(1) + exp2_fast(2 * LOG2_E * fabs(x)));
    const T s = x * x;
    T p = 0.00173693885f;
    p = multiply_add(p, s, -0.00765726079f);
    p = multiply_add(p, s, 0.0214520380f);
    p = multiply_add(p, s, -0.0538927254f);
    p = multiply_add(p, s, 0.133326941f);
    p = multiply_add(p, s, -0.333333151f);
    p = multiply_add(p, s, 1.0f);
    return fabs(x) < T(0.75) ? product(x, p) : copysign(far, x);
  }
}

// 1 - y^2 in one rounding: rounding y^2 first would cost half the digits where |y| is nearly 1.
GPUACT_FORMULA T tanh_backward(T dy, T y) { return product(dy, multiply_add(-y, y, T(1))); }

// 4z / (1 + z)², z = e^-2|x|; 1 - t² would cancel where t rounds to 1. In the tail z is flushed
// before 4z would be, but (2 e^-|x|)² is not: elsewhere the square would double the exponential's
// error. A half type has 4z of one exponential.
GPUACT_FORMULA T tanh_derivative(T x) {
  if constexpr (is_half<STORED>) {
    const T z4 = exp2_fast(T(2) - 2 * LOG2_E * fabs(x));
    const T d = T(1) + T(0.25) * z4;
    return quotient<STORED>(z4, d * d);
  } else {
    const bool tail = fabs(x) > T(43);
    const T z = exponential<STORED>((tail ? T(-1) : T(-2)) * fabs(x));  // its root in the tail,
    const T d = T(1) + z;                                               // where d is 1 all the same
    return quotient<STORED>(product(T(2) * z, tail ? T(2) * z : T(2)), d * d);
  }
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
