// What is known of a layer, and what the programs of `observe` (stats.cuh) left, together.
//
// The first block adds up the programs' numbers, in double; each other block looks after some
// groups of units, a column of threads a group. A group is one unit, or eight that have a bit each
// in every byte. INDEX is unsigned and of twice the range of a group's bytes.

namespace gpuact {

constexpr int THREADS = 256;  // of a block, whatever its shape
constexpr int WARP = 32, WARPS = THREADS / WARP;
constexpr int AT_ONCE = 4;  // bytes of a thread on their way, before it looks whether all is known

struct Flags {
  const unsigned char* data;
  long long octets, units, inner;  // bytes of a chunk's bits
  INDEX reach, repeats;            // bytes, or rows, that one run is in at most; periods of a row
  int together, columns;           // units of a group; the binary logarithm of a program's columns

  // Of run number k / reach of a unit, row k % reach: whether an element was alive.
  __device__ unsigned of_runs(long long unit, INDEX k) const {
    const long long begin = (k / reach * units + unit) * inner;
    const long long row = (begin >> columns) + k % reach;
    if (row << columns >= begin + inner) return 0;
    return data[row] & (row << columns >= begin ? 1 : 2);  // a row's first run, or its second
  }

  // Byte k % reach of a group's bits, once for each period of each chunk.
  __device__ unsigned of_columns(long long group, INDEX k) const {
    const INDEX period = k / reach % repeats, chunk = k / reach / repeats;
    const long long length = together * inner;
    const long long begin = period * (units * inner) + group * length;
    const long long octet = (begin >> 3) + k % reach;
    const long long before = begin - octet * 8, behind = octet * 8 + 8 - (begin + length);
    if (octet >= octets || behind >= 8) return 0;
    const unsigned bits = data[chunk * octets + octet];
    return bits & (0xff << max(before, 0ll)) & (0xff >> max(behind, 0ll));
  }
};

// Every thread has the sums of the whole block then.
template <int N>
__device__ void add_up(double (&sums)[N]) {
  __shared__ double warps[N][WARPS];
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    for (int step = WARP / 2; step > 0; step /= 2) {
      sums[n] += __shfl_down_sync(~0u, sums[n], step);
    }
    if (thread % WARP == 0) warps[n][thread / WARP] = sums[n];
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) {
    sums[n] = warps[n][0];
    for (int warp = 1; warp < WARPS; ++warp) sums[n] += warps[n][warp];
  }
}

// What a part adds to Σ (y − mean)² by its distance; one of nothing has none, even of infinity.
__device__ double squares(double n, double part, double mean) {
  return n == 0 ? 0 : n * (part - mean) * (part - mean);
}

// Means first, then squares about theirs. The first thread begins with what is known already.
__device__ void fold_moments(const C* parts, double* moments, long long programs) {
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  double known[5] = {};
  if (thread == 0) {
    for (int k = 0; k < 5; ++k) known[k] = moments[k];
  }
  double sums[] = {known[0], known[0] * known[1], known[3], known[4]};
#pragma unroll 4
  for (long long k = thread; k < programs; k += THREADS) {
    const double n = parts[k];
    sums[0] += n;
    sums[1] += n * parts[k + programs];
    sums[2] += parts[k + 3 * programs];
    sums[3] += parts[k + 4 * programs];
  }
  add_up(sums);
  const double mean = sums[1] / sums[0];
  double m2[] = {known[2] + squares(known[0], known[1], mean)};
#pragma unroll 4
  for (long long k = thread; k < programs; k += THREADS) {
    m2[0] += parts[k + 2 * programs] + squares(parts[k], parts[k + programs], mean);
  }
  add_up(m2);
  if (thread == 0) {
    const double all[] = {sums[0], mean, m2[0], sums[2], sums[3]};
    for (int k = 0; k < 5; ++k) moments[k] = all[k];
  }
}

__device__ void fold_flags(const Flags& flags, int runs, INDEX slots, long long group,
                           unsigned char* alive) {
  __shared__ unsigned char parts[THREADS];
  const int x = threadIdx.x, y = threadIdx.y;
  const unsigned all = flags.together == 8 ? 0xff : 1;
  const bool here = group * flags.together < flags.units;
  unsigned found = flags.data == nullptr ? all : 0;
  for (INDEX k = y; here && found != all && k < slots; k += AT_ONCE * blockDim.y) {
    unsigned bits = 0;
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
      const INDEX slot = k + i * blockDim.y;
      if (slot < slots) {
        bits |= runs ? flags.of_runs(group, slot) : flags.of_columns(group, slot);
      }
    }
    found |= flags.together == 8 ? bits : bits != 0;
  }
  parts[y * blockDim.x + x] = found;
  for (int half = blockDim.y / 2; half > 0; half /= 2) {
    __syncthreads();
    if (y < half) parts[y * blockDim.x + x] |= parts[(y + half) * blockDim.x + x];
  }
  if (y == 0 && here) {
    for (int k = 0; k < flags.together; ++k) {
      if (parts[x] >> k & 1) alive[group * flags.together + k] = 1;
    }
  }
}

}  // namespace gpuact

// The second bound has ptxas take the registers that are there: without it it spills on sm_100.
extern "C" __global__ void __launch_bounds__(gpuact::THREADS, 4)
fold(const C* parts, const unsigned char* flags, double* moments, unsigned char* alive,
     long long programs, long long octets, long long units, long long inner, long long slots,
     long long reach, long long repeats, int runs, int together, int columns) {
  using namespace gpuact;
  if (blockIdx.x == 0) {
    fold_moments(parts, moments, programs);
  } else {
    const Flags left = {flags, octets, units, inner, (INDEX)reach, (INDEX)repeats,
                        together, columns};
    const long long group = (blockIdx.x - 1) * (long long)blockDim.x + threadIdx.x;
    fold_flags(left, runs, slots, group, alive);
  }
}
