// Who runs a row's chunks. Every regime calls the same functions of an operation OP in the same
// order, so all give the same bits; they differ in how often a row is read, and in how many threads
// take part.
//
//   short_rows   rows of up to 16 packs: a pack a lane, eight rows after another in its registers
//   whole_rows   one or more rows a block, in its registers: one read, one write
//   cluster      one row over the blocks of a cluster, in their registers: one read, one write
//   two_passes   one row a block, chunk by chunk, twice: the second time from L2
//   measured,    a row over the whole chip, in three launches: what its chunks are reduced to, what
//   merged,      the row is, and what follows for its elements: read twice
//   finished
//
// An operation says: of how many ARRAYS; load(place, data), what a lane holds; row(index), what is
// known of a row; measure(row, data, cells), a Part, where it MEASURES anything; conclude(row, part), of a
// whole row, by one thread; and where it FINISHES, finish(row, part, data, cells), which makes what
// is stored, and store(place, data).

namespace gpuact {

constexpr int MOST_UNITS = 32;  // chunks of a block: of 512 threads, each may use 128 registers
constexpr int MOST_CHUNKS = 1024;  // of a row that two_passes takes

struct Sizes {
  long long rows, n, inner;
  int rows_per_block, chunks;  // of a row
};

// What a lane holds of one array, or of two; results are put where x was. A slice is some of its
// packs, in registers or (`Shared`) in shared memory, where each thread has its own.
template <typename Packs, int AT_ONCE>
struct Slice {
  static constexpr int UNROLL = AT_ONCE;  // packs that are worked on side by side, or
  static constexpr bool CHAINED = false;  // one after another
  Packs x, y;
};
template <int PACKS>
struct Slice<uint4*, PACKS> {
  static constexpr int UNROLL = PACKS;
  static constexpr bool CHAINED = true;
  uint4 *x, *y;
};
struct Shared {
  int first;

  __device__ uint4& operator[](int p) const { return stage[(first + p) * blockDim.x + threadIdx.x]; }
};

// Pack p of a slice of type D; where its packs come one after another, once `before` is known.
template <typename D, typename Packs, typename Known>
__device__ uint4 at(Packs packs, int p, Known before, long long length) {
  return D::CHAINED ? then(packs[p], known(before), none_of(length)) : packs[p];
}

template <int ARRAYS, int PACKS>
struct Registers {
  uint4 x[PACKS], y[ARRAYS > 1 ? PACKS : 1];

  __device__ Slice<uint4*, PACKS> from(int pack) { return {x + pack, ARRAYS > 1 ? y + pack : y}; }
};

template <typename Operation, int LANES_OF_ROW, Access ACCESS>
__device__ void short_rows(const Operation& op, const Sizes& sizes, typename Operation::Part*) {
  using Part = typename Operation::Part;
  Registers<Operation::ARRAYS, MOST> data;
  ShortRows place;
  place.first = place.span_row = (long long)blockIdx.x * sizes.rows_per_block;
  place.rows = sizes.rows;
  place.n = int(sizes.n);
  place.lanes = LANES_OF_ROW;
  place.span = int(min((long long)sizes.rows_per_block, sizes.rows - place.first) * sizes.n);
  op.template load<ACCESS>(place, data);
#pragma unroll
  for (int p = 0; p < MOST; ++p) {
    const Cells cells = place.cells(p);
    const auto row = op.row(cells.row, cells.count > 0);
    Part whole = Part::none();
    if constexpr (Operation::MEASURES) {
      const Part part = combined(op.template measure<1>(row, data.from(p), cells), LANES_OF_ROW);
      whole.max = part.max;
      whole.add(part);  // as `merge` does
    }
    if (cells.lane == 0 && cells.count > 0) op.conclude(row, whole);
    if constexpr (Operation::FINISHES) {
      op.template finish<1>(row, whole, data.from(p), cells);
    }
  }
  if constexpr (Operation::FINISHES) {
    __syncwarp();  // other lanes may have read a logit where this one writes
    op.template store<ACCESS>(place, data);
  }
}

// The chunk of these lanes, in a block that has `chunks` of them of each of its rows from `first` on.
__device__ Chunk chunk_of(const Sizes& sizes, long long row, long long rows, int first, int chunks) {
  const int unit = threadIdx.x / LANES;
  const int mine = unit / chunks, chunk = first + unit % chunks;
  Chunk place;
  place.span_row = row;
  place.span_first = (long long)first * CHUNK;
  place.row = row + mine;
  place.first = (long long)chunk * CHUNK;
  const long long left = sizes.n - place.first;
  place.count = place.reads =
      mine < rows && place.row < sizes.rows ? int(max(0ll, min(left, (long long)CHUNK))) : 0;
  place.lane = threadIdx.x % LANES;
  const long long columns = min((long long)chunks * CHUNK, sizes.n - place.span_first);
  place.span = int(max(0ll, columns * min(rows, sizes.rows - row)));
  place.offset = int(mine * sizes.n) + unit % chunks * CHUNK;
  if (place.count == 0) place.row = row;  // whose memory there is
  return place;
}

template <typename Operation, int PACKS, Access ACCESS>
__device__ void whole_rows(const Operation& op, const Sizes& sizes, typename Operation::Part*) {
  using Part = typename Operation::Part;
  Registers<Operation::ARRAYS, PACKS> data;
  const long long first = (long long)blockIdx.x * sizes.rows_per_block;
  const Chunk place = chunk_of(sizes, first, sizes.rows_per_block, 0, sizes.chunks);
  const auto row = op.row(place.row, place.count > 0);
  op.template load<ACCESS>(place, data);
  Part whole = Part::none();
  if constexpr (Operation::MEASURES) {
    __shared__ Part parts[MOST_UNITS];
    const int unit = threadIdx.x / LANES;
    const Part part = combined(op.template measure<PACKS>(row, data.from(0), place));
    if (place.lane == 0) parts[unit] = part;
    __syncthreads();
    const int its_row = place.count > 0 ? unit / sizes.chunks : 0;
    whole = merge(parts + its_row * sizes.chunks, sizes.chunks);
  }
  if (place.lane == 0 && place.count > 0 && place.first == 0) op.conclude(row, whole);
  if constexpr (Operation::FINISHES) {
    op.template finish<PACKS>(row, whole, data.from(0), place);
    op.template store<ACCESS>(place.written(), data);
  }
}

// -- clusters -------------------------------------------------------------------------------------

#if __CUDA_ARCH__ >= 900
__device__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Writes a part where another block of the cluster has `to`.
template <typename Part>
__device__ void push(Part* to, const Part& part, unsigned rank) {
  unsigned long long address;
  asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"((unsigned long long)to), "r"(rank));
  *(Part*)address = part;
}

template <typename Operation, int BLOCKS, Access ACCESS>
__device__ void cluster(const Operation& op, const Sizes& sizes, typename Operation::Part*) {
  using Part = typename Operation::Part;
  __shared__ Part parts[BLOCKS * MOST_UNITS];
  cluster_arrive();  // before any block writes into another, that one has begun
  Registers<Operation::ARRAYS, MOST> data;
  const int units = blockDim.x / LANES, rank = cluster_rank();
  const Chunk place = chunk_of(sizes, blockIdx.x / BLOCKS, 1, rank * units, units);
  const auto row = op.row(place.row, place.count > 0);
  op.template load<ACCESS>(place, data);
  const Part part = combined(op.template measure<MOST>(row, data.from(0), place));
  cluster_wait();
  const int unit = threadIdx.x / LANES;
  if (place.lane < BLOCKS) push(parts + rank * units + unit, part, place.lane);
  cluster_arrive();
  cluster_wait();
  const Part whole = merge(parts, sizes.chunks);
  if (place.lane == 0 && place.count > 0 && place.first == 0) op.conclude(row, whole);
  if constexpr (Operation::FINISHES) {
    op.template finish<MOST>(row, whole, data.from(0), place);
    op.template store<ACCESS>(place.written(), data);
  }
}
#endif

// -- rows that fit nowhere ------------------------------------------------------------------------

template <typename Operation, int, Access ACCESS>
__device__ void two_passes(const Operation& op, const Sizes& sizes, typename Operation::Part*) {
  using Part = typename Operation::Part;
  __shared__ Part parts[MOST_CHUNKS];
  const int units = blockDim.x / LANES, unit = threadIdx.x / LANES;
  for (long long index = blockIdx.x; index < sizes.rows; index += gridDim.x) {
    const auto row = op.row(index, true);
    for (int first = 0; first < sizes.chunks; first += units) {
      Registers<Operation::ARRAYS, MOST> data;
      const NextChunk place = {chunk_of(sizes, index, 1, first, units)};
      op.template load<ACCESS>(place, data);
      const Part part = combined(op.template measure<MOST>(row, data.from(0), place));
      if (place.lane == 0 && place.count > 0) parts[first + unit] = part;
    }
    __syncthreads();
    const Part whole = merge(parts, sizes.chunks);
    if (threadIdx.x == 0) op.conclude(row, whole);
    __syncthreads();  // and the parts of the next row may be written
    if constexpr (!Operation::FINISHES) continue;
    for (int first = 0; first < sizes.chunks; first += units) {
      Registers<Operation::ARRAYS, MOST> data;
      const NextChunk place = {chunk_of(sizes, index, 1, first, units)};
      op.template load<ACCESS>(place, data);
      op.template finish<MOST>(row, whole, data.from(0), place);
      op.template store<ACCESS>(place.written(), data);
    }
  }
}

// The part of chunk c of a row is parts[c·rows + row], and that of the whole row, once `merged` has
// made it, parts[row].

template <typename Operation, int, Access ACCESS>
__device__ void measured(const Operation& op, const Sizes& sizes, typename Operation::Part* parts) {
  Registers<Operation::ARRAYS, MOST> data;
  const int units = blockDim.x / LANES;
  const int groups = (sizes.chunks + units - 1) / units;
  const long long index = blockIdx.x / groups;
  const Chunk place = chunk_of(sizes, index, 1, int(blockIdx.x % groups) * units, units);
  const auto row = op.row(index, true);
  op.template load<ACCESS>(place, data);
  const auto part = combined(op.template measure<MOST>(row, data.from(0), place));
  if (place.lane == 0 && place.count > 0) parts[place.first / CHUNK * sizes.rows + index] = part;
}

template <typename Operation, int, Access>
__device__ void merged(const Operation& op, const Sizes& sizes, typename Operation::Part* parts) {
  const long long index = (blockIdx.x * (long long)blockDim.x + threadIdx.x) / LANES;
  const bool exists = index < sizes.rows;
  const auto whole = merge(parts + index, exists ? sizes.chunks : 0, sizes.rows);
  __syncwarp();
  if (exists && threadIdx.x % LANES == 0) {
    parts[index] = whole;
    op.conclude(op.row(index, true), whole);
  }
}

template <typename Operation, int, Access ACCESS>
__device__ void finished(const Operation& op, const Sizes& sizes, typename Operation::Part* parts) {
  using Part = typename Operation::Part;
  Registers<Operation::ARRAYS, MOST> data;
  const int units = blockDim.x / LANES;
  const int groups = (sizes.chunks + units - 1) / units;
  const long long index = blockIdx.x / groups;
  const Chunk place = chunk_of(sizes, index, 1, int(blockIdx.x % groups) * units, units);
  op.template load<ACCESS>(place, data);
  Part whole = Part::none();
  if constexpr (Operation::MEASURES) {
    __shared__ Part of_row;
    if (threadIdx.x == 0) of_row = parts[index];
    __syncthreads();
    whole = of_row;
  }
  op.template finish<MOST>(op.row(index, true), whole, data.from(0), place);
  op.template store<ACCESS>(place.written(), data);
}

}  // namespace gpuact
