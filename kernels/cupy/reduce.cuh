// Sums of a formula's terms over an (outer, kept, inner) view: sums[kept].
//
// A and B are the types of the arrays (one array: A, given twice), R the result's, C the
// computation's, and TERM the formula's name. The terms of one output, numbered (outer, inner), are
// cut into chunks; block (k, c) adds up chunk c of outputs k·blockDim.x + threadIdx.x. Chunks depend
// on the shape alone and there are no atomics: the same bits in every run.

constexpr int THREADS = 256;  // of a block, whatever its shape

namespace gpuact {

__device__ C term(C (*formula)(C), const A* a, const B*) { return formula(to_compute(*a)); }
__device__ C term(C (*formula)(C, C), const A* a, const B* b) {
  return formula(to_compute(*a), to_compute(*b));
}

}  // namespace gpuact

extern "C" __global__ void __launch_bounds__(THREADS)
sum_terms(const A* a, long long a0, long long a1, long long a2,
                                     const B* b, long long b0, long long b1, long long b2,
                                     R* sums, long long outer, long long kept, long long inner,
                                     long long chunk) {
  using namespace gpuact;
  __shared__ C parts[THREADS];
  const int x = threadIdx.x, y = threadIdx.y;
  const long long k = blockIdx.x * (long long)blockDim.x + x;
  Compensated mine;
  if (k < kept) {
    const long long end = min((blockIdx.y + 1) * chunk, outer * inner);
    long long i = blockIdx.y * chunk + y;
    long long o = i / inner, p = i % inner;  // and then advance by addition: divisions are dear
    const long long o_step = blockDim.y / inner, p_step = blockDim.y % inner;
    for (; i < end; i += blockDim.y) {
      mine.add(term(TERM<C, C>, a + o * a0 + k * a1 + p * a2, b + o * b0 + k * b1 + p * b2));
      o += o_step;
      p += p_step;
      if (p >= inner) {
        p -= inner;
        ++o;
      }
    }
  }
  parts[y * blockDim.x + x] = mine.sum;
  for (int half = blockDim.y / 2; half > 0; half /= 2) {
    __syncthreads();
    if (y < half) parts[y * blockDim.x + x] += parts[(y + half) * blockDim.x + x];
  }
  if (y == 0 && k < kept) sums[blockIdx.y * kept + k] = R(parts[x]);
}
