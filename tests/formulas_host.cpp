// formulas.cuh on the host: every formula over arrays, in float and in double.
#include "formulas.cuh"

#define EACH_TYPE(define, name) define(name, float) define(name, double)

#define ONE(name, T)                                                              \
  extern "C" void name##_##T(long n, const T* a, T* y) {                          \
    for (long i = 0; i < n; ++i) y[i] = gpuact::name(a[i]);                       \
  }
#define TWO(name, T)                                                              \
  extern "C" void name##_##T(long n, const T* a, const T* b, T* y) {              \
    for (long i = 0; i < n; ++i) y[i] = gpuact::name(a[i], b[i]);                 \
  }
#define THREE(name, T)                                                            \
  extern "C" void name##_##T(long n, const T* a, const T* b, const T* c, T* y) {  \
    for (long i = 0; i < n; ++i) y[i] = gpuact::name(a[i], b[i], c[i]);           \
  }

EACH_TYPE(THREE, linear)
EACH_TYPE(TWO, linear_backward)
EACH_TYPE(TWO, linear_dscale)
EACH_TYPE(ONE, linear_dbias)
EACH_TYPE(TWO, linear_derivative)
EACH_TYPE(ONE, sigmoid)
EACH_TYPE(TWO, sigmoid_backward)
EACH_TYPE(ONE, sigmoid_derivative)
EACH_TYPE(ONE, tanh)
EACH_TYPE(TWO, tanh_backward)
EACH_TYPE(ONE, tanh_derivative)
EACH_TYPE(ONE, relu)
EACH_TYPE(TWO, relu_backward)
EACH_TYPE(ONE, relu_derivative)
EACH_TYPE(TWO, leaky_relu)
EACH_TYPE(THREE, leaky_relu_backward)
EACH_TYPE(TWO, leaky_relu_derivative)
EACH_TYPE(TWO, prelu_dweight)
