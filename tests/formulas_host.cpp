// formulas.cuh on the host: the formula FORMULA of ARITY operands over arrays, for a result that is
// stored as RESULT, in float or double.
#include <cstddef>
#include <utility>

#include "formulas.cuh"

using T = gpuact::compute_t<RESULT>;

template <std::size_t... k>
static void each(long n, const T* const* operands, T* y, std::index_sequence<k...>) {
  for (long i = 0; i < n; ++i) y[i] = gpuact::FORMULA<RESULT>(operands[k][i]...);
}

extern "C" void run(long n, const T* const* operands, T* y) {
  each(n, operands, y, std::make_index_sequence<ARITY>());
}
