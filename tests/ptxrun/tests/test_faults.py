"""Planted bugs: each must be reported, and a report must say where."""

import numpy as np
import pytest

from tests.ptxrun import PTXError, PTXRace, run_ptx, unsupported

from .nvrtc import compiled, kernels

SOURCE = r"""
#define KERNEL extern "C" __global__ void
KERNEL copy(const float* x, float* y) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[i];
}
KERNEL copy4(const float4* x, float4* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i];
}
KERNEL no_barrier(const float* x, float* out) {
  __shared__ float sm[256];
  sm[threadIdx.x] = x[threadIdx.x];
  if (threadIdx.x == 0) { float s = 0; for (int i = 0; i < 256; i++) s += sm[i]; out[0] = s; }
}
KERNEL overwrite(const float* x, float* out) {  // the barrier before the second use is missing
  __shared__ float sm[64];
  int t = threadIdx.x;
  sm[t] = x[t]; __syncthreads();
  float v = sm[63 - t];
  sm[t] = 2 * v; __syncthreads();
  out[t] = sm[63 - t];
}
KERNEL atomic_then_read(const float* x, float* out) {
  __shared__ float sum;
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
  atomicAdd(&sum, x[threadIdx.x]);
  SYNC
  out[threadIdx.x] = sum;
}
KERNEL all_store(const float* x, float* out) {  // "if (threadIdx.x == 0)" is missing
  __shared__ float sum;
  sum = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = sum;
}
KERNEL readers(const float* x, float* out) {  // the last warp writes what all have read
  __shared__ float sum;
  if (threadIdx.x == 0) sum = x[0];
  __syncthreads();
  float v = sum;
  if (threadIdx.x == blockDim.x - 1) sum = v + 1;
  out[threadIdx.x] = v;
}
KERNEL equal_writes(const float* x, float* out) {
  __shared__ volatile float one;
  one = x[0];
  one = x[0];
  __syncthreads();
  out[threadIdx.x] = one;
}
KERNEL two_writers(const float* x, float* out) {
  __shared__ volatile float v;
  if (threadIdx.x == 0) v = x[0];
  if (threadIdx.x == 32) v = x[1];
  __syncthreads();
  out[threadIdx.x] = v;
}
KERNEL overlap(const float* x, float* y) {
  int i = blockIdx.x * (blockDim.x - 1) + threadIdx.x;
  y[i] = x[blockIdx.x * blockDim.x + threadIdx.x];
}
KERNEL absent(int* y) {
  if (threadIdx.x < 7) y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, threadIdx.x, 1);
  else __syncthreads();
}
KERNEL not_named(int* y) { y[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, threadIdx.x, 1); }
KERNEL from_outside(float* y) {  // lane 15 reads lane 16, which takes no part
  if (threadIdx.x < 16) y[threadIdx.x] = __shfl_down_sync(0x0000ffffu, (float)threadIdx.x, 1);
}
KERNEL half_barrier(int* y) {
  if (threadIdx.x < 32) __syncthreads();
  else asm volatile("bar.sync 1;");
  if (threadIdx.x < 31) __syncthreads();
  y[threadIdx.x] = 1;
}
KERNEL lost_thread(int* y) {
  if (threadIdx.x < 32) asm volatile("bar.sync 1, 64;");
  y[threadIdx.x] = 1;
}
KERNEL trapped(int* y) { if (y[threadIdx.x] < 0) __trap(); }
KERNEL beyond_shared(float* y) {
  extern __shared__ float sm[];
  sm[threadIdx.x] = 1; y[threadIdx.x] = sm[threadIdx.x];
}
KERNEL unwritten(float* y) { __shared__ float sm[64]; if (threadIdx.x < 32) sm[threadIdx.x] = 1;
  __syncthreads(); y[threadIdx.x] = sm[threadIdx.x]; }
KERNEL __launch_bounds__(64) bounded(float* y) { y[threadIdx.x] = 1; }
KERNEL shared_pack(float4* y, int o) { __shared__ __align__(16) float sm[512]; int t = threadIdx.x;
  for (int k = 0; k < 8; k++) sm[t + 64 * k] = t;
  __syncthreads(); y[t] = *(float4*)(sm + 4 * t + o); }
"""


@pytest.fixture(scope="module")
def m():
    return compiled(SOURCE.replace("SYNC", ""))


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal(1024).astype("f4")


def test_out_of_bounds(m, x):
    y = np.zeros(1000, "f4")
    where = r"offset 4000, block \(3, 0, 0\) thread \(232, 0, 0\)\n.*line \d+: st.global"
    with pytest.raises(PTXError, match=r"store out of bounds.*arg1 has 4000 bytes.*" + where):
        run_ptx(m, "copy", 4, 256, [x, y])


def test_a_view_is_its_own_allocation(m, x):
    whole = np.zeros(1024, "f4")
    run_ptx(m, "copy", 2, 256, [x[:512], whole[100:612]])
    assert (whole[100:612] == x[:512]).all() and not whole[:100].any() and not whole[612:].any()
    with pytest.raises(PTXError, match="out of bounds"):
        run_ptx(m, "copy", 2, 256, [x[:512], whole[100:600]])
    run_ptx(m, "copy", 2, 256, [whole[:512], whole[256:768]])  # overlap: one allocation


@pytest.mark.parametrize("offset", (1, 2, 3))
def test_misaligned_pack_on_an_offset_view(m, x, offset):
    y = np.zeros(400, "f4")
    run_ptx(m, "copy4", 1, 128, [x[4:404], y, 100])
    with pytest.raises(PTXError, match="misaligned load of 16 bytes"):
        run_ptx(m, "copy4", 1, 128, [x[offset : 400 + offset], y, 100])
    with pytest.raises(PTXError, match="misaligned store of 16 bytes"):
        run_ptx(m, "copy4", 1, 128, [x[:400], np.zeros(404, "f4")[offset : 400 + offset], 100])


def test_misaligned_torch_view(m, x):
    torch = pytest.importorskip("torch")
    t, y = torch.from_numpy(x.copy()), torch.zeros(400)
    with pytest.raises(PTXError, match="misaligned"):
        run_ptx(m, "copy4", 1, 128, [t[1:401], y, 100])
    t = torch.randn(500)
    with pytest.raises(PTXError, match="misaligned"):
        run_ptx(m, "copy4", 1, 128, [t[1:401], y, 100])
    with pytest.raises(PTXError, match="misaligned"):
        run_ptx(m, "copy4", 1, 128, [t[1:401].numpy(), y, 100])
    run_ptx(m, "copy4", 1, 128, [t[8:408], y, 100])
    assert (y == t[8:408]).all()


def test_pack_over_the_end(m, x):
    with pytest.raises(PTXError, match="out of bounds"):
        run_ptx(m, "copy4", 1, 128, [x[:399], np.zeros(400, "f4"), 100])


def test_empty_arrays(m, x):
    torch = pytest.importorskip("torch")
    empty = np.zeros(0, "f4")
    run_ptx(m, "copy4", 1, 128, [empty, torch.zeros(0), 0])
    run_ptx(m, "copy4", 1, 128, [x[5:5], x[4:4], 0])
    with pytest.raises(PTXError, match="out of bounds"):
        run_ptx(m, "copy4", 1, 128, [empty, x[:4], 1])


def test_misaligned_shared_pack(m):
    y = np.zeros((64, 4), "f4")
    run_ptx(m, "shared_pack", 1, 64, [y, 4])
    with pytest.raises(PTXError, match="misaligned load of 16"):
        run_ptx(m, "shared_pack", 1, 64, [y, 1])


@pytest.mark.parametrize(
    "name, what, threads",
    (
        ("no_barrier", "read after another warp's write", 256),
        ("overwrite", "write after another warp's read", 64),
        ("readers", "write after another warp's read", 64),
        ("two_writers", "write after another warp's write", 64),
    ),
)
def test_missing_barrier(m, x, name, what, threads):
    out = np.zeros(64, "f4")
    with pytest.raises(PTXRace, match=what):
        run_ptx(m, name, 1, threads, [x, out], racecheck=True)
    run_ptx(m, name, 1, threads, [x, out])  # off: runs


@pytest.mark.parametrize("name, where", (("all_store", "shared"), ("overlap", "arg1")))
def test_two_threads_store_different_values(m, x, name, where):
    y = np.zeros(1024, "f4")
    with pytest.raises(PTXRace, match=f"different values to one place in {where}"):
        run_ptx(m, name, 2, 128, [x, y], racecheck=True)
    run_ptx(m, name, 2, 128, [np.zeros_like(x), y], racecheck=True)  # equal values are no race


def test_equal_writes_are_no_race(m, x):
    run_ptx(m, "equal_writes", 1, 64, [x, np.zeros(64, "f4")], racecheck=True)


def test_missing_barrier_after_an_atomic(m, x):
    out = np.zeros(128, "f4")
    with pytest.raises(PTXRace, match="read after another warp's atomic"):
        run_ptx(m, "atomic_then_read", 1, 128, [x, out], racecheck=True)
    run_ptx(
        compiled(SOURCE.replace("SYNC", "__syncthreads();")),
        "atomic_then_read",
        1,
        128,
        [x, out],
        racecheck=True,
    )
    assert np.allclose(out, x[:128].sum(), atol=1e-4)


def test_each_barrier_of_softmax_is_needed(x):
    module = kernels(90)
    from tests.ptxrun.parse import Instruction

    x, y = x[:1000].reshape(1, 1000), np.zeros((1, 1000), "f4")
    p = module.program("softmax_f32")
    run_ptx(module, "softmax_f32", 1, 128, [x, y, 1000], racecheck=True)
    bars = [k for k, i in enumerate(p.code) if i.op == "bar"]
    assert len(bars) == 3
    for k in bars:
        kept, p.code[k] = p.code[k], Instruction("membar.cta", 0, "membar", ["cta"])
        p.steps = []
        with pytest.raises(PTXRace):
            run_ptx(module, "softmax_f32", 1, 128, [x, y, 1000], racecheck=True)
        p.code[k] = kept
    p.steps = []


def test_wrong_shuffle_masks(m):
    y = np.zeros(64, "i4")
    with pytest.raises(PTXError, match="deadlock"):
        run_ptx(m, "absent", 1, 64, [y])
    with pytest.raises(PTXError, match="does not name the thread itself"):
        run_ptx(m, "not_named", 1, 32, [y])
    f = np.zeros(16, "f4")
    run_ptx(m, "from_outside", 1, 32, [f])
    assert np.isnan(f[15]) and (f[:15] == np.arange(1, 16)).all()


@pytest.mark.parametrize("name", ("half_barrier", "lost_thread"))
def test_barrier_deadlock(m, name):
    with pytest.raises(PTXError, match="deadlock"):
        run_ptx(m, name, 1, 64, [np.zeros(64, "i4")])


def test_trap_names_the_thread(m):
    y = np.zeros(32, "i4")
    y[5] = -1
    with pytest.raises(PTXError, match=r"trap, block \(0, 0, 0\) thread \(5, 0, 0\)"):
        run_ptx(m, "trapped", 1, 32, [y])


def test_shared_memory_size_and_contents(m):
    y = np.zeros(64, "f4")
    run_ptx(m, "beyond_shared", 1, 64, [y], dynamic_smem=256)
    with pytest.raises(PTXError, match="shared store out of bounds: offset 252"):
        run_ptx(m, "beyond_shared", 1, 64, [y], dynamic_smem=252)
    with pytest.raises(PTXError, match="bytes of shared memory"):
        run_ptx(m, "beyond_shared", 1, 64, [y], dynamic_smem=300_000)
    run_ptx(m, "unwritten", 1, 64, [y])
    assert (y[:32] == 1).all() and np.isnan(y[32:]).all()


def test_cp_async_without_its_wait(x):
    from pathlib import Path

    source = (Path(__file__).parent / "kernels.cu").read_text()
    module = compiled("#define NO_WAIT\n" + source)
    y = np.zeros(512, "f4")
    run_ptx(module, "async_copy", 1, 128, [x[:512], y])
    assert np.isnan(y).all()


def test_cp_async_groups_and_sizes():
    """Only what wait_group covers has landed; bytes beyond the source size are zeros."""
    x, y = np.arange(1, 257, dtype="u4"), np.zeros((32, 8), "u4")
    ptx = """.visible .entry k(.param .u64 x, .param .u64 y) {
    .reg .b64 p<4>; .reg .b32 r<9>; .reg .b32 t; .reg .b32 s; .shared .align 16 .b8 sm[1024];
    ld.param.u64 p1, [x]; ld.param.u64 p2, [y]; mov.u32 t, %tid.x; mul.wide.u32 p0, t, 32;
    add.u64 p1, p1, p0; add.u64 p2, p2, p0; mov.u32 s, sm; mad.lo.u32 s, t, 32, s;
    and.b32 r0, t, 3; shl.b32 r0, r0, 2;
    cp.async.cg.shared.global [s], [p1], 16, r0; cp.async.commit_group;
    cp.async.ca.shared.global [s+16], [p1+16], 16; cp.async.commit_group;
    cp.async.wait_group 1;
    ld.shared.v4.u32 {r1, r2, r3, r4}, [s]; ld.shared.v4.u32 {r5, r6, r7, r8}, [s+16];
    st.global.v4.u32 [p2], {r1, r2, r3, r4}; st.global.v4.u32 [p2+16], {r5, r6, r7, r8};
    cp.async.wait_all; ret; }"""
    run_ptx(ptx, "k", 1, 32, [x, y], smem_fill=0)
    t, k = np.mgrid[:32, :4]
    assert (y[:, :4] == np.where(k < t % 4, x.reshape(32, 8)[:, :4], 0)).all()
    assert not y[:, 4:].any()


def test_launch_errors(m, x):
    y = np.zeros(1024, "f4")
    for message, args, block in (
        ("takes 2 parameters", [x], 32),
        ("cannot pass", [x, "y"], 32),
        ("a block of 2048", [x, y], 2048),
    ):
        with pytest.raises(PTXError, match=message):
            run_ptx(m, "copy", 1, block, args)
    with pytest.raises(PTXError, match="maxntid"):
        run_ptx(m, "bounded", 1, 128, [y])
    with pytest.raises(PTXError, match="no entry"):
        run_ptx(m, "nothing", 1, 32, [])
    y.flags.writeable = False
    with pytest.raises(PTXError, match="arg1, a read-only array"):
        run_ptx(m, "copy", 4, 256, [x, y])


def test_endless_loop():
    ptx = ".visible .entry k() { L: bra.uni L; }"
    with pytest.raises(PTXError, match="more than 1000 steps"):
        run_ptx(ptx, "k", max_steps=1000)


def test_unsupported_is_listed():
    ptx = """.visible .entry k() {
    .reg .b32 %r<4>;
    mov.u32 %r1, 1;
    tex.1d.v4.u32.s32 {%r1, %r1, %r1, %r1}, [%r2, {%r3}];
    ret; }"""
    listed = unsupported(ptx)
    assert len(listed) == 1 and listed[0].startswith("line 4: tex.1d")
