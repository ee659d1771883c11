// Rows, and how they are cut: what all kernels over rows have in common.
//
// A row is cut into chunks of CHUNK elements (2 KB), a chunk into packs of 16 bytes, and lane v of
// the chunk's 16 lanes has the packs v, v + 16, …, v + 112. A lane reduces its own elements in the
// order of their columns, the 16 lanes meet pairwise, and the chunks of a row are merged by 16 lanes
// again, in the order of their numbers. Nothing else adds anything up. So the bits of a row depend
// on its values, its length and its dtype: not on the rows beside it, not on its address, not on
// which threads of which block had which chunk.
//
// X is the type of the arrays, C the computation's; they come by typedef before this text.
// Contraction is off (--fmad=false): the same text gives the same bits in every kernel.

#define GPUACT_ROWS(T, a) T *a, long long a##0, long long a##1, long long a##2

namespace gpuact {

constexpr int WIDTH = 16 / sizeof(X);  // elements of a pack
constexpr int LANES = 16;              // of a chunk
constexpr int MOST = 8;                // packs of a lane
constexpr int CHUNK = LANES * MOST * WIDTH;
constexpr int SECTOR = 32;             // bytes that memory moves at least

// e^x for x that a maximum was subtracted from: 2^t with t = x·log2 e. Rounding t costs |x|·2^-24 of
// the result, which no half type shows. For a float32 fma tells what it cost, and what the constant
// is off by: 2^(t + d) = 2^t·(1 + d·ln 2).
__device__ float exp2_of(float t) {
  asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(t));
  return t;
}
__device__ float power(float x) {
  if (sizeof(X) == 2) return exp2_of(x * 1.44269504f);
  asm("max.NaN.f32 %0, %0, 0fC2D00000;" : "+f"(x));  // -104: -inf·log2 e - -inf would be NaN
  const float t = x * 1.44269502f;
  const float d = fma(fma(x, 1.44269502f, -t), 0.693147182f, x * 1.33497585e-8f);
  const float y = exp2_of(t);
  return fma(y, d, y);
}
// Not inlined: sixteen of them side by side would not leave registers enough.
__device__ __noinline__ double power(double x) { return exp(x); }

// What is subtracted before e^: nothing from a row of -inf, where -inf - -inf would be NaN.
__device__ C base(C max) { return max == -INF ? C(0) : max; }

// -- what a row is reduced to ---------------------------------------------------------------------
// none(): of no elements; rebase(max): as it is beside a larger maximum; add: of one with the same.

struct Sum {
  static constexpr bool HAS_MAX = false;
  C max, sum;

  static __device__ Sum none() { return {C(0), C(0)}; }
  __device__ void rebase(C) {}
  __device__ void add(const Sum& other) { sum += other.sum; }
  __device__ Sum from(int step) const { return {C(0), __shfl_xor_sync(~0u, sum, step)}; }
};

// The largest z, and the sum of e^(z - max). NaN is dropped by the maximum and kept by the sum;
// +inf makes e^(inf - inf).
struct MaxSum {
  static constexpr bool HAS_MAX = true;
  C max, sum;

  static __device__ MaxSum none() { return {-INF, C(0)}; }
  __device__ void rebase(C to) {
    sum *= power(max - base(to));
    max = to;
  }
  __device__ void add(const MaxSum& other) { sum += other.sum; }
  __device__ MaxSum from(int step) const { return {max, __shfl_xor_sync(~0u, sum, step)}; }

  // NaN for a row that is all -inf (its sum is 0, any other's at least 1), as -inf - -inf is.
  __device__ C log_sum() const { return log(sum > C(0) ? sum : NOT_A_NUMBER); }
};

// The sum of pairs of neighbours, of pairs of those, and so on.
template <int N>
__device__ C total(const C (&term)[N]) {
  C sums[N];
#pragma unroll
  for (int k = 0; k < N; ++k) sums[k] = term[k];
#pragma unroll
  for (int step = 1; step < N; step *= 2) {
#pragma unroll
    for (int k = 0; k + step < N; k += 2 * step) sums[k] += sums[k + step];
  }
  return sums[0];
}

// The parts of `lanes` neighbouring lanes as one, which all of them get.
template <typename Part>
__device__ Part combined(Part part, int lanes = LANES) {
  if constexpr (Part::HAS_MAX) {
    C max = part.max;
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) {
      if (step < lanes) max = fmax(max, __shfl_xor_sync(~0u, max, step));
    }
    part.rebase(max);
  }
#pragma unroll
  for (int step = LANES / 2; step > 0; step /= 2) {
    if (step < lanes) part.add(part.from(step));
  }
  return part;
}

// The parts of a row's chunks, `stride` apart, as one; by 16 lanes, which all get it.
template <typename Part>
__device__ Part merge(const Part* parts, int chunks, long long stride = 1) {
  const int lane = threadIdx.x % LANES;
  Part whole = Part::none();
  if constexpr (Part::HAS_MAX) {
#pragma unroll 1
    for (int c = lane; c < chunks; c += LANES) whole.max = fmax(whole.max, parts[c * stride].max);
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) {
      whole.max = fmax(whole.max, __shfl_xor_sync(~0u, whole.max, step));
    }
  }
#pragma unroll 1
  for (int c = lane; c < chunks; c += LANES) {
    Part part = parts[c * stride];
    part.rebase(whole.max);
    whole.add(part);
  }
#pragma unroll
  for (int step = LANES / 2; step > 0; step /= 2) whole.add(whole.from(step));
  return whole;
}

enum Access { ALIGNED, ANYWHERE, APART, SCATTERED };  // to memory: see there

// -- where the elements are -----------------------------------------------------------------------

// An (outer, n, inner) array, its strides in elements; its rows lie along n.
template <typename T>
struct View {
  T* data;
  long long outer_stride, stride, inner_stride;

  __device__ T* row(long long index, long long inner) const {
    if (inner == 1) return data + index * outer_stride;
    return data + index / inner * outer_stride + index % inner * inner_stride;
  }
};

// The elements of a row that some lanes have; a lane's packs lie 16 packs apart.
struct Cells {
  long long row;
  long long first;  // their first column
  int count;        // how many columns they are; none: the lanes have nothing to do
  int reads;        // of these, how many are read: the others are as if -inf
  int lane;

  __device__ int column(int p) const { return (p * LANES + lane) * WIDTH; }
};

// A chunk that 16 lanes have, as part of a block's span: of its elements in the order of memory, if
// rows follow each other without a gap.
struct Chunk : Cells {
  static constexpr bool AGAIN = false;

  long long span_row, span_first;
  int span;    // elements of the block
  int offset;  // of the chunk among them

  __device__ int left(int p) const { return reads - column(p); }
  __device__ int at(int p) const { return offset + column(p); }
  template <typename T>
  __device__ T* start(const View<T>& view, long long inner) const {
    return view.row(row, inner) + (first + column(0)) * view.stride;
  }
  template <Access ACCESS, typename T>
  __device__ T* memory(const View<T>& view, long long, T* start, int p) const {
    return start + p * (LANES * WIDTH) * (ACCESS == APART ? view.stride : 1);
  }
  __device__ Chunk written() const {
    Chunk all = *this;
    all.reads = count;
    return all;
  }
};

// One chunk after another, in a loop. What is loaded on a condition only would be taken to keep its
// value from the chunk before, and so its registers, were it not given another.
struct NextChunk : Chunk {
  static constexpr bool AGAIN = true;
};

// Rows of one pack a lane, eight of them for each group of `lanes` lanes.
struct ShortRows {
  static constexpr bool AGAIN = false;

  long long first, rows;  // the block's first row, and how many there are of all
  int n, lanes;

  long long span_row, span_first = 0;
  int span;

  __device__ int row(int p) const {
    return (p * blockDim.x + threadIdx.x) / lanes;  // of the block's
  }
  __device__ Cells cells(int p) const {
    const long long index = first + row(p);
    const int count = index < rows ? n : 0;
    return {index, 0, count, count, int(threadIdx.x) % lanes};
  }
  __device__ int left(int p) const {
    const Cells mine = cells(p);
    return mine.count - mine.column(0);
  }
  __device__ int at(int p) const { return row(p) * n + cells(p).column(0); }
  template <typename T>
  __device__ T* start(const View<T>& view, long long) const {
    return nullptr;
  }
  template <Access ACCESS, typename T>
  __device__ T* memory(const View<T>& view, long long inner, T*, int p) const {
    const Cells mine = cells(p);
    return view.row(mine.row, inner) + mine.column(0) * view.stride;
  }
  __device__ const ShortRows& written() const { return *this; }
};

// What is moved at once, of so many bytes.
template <int BYTES>
struct Together {
  using type = uint4;
};
template <>
struct Together<8> {
  using type = unsigned long long;
};
template <>
struct Together<4> {
  using type = unsigned;
};
template <>
struct Together<2> {
  using type = unsigned short;
};

struct Pack {
  X of[WIDTH];
};

__device__ Pack unpack(uint4 raw) {
  Pack pack;
  memcpy(&pack, &raw, sizeof raw);
  return pack;
}

__device__ uint4 packed(const C (&values)[WIDTH]) {
  Pack pack;
#pragma unroll
  for (int k = 0; k < WIDTH; ++k) pack.of[k] = X(values[k]);
  uint4 raw;
  memcpy(&raw, &pack, sizeof raw);
  return raw;
}

// Bits that are known when a number is, or packs that were made of numbers are.
__device__ uint4 known(float x) {
  const unsigned bits = __float_as_uint(x);
  return {bits, bits, bits, bits};
}
__device__ uint4 known(double x) { return known(__int_as_float(__double2loint(x))); }
__device__ uint4 known(uint4 packs) { return packs; }

// A pack, once `before` is known. The compiler would otherwise work on all packs side by side, or
// keep the numbers that it once made of a half type's, and has no registers for either. `none` is 0,
// which it does not know; the length of an axis has no sign.
__device__ uint4 then(uint4 raw, uint4 before, unsigned none) {
  return {raw.x ^ before.x & none, raw.y ^ before.y & none, raw.z ^ before.z & none,
          raw.w ^ before.w & none};
}
__device__ unsigned none_of(long long length) { return unsigned(length >> 63); }

// 16 bytes that begin `shift` bytes into two packs.
__device__ uint4 between(uint4 low, uint4 high, int shift) {
  unsigned w[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int k = 0; k < 6; ++k) w[k] = shift & 8 ? w[k + 2] : w[k];
#pragma unroll
  for (int k = 0; k < 5; ++k) w[k] = shift & 4 ? w[k + 1] : w[k];
  if constexpr (sizeof(X) < 4) {
#pragma unroll
    for (int k = 0; k < 4; ++k) w[k] = __funnelshift_r(w[k], w[k + 1], shift % 4 * 8);
  }
  return {w[0], w[1], w[2], w[3]};
}

// -- from memory and back -------------------------------------------------------------------------
// ALIGNED: every row begins and ends at a multiple of 16 bytes, in all arrays. ANYWHERE: a block's
// elements go through shared memory: whole packs of global memory are loaded, and what a lane has,
// cut out of two of them. Only elements of the block are read or written; those of packs that begin
// before or end behind it go one by one, a lane each. APART: in some arrays the elements of a row
// are apart, and go one by one. SCATTERED: those of all arrays do, of short rows that lie anywhere.

// Of a block's span: in 16-byte units from the last sector boundary before it.
struct Window {
  char* sector;  // that boundary
  int head;      // bytes from there to the span
  int bytes;
  int before;    // elements before the first whole pack
  int behind;    // first element behind the last

  __device__ Window(const void* first, int elements) {
    const unsigned long long address = (unsigned long long)first;
    head = address % SECTOR;
    sector = (char*)(address - head);
    bytes = elements * sizeof(X);
    before = min(elements, int((-address) % 16 / sizeof(X)));
    behind = max(before, elements - int((address + bytes) % 16 / sizeof(X)));
  }
  __device__ int packs() const { return (head + bytes + 15) / 16; }
  __device__ bool whole(int pack) const {
    return 16 * pack >= head && 16 * pack + 16 <= head + bytes;
  }
  // The element by itself that this thread moves; -1 if none.
  __device__ int alone() const {
    const int thread = threadIdx.x;
    if (thread < WIDTH) return thread < before ? thread : -1;
    const int element = behind + thread - WIDTH;
    return thread < 2 * WIDTH && element < bytes / int(sizeof(X)) ? element : -1;
  }
};

extern __shared__ uint4 stage[];  // of a block: its span, and a pack more on either side

// `place` says of each pack of a lane where it is: `left` elements of it are there (none, if that is
// not positive), from `memory` on, which is element `at` of the block's span.

template <Access ACCESS, int PACKS, typename Place>
__device__ void load(const View<const X>& view, const Place& place, long long inner, X fill,
                     uint4 (&raw)[PACKS]) {
  const auto start = place.start(view, inner);
  Pack nothing;
#pragma unroll
  for (int k = 0; k < WIDTH; ++k) nothing.of[k] = fill;
#pragma unroll
  for (int p = 0; p < PACKS; ++p) {
    memcpy(&raw[p], &nothing, 16);
    if (ACCESS == ALIGNED && place.left(p) > 0) raw[p] = *(const uint4*)place.template memory<ACCESS>(view, inner, start, p);
  }
  if constexpr (ACCESS == ALIGNED) return;
  uint4 ahead[PACKS + 1];
  X element;
  if constexpr (Place::AGAIN) {
    element = fill;
#pragma unroll
    for (int p = 0; p <= PACKS; ++p) ahead[p] = {};
  }
  const X* first = view.row(place.span_row, inner) + place.span_first;
  const Window window(first, place.span);
  const int alone = window.alone();
  const bool strided = ACCESS == SCATTERED || ACCESS == APART && view.stride != 1;
  if (!strided) {
#pragma unroll
    for (int p = 0; p <= PACKS; ++p) {
      const int pack = p * blockDim.x + threadIdx.x;
      if (window.whole(pack)) ahead[p] = ((const uint4*)window.sector)[pack];
    }
    if (alone >= 0) element = first[alone];
    __syncthreads();  // nobody reads from the stage any more what was there before
#pragma unroll
    for (int p = 0; p <= PACKS; ++p) {
      const int pack = p * blockDim.x + threadIdx.x;
      if (window.whole(pack)) stage[pack] = ahead[p];
    }
    if (alone >= 0) ((X*)((char*)stage + window.head))[alone] = element;
    __syncthreads();
  }
#pragma unroll
  for (int p = 0; p < PACKS; ++p) {
    const int left = place.left(p);
    if (left <= 0) continue;
    Pack pack;
    if (strided) {
      const X* from = place.template memory<ACCESS>(view, inner, start, p);
#pragma unroll
      for (int k = 0; k < WIDTH; ++k) {
        if (k < left) pack.of[k] = from[k * view.stride];
      }
    } else {
      const int at = window.head + place.at(p) * int(sizeof(X));
      pack = unpack(between(stage[at / 16], stage[at / 16 + 1], at % 16));
    }
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
      if (k >= left) pack.of[k] = fill;
    }
    memcpy(&raw[p], &pack, 16);
  }
}

template <Access ACCESS, int PACKS, typename Place>
__device__ void store(const View<X>& view, const Place& place, long long inner,
                      const uint4 (&raw)[PACKS]) {
  const auto start = place.start(view, inner);
  if constexpr (ACCESS == ALIGNED) {
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
      if (place.left(p) > 0) __stcs((uint4*)place.template memory<ACCESS>(view, inner, start, p), raw[p]);
    }
    return;
  }
  X* first = view.row(place.span_row, inner) + place.span_first;
  const Window window(first, place.span);
  const bool strided = ACCESS == SCATTERED || ACCESS == APART && view.stride != 1;
  if (!strided) __syncthreads();
#pragma unroll
  for (int p = 0; p < PACKS; ++p) {
    const int left = place.left(p);
    if (left <= 0) continue;
    const Pack pack = unpack(raw[p]);
    X* to = strided ? place.template memory<ACCESS>(view, inner, start, p)
                    : (X*)((char*)stage + window.head) + place.at(p);
    const long long step = strided ? view.stride : 1;
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
      if (k < left) to[k * step] = pack.of[k];
    }
  }
  if (strided) return;
  __syncthreads();
#pragma unroll
  for (int p = 0; p <= PACKS; ++p) {
    const int pack = p * blockDim.x + threadIdx.x;
    if (window.whole(pack)) __stcs((uint4*)window.sector + pack, stage[pack]);
  }
  const int alone = window.alone();
  if (alone >= 0) first[alone] = ((X*)((char*)stage + window.head))[alone];
}

}  // namespace gpuact
