// An activation whose outputs are looked at on their way: what a layer is like, for no traffic.
//
// Memory is cut into rows, and those into columns (kernels/tiles.py says how). A program of
// `observe` goes through its rows, EACH to a warp at a time, and of each row a pack to a thread. It
// leaves five numbers, and bits: where an element was alive, which is not saturated. `fold`
// (fold.cuh) adds these onto what is known already. Neither has atomics, and all orders are fixed:
// the same bits in every run.
//
// Means are taken of what a thread holds first, then squares about it, so nothing cancels.
//
// Y is x's type, P the parameter's, C the computation's; PARAMETER is the operand, FORMULA the
// activation's name. COMPUTES: there is a formula, else y is x; WRITES: y is wanted. SATURATES says
// what saturated means; RUNS, that a row is made of runs of one unit each, and not of columns.

namespace gpuact {

constexpr int THREADS = 128;
constexpr int WARP = 32, WARPS = THREADS / WARP;
constexpr int EACH = 4;             // packs of a thread, all loaded before one is stored
constexpr int ROWS = WARPS * EACH;  // of a step
constexpr int COLUMNS = WARP * WIDTH;
// Five blocks of an SM: 40 KB are on their way, and a thread has 96 registers: with the 80 that six
// blocks would leave, half types spill on sm_100 and later. Doubles counted in 64 bits need 128.
constexpr int BLOCKS = sizeof(C) + sizeof(INDEX) < 16 ? 5 : 4;
constexpr unsigned ALL = ~0u, PACK_BITS = (1u << WIDTH) - 1;  // lanes of a warp; of a pack
static_assert(EACH * WIDTH <= 32, "a thread's elements of a step have a bit each in a word");

constexpr int NOTHING = 0, BELOW = 1, OUTSIDE = 2;

// -- what a value is, exactly: -ftz=true has comparisons take float32 subnormals for 0 ------------

__device__ bool is_zero(float y) { return __builtin_bit_cast(unsigned, y) << 1 == 0; }
__device__ bool is_zero(double y) { return y == 0; }

__device__ bool outside(float y, float low, float high) {
  unsigned found;
  asm("{\n.reg .pred p;\nsetp.le.f32 p, %1, %2;\nsetp.ge.or.f32 p, %1, %3, p;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(found)
      : "f"(y), "f"(low), "f"(high));
  return found;
}
__device__ bool outside(double y, double low, double high) { return y <= low || y >= high; }

__device__ bool at_most(float y, float low) {
  unsigned found;
  asm("{\n.reg .pred p;\nsetp.le.f32 p, %1, %2;\nselp.u32 %0, 1, 0, p;\n}"
      : "=r"(found)
      : "f"(y), "f"(low));
  return found;
}
__device__ bool at_most(double y, double low) { return y <= low; }

struct Bounds {
  C low, high;  // NaN where there is no such bound

  __device__ bool beyond(C y) const {
    return SATURATES == BELOW ? at_most(y, low) : outside(y, low, high);
  }
};

// -- values of a pack -----------------------------------------------------------------------------

// Half types by the word: one instruction rounds two of them, and one makes a float of a bfloat16.
// By itself a bfloat16 took one of the special function unit, and every second one two.
constexpr bool PAIRS = is_half<Y> && WIDTH > 1;
template <typename T>
constexpr bool is_bfloat16 = false;
template <>
constexpr bool is_bfloat16<__nv_bfloat16> = true;

__device__ C value(const Pack<Y>& pack, int j) {
  if constexpr (PAIRS && is_bfloat16<Y>) {
    unsigned word;
    memcpy(&word, pack.of + j / 2 * 2, sizeof(word));
    return __builtin_bit_cast(float, j % 2 ? word & 0xffff0000 : word << 16);
  } else {
    return as<C>(pack.of[j]);
  }
}

__device__ void round_to(Pack<Y>& pack, const C (&y)[WIDTH]) {
  if constexpr (PAIRS) {
#pragma unroll
    for (int j = 0; j < WIDTH; j += 2) {
      const float low = y[j], high = y[j + 1];
      unsigned word;
      if constexpr (is_bfloat16<Y>) {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
      } else {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
      }
      memcpy(pack.of + j, &word, sizeof(word));
    }
  } else {
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) pack.of[j] = as<Y>(y[j]);
  }
}

// -- where units lie ------------------------------------------------------------------------------

// A row of runs meets two of them: one up to element `end` of the row, the other behind.
struct Meeting {
  INDEX end;
  INDEX unit, next;

  __device__ Meeting(const Channels& channels, INDEX from_row) {
    const INDEX run = channels.inner(from_row);
    end = (run + 1) * channels.inner.divisor - from_row;
    unit = run - channels.count(run) * channels.count.divisor;
    next = unit + 1 == channels.count.divisor ? 0 : unit + 1;
  }

  // How many elements of a pack that begins at this column belong to the former.
  __device__ int before(INDEX column) const {
    return column >= end ? 0 : end - column < WIDTH ? int(end - column) : WIDTH;
  }
};

// -- the parameter: start once, load for the k-th row of a step -----------------------------------

struct Nothing {
  __device__ Nothing(const P*, double) {}
  __device__ void start(const Channels&, INDEX) {}
  __device__ void load(int, const Meeting&, INDEX) {}
  __device__ Absent value(int, int) const { return {}; }
};

struct Constant {
  C number;

  __device__ Constant(const P*, double number) : number(C(number)) {}
  __device__ void start(const Channels&, INDEX) {}
  __device__ void load(int, const Meeting&, INDEX) {}
  __device__ C value(int, int) const { return number; }
};

struct Only : Constant {
  __device__ Only(const P* data, double) : Constant(data, as<C>(*data)) {}
};

// One a unit, where a thread's columns have theirs once and for all.
struct OfColumns {
  const P* data;
  C each[WIDTH];

  __device__ OfColumns(const P* data, double) : data(data) {}
  __device__ void start(const Channels& channels, INDEX column) {
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) each[j] = as<C>(data[channels(column + j)]);
  }
  __device__ void load(int, const Meeting&, INDEX) {}
  __device__ C value(int, int j) const { return each[j]; }
};

// One a unit, where a row meets two of them.
struct OfRuns {
  const P* data;
  int before[EACH];
  C here[EACH], next[EACH];

  __device__ OfRuns(const P* data, double) : data(data) {}
  __device__ void start(const Channels&, INDEX) {}
  __device__ void load(int k, const Meeting& meeting, INDEX column) {
    before[k] = meeting.before(column);
    here[k] = as<C>(data[meeting.unit]);
    next[k] = as<C>(data[meeting.next]);
  }
  __device__ C value(int k, int j) const { return j < before[k] ? here[k] : next[k]; }
};

// -- count, mean, Σ (y − mean)² -------------------------------------------------------------------

struct Moments {
  C n = 0, mean = 0, m2 = 0;

  // Those of both (Chan, Golub and LeVeque 1979). Not mean + (b.mean - mean)·share: of two
  // infinities that would make a NaN. No count is so large that its quotient could vanish; of
  // nothing the mean is 0, but what is far from that squares to infinity, and times 0 to NaN.
  __device__ void merge(const Moments& b) {
    const C total = n + b.n, share = quotient<C>(b.n, total);
    const C apart = b.mean - mean;
    const C both = m2 + b.m2 + apart * apart * (n * share);
    const C middle = mean * quotient<C>(n, total) + b.mean * share;
    m2 = b.n == 0 ? m2 : n == 0 ? b.m2 : both;
    mean = n == 0 ? b.mean : middle;
    n = total;
  }

  template <int LANES>
  __device__ void merge_lanes() {
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) {
      Moments other;
      other.n = __shfl_down_sync(ALL, n, step);
      other.mean = __shfl_down_sync(ALL, mean, step);
      other.m2 = __shfl_down_sync(ALL, m2, step);
      merge(other);
    }
  }
};

// -- a program ------------------------------------------------------------------------------------

struct Program {
  const Y* x;
  Y* out;
  unsigned char* flags;  // of rows
  PARAMETER parameter;
  Bounds bounds;
  Channels channels;
  INDEX size, pitch, column;  // size: of whole packs
  Moments moments;
  int zeros = 0, alive = 0, seen = 0;  // elements
  unsigned lives = 0;                  // where one was alive, of EACH rows

  // EACH rows from `first` on, and before `end`. WHOLE: all of them are there.
  template <bool WHOLE>
  __device__ void step(INDEX first, INDEX end) {
    Pack<Y> pack[EACH];
    bool inside[EACH];
    INDEX at[EACH];
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
      at[k] = (first + k) * pitch + column;
      // a row of runs is one tile, and behind `end` there is one only where the array has ended
      const bool in_tile = RUNS || (first + k < end && column < pitch);
      inside[k] = WHOLE || (in_tile && at[k] < size);
      if (inside[k]) pack[k] = read(x + at[k]);
    }
    Moments part;
    unsigned zero = 0, live = 0, former = 0;  // an element a bit; of the former unit of a row
    int packs = 0;
    C sum[EACH] = {};
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
      if (inside[k]) {
        const Meeting meeting(channels, at[k] - column);
        ++packs;
        parameter.load(k, meeting, column);
        if constexpr (COMPUTES) {
          C y[WIDTH];
#pragma unroll
          for (int j = 0; j < WIDTH; ++j) {
            y[j] = activate(value(pack[k], j), parameter.value(k, j));
          }
          round_to(pack[k], y);
        }
        if constexpr (WRITES) write(out + at[k], pack[k]);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
          const C y = value(pack[k], j);
          const unsigned bit = 1u << (k * WIDTH + j);
          sum[k] = j == 0 ? y : sum[k] + y;
          if (is_zero(y)) zero |= bit;
          if (SATURATES != NOTHING && !bounds.beyond(y)) live |= bit;
        }
        if constexpr (RUNS) former |= ((1u << meeting.before(column)) - 1) << (k * WIDTH);
      }
    }
    C total = sum[0];
#pragma unroll
    for (int k = 1; k < EACH; ++k) total += sum[k];
    part.n = C(packs * WIDTH);
    part.mean = total * (WHOLE ? C(1) / C(EACH * WIDTH) : quotient<C>(C(1), fmax(part.n, C(1))));
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
      C squares = 0;
#pragma unroll
      for (int j = 0; j < WIDTH; ++j) {
        const C apart = value(pack[k], j) - part.mean;
        squares += apart * apart;
      }
      if (inside[k]) part.m2 += squares;
    }
    moments.merge(part);
    seen += packs * WIDTH;
    zeros += __popc(zero);
    if constexpr (SATURATES != NOTHING) {
      alive += __popc(live);
      lives |= live;
      if constexpr (RUNS) {
        const unsigned before = __reduce_or_sync(ALL, live & former);
        const unsigned behind = __reduce_or_sync(ALL, live & ~former);
        const int k = threadIdx.x % WARP;
        if (k < EACH && first + k < end) {
          const unsigned row = PACK_BITS << (k * WIDTH);
          flags[first + k] = ((before & row) != 0) + 2 * ((behind & row) != 0);
        }
      }
    }
  }

  // The pack that the array's end cuts, so many elements of it: whether one was alive.
  __device__ bool tail(int there) {
    Pack<Y> pack = {};
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) {
      if (j < there) pack.of[j] = x[size + j];
    }
    const Meeting meeting(channels, size - column);
    parameter.load(0, meeting, column);
    Moments part;
    part.n = C(there);
    unsigned live = 0;
    C sum = 0;
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) {
      if constexpr (COMPUTES) {
        pack.of[j] = as<Y>(activate(value(pack, j), parameter.value(0, j)));
      }
      if (j < there) {
        if constexpr (WRITES) out[size + j] = pack.of[j];
        const C y = value(pack, j);
        sum += y;
        zeros += is_zero(y);
        if (SATURATES != NOTHING && !bounds.beyond(y)) live |= 1u << j;
      }
    }
    part.mean = sum * quotient<C>(C(1), part.n);
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) {
      const C apart = value(pack, j) - part.mean;
      if (j < there) part.m2 += apart * apart;
    }
    moments.merge(part);
    seen += there;
    alive += __popc(live);
    lives |= live;
    return live != 0;
  }
};

// The bits of a program's columns, eight a byte, from those of all warps.
__device__ void write_octets(unsigned lives, unsigned char* octets) {
  __shared__ unsigned char bits[WARPS][WARP];
  unsigned mine = 0;
#pragma unroll
  for (int k = 0; k < EACH; ++k) mine |= lives >> (k * WIDTH) & PACK_BITS;
  bits[threadIdx.x / WARP][threadIdx.x % WARP] = mine;
  __syncthreads();
  constexpr int LANES = 8 / WIDTH;  // to a byte
  if (threadIdx.x < COLUMNS / 8) {
    unsigned octet = 0;
    for (int warp = 0; warp < WARPS; ++warp) {
      for (int k = 0; k < LANES; ++k) {
        octet |= bits[warp][threadIdx.x * LANES + k] << (k * WIDTH);
      }
    }
    octets[threadIdx.x] = octet;
  }
}

}  // namespace gpuact

extern "C" __global__ void __launch_bounds__(gpuact::THREADS, gpuact::BLOCKS)
observe(const Y* x, Y* out, C* parts, unsigned char* flags, const P* parameter, double number,
        C low, C high, long long size, long long pitch, long long rows, long long chunk,
        long long inner, unsigned long long inner_factor, long long units,
        unsigned long long units_factor) {
  using namespace gpuact;
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const INDEX begin = (INDEX)blockIdx.x * COLUMNS;
  const Channels channels = {{(INDEX)inner, (INDEX)inner_factor},
                             {(INDEX)units, (INDEX)units_factor}};
  Program mine = {x,
                  out,
                  flags,
                  PARAMETER(parameter, number),
                  {low, high},
                  channels,
                  (INDEX)(size - size % WIDTH),
                  RUNS ? COLUMNS : (INDEX)pitch,
                  begin + lane * WIDTH};
  mine.parameter.start(channels, mine.column);
  const INDEX first = blockIdx.y * chunk, end = min(first + chunk, rows);
  // What the last row has behind all packs is one thread's, of the warp with the fewest rows.
  bool tail = false;
  if (warp == WARPS - 1 && end == rows && mine.size < size &&
      (end - 1) * mine.pitch + mine.column == mine.size) {
    tail = mine.tail(size - mine.size);
  }
  for (INDEX row = first; row < end; row += ROWS) {
    const INDEX last = (row + (ROWS - 1)) * mine.pitch + begin + COLUMNS;
    if (row + ROWS <= end && begin + COLUMNS <= mine.pitch && last <= mine.size) {
      mine.step<true>(row + warp * EACH, end);
    } else {
      mine.step<false>(row + warp * EACH, end);
    }
  }

  const long long tiles = gridDim.x, program = blockIdx.y * tiles + blockIdx.x;
  if (SATURATES != NOTHING && !RUNS) write_octets(mine.lives, flags + program * (COLUMNS / 8));

  __shared__ C warps[3][WARPS];
  __shared__ int counts[2][WARPS];
  mine.moments.merge_lanes<WARP>();
  const int saturated = SATURATES == NOTHING ? 0 : mine.seen - mine.alive;
  const int sums[] = {__reduce_add_sync(ALL, mine.zeros), __reduce_add_sync(ALL, saturated)};
  if (lane == 0) {
    warps[0][warp] = mine.moments.n;
    warps[1][warp] = mine.moments.mean;
    warps[2][warp] = mine.moments.m2;
    counts[0][warp] = sums[0];
    counts[1][warp] = sums[1];
  }
  __syncthreads();
  // Another warp has written this. The row is all of the last run, which is no shorter.
  if (RUNS && tail) flags[rows - 1] |= 1;
  if (warp == 0) {
    Moments all;
    int zeros = 0, beyond = 0;
    if (lane < WARPS) {
      all.n = warps[0][lane];
      all.mean = warps[1][lane];
      all.m2 = warps[2][lane];
      zeros = counts[0][lane];
      beyond = counts[1][lane];
    }
    all.merge_lanes<WARPS>();
    const C numbers[] = {all.n, all.mean, all.m2, C(__reduce_add_sync(ALL, zeros)),
                         C(__reduce_add_sync(ALL, beyond))};
    const long long programs = tiles * gridDim.y;
    if (lane == 0) {
#pragma unroll
      for (int k = 0; k < 5; ++k) parts[k * programs + program] = numbers[k];
    }
  }
}
