// Softmax cross-entropy, its gradient, and both at once, as operations that every regime of
// regimes.cuh runs.
//
// X is the type of the logits z, T the target's (classes, or probabilities in X), C the
// computation's, and that of weights, loss, lse and scale. With Y' = (1 - ε) Y + ε / n, q = w Y' and
// S = softmax(z), where z may be capped, a row has
//
//     loss = -Σ q log S + z_loss·lse²,     dz = scale (S (Σ q + 2 z_loss·lse) - q)
//
// An ignored row has loss and gradient 0; a target that is no class makes both NaN and is never
// used as an index. The gradient may lie in the logits: what a row's loss needs is read before.

namespace gpuact {

enum Target { ONE_CLASS, SMOOTHED, PROBABILITIES };
enum Asked { LOSS, GRADIENT, BOTH };

// A row's max, sum of e^(z - max), Σ q and Σ q (max - z). Not Σ q z, whose digits cancel beside
// q·max; and a class without a share counts for nothing, at z = -inf too, where 0·inf would be NaN.
struct Losses {
  static constexpr bool HAS_MAX = true;
  C max, sum, share, distance;

  static __device__ Losses none() { return {-INF, C(0), C(0), C(0)}; }
  __device__ void rebase(C to) {
    sum *= power(max - base(to));
    distance += share == C(0) ? C(0) : share * (base(to) - base(max));
    max = to;
  }
  __device__ void add(const Losses& other) {
    sum += other.sum;
    share += other.share;
    distance += other.distance;
  }
  __device__ Losses from(int step) const {
    return {max, __shfl_xor_sync(~0u, sum, step), __shfl_xor_sync(~0u, share, step),
            __shfl_xor_sync(~0u, distance, step)};
  }
  __device__ C log_sum() const { return log(sum > C(0) ? sum : NOT_A_NUMBER); }
};

template <Asked ASKED, Target TARGET>
struct Reduced {
  using Part = Losses;
};
template <Asked ASKED>
struct Reduced<ASKED, ONE_CLASS> {
  using Part = MaxSum;
};
template <Target TARGET>
struct Reduced<GRADIENT, TARGET> {
  using Part = Sum;  // Σ q; lse is known
};
template <>
struct Reduced<GRADIENT, ONE_CLASS> {
  using Part = Sum;
};

template <Asked ASKED, Target TARGET, bool WEIGHTED, bool CAPPED>
struct CrossEntropy {
  static constexpr bool FINISHES = ASKED != LOSS;
  static constexpr bool MEASURES = ASKED != GRADIENT || TARGET != ONE_CLASS;
  using Part = typename Reduced<ASKED, TARGET>::Part;
  static constexpr int ARRAYS = TARGET == PROBABILITIES ? 2 : 1;

  View<const X> z;
  View<const T> target;  // of classes the stride is 0: one a row
  View<const C> scale;   // likewise
  View<X> dz;
  const C* weight;
  C *loss, *lse;
  long long n, inner, ignore_index;
  C hit, spread;  // 1 - ε, ε / n
  C z_loss, cap;

  struct Row {
    long long index, label;
    C weight, z_label, scale, lse;
    bool ignored, outside;
  };

  __device__ Row row(long long index, bool exists) const {
    Row row = {index, -1, C(1), C(0), C(1), C(0), false, false};
    if (!exists) return row;
    if constexpr (TARGET != PROBABILITIES) {
      row.label = *target.row(index, inner);
      row.ignored = row.label == ignore_index;
      row.outside = !row.ignored && (row.label < 0 || row.label >= n);
      if (row.ignored || row.outside) {
        row.label = -1;
      } else {
        if (WEIGHTED) row.weight = weight[row.label];
        if (ASKED != GRADIENT) row.z_label = capped(z.row(index, inner)[row.label * z.stride]);
      }
    }
    if constexpr (FINISHES) row.scale = *scale.row(index, inner);
    if constexpr (ASKED == GRADIENT) row.lse = lse[index];
    return row;
  }

  __device__ C capped(X logit) const {
    const C value = to_compute(logit);
    return CAPPED ? cap * gpuact::tanh<C>(value / cap) : value;
  }

  template <Access ACCESS, typename Place, typename D>
  __device__ void load(const Place& place, D& data) const {
    gpuact::load<ACCESS>(z, place, inner, X(float(-INF)), data.x);
    if constexpr (TARGET == PROBABILITIES) {
      gpuact::load<ACCESS>(target, place, inner, X(0.0f), data.y);
    }
  }
  template <Access ACCESS, typename Place, typename D>
  __device__ void store(const Place& place, const D& data) const {
    gpuact::store<ACCESS>(dz, place, inner, data.x);
  }

  // Of a pack: z, -inf where there is no column.
  __device__ void values(uint4 raw, const Cells& cells, int p, C (&value)[WIDTH]) const {
    const Pack pack = unpack(raw);
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
      value[k] = capped(pack.of[k]);
      if (CAPPED && cells.column(p) + k >= cells.count) value[k] = -INF;
    }
  }

  // And q, 0 where there is no column.
  template <typename D, typename Known>
  __device__ void shares(const Row& row, const D& data, const Cells& cells, int p, Known before,
                         C (&q)[WIDTH]) const {
    // Nor is what depends on the column alone to be made for all packs at once.
    const int none = TARGET == ONE_CLASS ? 0 : known(before).x & none_of(inner);
    const long long its = row.label - cells.first;
    const int label = (its >= 0 && its < cells.count ? int(its) : -1) + none;
    const C* weights = weight + cells.first + none;
    Pack targets = {};
    if constexpr (TARGET == PROBABILITIES) targets = unpack(at<D>(data.y, p, before, inner));
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
      const int column = cells.column(p) + k;
      if constexpr (TARGET == PROBABILITIES) {
        q[k] = hit * to_compute(targets.of[k]) + spread;
      } else {
        q[k] = column == label ? hit + spread : spread;
      }
      if (column >= cells.count) {
        q[k] = C(0);
      } else if (WEIGHTED && q[k] != C(0)) {
        q[k] *= weights[column];
      }
    }
  }

  template <int PACKS, typename D>
  __device__ Part measure(const Row& row, const D& data, const Cells& cells) const {
    Part part = Part::none();
    C value[WIDTH], q[WIDTH];
    if constexpr (ASKED == GRADIENT) {
#pragma unroll D::UNROLL
      for (int p = 0; p < PACKS; ++p) {
        shares(row, data, cells, p, part.sum, q);
        part.sum += total(q);
      }
    } else {
#pragma unroll D::UNROLL
      for (int p = 0; p < PACKS; ++p) {
        values(at<D>(data.x, p, part.max, inner), cells, p, value);
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) part.max = fmax(part.max, value[k]);
      }
      const C top = base(part.max);
      C before = top;
      if constexpr (TARGET != ONE_CLASS) {
#pragma unroll D::UNROLL
        for (int p = 0; p < PACKS; ++p) {
          values(at<D>(data.x, p, before, inner), cells, p, value);
          shares(row, data, cells, p, before, q);
          part.share += total(q);
#pragma unroll
          for (int k = 0; k < WIDTH; ++k) q[k] = q[k] == C(0) ? C(0) : q[k] * (top - value[k]);
          before = part.distance += total(q);
        }
      }
#pragma unroll D::UNROLL
      for (int p = 0; p < PACKS; ++p) {
        values(at<D>(data.x, p, before, inner), cells, p, value);
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) value[k] = power(value[k] - top);
        before = part.sum += total(value);
      }
    }
    return part;
  }

  __device__ C total_share(const Row& row, const Part& whole) const {
    if constexpr (TARGET == ONE_CLASS) {
      return row.weight;
    } else if constexpr (ASKED == GRADIENT) {
      return whole.sum;
    } else {
      return whole.share;
    }
  }

  __device__ void conclude(const Row& row, const Part& whole) const {
    if constexpr (ASKED != GRADIENT) {
      const C log_sum = whole.log_sum(), log_total = whole.max + log_sum;
      C value;
      if constexpr (TARGET == ONE_CLASS) {
        value = row.weight * ((row.weight == C(0) ? C(0) : whole.max - row.z_label) + log_sum);
      } else {
        value = whole.share * log_sum + whole.distance;
      }
      if (z_loss != C(0)) value += z_loss * log_total * log_total;
      loss[row.index] = row.ignored ? C(0) : row.outside ? NOT_A_NUMBER : value;
      if (lse) lse[row.index] = log_total;
    }
  }

  template <int PACKS, typename D>
  __device__ void finish(const Row& row, const Part& whole, const D& data,
                         const Cells& cells) const {
    if constexpr (FINISHES) {
      C top, factor, lse_of_row;
      if constexpr (ASKED == GRADIENT) {
        top = lse_of_row = row.lse;
        factor = C(1);
      } else {
        top = base(whole.max);
        factor = C(1) / whole.sum;
        lse_of_row = whole.max + whole.log_sum();
      }
      C share = total_share(row, whole);
      if (z_loss != C(0)) share += C(2) * z_loss * lse_of_row;
      C value[WIDTH], q[WIDTH];
      uint4 before = known(share);
#pragma unroll D::UNROLL
      for (int p = 0; p < PACKS; ++p) {
        values(at<D>(data.x, p, before, inner), cells, p, value);
        shares(row, data, cells, p, before, q);
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) {
          C gradient = row.scale * (power(value[k] - top) * factor * share - q[k]);
          if (CAPPED) {
            const C t = value[k] / cap;
            gradient *= (C(1) - t) * (C(1) + t);
          }
          value[k] = row.ignored ? C(0) : row.outside ? NOT_A_NUMBER : gradient;
        }
        data.x[p] = before = packed(value);
      }
    }
  }
};

}  // namespace gpuact

#define GPUACT_ARRAYS                                                                        \
  GPUACT_ROWS(const X, z), GPUACT_ROWS(const T, target), GPUACT_ROWS(const C, scale),        \
      GPUACT_ROWS(X, dz), const C *weight, C *loss, C *lse, long long ignore_index,          \
      double hit, double spread, double z_loss, double cap
typedef gpuact::CrossEntropy<gpuact::GPUACT_ASKED, gpuact::GPUACT_TARGET, GPUACT_WEIGHTED,
                             GPUACT_CAPPED> Operation;
#define GPUACT_VALUES                                                                        \
  {z, z0, z1, z2}, {target, target0, target1, target2}, {scale, scale0, scale1, scale2},     \
      {dz, dz0, dz1, dz2}, weight, loss, lse, n, inner, ignore_index, C(hit), C(spread),     \
      C(z_loss), C(cap)
