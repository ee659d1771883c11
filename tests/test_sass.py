"""What ptxas makes of the kernels: wide accesses, no local memory, few instructions an element.

Everything is counted on the path of aligned arrays (tests/sass.py). An instruction that a thread
executes once for E elements counts 1/E; a loop's count as often as the launch on an array of the
benchmark's size makes it run. CuPy has NVRTC make machine code itself; ptxas of the same generation
stands for it here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from tests import harness, sass
from tests.bounds import DTYPES, compute_dtype
from tests.harness import Launch
from tests.ptxrun import PTXModule
from tests.sass import WIDE, Access, Function
from tests.workloads import KINDS, LARGE, WORKLOADS, Call

# What the special function unit does, for two lanes a cycle where others do sixteen: MUFU, and
# conversions but those between float32 and half types.
SPECIAL = ("MUFU", "F2F", "F2I", "I2F", "FRND")

# Subroutines that the path may go around: divisions of 64 bits, for the few operands that need
# them. IEEE division's, for numbers near the ends of the range, it may not: they are not so rare.
FAR = ("_div_s64", "_div_u64", "_rem_s64", "_rem_u64")


@dataclass(frozen=True)
class Measured:
    """A launch: what its machine code costs for each element, and what is wrong with it."""

    elements: int  # of a thread, each time through its loop
    instructions: float
    special: float
    others: tuple[Access, ...]  # parameters and partial sums: gathers need not be wide
    faults: tuple[str, ...]


def measured(
    function: Function, pointers: sass.Pointers, operands: dict[str, int], size: int, threads: int
) -> Measured:
    """operands: the arrays of x's shape that the launch is given, and their items' size."""
    path = function.path(pointers, list(operands))
    wide = dict.fromkeys(operands, 0)
    for a in path.accesses:
        if a.array in operands and a.width >= WIDE:
            wide[a.array] += a.width // operands[a.array]
    elements = max(wide.values()) or 1
    rounds = max(1.0, size / (threads * elements)) if path.loop else 1.0

    def per_element(*names: str) -> float:
        whole, loop = path.count(*names)
        return (whole + (rounds - 1) * loop) / (rounds * elements)

    faults = [
        f"{name}: {count} of {elements} elements in wide accesses"
        for name, count in wide.items()
        if count != elements
    ]
    # A guarded one, beside wide ones of as many elements as of other arrays, is that of a tail.
    faults += [
        f"narrow: {a}"
        for a in path.accesses
        if a.array in operands and a.width < WIDE and not a.guarded
    ]
    faults += [f"whose pointer is it: {a}" for a in path.accesses if a.array == "?"]
    faults += [f"local memory: {opcode}" for opcode in sass.local_memory(function)]
    met = {i.target for i in path.code if i.name == "CALL"}
    around = [name for name in function.subroutines if name not in met]
    faults += [f"gone around: {name}" for name in around if not name.endswith(FAR)]
    others = tuple(a for a in path.accesses if a.array not in operands)
    return Measured(elements, per_element(), per_element(*SPECIAL), others, tuple(faults))


def launch_measured(call: Call, launch: Launch, capability: int) -> list[Measured]:
    """Of the launches that read or write whole arrays; of others, none."""
    names = call.names(launch, capability)
    operands = {name: p.before.itemsize for name, p in call.operands.items() if name in names}
    found = []
    ptx = launch.ptx(capability)
    for name, function in sass.disassemble(ptx).items():
        params = PTXModule(ptx).program(name).params
        pointers = sass.argument_pointers(capability, params, names)
        if operands:
            found.append(measured(function, pointers, operands, call.elements, launch.threads))
        else:
            assert not sass.local_memory(function), launch.kernel
    return found


# -- budgets --------------------------------------------------------------------------------------

# At the copy rate an H100 has time for about 39 instructions and 4.9 operations of the special
# function unit for four bytes read or written (an element of two bytes, there and back), an H200
# for 27 and 3.4. float64 is printed and held to nothing: it has neither exponential nor reciprocal
# in hardware, and it is the number of float64 units that limits it: 64 an SM, or no more than 2.
H200 = 27 / 4, 3.4 / 4

# What the kernels take, and up to 15 % more: instructions of CuPy's for half types and for float32,
# then of Triton's; special operations of either. To each of them a thread's own belong, about 90
# instructions of CuPy's (a loop around, the thread's number in 64 bits, the two ends of arrays) and
# 40 of Triton's, for 16 elements of half types or 8 of float32; and for half types 1.5 to convert.
# Said behind the numbers is what is left. Kernels that are not here have the H200's time.
BUDGET = {
    "linear": (10, 13.5, 6, 6.5, 0.3),  # fma
    "linear_derivative": (11, 14, 5.5, 7, 0.2),  # scale, or NaN
    "sigmoid": (13, 30, 9, 18, 2.4),  # scale, ex2, add, rcp; float32 corrects the last two
    "sigmoid_backward": (14, 16, 10, 9, 0),  # 2 fma, and a conversion more
    "sigmoid_derivative": (15.5, 29, 12.5, 23.5, 2.4),  # 4z/(1 + z)²
    "tanh": (19, 32, 14.5, 21.5, 2.2),  # as sigmoid, and a polynomial to choose near 0
    "tanh_backward": (14, 16, 9, 10, 0),  # as sigmoid's
    "tanh_derivative": (16, 35.5, 12.5, 24.5, 2.4),  # as sigmoid's
    "relu": (13, 17, 5, 5.5, 0),  # compare, choose; CuPy asks bits, for subnormal numbers
    "relu_backward": (15, 18, 5.5, 7.5, 0),
    "relu_derivative": (13, 17.5, 7, 8, 0),
    "leaky_relu": (12, 16.5, 8.5, 7, 0.7),  # multiply, compare, choose
    "leaky_relu_backward": (13.5, 17.5, 9, 8, 0.7),
    "leaky_relu_derivative": (14.5, 18, 7, 9.5, 0.2),
    # to divide, a pack once, for its channel; a load
    "leaky_relu_backward of channels": (14, 20, 17.5, 21, 1),
    # scale and bias of each element: as much to load and convert as x; two fma more
    "fused sigmoid": (24.5, 40.5, 23.5, 31.5, 3.1),
    # Philox: 10 rounds of about 5 instructions for 4 elements
    "fused sigmoid, dropout": (38.5, 60, 36.5, 45, 2.4),
    "fused_backward sigmoid, dropout": (45, 57.5, 47, 66, 4.6),  # both sigmoid and its derivative
    # dx, the term of the sum, its addition, and sums among threads at the end
    "prelu_backward": (24, 23, 33.5, 42, 1.3),
    "linear_backward": (19.5, 18.5, 15, 20.5, 0.6),  # two sums
    # More than the H200's time for half types. Triton's kernels divide for each parameter, a pack
    # once, and their sums go by way of all threads.
    "fused prelu, dropout, NCHW 7²": (55, 54.5, 67, 83, 2.7),
    "fused_backward linear, dropout, NCHW 56²": (53, 49, 74, 91.5, 2.2),
    "fused_backward relu, dropout, NCHW 56²": (64.5, 61, 77.5, 94.5, 2.2),
    "fused_backward leaky_relu, dropout, NCHW 56²": (56, 54, 77.5, 98.5, 2.4),
    "fused_backward prelu, dropout, NCHW 56²": (56, 54, 77.5, 98.5, 2.4),
    "fused_backward sigmoid, dropout, NCHW 56²": (65, 77, 106.5, 123, 6.6),
    "fused_backward tanh, dropout, NCHW 56²": (72, 98.5, 110.5, 128, 6.6),
}


def budget(name: str, backend: str, dtype: str, time: tuple[float, float]) -> tuple[float, float]:
    if name not in BUDGET:
        return time
    *instructions, special = BUDGET[name]
    return instructions[2 * (backend == "triton-ptx") + (dtype == "float32")], special


TARGETS = [
    pytest.param(name, backend, dtype, capability, marks=() if quick else pytest.mark.slow)
    for name in WORKLOADS
    for backend in ("cupy-ptx", "triton-ptx")
    for dtype, capability in (*((d, 90) for d in DTYPES), ("bfloat16", 100), ("float32", 100))
    for quick in [name in KINDS and capability == 90 and dtype == "bfloat16"]
]
COLUMNS = (
    "kernel",
    "dtype",
    "GPU",
    "elements",
    "instructions",
    "special",
    "budget",
    "H200's time",
    "others",
)


@pytest.mark.parametrize(("name", "backend", "dtype", "capability"), TARGETS)
def test_machine_code(name, backend, dtype, capability, monkeypatch, record_property):
    executor = harness.make(backend, monkeypatch, run=False)
    call = WORKLOADS[name].call(executor, dtype, LARGE)
    call.run()
    found = [m for launch in executor.launches for m in launch_measured(call, launch, capability)]
    assert found
    took = (sum(m.instructions for m in found), sum(m.special for m in found))
    time = tuple(each * call.needed / call.elements for each in H200)
    held = budget(name, backend, dtype, time) if dtype != "float64" else None
    row = (
        name,
        dtype,
        f"sm_{capability}",
        "+".join(str(m.elements) for m in found),
        *(f"{n:.2f}" for n in took),
        "{:.3g}, {:.2g}".format(*held) if held else "",
        "{:.3g}, {:.2g}".format(*time) if held else "",
        ", ".join(sorted({str(a) for m in found for a in m.others})),
    )
    table = f"machine code of {backend}: instructions and special operations an element"
    record_property("table", (table, COLUMNS, row))
    faults = [fault for m in found for fault in m.faults]
    assert not [f for f in faults if held or not f.startswith("gone around")]
    if held:
        assert took[0] <= held[0] and took[1] <= held[1]


# -- rows -----------------------------------------------------------------------------------------

H100 = 39 / 4, 4.9 / 4
ROWS = {
    "softmax": ("x", "out"),
    "log_softmax": ("x", "out"),
    "softmax_backward": ("dy", "y", "out"),
    "cross_entropy_with_grad": ("logits", "out"),
}
# Kernels that take longer than the H200's time have the H100's.
SLOWER = {
    ("cross_entropy_with_grad", backend, dtype)
    for backend in ("cupy-ptx", "triton-ptx")
    for dtype in ("float16", "bfloat16")
}
# A reciprocal a thread, of a sum from 1 on, may go around the slow side of IEEE's division; and
# where there is no lse, it has no name that what would be stored there could be told by.
OF_A_ROW = ("gone around: $__internal", "whose pointer is it: ? store")
ROW = (512, 4096, 1)  # in the registers of a block; all begin at 16 bytes


def row_call(executor: harness.Executor, formula: str, dtype: str) -> Call:
    backend, kind = executor.backend, DTYPES[dtype]
    kept = DTYPES[compute_dtype(dtype)]
    arrays = {name: executor.place(np.ones(ROW, kind)) for name in ROWS[formula]}
    each = {"scale": kept, "target": np.dtype(np.int64), "loss": kept}
    small = {name: executor.place(np.zeros(ROW[::2], of)) for name, of in each.items()}
    *given, out = (p.native for p in arrays.values())
    scale, target, loss = (p.native for p in small.values())

    def run() -> None:
        if formula != "cross_entropy_with_grad":
            backend.rows(formula, tuple(given), out, None, executor.empty)
        else:
            backend.cross_entropy_with_grad(
                scale,
                *given,
                target,
                None,
                loss,
                out,
                ignore_index=-100,
                label_smoothing=0.0,
                z_loss=0.0,
                softcap=0.0,
                empty=executor.empty,
            )

    return Call(run, arrays, small)


ROW_TARGETS = [
    pytest.param(formula, backend, dtype, marks=() if quick else pytest.mark.slow)
    for formula in ROWS
    for backend in ("cupy-ptx", "triton-ptx")
    for dtype in DTYPES
    for quick in [dtype == "bfloat16" or (dtype == "float32" and formula == "softmax")]
]


@pytest.mark.parametrize(("formula", "backend", "dtype"), ROW_TARGETS)
def test_machine_code_of_rows(formula, backend, dtype, monkeypatch, record_property):
    """The loop that merges a row's chunks counts once: 16 lanes have so many in one round."""
    executor = harness.make(backend, monkeypatch, run=False)
    call = row_call(executor, formula, dtype)
    call.run()
    (launch,) = executor.launches
    (found,) = launch_measured(call, launch, 90)
    took = found.instructions, found.special
    moved = len(call.operands) * DTYPES[dtype].itemsize
    time = tuple(each * moved for each in H200)
    slower = (formula, backend, dtype) in SLOWER
    held = tuple(each * moved for each in H100) if slower else time
    row = (
        formula,
        dtype,
        "sm_90",
        str(found.elements),
        *(f"{n:.2f}" for n in took),
        *("{:.3g}, {:.2g}".format(*t) if dtype != "float64" else "" for t in (held, time)),
        ", ".join(sorted({str(a) for a in found.others})),
    )
    table = f"machine code of {backend}: instructions and special operations an element"
    record_property("table", (table, COLUMNS, row))
    if dtype != "float64":
        assert not [fault for fault in found.faults if not fault.startswith(OF_A_ROW)]
        assert took[0] <= held[0] and took[1] <= held[1]
        # what has come down leaves the list
        assert not slower or took[0] > time[0] or took[1] > time[1]


# -- the reader and the checks themselves ---------------------------------------------------------

LISTING = """
.text.kernel:
        /*0000*/                   LDC.64 R2, c[0x0][0x210] ;
        /*0010*/                   ISETP.GE.AND P0, PT, R0, c[0x0][0x220], PT ;
        /*0020*/               @P0 EXIT ;
        /*0030*/                   BSSY B0, `(.L_x_1) ;
        /*0040*/               @P1 BRA `(.L_x_0) ;
        /*0050*/                   LDG.E.U16 R4, desc[UR4][R2.64] ;
        /*0060*/                   BSYNC B0 ;
.L_x_0:
        /*0070*/                   LDG.E.128 R4, desc[UR4][R2.64+0x10] ;
        /*0080*/                   CALL.REL.NOINC `($kernel$__internal_0_$__cuda_divide) ;
.L_x_1:
        /*0090*/                   UIADD3 UR8, UR8, 0x1, URZ ;
        /*00a0*/                   BRA.U UP0, `(.L_x_1) ;
        /*00b0*/                   LDC.64 R8, c[0x0][0x218] ;
        /*00c0*/                   IMAD.WIDE R8, R0, 0x10, R8 ;
        /*00d0*/                   STG.E.128 desc[UR4][R8.64], R4 ;
        /*00e0*/                   EXIT ;
        .type           $kernel$__internal_0_$__cuda_divide,@function
$kernel$__internal_0_$__cuda_divide:
        /*00f0*/                   MUFU.RCP R8, R8 ;
        /*0100*/                   RET.REL.NODEC R10 `(kernel) ;
.L_x_2:
        /*0110*/                   BRA `(.L_x_2);
        /*0120*/                   NOP;
"""


def test_blocks_branches_and_loops():
    function = sass.parse(LISTING)["kernel"]
    assert [len(b.code) for b in function.blocks] == [3, 2, 2, 2, 2, 4, 2, 1, 1]
    # BSYNC goes where BSSY said; a uniform predicate makes a branch conditional
    assert function.follows == {0: [1], 1: [2, 3], 2: [4], 3: [4], 4: [5, 4], 5: [], 6: []}
    assert function.loops == [(4, frozenset({4}))]
    assert "NOP" not in {i.name for i in function.code}


def test_the_path_is_that_of_wide_accesses():
    function = sass.parse(LISTING)["kernel"]
    path = function.path({0x210: "x", 0x218: "out"}, ["x", "out"])
    assert path.blocks == (0, 1, 3, 4, 5)
    assert list(map(str, path.accesses)) == ["x load 128", "out store 128"]
    assert path.count() == (15, 0)  # the subroutine's two among them
    assert path.count("MUFU") == (1, 0)
    assert path.count("LDG", "STG") == (2, 0)


def test_pointers_are_followed_to_the_kernels_parameters():
    text = """
.text.kernel:
        /*0000*/                   LDCU.128 UR8, c[0x0][0x380] ;
        /*0010*/                   LDC.64 R6, c[0x0][0x398] ;
        /*0020*/                   LOP3.LUT R0, R6, 0xf, RZ, 0xc0, !PT ;
        /*0030*/                   LDCU.64 UR4, c[0x0][0x358] ;
        /*0040*/                   IADD3 R2, P0, PT, R0, UR10, RZ ;
        /*0050*/                   IADD3.X R3, PT, PT, RZ, UR11, RZ, P0, !PT ;
        /*0060*/               @P1 IMAD.WIDE R4, R0, 0x2, R6 ;
        /*0070*/              @!P1 MOV R4, UR8 ;
        /*0080*/                   LDG.E.ENL2.256 R8, R12, desc[UR4][R2.64] ;
        /*0090*/               @P1 STG.E.64 desc[UR4][R4.64+0x8], R8 ;
        /*00a0*/                   EXIT ;
"""
    names = {0x380: "x", 0x388: "y", 0x398: "out"}
    path = sass.parse(text)["kernel"].path(names, ["y", "out"])
    assert path.accesses == (Access("y", "load", 32, False), Access("out", "store", 8, True))


PLANTED = r"""
#define KERNEL extern "C" __global__ void
KERNEL right(const float4* x, float4* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n / 4) y[i] = x[i];
}
KERNEL repeats(const float4* x, float4* y, int n) {
  #pragma unroll 1
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n / 4; i += gridDim.x * blockDim.x) {
    float4 a = x[i];
    y[i] = make_float4(-a.w, -a.z, -a.y, -a.x);
  }
}
KERNEL narrow(const float* x, float4* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n / 4) y[i] = make_float4(x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]);
}
KERNEL local(const float4* x, float4* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  float a[16];
  for (int k = 0; k < 4; ++k) *(float4*)&a[4 * k] = x[4 * i + k];
  for (int k = 0; k < 4; ++k) a[int(a[k]) & 15] += 1;
  for (int k = 0; k < 4; ++k) y[4 * i + k] = *(float4*)&a[4 * k];
}
KERNEL divides(const float4* x, float4* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n / 4) {
    float4 a = x[i];
    y[i] = make_float4(1 / a.x, 1 / a.y, 1 / a.z, 1 / a.w);
  }
}
"""


def planted(kernel: str, capability: int, threads: int = 1 << 18) -> Measured:
    pytest.importorskip("cupy")
    from tests.ptxrun.cupyrun import nvrtc_ptx

    ptx = nvrtc_ptx(PLANTED, capability)
    params = PTXModule(ptx).program(kernel).params
    pointers = sass.argument_pointers(capability, params, ["x", "y"])
    functions = sass.disassemble(ptx)
    return measured(functions[kernel], pointers, {"x": 4, "y": 4}, 1 << 20, threads)


@pytest.mark.parametrize("capability", sass.PARAMETERS)
@pytest.mark.parametrize(
    ("kernel", "faults"),
    {
        "right": [],
        "repeats": [],
        "narrow": ["x: 0 of 4 elements in wide accesses", *["narrow: x load 32"] * 4],
        "local": ["local memory: LDL", "local memory: STL"],
        "divides": ["gone around: "],
    }.items(),
)
def test_what_is_wrong_is_noticed(kernel, faults, capability):
    found = planted(kernel, capability).faults
    assert all(any(text.startswith(fault) for text in found) for fault in faults), found
    assert bool(found) == bool(faults), found


def test_a_loop_counts_as_often_as_it_runs():
    (once, thrice) = (planted("repeats", 90, (1 << 18) // rounds) for rounds in (1, 4))
    assert once.elements == thrice.elements == 4
    # All of a thread's code for 4 elements, or its loop four times and the rest once for 16.
    assert once.instructions > thrice.instructions
    loop = (16 * thrice.instructions - 4 * once.instructions) / 3
    assert loop == pytest.approx(round(loop)) and 8 <= loop < 4 * once.instructions
    assert planted("divides", 90).special == 1
