// formulas.cuh on the host: the formula FORMULA of ARITY operands over arrays, in float and double.
#include <cstddef>
#include <utility>

#include "formulas.cuh"

template <typename T, std::size_t... k>
static void each(long n, const T* const* operands, T* y, std::index_sequence<k...>) {
  for (long i = 0; i < n; ++i) y[i] = gpuact::FORMULA(operands[k][i]...);
}

extern "C" void run_float(long n, const float* const* operands, float* y) {
  each(n, operands, y, std::make_index_sequence<ARITY>());
}

extern "C" void run_double(long n, const double* const* operands, double* y) {
  each(n, operands, y, std::make_index_sequence<ARITY>());
}
