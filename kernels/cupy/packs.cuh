// A formula over dense memory, whatever the order of its axes, in packs of WIDTH elements.
//
// FORMULA is its name, Y the result's type, C the computation's, INDEX unsigned and of twice the
// size's range;
// WIDTH elements of Y are 16 bytes, or as many as the alignment that all arrays share allows. All
// come before this text. Arrays are of any type, and lie in memory as the result does.

namespace gpuact {

constexpr int BLOCK = 128;  // threads of an ElementwiseKernel's block: CuPy's

// Packs of a thread, 32 bytes of each array. With 1024 threads an SM, half of what it holds, 32 KB
// of one array are on their way; an H100 needs 16 to 20 (3.3 TB/s · 700 ns over 132 SMs). Narrow
// packs make up for their width in number; neighbouring lanes take neighbouring packs.
constexpr int AT_ONCE = WIDTH * sizeof(Y) < 2 ? 16 : 32 / (WIDTH * sizeof(Y));

template <typename To, typename T>
__device__ To as(T value) {
  if constexpr (is_half<T>) {
    return To(float(value));  // a half type converts to float, and to nothing else unambiguously
  } else {
    return To(value);
  }
}

template <typename T>
struct alignas(WIDTH * sizeof(T) < 16 ? WIDTH * sizeof(T) : 16) Pack {
  T of[WIDTH];
};

// One access to memory: 16 bytes, or the whole of a smaller pack. Spelled out, for the compiler
// takes a struct apart and, before sm_100, does not always join its stores again: hence `store`.
template <int BYTES>
struct Word {
  using type = uint4;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<4> {
  using type = unsigned;
};
template <>
struct Word<2> {
  using type = unsigned short;
};
template <>
struct Word<1> {
  using type = unsigned char;
};

template <typename W>
__device__ void store(W* to, W word) {
  *to = word;
}
__device__ void store(uint4* to, uint4 word) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
               "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w)
               : "memory");
}

template <typename T>
__device__ Pack<T> read(const T* from) {
  using W = typename Word<sizeof(Pack<T>)>::type;
  W words[sizeof(Pack<T>) / sizeof(W)];
#pragma unroll
  for (int k = 0; k < sizeof(words) / sizeof(W); ++k) words[k] = ((const W*)from)[k];
  Pack<T> pack;
  memcpy(&pack, words, sizeof(pack));
  return pack;
}

template <typename T>
__device__ void write(T* to, const Pack<T>& pack) {
  using W = typename Word<sizeof(Pack<T>)>::type;
  W words[sizeof(Pack<T>) / sizeof(W)];
  memcpy(words, &pack, sizeof(pack));
#pragma unroll
  for (int k = 0; k < sizeof(words) / sizeof(W); ++k) store((W*)to + k, words[k]);
}

struct Formula {
  template <typename... T>
  __device__ C operator()(T... values) const {
    return FORMULA<Y>(values...);
  }
};

// -- operands -------------------------------------------------------------------------------------
// load(k, i) fetches the thread's k-th pack, from element i on; value(k, j) is element j of it;
// at(i) is element i by itself.

template <typename T>
struct Array {
  const T* data;
  Pack<T> pack[AT_ONCE];

  __device__ explicit Array(unsigned long long address) : data((const T*)address) {}
  __device__ void load(int k, INDEX i) { pack[k] = read(data + i); }
  __device__ C value(int k, int j) const { return as<C>(pack[k].of[j]); }
  __device__ C at(INDEX i) const { return as<C>(data[i]); }
};

struct Number {
  C number;

  __device__ void load(int, INDEX) {}
  __device__ C value(int, int) const { return number; }
  __device__ C at(INDEX) const { return number; }
};

// Stands for an operand that there is not: what would be done with it, is not done.
struct Absent {
  __device__ void load(int, INDEX) {}
  __device__ Absent value(int, int) const { return {}; }
  __device__ Absent at(INDEX) const { return {}; }
};

// n / divisor by a multiplication (Granlund and Montgomery 1994), for n below half of INDEX's range.
struct Divisor {
  INDEX divisor, factor;

  __device__ INDEX operator()(INDEX n) const {
    if constexpr (sizeof(INDEX) == 8) {
      return (__umul64hi(n, factor) + n) >> (64 - __clzll(divisor - 1));
    } else {
      return (__umulhi(n, factor) + n) >> (32 - __clz(divisor - 1));
    }
  }
};

// Where elements lie among channels: `count` of them, over and over, each `inner` elements long.
struct Channels {
  Divisor inner, count;

  __device__ INDEX operator()(INDEX i) const {
    const INDEX run = inner(i);
    return run - count(run) * count.divisor;
  }
};

// One value a channel, and packs that lie in one.
template <typename T>
struct Channel {
  const T* data;
  Channels channels;
  T one[AT_ONCE];

  __device__ Channel(unsigned long long address, Channels channels)
      : data((const T*)address), channels(channels) {}
  __device__ void load(int k, INDEX i) { one[k] = data[channels(i)]; }
  __device__ C value(int k, int) const { return as<C>(one[k]); }
  __device__ C at(INDEX i) const { return as<C>(data[channels(i)]); }
};

// One value a channel, and channels of one element, whole packs of them.
template <typename T>
struct ChannelPack : Array<T> {
  Channels channels;

  __device__ ChannelPack(unsigned long long address, Channels channels)
      : Array<T>(address), channels(channels) {}
  __device__ void load(int k, INDEX i) { Array<T>::load(k, channels(i)); }
  __device__ C at(INDEX i) const { return Array<T>::at(channels(i)); }
};

// One value a channel, wherever channels begin and end.
template <typename T>
struct AnyChannel {
  const T* data;
  Channels channels;
  T each[AT_ONCE][WIDTH];

  __device__ AnyChannel(unsigned long long address, Channels channels)
      : data((const T*)address), channels(channels) {}
  __device__ void load(int k, INDEX i) {
    INDEX channel = channels(i);
    INDEX left = channels.inner.divisor - (i - channels.inner(i) * channels.inner.divisor);
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) {
      each[k][j] = data[channel];
      if (--left == 0) {
        left = channels.inner.divisor;
        if (++channel == channels.count.divisor) channel = 0;
      }
    }
  }
  __device__ C value(int k, int j) const { return as<C>(each[k][j]); }
  __device__ C at(INDEX i) const { return as<C>(data[channels(i)]); }
};

// -- the kernel -----------------------------------------------------------------------------------

// y = formula(operands…) over n elements, by one thread; the first pack begins at element `head`.
// All packs are loaded before one is stored: y may lie in an operand, so the compiler would not
// load ahead by itself.
template <typename F, typename... Operands>
__device__ void elementwise(INDEX thread, INDEX head, INDEX n, Y* y, F formula,
                            Operands... operands) {
  const INDEX packs = (n - head) / WIDTH;
  const INDEX first = (thread - threadIdx.x) * AT_ONCE + threadIdx.x;
#pragma unroll
  for (int k = 0; k < AT_ONCE; ++k) {
    const INDEX pack = first + k * BLOCK;
    if (pack < packs) (operands.load(k, head + pack * WIDTH), ...);
  }
#pragma unroll
  for (int k = 0; k < AT_ONCE; ++k) {
    const INDEX pack = first + k * BLOCK;
    if (pack < packs) {
      Pack<Y> result;
#pragma unroll
      for (int j = 0; j < WIDTH; ++j) result.of[j] = as<Y>(formula(operands.value(k, j)...));
      write(y + head + pack * WIDTH, result);
    }
  }
  // The first threads also take the elements before and behind all packs, one each.
  const INDEX tail = head + packs * WIDTH;
  if (thread < head + (n - tail)) {
    const INDEX i = thread < head ? thread : tail + (thread - head);
    y[i] = as<Y>(formula(operands.at(i)...));
  }
}

}  // namespace gpuact
