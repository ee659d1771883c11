// The second stage of fused_backward: the sums of channels from those that the blocks wrote.

// Sums of one channel are numbered (chunk, run of it, tile that meets the run); of merged ones,
// by block alone. A block adds up `blockDim.x` channels, each by blockDim.y threads.
extern "C" __global__ void __launch_bounds__(512)
merge_blocks(const C* partial, R* result, long long chunks, long long period, long long kept,
             long long inner, long long offset, long long tile, long long entries, int merged) {
  using namespace gpuact;
  __shared__ C parts[512];
  const int x = threadIdx.x, y = threadIdx.y;
  const long long channel = blockIdx.x * (long long)blockDim.x + x;
  Compensated mine;
  if (channel < kept && merged) {
#pragma unroll 4
    for (long long z = y; z < chunks; z += blockDim.y) mine.add(partial[z * kept + channel]);
  } else if (channel < kept) {
    const long long first = offset / inner, runs = (period + offset - 1) / inner - first + 1;
    const long long skip = (channel - first % kept + kept) % kept;  // to the channel's first run
    const long long tiles = inner / tile + 2;                       // of a run, at most
    const long long times = (runs - skip + kept - 1) / kept;
    // z counts tiles, then the channel's runs, then chunks, by addition: divisions are dear
    long long t = y % tiles, time = y / tiles % times, part = y / tiles / times;
    const long long t_step = blockDim.y % tiles, time_step = blockDim.y / tiles % times,
                    part_step = blockDim.y / tiles / times;
    while (part < chunks) {
      const long long run = first + skip + time * kept;
      const long long begin = max(0ll, run * inner - offset);
      const long long end = min(period, (run + 1) * inner - offset);
      const long long at = begin / tile + t;
      if (at * tile < end) mine.add(partial[part * entries + run - first + at]);
      t += t_step, time += time_step, part += part_step;
      if (t >= tiles) t -= tiles, ++time;
      if (time >= times) time -= times, ++part;
    }
  }
  parts[y * blockDim.x + x] = mine.sum;
  for (int half = blockDim.y / 2; half > 0; half /= 2) {
    __syncthreads();
    if (y < half) parts[y * blockDim.x + x] += parts[(y + half) * blockDim.x + x];
  }
  if (y == 0 && channel < kept) result[channel] = R(parts[x]);
}
