// out = weight of each row's class: 1 without weights, 0 where it counts for nothing.
//
// T is the type of the target, W that of the weights, C that of the result.
extern "C" __global__ void target_weight(const T* target, long long target0, long long target2,
                                         const W* weight, long long weight0, C* out,
                                         long long rows, long long n, long long inner,
                                         long long ignore_index) {
  using namespace gpuact;
  const long long index = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (index >= rows) return;
  const long long label = target[index / inner * target0 + index % inner * target2];
  const bool counts = label != ignore_index && label >= 0 && label < n;
  out[index] = !counts ? C(0) : weight ? to_compute(weight[label * weight0]) : C(1);
}
