// softmax and log_softmax, forward and backward: one block for a row at a time.
//
// A and B are the types of the arrays read (A alone in forward), R the result's, C the
// computation's. A thread reads the columns that it writes, so the result may be one of the arrays.

namespace gpuact {

// y = finish(x - max, sum of e^(x - max), its logarithm)
template <typename F>
__device__ void forward(Rows<const A> xs, Rows<R> ys, long long rows, long long n, long long inner,
                        F finish) {
  for (long long index = blockIdx.x; index < rows; index += gridDim.x) {
    const auto x = xs(index, inner);
    const auto y = ys(index, inner);
    const MaxSum s = merge_block(max_sum(x, n));
    const C log_sum = s.log_sum();
    for (long long j = threadIdx.x; j < n; j += blockDim.x) {
      y[j] = R(finish(to_compute(x[j]) - s.max, s.sum, log_sum));
    }
  }
}

// dx = finish(dy, y, sum of term(dy, y))
template <typename Term, typename F>
__device__ void backward(Rows<const A> dys, Rows<const B> ys, Rows<R> dxs, long long rows,
                         long long n, long long inner, Term term, F finish) {
  for (long long index = blockIdx.x; index < rows; index += gridDim.x) {
    const auto dy = dys(index, inner);
    const auto y = ys(index, inner);
    const auto dx = dxs(index, inner);
    Sum mine = Sum::none();
    for (long long j = threadIdx.x; j < n; j += blockDim.x) {
      mine.sum += term(to_compute(dy[j]), to_compute(y[j]));
    }
    const C sum = merge_block(mine).sum;
    for (long long j = threadIdx.x; j < n; j += blockDim.x) {
      dx[j] = R(finish(to_compute(dy[j]), to_compute(y[j]), sum));
    }
  }
}

}  // namespace gpuact

#define GPUACT_SHAPE long long rows, long long n, long long inner

extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
softmax(GPUACT_ROWS(const A, x), GPUACT_ROWS(R, y), GPUACT_SHAPE) {
  gpuact::forward({x, x0, x1, x2}, {y, y0, y1, y2}, rows, n, inner,
                  [](C d, C sum, C) { return exp(d) / sum; });
}

extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
softmax_backward(GPUACT_ROWS(const A, dy), GPUACT_ROWS(const B, y),
                 GPUACT_ROWS(R, dx), GPUACT_SHAPE) {
  gpuact::backward({dy, dy0, dy1, dy2}, {y, y0, y1, y2}, {dx, dx0, dx1, dx2}, rows, n, inner,
                   [](C dy, C y) { return y * dy; },
                   [](C dy, C y, C sum) { return y * (dy - sum); });
}

// Not log(softmax(x)), which is -inf where softmax underflows.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
log_softmax(GPUACT_ROWS(const A, x), GPUACT_ROWS(R, y), GPUACT_SHAPE) {
  gpuact::forward({x, x0, x1, x2}, {y, y0, y1, y2}, rows, n, inner,
                  [](C d, C, C log_sum) { return d - log_sum; });
}

extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
log_softmax_backward(GPUACT_ROWS(const A, dy), GPUACT_ROWS(const B, y),
                     GPUACT_ROWS(R, dx), GPUACT_SHAPE) {
  gpuact::backward({dy, dy0, dy1, dy2}, {y, y0, y1, y2}, {dx, dx0, dx1, dx2}, rows, n, inner,
                   [](C dy, C) { return dy; },
                   [](C dy, C y, C sum) { return dy - exp(y) * sum; });
}
