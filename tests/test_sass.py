"""What ptxas makes of the kernels: wide accesses, no local memory, few instructions an element.

Everything is counted on the path of aligned arrays (tests/sass.py). An instruction that a thread
executes once for E elements counts 1/E; a loop's count as often as the launch on an array of the
benchmark's size makes it run. CuPy has NVRTC make machine code itself; ptxas of the same generation
stands for it here.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests import harness, sass
from tests.bounds import DTYPES
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

# What the kernels take, and a little: instructions of CuPy's for half types and for float32, then
# of Triton's; special operations of either. Kernels not named here are held to the H200's time.
BUDGET: dict[str, tuple[float, float, float, float, float]] = {}


def budget(name: str, backend: str, dtype: str, call: Call) -> tuple[float, float] | None:
    if dtype == "float64":
        return None
    if name not in BUDGET:
        each = call.needed / call.elements
        return H200[0] * each, H200[1] * each
    *instructions, special = BUDGET[name]
    return instructions[2 * (backend == "triton-ptx") + (dtype == "float32")], special


TARGETS = [
    pytest.param(name, backend, dtype, capability, marks=() if quick else pytest.mark.slow)
    for name in WORKLOADS
    for backend in ("cupy-ptx", "triton-ptx")
    for dtype, capability in (*((d, 90) for d in DTYPES), ("bfloat16", 100), ("float32", 100))
    for quick in [name in KINDS and capability == 90 and dtype in ("bfloat16", "float32")]
]
COLUMNS = ("kernel", "dtype", "GPU", "elements", "instructions", "special", "budget", "others")


@pytest.mark.parametrize(("name", "backend", "dtype", "capability"), TARGETS)
def test_machine_code(name, backend, dtype, capability, monkeypatch, record_property):
    executor = harness.make(backend, monkeypatch, run=False)
    call = WORKLOADS[name].call(executor, dtype, LARGE)
    call.run()
    found = [m for launch in executor.launches for m in launch_measured(call, launch, capability)]
    assert found
    instructions, special = (sum(getattr(m, k) for m in found) for k in ("instructions", "special"))
    held = budget(name, backend, dtype, call)
    row = (
        name,
        dtype,
        f"sm_{capability}",
        "+".join(str(m.elements) for m in found),
        f"{instructions:.2f}",
        f"{special:.2f}",
        "{:.3g}, {:.2g}".format(*held) if held else "",
        ", ".join(sorted({str(a) for m in found for a in m.others})),
    )
    table = f"machine code of {backend}: instructions and special operations an element"
    record_property("table", (table, COLUMNS, row))
    faults = [fault for m in found for fault in m.faults]
    assert not [f for f in faults if held or not f.startswith("gone around")]
    if held:
        assert instructions <= held[0] and special <= held[1]


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
