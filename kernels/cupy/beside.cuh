// Rows that lie side by side, along an axis that is not the last. The threads of a warp have 32 of
// them, or 64 of a half type, so that it reads 128 bytes of memory or more at each step; and what one
// lane of a chunk does elsewhere, a thread does for each of its rows.
//
//   columns           short rows, each in the registers of one thread: one read, one write
//   beside            the rows stay in a block, or in a cluster: one read, one write
//   beside_measured,  rows that do not fit; `merged` between them is that of regimes.cuh
//   beside_finished
//
// sizes.rows_per_block is how many lanes a row has. What the lanes of a block leave in shared memory
// is added up as rows.cuh has it.

namespace gpuact {

// -- a thread for whole rows ----------------------------------------------------------------------

// SIDES rows next to each other, one access for an element of each. What lanes have elsewhere, a pack
// each, are PACKS of them here, no more than there are elements for.
template <int PACKS, int SIDES>
struct Columns {
  long long row, outer, across;  // index of the first, and where it is
  int n;

  __device__ Columns(const Sizes& sizes, long long row)
      : row(row), outer(row / sizes.inner), across(row % sizes.inner), n(int(sizes.n)) {}

  __device__ Cells cells(int side, int p) const { return {row + side, 0, n, n, p}; }

  template <typename T>
  __device__ T* start(const View<T>& view) const {
    return view.data + outer * view.outer_stride + across;
  }
  // Columns of the last pack; all others are whole.
  __device__ int columns(int p) const { return p < PACKS - 1 ? WIDTH : n - p * WIDTH; }
};

template <Access, int ALL, int PACKS, int SIDES>
__device__ void load(const View<const X>& view, const Columns<PACKS, SIDES>& place, long long, X fill,
                     uint4 (&raw)[ALL]) {
  using Across = typename Together<SIDES * sizeof(X)>::type;
  const X* from = place.start(view);
#pragma unroll
  for (int p = 0; p < PACKS; ++p) {
    Pack packs[SIDES];
#pragma unroll
    for (int k = 0; k < WIDTH; ++k, from += view.stride) {
      X item[SIDES];
#pragma unroll
      for (int side = 0; side < SIDES; ++side) item[side] = fill;
      if (k < place.columns(p)) {
        const Across across = *(const Across*)from;
        memcpy(item, &across, sizeof across);
      }
#pragma unroll
      for (int side = 0; side < SIDES; ++side) packs[side].of[k] = item[side];
    }
#pragma unroll
    for (int side = 0; side < SIDES; ++side) memcpy(&raw[side * PACKS + p], &packs[side], 16);
  }
}

template <Access, int ALL, int PACKS, int SIDES>
__device__ void store(const View<X>& view, const Columns<PACKS, SIDES>& place, long long,
                      const uint4 (&raw)[ALL]) {
  using Across = typename Together<SIDES * sizeof(X)>::type;
  X* to = place.start(view);
#pragma unroll
  for (int p = 0; p < PACKS; ++p) {
    Pack packs[SIDES];
#pragma unroll
    for (int side = 0; side < SIDES; ++side) packs[side] = unpack(raw[side * PACKS + p]);
#pragma unroll
    for (int k = 0; k < WIDTH; ++k, to += view.stride) {
      X item[SIDES];
#pragma unroll
      for (int side = 0; side < SIDES; ++side) item[side] = packs[side].of[k];
      Across across;
      memcpy(&across, item, sizeof across);
      if (k < place.columns(p)) __stcs((Across*)to, across);
    }
  }
}

// The parts of a row's lanes as one, as `combined` makes it.
template <int PACKS, typename Part>
__device__ Part combined(Part (&parts)[PACKS]) {
  if constexpr (Part::HAS_MAX) {
    C max = parts[0].max;
#pragma unroll
    for (int p = 1; p < PACKS; ++p) max = fmax(max, parts[p].max);
#pragma unroll
    for (int p = 0; p < PACKS; ++p) parts[p].rebase(max);
  }
#pragma unroll
  for (int step = LANES / 2; step > 0; step /= 2) {
#pragma unroll
    for (int p = 0; p < min(step, PACKS); ++p) {
      if (step < PACKS) parts[p].add(p + step < PACKS ? parts[p + step] : Part::none());
    }
  }
  return parts[0];
}

template <typename Operation, int PACKS, int SIDES>
__device__ void columns(const Operation& op, const Sizes& sizes, typename Operation::Part*) {
  using Part = typename Operation::Part;
  const long long first = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * SIDES;
  if (first >= sizes.rows) return;
  const Columns<PACKS, SIDES> place(sizes, first);
  Registers<Operation::ARRAYS, PACKS * SIDES> data;
  op.template load<APART>(place, data);
#pragma unroll
  for (int side = 0; side < SIDES; ++side) {
    const auto row = op.row(first + side, true);
    Part whole = Part::none();
    if constexpr (Operation::MEASURES) {
      Part parts[PACKS];
#pragma unroll
      for (int p = 0; p < PACKS; ++p) {
        parts[p] = op.template measure<1>(row, data.from(side * PACKS + p), place.cells(side, p));
      }
      const Part part = combined(parts);
      whole.max = part.max;
      whole.add(part);  // as `merge` does
    }
    op.conclude(row, whole);
    if constexpr (Operation::FINISHES) {
#pragma unroll
      for (int p = 0; p < PACKS; ++p) {
        op.template finish<1>(row, whole, data.from(side * PACKS + p), place.cells(side, p));
      }
    }
  }
  if constexpr (Operation::FINISHES) op.template store<APART>(place, data);
}

// -- a block for a tile of rows -------------------------------------------------------------------

// How a block's threads have a tile of rows: ACROSS of them side by side, SIDES rows each; one after
// another the 16 lanes of a chunk; and GROUPS chunks. What a thread has of a chunk and a row is a
// slice of PACKS packs. Slices are in shared memory, but KEPT of them (0 or 1) in registers.
// WIDE: rows of a half type are adjacent and even in number, and one access takes both.
template <int PACKS_, int ACROSS_, int SIDES_, int GROUPS_, int KEPT_, bool WIDE_, int BLOCKS_>
struct Layout {
  static constexpr int PACKS = PACKS_, ACROSS = ACROSS_, SIDES = SIDES_, GROUPS = GROUPS_;
  static constexpr int KEPT = KEPT_, BLOCKS = BLOCKS_;  // of a cluster
  static constexpr int ROWS = ACROSS * SIDES, SLICES = GROUPS * SIDES;
  static constexpr bool WIDE = WIDE_;
};

// Accesses under a predicate, spelled out: the compiler would branch around each of them, and wait for
// one before it asks for the next.
#define GPUACT_ACCESS(T, BITS, CONSTRAINT)                                                      \
  __device__ void load_if(bool exists, const void* from, T& value) {                            \
    asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; @p ld.global." BITS " %0, [%1];}"        \
                 : "+" CONSTRAINT(value)                                                        \
                 : "l"(from), "r"(unsigned(exists)));                                           \
  }                                                                                             \
  __device__ void store_if(bool exists, void* to, T value) {                                    \
    asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; @p st.global.cs." BITS " [%1], %0;}" ::  \
                     CONSTRAINT(value), "l"(to), "r"(unsigned(exists))                          \
                 : "memory");                                                                   \
  }
GPUACT_ACCESS(unsigned short, "u16", "h")
GPUACT_ACCESS(unsigned, "u32", "r")
GPUACT_ACCESS(unsigned long long, "u64", "l")

template <int SIZE>
struct BitsOf {
  using type = unsigned short;
};
template <>
struct BitsOf<4> {
  using type = unsigned;
};
template <>
struct BitsOf<8> {
  using type = unsigned long long;
};
template <typename T>
using Bits = typename BitsOf<sizeof(T)>::type;

// What a thread has.
template <typename Layout>
struct Tile {
  static constexpr int ACROSS = Layout::ACROSS, SIDES = Layout::SIDES;
  static constexpr bool WIDE = Layout::WIDE;

  long long row, outer, across;  // index of the first of the rows, and where it is
  long long n;                   // columns
  int sides, chunk, lane;        // rows that there are; the first chunk; whose lane this is

  static constexpr int STEP = WIDE ? 1 : ACROSS;  // from one row to the next

  static __device__ int at(int side) {  // which of the tile's rows
    return (WIDE ? SIDES : 1) * int(threadIdx.x % ACROSS) + side * STEP;
  }

  __device__ int count(int group) const {
    return int(max(0ll, min(n - (long long)(chunk + group) * CHUNK, (long long)CHUNK)));
  }

  __device__ Cells cells(int slice) const {
    const int group = slice / SIDES, side = slice % SIDES;
    const int columns = side < sides ? count(group) : 0;
    return {row + side * STEP, (long long)(chunk + group) * CHUNK, columns, columns, lane};
  }

  template <typename T>
  __device__ T* start(const View<T>& view, int group) const {
    const long long column = (long long)(chunk + group) * CHUNK + lane * WIDTH;
    return view.data + outer * view.outer_stride + across + column * view.stride;
  }

  // Pack p of a chunk of each row: one element of each at a step, from as many places of memory.
  __device__ void read(const X* start, long long stride, int count, int p, X fill,
                       uint4 (&pack)[SIDES]) const {
    const X* from = start + p * LANES * WIDTH * stride;
    const int left = count - (p * LANES + lane) * WIDTH;
    Pack items[SIDES];
#pragma unroll
    for (int k = 0; k < WIDTH; ++k, from += stride) {
      X item[SIDES];
#pragma unroll
      for (int side = 0; side < SIDES; ++side) item[side] = fill;
      if constexpr (WIDE) {
        load_if(k < left, from, *(unsigned*)item);
      } else {
#pragma unroll
        for (int side = 0; side < SIDES; ++side) {
          load_if(k < left && side < sides, from + side * STEP, *(Bits<X>*)&item[side]);
        }
      }
#pragma unroll
      for (int side = 0; side < SIDES; ++side) items[side].of[k] = item[side];
    }
#pragma unroll
    for (int side = 0; side < SIDES; ++side) memcpy(&pack[side], &items[side], 16);
  }

  __device__ void write(X* start, long long stride, int count, int p,
                        const uint4 (&pack)[SIDES]) const {
    X* to = start + p * LANES * WIDTH * stride;
    const int left = count - (p * LANES + lane) * WIDTH;
    Pack items[SIDES];
#pragma unroll
    for (int side = 0; side < SIDES; ++side) items[side] = unpack(pack[side]);
#pragma unroll
    for (int k = 0; k < WIDTH; ++k, to += stride) {
      X item[SIDES];
#pragma unroll
      for (int side = 0; side < SIDES; ++side) item[side] = items[side].of[k];
      if constexpr (WIDE) {
        store_if(k < left, to, *(unsigned*)item);
      } else {
#pragma unroll
        for (int side = 0; side < SIDES; ++side) {
          store_if(k < left && side < sides, to + side * STEP, *(Bits<X>*)&item[side]);
        }
      }
    }
  }
};

// Packs that are worked on side by side, and rows' packs that are asked for before one is waited for:
// their elements have a register each until then.
constexpr int AT_ONCE = 2, AHEAD = 4;

// The slices of an array, in shared memory from a thread's pack FIRST on. One that is kept in registers
// borrows what lies behind, on its way from memory and back.
template <typename Layout, int KEPT, int FIRST>
struct TileArray {
  static constexpr int PACKS = Layout::PACKS;
  uint4 kept[PACKS];

  static __device__ Shared shared(int slice) {
    return {FIRST + (slice < KEPT ? Layout::SLICES - KEPT : slice - KEPT) * PACKS};
  }
  __device__ void keep() {
#pragma unroll
    for (int p = 0; p < PACKS; ++p) kept[p] = shared(0)[p];
  }
  __device__ void give_back() const {
#pragma unroll
    for (int p = 0; p < PACKS; ++p) shared(0)[p] = kept[p];
  }
  // What is in registers for the second slice.
  __device__ void exchange() {
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
      const uint4 pack = shared(1)[p];
      shared(1)[p] = kept[p];
      kept[p] = pack;
    }
  }
};

template <typename Layout>
struct TileData {
  TileArray<Layout, Layout::KEPT, 0> x;
  TileArray<Layout, 0, (Layout::SLICES - Layout::KEPT) * Layout::PACKS> y;

  // `place`: of the slice in whose memory x is.
  __device__ Slice<Shared, AT_ONCE> slice(int place, int slice) const {
    return {x.shared(place), y.shared(slice)};
  }
};

template <Access, typename Layout, int KEPT, int FIRST>
__device__ void load(const View<const X>& view, const Tile<Layout>& tile, long long, X fill,
                     TileArray<Layout, KEPT, FIRST>& array) {
  constexpr int SIDES = Layout::SIDES, UNROLL = AHEAD / SIDES;
#pragma unroll
  for (int group = 0; group < Layout::GROUPS; ++group) {
    const X* start = tile.start(view, group);
    const int count = tile.count(group);
#pragma unroll UNROLL
    for (int p = 0; p < Layout::PACKS; ++p) {
      uint4 pack[SIDES];
      tile.read(start, view.stride, count, p, fill, pack);
#pragma unroll
      for (int side = 0; side < SIDES; ++side) array.shared(group * SIDES + side)[p] = pack[side];
    }
  }
  if constexpr (KEPT) array.keep();
}

template <Access, typename Layout, int KEPT, int FIRST>
__device__ void store(const View<X>& view, const Tile<Layout>& tile, long long,
                      const TileArray<Layout, KEPT, FIRST>& array) {
  constexpr int SIDES = Layout::SIDES, UNROLL = AHEAD / SIDES;
  if constexpr (KEPT) array.give_back();
#pragma unroll
  for (int group = 0; group < Layout::GROUPS; ++group) {
    X* start = tile.start(view, group);
    const int count = tile.count(group);
#pragma unroll UNROLL
    for (int p = 0; p < Layout::PACKS; ++p) {
      uint4 pack[SIDES];
#pragma unroll
      for (int side = 0; side < SIDES; ++side) pack[side] = array.shared(group * SIDES + side)[p];
      tile.write(start, view.stride, count, p, pack);
    }
  }
}

// Parts of 16 lanes with one maximum, added up as the lanes themselves would: part(v) is lane v's.
template <int STEP, typename Part, typename F>
__device__ Part pairwise(F part, int v) {
  if constexpr (STEP == LANES) {
    return part(v);
  } else {
    Part sum = pairwise<2 * STEP, Part>(part, v);
    sum.add(pairwise<2 * STEP, Part>(part, v + STEP));
    return sum;
  }
}

// `combined` of the parts of `lanes` lanes, which are `stride` apart.
template <typename Part>
__device__ Part combined_of(const Part* parts, int lanes, int stride) {
  C max = -INF;
  if constexpr (Part::HAS_MAX) {
#pragma unroll 1
    for (int v = 0; v < lanes; ++v) max = fmax(max, parts[v * stride].max);
  }
  return pairwise<1, Part>(
      [=](int v) {
        Part part = v < lanes ? parts[v * stride] : Part::none();
        part.rebase(max);
        return part;
      },
      0);
}

// `merge` of the parts of a row's chunks, `stride` apart, by one thread.
template <typename Part>
__device__ Part merge_of(const Part* parts, int chunks, int stride) {
  C max = -INF;
  if constexpr (Part::HAS_MAX) {
#pragma unroll 1
    for (int c = 0; c < chunks; ++c) max = fmax(max, parts[c * stride].max);
  }
  return pairwise<1, Part>(
      [=](int v) {
        Part lane = Part::none();
        lane.max = max;
#pragma unroll 1
        for (int c = v; c < chunks; c += LANES) {
          Part part = parts[c * stride];
          part.rebase(max);
          lane.add(part);
        }
        return lane;
      },
      0);
}

// The tiles of a block: one, or of rows shorter than a chunk several, which have `lanes` lanes each;
// side by side and then from one outer index to the next.
template <typename Layout>
struct Tiles {
  static constexpr int ROWS = Layout::ROWS;

  const Sizes& sizes;
  int lanes;
  long long block, across;

  __device__ Tiles(const Sizes& sizes, long long block)
      : sizes(sizes), lanes(sizes.rows_per_block), block(block),
        across((sizes.inner + ROWS - 1) / ROWS) {}

  __device__ int count() const { return LANES / lanes; }
  __device__ long long outer(int tile) const { return (block * count() + tile) / across; }
  __device__ long long inner(int tile) const { return (block * count() + tile) % across * ROWS; }
  __device__ bool exists(int tile, int at) const {
    return outer(tile) * sizes.inner < sizes.rows && inner(tile) + at < sizes.inner;
  }
  __device__ long long row(int tile, int at) const {
    return outer(tile) * sizes.inner + inner(tile) + at;
  }

  // The elements of this thread.
  __device__ Tile<Layout> mine(int chunk) const {
    using Mine = Tile<Layout>;
    const int lane = threadIdx.x / Layout::ACROSS, tile = lane / lanes, at = Mine::at(0);
    const long long left = exists(tile, at) ? sizes.inner - inner(tile) - at : 0;
    const int sides = int(min((long long)Mine::SIDES, (left + Mine::STEP - 1) / Mine::STEP));
    const long long n = sides > 0 ? sizes.n : 0;
    return {row(tile, at), outer(tile), inner(tile) + at, n, sides, chunk, lane % lanes};
  }
};

// What a block does with the parts of its lanes: `row` of a tile looks at `of_lanes` of all of them.
template <typename Operation, typename Layout>
struct BesideBlock {
  using Part = typename Operation::Part;
  static constexpr int PACKS = Layout::PACKS, SIDES = Layout::SIDES, SLICES = Layout::SLICES;
  static constexpr int KEPT = Layout::KEPT;
  using Lanes = Part[Layout::GROUPS][LANES][Layout::ROWS];
  using Mine = Tile<Layout>;
  using Data = TileData<Layout>;

  // Of slice s, whose x is at the place of another.
  static __device__ void measure(const Operation& op, const Mine& tile, const Data& data, int place,
                                 int s, Lanes& of_lanes) {
    const Cells cells = tile.cells(s);
    const auto row = op.row(cells.row, cells.count > 0);
    const Part part = op.template measure<PACKS>(row, data.slice(place, s), cells);
    of_lanes[s / SIDES][threadIdx.x / Layout::ACROSS][Mine::at(s % SIDES)] = part;
  }

  // Leaves the first slice where the second was.
  static __device__ void measure(const Operation& op, const Mine& tile, Data& data,
                                 Lanes& of_lanes) {
    if constexpr (Operation::MEASURES) {
#pragma unroll 1
      for (int s = KEPT; s < SLICES; ++s) measure(op, tile, data, s, s, of_lanes);
    }
    if constexpr (KEPT) data.x.exchange();
    if constexpr (Operation::MEASURES) {
      if constexpr (KEPT) measure(op, tile, data, 1, 0, of_lanes);
      __syncthreads();
    }
  }

  template <typename F>
  static __device__ void finish(const Operation& op, const Mine& tile, const Data& data, int place,
                                int s, F whole) {
    const Cells cells = tile.cells(s);
    const auto row = op.row(cells.row, cells.count > 0);
    op.template finish<PACKS>(row, whole(Mine::at(s % SIDES)), data.slice(place, s), cells);
  }

  // After `measure`; whole(at): of row `at` of this thread's tile
  template <typename F>
  static __device__ void finish(const Operation& op, const Mine& tile, Data& data, F whole) {
    if constexpr (Operation::FINISHES) {
      if constexpr (KEPT) {
        finish(op, tile, data, 1, 0, whole);
        data.x.exchange();
      }
#pragma unroll 1
      for (int s = KEPT; s < SLICES; ++s) finish(op, tile, data, s, s, whole);
      op.template store<ANYWHERE>(tile, data);
    }
  }
};

template <typename Operation, typename Layout>
__device__ void beside(const Operation& op, const Sizes& sizes, typename Operation::Part*) {
  using Part = typename Operation::Part;
  using Block = BesideBlock<Operation, Layout>;
  constexpr int ROWS = Layout::ROWS, GROUPS = Layout::GROUPS, BLOCKS = Layout::BLOCKS;
  constexpr int CHUNKS = BLOCKS * GROUPS;
  constexpr int MOST_ROWS = CHUNKS == 1 ? LANES * ROWS : ROWS;  // a row of one chunk may be short
  __shared__ typename Block::Lanes of_lanes;
  __shared__ Part of_chunks[CHUNKS][MOST_ROWS];
  unsigned rank = 0;
#ifdef GPUACT_CLUSTERED
  cluster_arrive();
  rank = cluster_rank();
#endif
  const Tiles<Layout> tiles(sizes, blockIdx.x / BLOCKS);
  const auto tile = tiles.mine(rank * GROUPS);
  typename Block::Data data;
  op.template load<ANYWHERE>(tile, data);
  Block::measure(op, tile, data, of_lanes);

  // From here on a thread looks after rows, the same in each group.
  const int rows = tiles.count() * ROWS;
#ifdef GPUACT_CLUSTERED
  cluster_wait();
#endif
  if constexpr (Operation::MEASURES) {
    for (int t = threadIdx.x; t < GROUPS * rows; t += blockDim.x) {
      const int group = t / rows, mine = t % rows, first = mine / ROWS * tiles.lanes;
      const Part part = combined_of(&of_lanes[group][first][mine % ROWS], tiles.lanes, ROWS);
      Part* to = &of_chunks[rank * GROUPS + group][mine];
#ifdef GPUACT_CLUSTERED
      for (unsigned other = 0; other < BLOCKS; ++other) push(to, part, other);
#else
      *to = part;
#endif
    }
  }
  // What a loss needs of the logits is read before another block may write there.
  auto row = op.row(tiles.row(0, threadIdx.x), threadIdx.x < ROWS && tiles.exists(0, threadIdx.x));
#ifdef GPUACT_CLUSTERED
  cluster_arrive();
  cluster_wait();
#else
  __syncthreads();
#endif
  for (int t = threadIdx.x; t < rows; t += blockDim.x) {
    const Part whole = Operation::MEASURES ? merge_of(&of_chunks[0][t], sizes.chunks, MOST_ROWS)
                                           : Part::none();
    if (rank == 0 && tiles.exists(t / ROWS, t % ROWS)) {
      if (BLOCKS == 1) row = op.row(tiles.row(t / ROWS, t % ROWS), true);
      op.conclude(row, whole);
    }
    of_chunks[0][t] = whole;  // this thread's alone
  }
  __syncthreads();
  const int first = threadIdx.x / Layout::ACROSS / tiles.lanes * ROWS;
  Block::finish(op, tile, data, [&](int at) { return of_chunks[0][first + at]; });
}

template <typename Operation, typename Layout>
__device__ void beside_measured(const Operation& op, const Sizes& sizes,
                                typename Operation::Part* parts) {
  using Block = BesideBlock<Operation, Layout>;
  constexpr int ROWS = Layout::ROWS, GROUPS = Layout::GROUPS;
  __shared__ typename Block::Lanes of_lanes;
  const int blocks = (sizes.chunks + GROUPS - 1) / GROUPS;  // of a tile
  const int chunk = int(blockIdx.x % blocks) * GROUPS;
  const Tiles<Layout> tiles(sizes, blockIdx.x / blocks);
  const auto tile = tiles.mine(chunk);
  typename Block::Data data;
  op.template load<ANYWHERE>(tile, data);
  Block::measure(op, tile, data, of_lanes);
  for (int t = threadIdx.x; t < GROUPS * ROWS; t += blockDim.x) {
    const int group = t / ROWS, at = t % ROWS;
    if (chunk + group < sizes.chunks && tiles.exists(0, at)) {
      parts[(chunk + group) * sizes.rows + tiles.row(0, at)] =
          combined_of(&of_lanes[group][0][at], LANES, ROWS);
    }
  }
}

template <typename Operation, typename Layout>
__device__ void beside_finished(const Operation& op, const Sizes& sizes,
                                typename Operation::Part* parts) {
  using Part = typename Operation::Part;
  using Block = BesideBlock<Operation, Layout>;
  constexpr int ROWS = Layout::ROWS, GROUPS = Layout::GROUPS;
  __shared__ Part of_rows[ROWS];
  const int blocks = (sizes.chunks + GROUPS - 1) / GROUPS;
  const Tiles<Layout> tiles(sizes, blockIdx.x / blocks);
  const auto tile = tiles.mine(int(blockIdx.x % blocks) * GROUPS);
  typename Block::Data data;
  op.template load<ANYWHERE>(tile, data);
  if constexpr (Layout::KEPT) data.x.exchange();
  if constexpr (Operation::MEASURES) {
    const int at = threadIdx.x;
    if (at < ROWS && tiles.exists(0, at)) of_rows[at] = parts[tiles.row(0, at)];
    __syncthreads();
  }
  Block::finish(op, tile, data, [&](int at) {
    return Operation::MEASURES ? of_rows[at] : Part::none();
  });
}

}  // namespace gpuact
