// The kernel: one operation in one regime, which macros name.

#ifdef GPUACT_CLUSTERED
#define GPUACT_DIMENSIONS __cluster_dims__(GPUACT_CLUSTERED, 1, 1)
#else
#define GPUACT_DIMENSIONS
#endif

extern "C" __global__ void GPUACT_DIMENSIONS __launch_bounds__(GPUACT_THREADS, GPUACT_BLOCKS)
GPUACT_KERNEL(GPUACT_ARRAYS, void* parts, long long rows, long long n, long long inner,
              int rows_per_block, int chunks) {
  const Operation operation = {GPUACT_VALUES};
  const gpuact::Sizes sizes = {rows, n, inner, rows_per_block, chunks};
  gpuact::GPUACT_REGIME<Operation, GPUACT_VARIANT>(operation, sizes, (Operation::Part*)parts);
}
