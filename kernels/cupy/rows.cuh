// What the kernels over rows share: one block for a row, and the reductions of a block.
//
// The block's size depends on the row's length alone and everything merges in a fixed order, so
// the bits of a row do not depend on how many rows lie beside it. Types come by typedef before
// this text: C is the type of the computation.
#pragma once

// An (outer, n, inner) array and its strides, as parameters of a kernel.
#define GPUACT_ROWS(T, a) T *a, long long a##0, long long a##1, long long a##2

// The largest block of __init__.py's table. Kernels promise it, one block at a time: left alone,
// ptxas may use more registers than so many threads can have, and the launch fails; told less
// precisely, it saves registers for a second block and spills.
constexpr int MOST_THREADS = 512;

namespace gpuact {

constexpr C INF = __builtin_bit_cast(float, 0x7f800000);
constexpr C NOT_A_NUMBER = __builtin_bit_cast(float, 0x7fc00000);

template <typename T>
__device__ C to_compute(T value) {
  if constexpr (sizeof(T) == 2) {
    return C(float(value));  // a half type converts to float, and to nothing else unambiguously
  } else {
    return C(value);
  }
}

// Element j of a row, whatever the stride; offsets are 64-bit before they multiply.
template <typename T>
struct Row {
  T* first;
  long long stride;
  __device__ T& operator[](long long j) const { return first[j * stride]; }
};

// An (outer, n, inner) array, its strides in elements; its rows lie along n.
template <typename T>
struct Rows {
  T* data;
  long long outer_stride, stride, inner_stride;
  __device__ Row<T> operator()(long long index, long long inner) const {
    return {data + index / inner * outer_stride + index % inner * inner_stride, stride};
  }
};

// -- what a row is reduced to ---------------------------------------------------------------------

struct Sum {
  C sum;

  static __device__ Sum none() { return {C(0)}; }
  __device__ Sum lane(int from) const { return {__shfl_sync(~0u, sum, from)}; }
  __device__ void merge(const Sum& later) { sum += later.sum; }
};

// The largest x, and the sum of e^(x - max). Nowhere is -inf - -inf formed: a maximum of -inf is
// taken as 0 in the exponent, so -inf contributes 0 to whatever it merges with. +inf gives
// e^(inf - inf) and NaN gives NaN: the sum, and with it the whole row, is NaN.
struct MaxSum {
  C max;
  C sum;

  static __device__ MaxSum none() { return {-INF, C(0)}; }
  __device__ MaxSum lane(int from) const {
    return {__shfl_sync(~0u, max, from), __shfl_sync(~0u, sum, from)};
  }
  static __device__ C base(C max) { return max == -INF ? C(0) : max; }

  __device__ void merge(const MaxSum& later) {
    const C m = fmax(max, later.max);  // drops a NaN, which the sums keep
    sum = sum * exp(max - base(m)) + later.sum * exp(later.max - base(m));
    max = m;
  }

  // One rescaling of the sum for N values, -inf standing for none.
  template <int N>
  __device__ void add(const C (&x)[N]) {
    C m = max;
    for (int k = 0; k < N; ++k) m = fmax(m, x[k]);
    C added = 0;
    for (int k = 0; k < N; ++k) added += exp(x[k] - base(m));
    sum = sum * exp(max - base(m)) + added;
    max = m;
  }

  // NaN for a row that is all -inf (its sum is 0, any other's at least 1), as -inf - -inf is.
  __device__ C log_sum() const { return log(sum > C(0) ? sum : NOT_A_NUMBER); }
};

// -- reductions of a thread ---------------------------------------------------------------------

// Kahan's sum: a thread adds up thousands of terms one after another, and plainly each addition
// would cost a rounding. The kernel waits for memory, so the three extra operations are free.
struct Compensated {
  C sum = 0, excess = 0;

  __device__ void add(C term) {
    const C corrected = term - excess;
    const C next = sum + corrected;
    excess = fabs(next) < INF ? (next - sum) - corrected : C(0);  // inf - inf would make a NaN
    sum = next;
  }
};

// -- reductions of a block ------------------------------------------------------------------------

template <typename A>
__device__ A merge_warp(A mine) {
  const int lane = threadIdx.x % 32;
  for (int step = 16; step > 0; step /= 2) mine.merge(mine.lane(lane + step));
  return mine.lane(0);  // the other lanes merged in another order: all take lane 0's bits
}

// Merges every thread's part; all threads get the result. For blocks of whole warps, at most 32.
template <typename A>
__device__ A merge_block(A mine) {
  __shared__ A warps[32];
  const int lane = threadIdx.x % 32;
  mine = merge_warp(mine);
  __syncthreads();  // nobody still reads the previous row's; and this row is read before written
  if (blockDim.x == 32) return mine;
  if (lane == 0) warps[threadIdx.x / 32] = mine;
  __syncthreads();
  return merge_warp(lane < blockDim.x / 32 ? warps[lane] : A::none());
}

// This thread's share of a row: columns threadIdx.x, threadIdx.x + blockDim.x, …
template <typename T>
__device__ MaxSum max_sum(Row<T> x, long long n) {
  constexpr int AT_ONCE = 32 / sizeof(C);  // independent loads and exponentials in flight
  MaxSum mine = MaxSum::none();
  for (long long start = threadIdx.x; start < n; start += AT_ONCE * (long long)blockDim.x) {
    C values[AT_ONCE];
#pragma unroll
    for (int k = 0; k < AT_ONCE; ++k) {
      const long long j = start + k * (long long)blockDim.x;
      values[k] = j < n ? to_compute(x[j]) : -INF;
    }
    mine.add(values);
  }
  return mine;
}

}  // namespace gpuact
