// Philox4x32-10: random words that follow from a key and a counter, and are stored nowhere (Salmon
// et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

namespace gpuact {

struct Philox {
  unsigned seed[2], offset[2];  // low and high halves

  // The four words of elements 4·group to 4·group + 3.
  __device__ void draw(unsigned long long group, unsigned* word) const {
    unsigned a = (unsigned)group, b = (unsigned)(group >> 32), c = offset[0], d = offset[1];
    unsigned key0 = seed[0], key1 = seed[1];
#pragma unroll
    for (int round = 0; round < 10; ++round) {
      const unsigned long long p = 0xD2511F53ull * a, q = 0xCD9E8D57ull * c;
      a = (unsigned)(q >> 32) ^ b ^ key0;
      b = (unsigned)q;
      c = (unsigned)(p >> 32) ^ d ^ key1;
      d = (unsigned)p;
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    word[0] = a, word[1] = b, word[2] = c, word[3] = d;
  }

  // The words of W elements from element i on. ALIGNED: that i is a multiple of W, or of 4 if W is
  // larger: then no group of four is drawn twice. Chosen by steps, for registers have no index.
  // i may lie a few before 0, where it is to be cut.
  template <int W, bool ALIGNED>
  __device__ void words(long long i, unsigned (&word)[W]) const {
    constexpr int GROUPS = ALIGNED ? (W + 3) / 4 : (W + 6) / 4;
    unsigned all[4 * GROUPS];
#pragma unroll
    for (int g = 0; g < GROUPS; ++g) draw((i >> 2) + g, all + 4 * g);
    const bool one = !(ALIGNED && W > 1) && i & 1, two = !(ALIGNED && W > 2) && i & 2;
    constexpr int LAST = 4 * GROUPS - 1;
#pragma unroll
    for (int j = 0; j < W; ++j) {
      const unsigned even = two ? all[j + 2 < LAST ? j + 2 : LAST] : all[j];
      const unsigned odd = two ? all[j + 3 < LAST ? j + 3 : LAST] : all[j + 1 < LAST ? j + 1 : LAST];
      word[j] = one ? odd : even;
    }
  }

  __device__ unsigned word(long long i) const {
    unsigned one[1];
    words<1, true>(i, one);
    return one[0];
  }
};

}  // namespace gpuact
