"""Thread-block clusters: distributed shared memory, cluster barriers, mbarriers, st.async."""

import re

import numpy as np
import pytest

from tests.ptxrun import PTXError, PTXModule, PTXRace, run_ptx, unsupported

from .nvrtc import compiled

COOPERATIVE = r"""
#include <cooperative_groups.h>
namespace cg = cooperative_groups;
extern "C" __global__ void softmax(const float* x, float* y, int n) {
  cg::cluster_group cl = cg::this_cluster();
  __shared__ float part[2], red[32];
  int r = cl.block_rank(), R = cl.num_blocks(), row = blockIdx.x / R, T = blockDim.x;
  x += (long long)row * n; y += (long long)row * n;
  float m = -3.4e38f, s = 0;
  for (int i = r * T + threadIdx.x; i < n; i += R * T) m = fmaxf(m, x[i]);
  for (int o = 16; o; o >>= 1) m = fmaxf(m, __shfl_xor_sync(~0u, m, o));
  if ((threadIdx.x & 31) == 0) red[threadIdx.x >> 5] = m;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int k = 1; k < T / 32; k++) m = fmaxf(m, red[k]);
    part[0] = m;
  }
  cl.sync();
  for (int k = 0; k < R; k++) m = fmaxf(m, *cl.map_shared_rank(&part[0], k));
  for (int i = r * T + threadIdx.x; i < n; i += R * T) s += __expf(x[i] - m);
  for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
  if ((threadIdx.x & 31) == 0) red[threadIdx.x >> 5] = s;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int k = 1; k < T / 32; k++) s += red[k];
    part[1] = s;
  }
  cl.sync();
  s = 0;
  for (int k = 0; k < R; k++) s += *cl.map_shared_rank(&part[1], k);
  for (int i = r * T + threadIdx.x; i < n; i += R * T) y[i] = __expf(x[i] - m) / s;
  cl.sync();
}
"""

# Every CTA sends its sum to all CTAs and waits on its own mbarrier.
EXCHANGE = r"""
typedef unsigned u32;
__device__ u32 map(u32 a, u32 rank) {
  u32 d; asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(rank));
  return d;
}
__device__ u32 special(int which) {
  u32 v;
  if (which) asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(v));
  else asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(v));
  return v;
}
__device__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;"
               ::: "memory");
}
extern "C" __global__ void exchange(const float* x, float* y, int n) {
  __shared__ __align__(8) unsigned long long bar;
  __shared__ float got[16];
  u32 rank = special(0), R = special(1), b = (u32)__cvta_generic_to_shared(&bar);
  u32 g = (u32)__cvta_generic_to_shared(got);
  int t = threadIdx.x, row = blockIdx.x / R;
  if (t == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], ARRIVALS;" ::"r"(b));
    asm volatile("fence.mbarrier_init.release.cluster;");
    EXPECT
  }
  cluster_sync();
  float s = 0;
  for (int i = rank * 32 + t; i < n; i += R * 32) s += x[row * n + i];
  for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
  if (t < R) {
    u32 dst = map(g + 4 * rank, t), rb = map(b, t);
    SEND
  }
  WAIT
  s = 0;
  for (int k = 0; k < R; k++) s += got[k];
  if (t == 0) y[blockIdx.x] = s;
  FINISH
}
"""
PARTS = {
    "ARRIVALS": "1",
    "FINISH": "",
    "EXPECT": 'asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(b), '
    '"r"(4 * R));',
    "SEND": 'asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 '
    '[%0], %1, [%2];" ::"r"(dst), "r"(__float_as_uint(s)), "r"(rb) : "memory");',
    "WAIT": 'asm volatile("{ .reg .pred p; L: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], 0;'
    ' @p bra D; bra L; D: }" ::"r"(b) : "memory");',
}
# the same with plain remote stores, each followed by a remote arrival
PLAIN = PARTS | {
    "ARRIVALS": "%1",
    "EXPECT": "",
    "SEND": 'asm volatile("st.shared::cluster.f32 [%0], %1; mbarrier.arrive.release.cluster.'
    'shared::cluster.b64 _, [%2];" ::"r"(dst), "f"(s), "r"(rb) : "memory");',
    "WAIT": PARTS["WAIT"].replace("parity.", "parity.acquire.cluster."),
    "FINISH": "cluster_sync();",
}


def exchange(parts=PARTS, **changes):
    source = EXCHANGE
    for k, v in (parts | changes).items():
        source = source.replace(k, v)
    source = source.replace('b64 [%0], %1;" ::"r"(b)', 'b64 [%0], %1;" ::"r"(b), "r"(R)')
    return compiled(source, 90)


@pytest.fixture(scope="module")
def softmax():
    return compiled(COOPERATIVE, 90)


@pytest.fixture
def x():
    return (np.random.default_rng(0).standard_normal((6, 3001)) * 3).astype("f4")


def reference(x):
    e = np.exp(x.astype("f8") - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("ranks", (1, 2, 4, 8))
def test_softmax_over_a_cluster(softmax, x, ranks):
    y = np.zeros_like(x)
    assert unsupported(softmax) == []
    for lanes in (1 << 15, 1):  # several clusters in a batch, and one
        y[:] = 0
        run_ptx(
            softmax,
            "softmax",
            6 * ranks,
            128,
            [x, y, 3001],
            cluster=(ranks, 1, 1),
            racecheck=True,
            max_lanes=lanes,
        )
        assert np.abs(y - reference(x)).max() < 3e-7


@pytest.mark.parametrize(
    "which, message",
    ((0, "may not have started"), (1, "read after another"), (2, "the CTA ends while")),
)
def test_each_cluster_barrier_is_needed(softmax, x, which, message):
    from tests.ptxrun.parse import Instruction

    p = softmax.program("softmax")
    pair = [k for k, i in enumerate(p.code) if i.op == "barrier"][2 * which : 2 * which + 2]
    kept = [p.code[k] for k in pair]
    try:
        for k in pair:
            p.code[k] = Instruction("membar.cta", 0, "membar", ["cta"])
        p.steps = []
        with pytest.raises(PTXRace, match=message):
            run_ptx(
                softmax, "softmax", 24, 128, [x, np.zeros_like(x), 3001], cluster=4, racecheck=True
            )
    finally:
        for k, i in zip(pair, kept, strict=True):
            p.code[k] = i
        p.steps = []


@pytest.mark.parametrize("parts", (PARTS, PLAIN), ids=("st.async", "remote arrive"))
@pytest.mark.parametrize("ranks", (2, 4, 8))
def test_exchange_through_mbarriers(x, ranks, parts):
    y = np.zeros((6, ranks), "f4")
    run_ptx(exchange(parts), "exchange", 6 * ranks, 32, [x, y, 3001], cluster=ranks, racecheck=True)
    want = x.astype("f8").sum(1)
    assert np.abs(y - want[:, None]).max() < 1e-2 and (y == y[:, :1]).all()


def launch(module, x, ranks=4):
    y = np.zeros((6, ranks), "f4")
    run_ptx(module, "exchange", 6 * ranks, 32, [x, y, 3001], cluster=ranks, racecheck=True)
    return y


def test_asynchronous_stores_land_at_the_wait(x):
    assert np.isnan(launch(exchange(WAIT=""), x)).all()


def test_mbarrier_faults(x):
    with pytest.raises(PTXError, match="deadlock"):  # one byte count too many
        launch(exchange(EXPECT=PARTS["EXPECT"].replace("4 * R", "4 * R + 4")), x)
    with pytest.raises(PTXError, match="more arrivals"):
        launch(exchange(PLAIN, ARRIVALS="2"), x)
    module = exchange()
    with pytest.raises(PTXError, match=r"no mbarrier\.init"):
        launch(
            exchange(
                SEND=PARTS["SEND"] + " rb += 8;", WAIT=PARTS["WAIT"].replace('"r"(b)', '"r"(b + 8)')
            ),
            x,
        )
    y = launch(module, x)
    assert np.isfinite(y).all()


CLUSTER_PTX = """
.visible .entry k(.param .u64 p) .reqnctapercluster 2, 1, 1 {
.reg .b32 r, a, b, t; .reg .b64 q, o; .reg .pred pp; .shared .align 4 .b32 sm[2];
ld.param.u64 q, [p]; mov.u32 r, %cluster_ctarank; mov.u32 a, sm;
BODY
mov.u32 t, %ctaid.x; mul.wide.u32 o, t, 4; add.u64 q, q, o; st.global.u32 [q], b; ret; }
"""


def ptx(body, **options):
    y = np.zeros(8, "u4")
    run_ptx(PTXModule(CLUSTER_PTX.replace("BODY", body)), "k", 8, 1, [y], **options)
    return y


SYNC = "barrier.cluster.arrive; barrier.cluster.wait;"


def test_addresses_and_registers():
    assert (
        ptx("mov.u32 b, %clusterid.x; mul.lo.u32 b, b, 10; add.u32 b, b, r;")
        == [0, 1, 10, 11, 20, 21, 30, 31]
    ).all()
    assert (ptx("mov.u32 b, %cluster_nctarank;") == 2).all()
    assert (
        ptx(
            "xor.b32 t, r, 1; mapa.shared::cluster.u32 a, a, t;getctarank.shared::cluster.u32 b, a;"
        )
        == [1, 0] * 4
    ).all()
    got = ptx(
        f"xor.b32 t, r, 1; mapa.shared::cluster.u32 a, a, t; {SYNC} add.u32 t, r, 7;"
        f"st.shared::cluster.u32 [a], t; {SYNC} ld.shared::cta.u32 b, [sm];",
        racecheck=True,
    )
    assert (got == [8, 7] * 4).all()
    got = ptx(
        f"mov.u32 b, 5; st.shared.u32 [sm], b; {SYNC} mov.u32 t, 0;"
        "mapa.shared::cluster.u32 a, a, t; add.u32 t, r, 1;"
        f"atom.shared::cluster.add.u32 b, [a], t; {SYNC}"
        f"ld.shared::cluster.u32 b, [a]; {SYNC}",
        racecheck=True,
    )
    assert (got == 8).all()


@pytest.mark.parametrize(
    "body, message",
    (
        ("mov.u32 t, 2; mapa.shared::cluster.u32 a, a, t;", "mapa to CTA 2 of a cluster of 2"),
        (
            "xor.b32 t, r, 1; mapa.shared::cluster.u32 a, a, t; ld.shared.u32 b, [a];",
            "another CTA's",
        ),
        (
            "mov.u32 t, 1; mapa.shared::cluster.u32 a, a, t; ld.shared::cluster.u32 b, [a+8];",
            "out of bounds",
        ),
        ("barrier.cluster.arrive; barrier.cluster.arrive;", "arrives twice"),
        ("barrier.cluster.wait;", "without having arrived"),
        (
            (
                "setp.eq.u32 pp, r, 0; @pp barrier.cluster.arrive; @pp barrier.cluster.wait;"
                "mov.u32 t, 1; @pp mapa.shared::cluster.u32 a, a, t;"
                "@pp ld.shared::cluster.u32 b, [a];"
            ),
            "has exited",
        ),
    ),
)
def test_cluster_faults(body, message):
    with pytest.raises(PTXError, match=message):
        ptx(body)


PEER = f"xor.b32 t, r, 1; mapa.shared::cluster.u32 a, a, t; add.u32 t, r, 7; {SYNC}"


@pytest.mark.parametrize(
    "body, message",
    (
        (
            f"st.shared::cluster.u32 [a], t; ld.shared.u32 b, [sm]; {SYNC}",
            "read after another CTA's w",
        ),
        (
            f"ld.shared::cluster.u32 b, [a]; st.shared.u32 [sm], t; {SYNC}",
            "after another CTA's read",
        ),
        (
            f"st.shared.u32 [sm], t; ld.shared::cluster.u32 b, [a]; {SYNC}",
            "read after another CTA's w",
        ),
        (
            (
                "barrier.cluster.arrive; st.shared::cluster.u32 [a], t; barrier.cluster.wait;"
                f"ld.shared.u32 b, [sm]; {SYNC}"
            ),
            "read after another CTA's write",
        ),
        (
            f"atom.shared::cluster.add.u32 b, [a], t; st.shared.u32 [sm], r; {SYNC}",
            "write after another CTA's atomic",
        ),
        ("atom.shared::cluster.add.u32 b, [a], t;", "the CTA ends while another CTA"),
        (f"st.shared::cluster.u32 [a], t; {SYNC} ld.shared.u32 b, [sm];", None),
        (f"st.shared.u32 [sm], t; {SYNC} ld.shared::cluster.u32 b, [a]; {SYNC}", None),
        (f"atom.shared::cluster.add.u32 b, [a], t; {SYNC} st.shared.u32 [sm], t;", None),
    ),
)
def test_races_between_ctas(body, message):
    if message is None:
        ptx(PEER + body, racecheck=True)
        return
    with pytest.raises(PTXRace, match=message):
        ptx(PEER + body, racecheck=True)


def test_clusters_of_several_dimensions():
    y = np.zeros((4, 6, 3), "u4")
    source = """
extern "C" __global__ void k(unsigned* y) {
  unsigned r, cx, cy;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(cx));
  asm("mov.u32 %0, %%clusterid.y;" : "=r"(cy));
  unsigned* o = y + 3 * (blockIdx.y * gridDim.x + blockIdx.x);
  o[0] = r; o[1] = cx; o[2] = cy;
}"""
    run_ptx(compiled(source), "k", (6, 4), 1, [y], cluster=(3, 2))
    j, i = np.mgrid[:4, :6]
    assert (y == np.stack([i % 3 + 3 * (j % 2), i // 3, j // 2], 2)).all()


def test_launch_shape(softmax, x):
    with pytest.raises(PTXError, match="no multiple of the cluster"):
        run_ptx(softmax, "softmax", 5, 128, [x, x.copy(), 3001], cluster=2)
    with pytest.raises(PTXError, match=r"breaks \.reqnctapercluster"):
        ptx("mov.u32 b, 0;", cluster=4)
    source = re.sub("global__ void", "global__ void __cluster_dims__(2, 1, 1)", COOPERATIVE)
    y = np.zeros_like(x)
    run_ptx(compiled(source, 90), "softmax", 12, 64, [x, y, 3001], racecheck=True)
    assert np.abs(y - reference(x)).max() < 3e-7
