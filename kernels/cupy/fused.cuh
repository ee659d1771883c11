// What stands before and behind an activation, with it in one formula.
//
// Y is the stored type, C the computation's, FORMULA the activation's name. An operand that there
// is not is Absent, and its step is not taken.

namespace gpuact {

template <typename STORED, typename T>
__device__ T identity(T x) {
  return x;
}

// scale·x + bias, and d·gate + residual
__device__ C affine(C x, C scale, C bias) { return multiply_add(scale, x, bias); }
__device__ C affine(C x, C scale, Absent) { return product(scale, x); }
__device__ C affine(C x, Absent, C bias) { return multiply_add(C(1), x, bias); }
__device__ C affine(C x, Absent, Absent) { return x; }

template <typename T>
__device__ T activate(T u, Absent) {
  return FORMULA<Y>(u);
}
template <typename T>
__device__ T activate(T u, T slope) {
  return FORMULA<Y>(u, slope);
}

// Which elements are dropped, and what the others are multiplied by.
struct Dropout {
  unsigned last;
  C scale;

  __device__ C operator()(C a, unsigned word) const { return remaining(a * scale, word); }
  __device__ C operator()(C a, Absent) const { return a; }

  // 0 where dropped, whatever was there.
  __device__ C remaining(C a, unsigned word) const { return word <= last ? C(0) : a; }
  __device__ C remaining(C a, Absent) const { return a; }

  // Of what is to be `remaining` later.
  __device__ C scaled(C a, unsigned) const { return a * scale; }
  __device__ C scaled(C a, Absent) const { return a; }
};

// The words of a pack, an operand that is nowhere in memory. Elements are in C order.
template <bool ALIGNED>
struct Words {
  Philox generator;
  unsigned word[AT_ONCE][WIDTH];

  __device__ explicit Words(Philox generator) : generator(generator) {}
  __device__ void load(int k, INDEX i) { generator.words<WIDTH, ALIGNED>(i, word[k]); }
  __device__ unsigned value(int k, int j) const { return word[k][j]; }
  __device__ unsigned at(INDEX i) const { return generator.word(i); }
};

struct Fused {
  Dropout dropout;

  template <typename Scale, typename Bias, typename Slope, typename Word, typename Gate,
            typename Residual>
  __device__ C operator()(C x, Scale scale, Bias bias, Slope slope, Word word, Gate gate,
                          Residual residual) const {
    const C d = dropout(activate(affine(x, scale, bias), slope), word);
    return affine(d, gate, residual);
  }
};

}  // namespace gpuact
