// Softmax cross-entropy, its gradient, and both at once: one block for a row at a time.
//
// X is the type of the logits, T the target's (classes or probabilities), W the weights', C the
// computation's, and that of loss, lse and scale. With Y' = (1 - ε) Y + ε / n and q = w Y':
//
//     loss = -Σ q log S,     dz = scale (S Σ q - q),     S = softmax(z)
//
// A thread reads the columns that it writes, and the target's logit is read before any is
// written: the gradient may lie in the logits.

namespace gpuact {

template <typename I>
constexpr bool is_class = false;
template <>
constexpr bool is_class<int> = true;
template <>
constexpr bool is_class<long long> = true;

// What the target and its options say of all rows.
struct Target {
  Rows<const T> target;  // classes: stride 0, one a row
  const W* weight;       // null for ones
  long long weight_stride;
  long long n, inner;
  long long ignore_index;
  C hit, spread;  // 1 - ε, ε / n
};

// What they say of one row.
struct Expected {
  const Target& all;
  Row<const X> z;
  Row<const T> target;
  long long label = 0;
  C z_label = 0;
  bool ignored = false, outside = false;

  __device__ Expected(const Target& all, Row<const X> z, long long index)
      : all(all), z(z), target(all.target(index, all.inner)) {
    if constexpr (is_class<T>) {
      label = target[0];
      ignored = label == all.ignore_index;
      outside = !ignored && (label < 0 || label >= all.n);
      if (!ignored && !outside) z_label = to_compute(z[label]);
    }
  }

  // Without smoothing one column alone has a share.
  __device__ bool one_hot() const { return is_class<T> && all.spread == C(0); }

  __device__ C weight(long long j) const {
    return all.weight ? to_compute(all.weight[j * all.weight_stride]) : C(1);
  }

  __device__ C q(long long j) const {
    if constexpr (is_class<T>) {
      return weight(j) * (j == label ? all.hit + all.spread : all.spread);
    } else {
      return weight(j) * (all.hit * to_compute(target[j]) + all.spread);
    }
  }

  // -q log S of one column: not through lse, for max - z is exact where log S is small beside max.
  // A class without a share counts for nothing, at z = -inf too, where 0·inf would be NaN.
  static __device__ C term(C q, C z, C max, C log_sum) {
    return q * ((q == C(0) ? C(0) : max - z) + log_sum);
  }

  __device__ C loss(C max, C log_sum) const {
    if (ignored) return C(0);
    if (outside) return NOT_A_NUMBER;
    if (one_hot()) return term(weight(label), z_label, max, log_sum);
    Sum mine = Sum::none();
    for (long long j = threadIdx.x; j < all.n; j += blockDim.x) {
      mine.sum += term(q(j), to_compute(z[j]), max, log_sum);
    }
    return merge_block(mine).sum;
  }

  // Writes scale (S Σ q - q), S given as a function of z.
  template <typename F>
  __device__ void gradient(Row<X> dz, C scale, F softmax) const {
    if (ignored || outside) {
      const X fill = X(ignored ? C(0) : NOT_A_NUMBER);  // whatever scale holds
      for (long long j = threadIdx.x; j < all.n; j += blockDim.x) dz[j] = fill;
      return;
    }
    const C total = q_sum();
    for (long long j = threadIdx.x; j < all.n; j += blockDim.x) {
      dz[j] = X(scale * (softmax(to_compute(z[j])) * total - q(j)));
    }
  }

  __device__ C q_sum() const {
    if (one_hot()) return weight(label);
    if (is_class<T> && !all.weight) return all.hit + C(all.n) * all.spread;
    Sum mine = Sum::none();
    for (long long j = threadIdx.x; j < all.n; j += blockDim.x) mine.sum += q(j);
    return merge_block(mine).sum;
  }
};

}  // namespace gpuact

#define GPUACT_TARGET                                                                      \
  GPUACT_ROWS(const T, target), const W *weight, long long weight0, long long rows,        \
      long long n, long long inner, long long ignore_index, double hit, double spread
#define GPUACT_TARGET_STRUCT \
  {{target, target0, target1, target2}, weight, weight0, n, inner, ignore_index, C(hit), C(spread)}

extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
cross_entropy(GPUACT_ROWS(const X, z), C* loss, C* lse, GPUACT_TARGET) {
  using namespace gpuact;
  const Target all = GPUACT_TARGET_STRUCT;
  const Rows<const X> zs = {z, z0, z1, z2};
  for (long long index = blockIdx.x; index < rows; index += gridDim.x) {
    const Expected expected(all, zs(index, inner), index);
    const MaxSum s = merge_block(max_sum(expected.z, n));
    const C log_sum = s.log_sum();
    const C value = expected.loss(s.max, log_sum);
    if (threadIdx.x == 0) {
      loss[index] = value;
      lse[index] = s.max + log_sum;
    }
  }
}

extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
cross_entropy_backward(GPUACT_ROWS(const C, scale), GPUACT_ROWS(const X, z), const C* lse,
                       GPUACT_ROWS(X, dz), GPUACT_TARGET) {
  using namespace gpuact;
  const Target all = GPUACT_TARGET_STRUCT;
  const Rows<const X> zs = {z, z0, z1, z2};
  const Rows<X> dzs = {dz, dz0, dz1, dz2};
  const Rows<const C> scales = {scale, scale0, scale1, scale2};
  for (long long index = blockIdx.x; index < rows; index += gridDim.x) {
    const Expected expected(all, zs(index, inner), index);
    const C log_sum = lse[index];
    expected.gradient(dzs(index, inner), scales(index, inner)[0],
                      [=](C z) { return exp(z - log_sum); });
  }
}

extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
cross_entropy_with_grad(GPUACT_ROWS(const C, scale), GPUACT_ROWS(const X, z), C* loss,
                        GPUACT_ROWS(X, dz), GPUACT_TARGET) {
  using namespace gpuact;
  const Target all = GPUACT_TARGET_STRUCT;
  const Rows<const X> zs = {z, z0, z1, z2};
  const Rows<X> dzs = {dz, dz0, dz1, dz2};
  const Rows<const C> scales = {scale, scale0, scale1, scale2};
  for (long long index = blockIdx.x; index < rows; index += gridDim.x) {
    const Expected expected(all, zs(index, inner), index);
    const MaxSum s = merge_block(max_sum(expected.z, n));
    const C value = expected.loss(s.max, s.log_sum());
    if (threadIdx.x == 0) loss[index] = value;
    expected.gradient(dzs(index, inner), scales(index, inner)[0],
                      [=](C z) { return exp(z - s.max) / s.sum; });
  }
}

// out = weight of the row's class: 1 without weights, 0 where it counts for nothing.
extern "C" __global__ void target_weight(GPUACT_ROWS(const T, target), const W* weight,
                                         long long weight0, C* out, long long rows, long long n,
                                         long long inner, long long ignore_index) {
  using namespace gpuact;
  const Rows<const T> targets = {target, target0, target1, target2};
  const long long index = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (index >= rows) return;
  const long long label = targets(index, inner)[0];
  const bool counts = label != ignore_index && label >= 0 && label < n;
  out[index] = !counts ? C(0) : weight ? to_compute(weight[label * weight0]) : C(1);
}
