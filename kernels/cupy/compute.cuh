// What the kernels that add up compute with; C is the type of the computation.

namespace gpuact {

constexpr C INF = __builtin_bit_cast(float, 0x7f800000);
constexpr C NOT_A_NUMBER = __builtin_bit_cast(float, 0x7fc00000);

template <typename T>
__device__ C to_compute(T value) {
  if constexpr (sizeof(T) == 2) {
    return C(float(value));  // a half type converts to float, and to nothing else unambiguously
  } else {
    return C(value);
  }
}

// Kahan's sum: a thread adds up thousands of terms one after another, and plainly each addition
// would cost a rounding. The kernel waits for memory, so the three extra operations are free.
struct Compensated {
  C sum = 0, excess = 0;

  __device__ void add(C term) {
    const C corrected = term - excess;
    const C next = sum + corrected;
    excess = fabs(next) < INF ? (next - sum) - corrected : C(0);  // inf - inf would make a NaN
    sum = next;
  }
};

}  // namespace gpuact
