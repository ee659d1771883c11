// softmax and log_softmax, forward and backward, as operations that every regime of regimes.cuh runs.
//
// MASK says what of Scores there is: 0 nothing, 1 a mask of bool, 2 one of X that is added, 3 no
// mask; where it is not 0, there may also be a scale, and the columns right of the diagonal may take
// no part. The result may be one of the arrays.

namespace gpuact {

// A mask over (k1, k2, k3, k4, n), broadcast along axes with stride 0.
struct Mask {
  const void* data;
  long long stride;  // along n
  long long sizes[4], strides[4];

  __device__ long long row(long long index) const {
    long long offset = 0;
#pragma unroll
    for (int k = 3; k >= 0; --k) {
      offset += index % sizes[k] * strides[k];
      index /= sizes[k];
    }
    return offset;
  }
};

template <bool LOG, int MASK>
struct Forward {
  static constexpr bool MEASURES = true, FINISHES = true;
  using Part = MaxSum;
  static constexpr int ARRAYS = 1;

  View<const X> x;
  View<X> y;
  long long inner;
  C scale;
  Mask mask;
  long long causal;  // rows in a square; 0: every column takes part
  int zero;          // a row in which no column takes part is 0

  struct Row {
    long long mask;     // where its mask begins
    long long columns;  // that may take part
  };

  __device__ Row row(long long index, bool exists) const {
    Row row = {0, 0x7fffffffffffffff};
    if constexpr (MASK != 0) {
      if (exists && MASK != 3) row.mask = mask.row(index);
      if (causal) row.columns = index % causal + 1;
    }
    return row;
  }

  template <Access ACCESS, typename Place, typename D>
  __device__ void load(const Place& place, D& data) const {
    gpuact::load<ACCESS>(x, read(place), inner, X(float(-INF)), data.x);
  }
  template <Access ACCESS, typename Place, typename D>
  __device__ void store(const Place& place, const D& data) const {
    gpuact::store<ACCESS>(y, place, inner, data.x);
  }

  // Of a chunk only the columns that may take part.
  template <typename Place>
  __device__ const Place& read(const Place& place) const {
    return place;
  }
  __device__ Chunk read(Chunk place) const {
    if (MASK != 0) place.reads = columns(row(place.row, false), place);
    return place;
  }
  __device__ int columns(const Row& row, const Cells& cells) const {
    return int(max(0ll, min(row.columns - cells.first, (long long)cells.count)));
  }

  // What e is raised to.
  __device__ void values(const Row& row, uint4 raw, const Cells& cells, int p,
                         C (&z)[WIDTH]) const {
    const Pack pack = unpack(raw);
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) z[k] = to_compute(pack.of[k]);
    if constexpr (MASK == 0) return;
    const int column = cells.column(p);
    const int left = columns(row, cells) - column;
    // read when the pack is known, not sooner: that would take registers
    const long long at = row.mask + (cells.first + column + (raw.x & none_of(inner))) * mask.stride;
    unsigned char takes_part[WIDTH];
    X added[WIDTH];
    if constexpr (MASK == 1) masked((const unsigned char*)mask.data + at, left, takes_part);
    if constexpr (MASK == 2) masked((const X*)mask.data + at, left, added);
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
      z[k] *= scale;
      if constexpr (MASK == 2) z[k] += to_compute(added[k]);
      if (k >= left || MASK == 1 && !takes_part[k]) z[k] = -INF;
    }
  }

  // What the mask says of a pack: at once if it lies together in memory, at a multiple of its size.
  template <typename M>
  __device__ void masked(const M* from, int left, M (&of)[WIDTH]) const {
    using All = typename Together<WIDTH * sizeof(M)>::type;
    if (left >= WIDTH && mask.stride == 1 && (unsigned long long)from % sizeof(All) == 0) {
      const All all = *(const All*)from;
      memcpy(of, &all, sizeof all);
      return;
    }
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) of[k] = k < left ? from[k * mask.stride] : M(0.0f);
  }

  template <int PACKS, typename D>
  __device__ Part measure(const Row& row, const D& data, const Cells& cells) const {
    Part part = Part::none();
    C z[WIDTH];
#pragma unroll D::UNROLL
    for (int p = 0; p < PACKS; ++p) {
      values(row, at<D>(data.x, p, part.max, inner), cells, p, z);
#pragma unroll
      for (int k = 0; k < WIDTH; ++k) part.max = fmax(part.max, z[k]);
    }
    const C top = base(part.max);
    C before = top;
#pragma unroll D::UNROLL
    for (int p = 0; p < PACKS; ++p) {
      values(row, at<D>(data.x, p, before, inner), cells, p, z);
#pragma unroll
      for (int k = 0; k < WIDTH; ++k) z[k] = power(z[k] - top);
      before = part.sum += total(z);
    }
    return part;
  }

  __device__ void conclude(const Row&, const Part&) const {}

  template <int PACKS, typename D>
  __device__ void finish(const Row& row, const Part& whole, const D& data,
                         const Cells& cells) const {
    const C top = base(whole.max), log_sum = LOG ? whole.log_sum() : C(0);
    C factor = C(1) / whole.sum;
    if (MASK != 0 && zero && whole.sum == C(0)) factor = C(0);
    C z[WIDTH];
    uint4 before = known(whole.sum);
#pragma unroll D::UNROLL
    for (int p = 0; p < PACKS; ++p) {
      values(row, at<D>(data.x, p, before, inner), cells, p, z);
#pragma unroll
      for (int k = 0; k < WIDTH; ++k) {
        z[k] = LOG ? (z[k] - top) - log_sum : power(z[k] - top) * factor;
      }
      data.x[p] = before = packed(z);
    }
  }
};

template <bool LOG>
struct Backward {
  static constexpr bool MEASURES = true, FINISHES = true;
  using Part = Sum;
  static constexpr int ARRAYS = 2;

  View<const X> dy, y;
  View<X> dx;
  long long inner;
  C scale;

  struct Row {};

  __device__ Row row(long long, bool) const { return {}; }

  template <Access ACCESS, typename Place, typename D>
  __device__ void load(const Place& place, D& data) const {
    gpuact::load<ACCESS>(dy, place, inner, X(0.0f), data.x);
    gpuact::load<ACCESS>(y, place, inner, X(0.0f), data.y);
  }
  template <Access ACCESS, typename Place, typename D>
  __device__ void store(const Place& place, const D& data) const {
    gpuact::store<ACCESS>(dx, place, inner, data.x);
  }

  template <int PACKS, typename D>
  __device__ Part measure(const Row&, const D& data, const Cells&) const {
    Part part = Part::none();
#pragma unroll D::UNROLL
    for (int p = 0; p < PACKS; ++p) {
      const Pack dys = unpack(at<D>(data.x, p, part.sum, inner));
      const Pack ys = unpack(at<D>(data.y, p, part.sum, inner));
      C term[WIDTH];
#pragma unroll
      for (int k = 0; k < WIDTH; ++k) {
        term[k] = LOG ? to_compute(dys.of[k]) : to_compute(ys.of[k]) * to_compute(dys.of[k]);
      }
      part.sum += total(term);
    }
    return part;
  }

  __device__ void conclude(const Row&, const Part&) const {}

  template <int PACKS, typename D>
  __device__ void finish(const Row&, const Part& whole, const D& data, const Cells&) const {
    uint4 before = known(whole.sum);
#pragma unroll D::UNROLL
    for (int p = 0; p < PACKS; ++p) {
      const Pack dys = unpack(at<D>(data.x, p, before, inner));
      const Pack ys = unpack(at<D>(data.y, p, before, inner));
      C result[WIDTH];
#pragma unroll
      for (int k = 0; k < WIDTH; ++k) {
        const C dy = to_compute(dys.of[k]), y = to_compute(ys.of[k]);
        result[k] = LOG ? dy - power(y) * whole.sum : y * (dy - whole.sum) * scale;
      }
      data.x[p] = before = packed(result);
    }
  }
};

}  // namespace gpuact

#ifdef GPUACT_BACKWARD
#define GPUACT_ARRAYS \
  GPUACT_ROWS(const X, dy), GPUACT_ROWS(const X, y), GPUACT_ROWS(X, dx), double scale
typedef gpuact::Backward<GPUACT_LOG> Operation;
#define GPUACT_VALUES {dy, dy0, dy1, dy2}, {y, y0, y1, y2}, {dx, dx0, dx1, dx2}, inner, C(scale)
#else
#define GPUACT_ARRAYS                                                                        \
  GPUACT_ROWS(const X, x), GPUACT_ROWS(X, y), double scale, const void *mask, long long m,   \
      long long size0, long long size1, long long size2, long long size3, long long m0,      \
      long long m1, long long m2, long long m3, long long causal, int zero
typedef gpuact::Forward<GPUACT_LOG, GPUACT_MASK> Operation;
#define GPUACT_VALUES                                                                        \
  {x, x0, x1, x2}, {y, y0, y1, y2}, inner, C(scale),                                         \
      {mask, m, {size0, size1, size2, size3}, {m0, m1, m2, m3}}, causal, zero
#endif
