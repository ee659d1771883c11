// Back through a fused activation: dx, the gate's gradient and the parameters' sums in one kernel
// that reads each array once, without atomics; a second kernel merges what the blocks leave.
//
// Memory is seen as rows of `period` elements, a multiple of both the channels' period and a pack,
// so that a column of packs meets the same channels in every row. A block takes a tile of TILE
// columns through a chunk of rows; a thread keeps the sums of its WIDTH columns in registers. At
// the end columns of one channel are added up, and the block's sums of its channels written.
// Tiles and chunks depend on the shape (and the arrays' common address modulo 16) alone: the same
// bits in every run.
//
// A sum is at most `chunk` / AT_ONCE + AT_ONCE additions one after another, then compensated ones
// (a team's of the tile, then along all blocks) and trees of at most 5 and 9 levels.
//
// Y is x's type. SCALE, BIAS, SLOPE, GATE are the operands, WORDS the generator's; BACKWARD is the
// formula that leads back and READS what it reads; D_SCALE, D_BIAS, D_SLOPE say what becomes of the
// parameters' gradients.

namespace gpuact {

constexpr int THREADS = 256;
constexpr int TILE = THREADS * WIDTH;

// What a backward formula reads
constexpr int NOTHING = 0, X = 1, DY_X = 2, DY_Y = 3;
// A gradient that is not wanted, wanted as a sum, wanted of each element
constexpr int UNWANTED = 0, SUMMED = 1, EACH = 2;

template <typename T, typename... S>
__device__ T back(T da, T u, S... slope) {
  if constexpr (READS == X) return product(da, BACKWARD<Y>(u, slope...));
  if constexpr (READS == DY_X) return BACKWARD<Y>(da, u, slope...);
  if constexpr (READS == DY_Y) return BACKWARD<Y>(da, FORMULA<Y>(u, slope...));
  return da;
}
template <typename T>
__device__ T back(T da, T u, Absent) {
  return back(da, u);
}

// -- operands: load(k, i, n) of packs that are not WHOLE leaves out what is none of n elements ------

template <typename T>
struct Input {
  const T* data;
  Pack<T> pack[AT_ONCE];

  __device__ Input(const void* data, double) : data((const T*)data) {}
  __device__ void start(const Channels&, INDEX) {}
  template <bool WHOLE>
  __device__ void load(int k, long long i, long long n) {
    if constexpr (WHOLE) {
      pack[k] = read(data + i);
    } else {
#pragma unroll
      for (int j = 0; j < WIDTH; ++j) {
        if (i + j >= 0 && i + j < n) pack[k].of[j] = data[i + j];
      }
    }
  }
  __device__ C value(int k, int j) const { return as<C>(pack[k].of[j]); }
};

template <bool WHOLE, typename T>
__device__ void store(const Pack<T>& pack, T* data, long long i, long long n) {
  if constexpr (WHOLE) {
    write(data + i, pack);
  } else {
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) {
      if (i + j >= 0 && i + j < n) data[i + j] = pack.of[j];
    }
  }
}

// One value for all: a number, or an array's only element.
struct Constant {
  C number;

  __device__ Constant(const void*, double number) : number(C(number)) {}
  __device__ void start(const Channels&, INDEX) {}
  template <bool WHOLE>
  __device__ void load(int, long long, long long) {}
  __device__ C value(int, int) const { return number; }
};

template <typename T>
struct Only : Constant {
  __device__ Only(const void* data, double) : Constant(data, as<C>(*(const T*)data)) {}
};

// One value a channel: a thread's columns have theirs once and for all.
template <typename T>
struct PerChannel {
  const T* data;
  C each[WIDTH];

  __device__ PerChannel(const void* data, double) : data((const T*)data) {}
  __device__ void start(const Channels& channels, INDEX column) {
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) each[j] = as<C>(data[channels(column + j)]);
  }
  template <bool WHOLE>
  __device__ void load(int, long long, long long) {}
  __device__ C value(int, int j) const { return each[j]; }
};

struct Nothing {
  __device__ Nothing(const void*, double) {}
  __device__ void start(const Channels&, INDEX) {}
  template <bool WHOLE>
  __device__ void load(int, long long, long long) {}
  __device__ Absent value(int, int) const { return {}; }
};

template <bool ALIGNED>
struct Drawn {
  Philox generator;
  unsigned word[AT_ONCE][WIDTH];

  __device__ explicit Drawn(Philox generator) : generator(generator) {}
  template <bool WHOLE>
  __device__ void load(int k, long long i, long long) {
    generator.words<WIDTH, ALIGNED>(i, word[k]);
  }
  __device__ unsigned value(int k, int j) const { return word[k][j]; }
};

struct Undrawn {
  __device__ explicit Undrawn(Philox) {}
  template <bool WHOLE>
  __device__ void load(int, long long, long long) {}
  __device__ Absent value(int, int) const { return {}; }
};

// -- what becomes of a parameter's gradient -------------------------------------------------------

template <int MODE, typename T>
struct Gradient {
  __device__ explicit Gradient(void*) {}
  template <int ROWS>
  __device__ void take(int, int, C, bool) {}
  template <bool WHOLE>
  __device__ void end(long long, long long) {}
  template <typename F>
  __device__ void finish(F) {}
};

// Rows that are loaded at once are added up before they are added to the rest.
template <typename T>
struct Gradient<SUMMED, T> {
  T* partial;
  C sum[WIDTH] = {};
  C row[WIDTH];

  __device__ explicit Gradient(void* partial) : partial((T*)partial) {}
  template <int ROWS>
  __device__ void take(int k, int j, C term, bool inside) {
    if (!inside) term = C(0);
    row[j] = k == 0 ? term : row[j] + term;
    if (k == ROWS - 1) sum[j] += row[j];
  }
  template <bool WHOLE>
  __device__ void end(long long, long long) {}
  template <typename F>
  __device__ void finish(F merge) {
    merge(sum, partial);
  }
};

template <typename T>
struct Gradient<EACH, T> {
  T* data;
  Pack<T> pack;

  __device__ explicit Gradient(void* data) : data((T*)data) {}
  template <int ROWS>
  __device__ void take(int, int j, C term, bool) {
    pack.of[j] = as<T>(term);
  }
  template <bool WHOLE>
  __device__ void end(long long i, long long n) {
    store<WHOLE>(pack, data, i, n);
  }
  template <typename F>
  __device__ void finish(F) {}
};

// -- a thread's columns ---------------------------------------------------------------------------

struct Columns {
  Input<DY> dys;
  Input<Y> xs;
  SCALE scales;
  BIAS biases;
  SLOPE slopes;
  GATE gates;
  WORDS words;
  Dropout dropout;
  DX* dx;
  DGATE* dgate;
  Gradient<D_SCALE, D_SCALE_TYPE> dscales;
  Gradient<D_BIAS, D_BIAS_TYPE> dbiases;
  Gradient<D_SLOPE, D_SLOPE_TYPE> dslopes;

  // The packs that begin at element `first` and, row by row, `period` further on.
  template <bool WHOLE, int ROWS>
  __device__ void step(long long first, long long period, long long n) {
#pragma unroll
    for (int k = 0; k < ROWS; ++k) {
      const long long i = first + k * period;
      dys.load<WHOLE>(k, i, n);
      xs.load<WHOLE>(k, i, n);
      scales.template load<WHOLE>(k, i, n);
      biases.template load<WHOLE>(k, i, n);
      slopes.template load<WHOLE>(k, i, n);
      gates.template load<WHOLE>(k, i, n);
      words.template load<WHOLE>(k, i, n);
    }
#pragma unroll
    for (int k = 0; k < ROWS; ++k) {
      const long long i = first + k * period;
      Pack<DX> dx_pack;
      Pack<DGATE> dgate_pack;
#pragma unroll
      for (int j = 0; j < WIDTH; ++j) {
        const C x = xs.value(k, j), dy = dys.value(k, j);
        const auto scale = scales.value(k, j);
        const auto slope = slopes.value(k, j);
        const auto word = words.value(k, j);
        const C u = affine(x, scale, biases.value(k, j));
        const C da = dropout.scaled(affine(dy, gates.value(k, j), Absent{}), word);
        const C du = back(da, u, slope);
        const bool counts = WHOLE || (i + j >= 0 && i + j < n);
        dx_pack.of[j] = as<DX>(dropout.remaining(affine(du, scale, Absent{}), word));
        if (WRITES_DGATE) {
          dgate_pack.of[j] = as<DGATE>(product(dy, dropout(activate(u, slope), word)));
        }
        dscales.take<ROWS>(k, j, dropout.remaining(linear_dscale<C>(du, x), word), counts);
        dbiases.take<ROWS>(k, j, dropout.remaining(du, word), counts);
        dslopes.take<ROWS>(k, j, dropout.remaining(prelu_dweight<C>(da, u), word), counts);
      }
      if (WRITES_DX) store<WHOLE>(dx_pack, dx, i, n);
      if (WRITES_DGATE) store<WHOLE>(dgate_pack, dgate, i, n);
      dscales.end<WHOLE>(i, n);
      dbiases.end<WHOLE>(i, n);
      dslopes.end<WHOLE>(i, n);
    }
  }
};

// -- where the sums go ----------------------------------------------------------------------------

// Channels along the columns. Column w counts from the beginning of a channel: `offset` more than
// the column's number. `merged`: a whole period of channels fits a tile, and each block writes the
// sums of all `kept` channels; else one sum for each (run of a channel, tile) that meet, numbered
// run + tile, which never decreases: blocks of one chunk share `entries` sums.
struct Sums {
  long long period, kept, inner, offset, tiles, entries;
  int merged, lanes;

  __device__ long long run(long long column) const { return (column + offset) / inner; }
  __device__ long long first() const { return offset / inner; }
};

// The sums of a tile's columns by channel. A team of `lanes` lanes has a channel to itself.
__device__ void merge_columns(const Sums& s, const C (&sum)[WIDTH], C* partial, long long chunk,
                              long long tile) {
  __shared__ C columns[TILE];
  __syncthreads();
#pragma unroll
  for (int j = 0; j < WIDTH; ++j) columns[threadIdx.x * WIDTH + j] = sum[j];
  __syncthreads();
  const long long begin = tile * TILE, end = min(begin + TILE, s.period);
  const long long first = s.run(begin);
  const long long count = s.merged ? s.kept : s.run(end) - first + 1;
  C* const to = partial + (s.merged ? (chunk * s.tiles + tile) * s.kept
                                    : chunk * s.entries + first - s.first() + tile);
  const int team = threadIdx.x / s.lanes, lane = threadIdx.x % s.lanes;
  for (long long base = 0; base < count; base += THREADS / s.lanes) {
    const long long entry = base + team;
    // the entry's first run here, and its columns counted from where that begins
    const long long skip = s.merged ? (entry - first % s.kept + s.kept) % s.kept : entry;
    const long long origin = (first + skip) * s.inner - s.offset;
    const int length = (int)min(s.inner, (long long)(2 * TILE));
    const long long low = max(0ll, begin - origin);
    const long long high = s.merged ? (TILE / (s.kept * s.inner) + 2) * s.inner
                                    : min(s.inner, end - origin);
    Compensated mine;
    if (entry < count) {
      for (long long z = (s.merged ? 0 : low) + lane; z < high; z += s.lanes) {
        long long column = origin + z;
        if (s.merged) column += (int)z / length * ((s.kept - 1) * s.inner);
        if (column >= begin && column < end) mine.add(columns[column - begin]);
      }
    }
    C total = mine.sum;
    for (int step = s.lanes / 2; step > 0; step /= 2) {
      total += __shfl_down_sync(~0u, total, step, s.lanes);
    }
    if (lane == 0 && entry < count) to[entry] = total;
  }
}

}  // namespace gpuact

extern "C" __global__ void __launch_bounds__(gpuact::THREADS, 1)
fused_backward(const void* dy, const void* x, const void* scale, const void* bias,
               const void* slope, const void* gate, double scale_number, double bias_number,
               double slope_number, DX* dx, DGATE* dgate, void* dscale, void* dbias, void* dslope,
               unsigned seed0, unsigned seed1, unsigned offset0, unsigned offset1, unsigned last,
               double kept_scale, long long n, long long shift, long long rows, long long chunk,
               long long period, long long tiles, long long kept, long long inner,
               long long inner_factor, long long kept_factor, long long offset,
               long long entries, int merged, int lanes) {
  using namespace gpuact;
  const Sums sums = {period, kept, inner, offset, tiles, entries, merged, lanes};
  const long long tile = blockIdx.x % tiles, part = blockIdx.x / tiles;
  const long long column = tile * TILE + threadIdx.x * WIDTH;
  Columns mine = {Input<DY>(dy, 0),
                  Input<Y>(x, 0),
                  SCALE(scale, scale_number),
                  BIAS(bias, bias_number),
                  SLOPE(slope, slope_number),
                  GATE(gate, 0),
                  WORDS(Philox{{seed0, seed1}, {offset0, offset1}}),
                  {last, C(kept_scale)},
                  dx,
                  dgate,
                  Gradient<D_SCALE, D_SCALE_TYPE>(dscale),
                  Gradient<D_BIAS, D_BIAS_TYPE>(dbias),
                  Gradient<D_SLOPE, D_SLOPE_TYPE>(dslope)};
  if (column < period) {
    const Channels channels = {{(INDEX)inner, (INDEX)inner_factor},
                               {(INDEX)kept, (INDEX)kept_factor}};
    mine.scales.start(channels, column + offset);
    mine.biases.start(channels, column + offset);
    mine.slopes.start(channels, column + offset);
    const long long end = min((part + 1) * chunk, rows);
    for (long long row = part * chunk; row < end;) {
      const long long i = row * period + column - shift;
      if (row + AT_ONCE <= end && i >= 0 && i + (AT_ONCE - 1) * period + WIDTH <= n) {
        mine.step<true, AT_ONCE>(i, period, n);
        row += AT_ONCE;
      } else if (i >= 0 && i + WIDTH <= n) {  // the last rows of a chunk
        mine.step<true, 1>(i, period, n);
        ++row;
      } else {  // a pack at either end of memory
        mine.step<false, 1>(i, period, n);
        ++row;
      }
    }
  }
  const auto merge = [&](const C(&sum)[WIDTH], C* partial) {
    merge_columns(sums, sum, partial, part, tile);
  };
  mine.dscales.finish(merge);
  mine.dbiases.finish(merge);
  mine.dslopes.finish(merge);
}
