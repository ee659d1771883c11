"""Kernels that torch.compile launches by itself: their values and machine code, and what PyTorch
and Inductor make of them where there is no GPU.

Tensors without memory stand for those of a GPU. Tracing, Inductor's lowering and its generation of
code are the real ones; only what they ask Triton's driver and the device about is told them here.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuact.backends.triton import OPTIONS, Plan
from gpuact.catalogue import FUNCTIONS, Pass
from tests import harness, sass
from tests.bounds import DTYPES
from tests.calls import ELEMENTWISE
from tests.harness import Executor, executors
from tests.ptxrun import PTXModule
from tests.test_backends import operands, run_elementwise, specials, spread
from tests.test_sass import BUDGET, H200, measured

torch = harness.torch_or_skip()
triton = pytest.importorskip("triton")

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from gpuact.kernels.triton import elementwise, formulas
from gpuact.kernels.triton import inline as kernels
from gpuact.torch import inline

# Of what Inductor leaves to Triton, 3.9 wants one to be said.
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

BFLOAT16 = DTYPES["bfloat16"]
TYPES = {"float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32"}  # as Triton has them


def arrays_of(formula: str) -> list[str]:
    """A kernel's first arguments: what it reads, and out."""
    return [*ELEMENTWISE[formula].reads, "out"]


def block_of(dtype: str) -> int:
    return elementwise.block(DTYPES[dtype].itemsize)


# -- the table ------------------------------------------------------------------------------------


def test_every_elementwise_formula_has_a_kernel():
    assert set(ELEMENTWISE) - set(kernels.KERNELS) == set(), "add these to kernels/triton/inline.py"
    assert list(kernels.KERNELS) == list(ELEMENTWISE)


@pytest.mark.parametrize("formula", ELEMENTWISE)
def test_a_kernel_names_its_formula_and_no_other(formula):
    kernel = kernels.KERNELS[formula]
    arguments = [*arrays_of(formula), "whole", "rest"]
    assert kernel.arg_names[: len(arguments)] == arguments
    assert kernel.arg_names[-1] == "BLOCK"
    numbers = kernel.arg_names[len(arguments) : -1]
    assert len(numbers) == len(ELEMENTWISE[formula].parameters)
    named = [name for name in kernel.fn.__code__.co_names if name in ELEMENTWISE]
    assert named == [formula]
    assert kernel.fn.__globals__[formula] is getattr(formulas, formula)


def test_names_do_not_meet_in_one_namespace():
    """Inductor's, where a name that is taken already is left out."""
    own = {kernel.__name__ for kernel in kernels.KERNELS.values()}
    own |= {kernels.tile.__name__, kernels.elements.__name__}
    assert len(own) == len(kernels.KERNELS) + 2
    assert not own & set(vars(formulas))


def test_a_tile_is_of_as_many_warps_as_there_are_without_asking():
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend

    backend = make_backend(GPUTarget("cuda", 90, 32))
    assert backend.parse_options({}).num_warps == elementwise.WARPS
    assert triton.Config({}).num_warps == elementwise.WARPS  # Inductor's


# -- values ---------------------------------------------------------------------------------------


@pytest.fixture(params=executors("triton-ptx", "triton-interpreter", "triton-cuda"))
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Executor:
    """Whose backend runs the kernels here instead of its own."""
    executor = harness.make(request.param, monkeypatch)
    monkeypatch.setattr(
        executor.backend,
        "elementwise",
        lambda formula, arrays, params, out, empty: start(executor, formula, arrays, params, out),
    )
    return executor


def start(
    executor: Executor, formula: str, arrays: Any, numbers: Any, out: Any, tiles_before: int = 0
) -> None:
    """tiles_before: of elements that there are not, for offsets that do not fit into memory."""
    block = elementwise.block(out.element_size())
    grid = (-(-out.numel() // block), 1, 1)
    constexprs = {"BLOCK": block}
    plan = Plan(
        kernels.KERNELS[formula], grid, constexprs, elementwise.WARPS, device=out.get_device()
    )
    whole, rest = divmod(out.numel(), block)
    executor.backend.launch(plan, (*arrays, out, tiles_before + whole, rest, *numbers))


def inputs(formula: str, dtype: str, n: int, behind: bool = False) -> list[np.ndarray]:
    """Arrays of n elements: special values at both ends. behind: one element behind 16 bytes."""
    rng = np.random.default_rng(n)
    ends = specials(dtype)
    x = np.concatenate([ends, spread(rng, n, dtype), ends[::-1]])[len(ends) // 2 :]
    x = np.concatenate([x[: n - n // 2], x[len(x) - n // 2 :]])
    found = []
    for a in operands(formula, x, rng):
        memory = np.empty(n + 1, a.dtype)
        memory[behind : n + behind] = a
        found.append(memory[behind : n + behind])
    return found


NUMBERS = (0.3, -1.7)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("formula", ELEMENTWISE)
def test_values(executor, formula, dtype):
    """None, one, an element less than a tile, whole tiles, one more; aligned and not."""
    block = block_of(dtype)
    numbers = list(NUMBERS[: len(ELEMENTWISE[formula].parameters)])
    for n in (0, 1, block - 1, 2 * block, 2 * block + 1):
        for behind in (False, True):
            arrays = inputs(formula, dtype, n, behind)
            out = inputs(formula, dtype, n, behind and n != block - 1)[0]  # or unlike the inputs
            run_elementwise(executor, formula, arrays, numbers, out)


@pytest.mark.parametrize("numbers", [(0.0, np.inf), (np.nan, 0.0), (-np.inf, np.nan), (0.1, 1e38)])
def test_special_numbers(executor, numbers):
    for formula in ("linear", "leaky_relu", "leaky_relu_backward", "linear_derivative"):
        count = len(ELEMENTWISE[formula].parameters)
        arrays = inputs(formula, "bfloat16", 100)
        run_elementwise(executor, formula, arrays, list(numbers[:count]), np.empty_like(arrays[0]))


@pytest.mark.parametrize("before", (2**31, 2**32, 2**40))
def test_offsets_beyond_32_bits(before, monkeypatch):
    """Pointers so many elements before the arrays, and programs as far behind the first."""
    executor = harness.make("triton-ptx", monkeypatch)
    block = block_of("float32")
    x = executor.place(np.linspace(-2, 2, 2 * block + 5, dtype=np.float32))
    out = executor.place(np.empty_like(x.numpy()), blank=True)

    def change(ptx: str) -> str:
        ptx, count = re.subn(
            r"(mov\.u32\s+(%r\d+), %ctaid\.x;)", rf"\1 add.s32 \2, \2, {before // block};", ptx
        )
        assert count
        for k in (0, 1):
            ptx, count = re.subn(
                rf"(ld\.param\.b64\s+(%rd\d+), \[\w+_param_{k}\];)",
                rf"\1 sub.s64 \2, \2, {4 * before};",
                ptx,
            )
            assert count == 1
        return ptx

    executor.options["change"] = change
    start(executor, "leaky_relu", (x.native,), (0.5,), out.native, before // block)
    expected = np.where(x.numpy() > 0, x.numpy(), np.float32(0.5) * x.numpy())
    assert np.array_equal(out.numpy(), expected)


def test_traffic(monkeypatch):
    """Each array once, in whole sectors and packs of 16 bytes."""
    executor = harness.make("triton-ptx", monkeypatch)
    executor.options["stats"] = True
    arrays = [*inputs("leaky_relu_backward", "bfloat16", 1 << 16), np.empty(1 << 16, BFLOAT16)]
    dy, x, out = (executor.place(a) for a in arrays)
    start(executor, "leaky_relu_backward", (dy.native, x.native), (0.5,), out.native)
    (stats,) = executor.stats
    assert (stats.load_bytes, stats.store_bytes) == (4 << 16, 2 << 16)
    assert set(stats.load_widths) == set(stats.store_widths) == {16}
    assert stats.efficiency("load") == stats.efficiency("store") == 1


@pytest.mark.interpreter
def test_launched_without_torch_compile():
    """As an op does that is called outside of it; the strides of the result are the argument's."""
    x = torch.linspace(-3, 3, 8 * 5 * 700).reshape(8, 700, 5).transpose(1, 2)
    y = inline.launch(kernels.KERNELS["leaky_relu"], (x,), (0.5,))
    assert y.stride() == x.stride()
    assert torch.equal(y, torch.where(x > 0, x, 0.5 * x))
    assert inline.launch(kernels.KERNELS["relu"], (x[:0],), ()).shape == (0, 5, 700)


# -- machine code ---------------------------------------------------------------------------------


def compiled(kernel: Any, meta: dict[str, Any], capability: int = 90) -> str:
    """The PTX of a kernel as Inductor has Triton compile it."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    (attributes,) = meta["configs"]
    source = ASTSource(kernel, meta["signature"], meta["constants"], attributes)
    options = {"num_warps": elementwise.WARPS, "debug": True, "sanitize_overflow": False}
    target = GPUTarget("cuda", capability, 32)
    return str(triton.compile(source, target=target, options=options).asm["ptx"])


def meta_of(formula: str, dtype: str, number: str) -> dict[str, Any]:
    """What Inductor tells Triton of a launch on arrays of a size that is not known."""
    names, pointers = kernels.KERNELS[formula].arg_names, arrays_of(formula)
    signature = dict.fromkeys(names, number) | dict.fromkeys(pointers, TYPES[dtype])
    signature |= {"whole": "i32", "rest": "i32", "BLOCK": "constexpr"}
    aligned = {(k,): [["tt.divisibility", 16]] for k in range(len(pointers))}
    return {
        "signature": signature,
        "constants": {"BLOCK": block_of(dtype)},
        "configs": [aligned],
    }


TARGETS = [
    pytest.param(formula, dtype, capability, marks=() if quick else pytest.mark.slow)
    for formula in ELEMENTWISE
    for dtype in TYPES
    for capability in (80, 90, 100)
    for quick in [capability == 90 and dtype == "bfloat16"]
]


@pytest.mark.parametrize(("formula", "dtype", "capability"), TARGETS)
def test_machine_code(formula, dtype, capability, record_property):
    """Wide accesses, no local memory, and no more instructions than the same formula may have where
    gpuact launches it. Numbers come as float64, which costs a conversion."""
    item, names = DTYPES[dtype].itemsize, arrays_of(formula)
    ptx = compiled(kernels.KERNELS[formula], meta_of(formula, dtype, "fp64"), capability)
    ((name, function),) = sass.disassemble(ptx).items()
    pointers = sass.argument_pointers(capability, PTXModule(ptx).program(name).params, names)
    found = measured(function, pointers, dict.fromkeys(names, item), 1, 1)
    held = tuple(each * item * len(names) for each in H200)
    if capability >= 90:  # sm_80 takes more for half types
        *instructions, special = BUDGET["linear" if formula == "linear_backward" else formula]
        held = instructions[2 + (dtype == "float32")], special
    row = (
        formula,
        dtype,
        f"sm_{capability}",
        str(found.elements),
        f"{found.instructions:.2f}",
        f"{found.special:.2f}",
        "{:.3g}, {:.2g}".format(*held),
    )
    columns = ("kernel", "dtype", "GPU", "elements", "instructions", "special", "budget")
    table = "machine code of kernels under torch.compile: instructions and special an element"
    record_property("table", (table, columns, row))
    assert found.elements == elementwise.PACKS * elementwise.BYTES // item
    assert not found.faults
    assert not found.others
    assert found.instructions <= held[0] and found.special <= held[1]


# -- what PyTorch makes of them -------------------------------------------------------------------


@cache
def ops() -> dict[str, Any]:
    """What calls gpuact's operators with the arrays and numbers of each formula."""
    from gpuact.torch.ops import call

    def of(formula: str, p: Pass) -> Callable[..., Any]:
        arrays = len(p.reads)

        def plain(*given: Any) -> Any:
            return call(formula, *given, "")

        def learned(*given: Any) -> Any:
            function = FUNCTIONS[formula.partition("_")[0]]
            numbers = dict(zip(p.parameters, given[arrays:], strict=True))
            numbers = [numbers.get(name, 0.0) for name in function.forward.parameters]
            tensors = [None] * len(numbers)
            if formula.endswith("_backward"):
                wanted = [True, *[False] * len(numbers)]
                return call(formula, given[0], None, *tensors, numbers, wanted, "")[0]
            return call(formula, *given[:arrays], *tensors, numbers, "")

        return learned if formula.startswith("linear") else plain

    return {formula: of(formula, p) for formula, p in ELEMENTWISE.items()}


class NoDriver:
    """Of a GPU that there is not."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What tracing and code generation ask a GPU about, where there is none."""
    if torch.cuda.is_available():
        return
    from torch._inductor.runtime.hints import DeviceProperties

    properties = DeviceProperties("cuda", 0, 132, 90, 9, 65536, 2048, 1024, 32)
    monkeypatch.setattr(triton.runtime.driver, "_active", NoDriver())
    monkeypatch.setattr(DeviceProperties, "create", staticmethod(lambda device: properties))
    yes = lambda *_: True  # noqa: E731
    monkeypatch.setattr("torch._inductor.scheduler.has_triton", yes, raising=False)
    cuda = "torch._dynamo.device_interface.CudaInterface"
    monkeypatch.setattr(f"{cuda}.is_triton_capable", staticmethod(yes), raising=False)  # 2.14


def fake(
    mode: Any, shape: tuple[int, ...], strides: Any = None, dtype: str = "bfloat16", **symbolic: Any
) -> Any:
    """A tensor of a GPU without memory; dynamic=True: of symbolic sizes."""
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

    if strides is None:
        strides = torch.empty(shape, device="meta").stride()
    dynamic = symbolic.get("dynamic", False)
    x = torch.empty_strided(shape, strides, dtype=getattr(torch, dtype), device="meta")
    kinds = [DimDynamic.DYNAMIC if dynamic else DimDynamic.STATIC] * len(shape)
    name = f"x{len(mode.shape_env.var_to_sources) if dynamic else 0}"
    context = StatelessSymbolicContext(dynamic_sizes=kinds)
    x = mode.from_tensor(x, source=ConstantSource(name), symbolic_context=context)
    with mode:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")


def traced(mode: Any, function: Any, *inputs: Any) -> Any:
    """The graph that torch.compile hands to Inductor."""
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses.functional_tensor import dispatch_functionalize

    table = select_decomp_table()
    with mode:
        return make_fx(dispatch_functionalize(function), decomposition_table=table)(*inputs)


def generated(mode: Any, graph_module: Any, *inputs: Any) -> str:
    """Inductor's code for a graph."""
    from torch._inductor.debug import DebugContext
    from torch._inductor.fx_passes.post_grad import post_grad_passes
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    with V.set_fake_mode(mode), mode:
        post_grad_passes(graph_module, is_inference=True)
    graph = GraphLowering(graph_module, example_inputs=inputs, shape_env=mode.shape_env)
    with V.set_fake_mode(mode), V.set_graph_handler(graph), V.set_debug_handler(DebugContext()):
        graph.run(*inputs)
        code, *_ = graph.codegen()
    return str(getattr(code, "value", code))


@pytest.fixture
def mode() -> Any:
    return FakeTensorMode(shape_env=ShapeEnv())


def test_pytorch_finds_the_kernel_of_an_operator():
    """So the kernel's text counts when compiled code is looked up."""
    from torch._library.triton import get_triton_kernels_for_op

    for formula in ops():
        assert get_triton_kernels_for_op(f"gpuact::{formula}") == [kernels.KERNELS[formula]]


def test_a_graph_holds_the_launch(gpu, mode):
    """Which writes to out alone, so no input is copied; of as many programs as n asks for."""
    x = fake(mode, (300, 70), dynamic=True)
    op = ops()["leaky_relu_backward"]
    graph = traced(mode, lambda dy, x: op(dy, x, 0.25), x, x).graph
    functional = torch.ops.higher_order.triton_kernel_wrapper_functional
    (node,) = (n for n in graph.nodes if n.target is functional)
    assert node.kwargs["tensors_to_clone"] == ["out"]
    given = node.kwargs["kwargs"]
    assert list(given)[: -len(OPTIONS)] == kernels.KERNELS["leaky_relu_backward"].arg_names
    assert given["slope"] == 0.25
    assert given["BLOCK"] == 2048
    ((programs, *ones),) = node.kwargs["grid"]
    n = x.shape[0] * x.shape[1]
    assert ones == [1, 1]
    assert programs.meta["val"].node.expr == ((n + 2047) // 2048).node.expr
    assert not mode.shape_env.guards


def test_a_backend_that_was_asked_for_launches_itself(gpu, mode):
    from gpuact.torch.ops import call

    x = fake(mode, (300, 70))
    graph = traced(mode, lambda x: call("relu", x, "cupy"), x).graph
    assert [n.target for n in graph.nodes if n.op == "call_function"] == [
        torch.ops.gpuact.relu.default
    ]


def launches(code: str) -> dict[str, list[str]]:
    """The arguments of each kernel that generated code runs, by the kernel's name."""
    found = {}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".run"):
            name = ast.unparse(node.func).removesuffix(".run")
            found[re.sub(r"_\d+$", "", name)] = [ast.unparse(a) for a in node.args]
    return found


def emitted(code: str, folder: Path) -> dict[str, Any]:
    """Kernels from the texts that Inductor made of them, each a module of its own."""
    found = {}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "async_compile.triton":
            name, text = (ast.literal_eval(a) for a in node.args[:2])
            path = folder / f"{name}.py"
            path.write_text(text, encoding="utf-8")
            spec = importlib.util.spec_from_file_location(name, path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            found[name] = getattr(module, name)
    return found


def instructions(ptx: str) -> list[str]:
    """Without what says where in a file they come from."""
    code = ptx.split(".section")[0].splitlines()
    return [line for line in code if not re.match(r"\s*(\.loc|\.file|//)", line)]


@pytest.mark.parametrize(
    "dtype",
    ["bfloat16", *(pytest.param(d, marks=pytest.mark.slow) for d in ("float16", "float32"))],
)
def test_inductors_copy_of_a_kernel_is_the_kernel(gpu, mode, dtype, tmp_path):
    """Of all formulas at once: the text is whole, compiles by itself, and to the same PTX."""

    def every(dy: Any, x: Any) -> list[Any]:
        return [
            op(*(dy, x)[-len(p.reads) :], *NUMBERS[: len(p.parameters)])
            for (formula, op), p in zip(ops().items(), ELEMENTWISE.values(), strict=True)
        ]

    given = [fake(mode, (300, 70), dtype=dtype, dynamic=True) for _ in range(2)]
    code = generated(mode, traced(mode, every, *given), *given)
    found = emitted(code, tmp_path)
    names = {kernel.__name__: formula for formula, kernel in kernels.KERNELS.items()}
    assert set(found) == set(names)  # no copies, no filling of what is written anyway
    for name, formula in names.items():
        meta = found[name].triton_meta
        # torch 2.10 passes Python's numbers as float32
        expected = [meta_of(formula, dtype, number) for number in ("fp64", "fp32")]
        assert {key: meta[key] for key in expected[0]} in expected
        ours, theirs = (compiled(k, meta) for k in (kernels.KERNELS[formula], found[name].fn))
        assert instructions(ours) == instructions(theirs)
        assert len(instructions(ours)) > 50


LAYOUTS = {
    "contiguous": ((300, 70), (70, 1)),
    "transposed": ((70, 300), (1, 70)),
    "channels last": ((8, 16, 4, 6), (384, 1, 96, 16)),
    "turned": ((5, 7, 9, 11), (693, 99, 1, 9)),
}


@pytest.mark.parametrize("dynamic", (False, True))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inductor_launches_one_kernel(gpu, mode, layout, dynamic):
    """Whatever the order of axes, without copies; the result lies as the argument does."""
    shape, strides = LAYOUTS[layout]
    x = fake(mode, shape, strides, dynamic=dynamic)
    graph = traced(mode, lambda x: ops()["linear"](x, 2.0, float("inf")), x)
    (result,) = graph.graph.output_node().args
    assert result.meta["val"].stride() == x.stride()
    code = generated(mode, graph, x)
    ((name, (read, written, *numbers)),) = launches(code).items()
    assert name == "gpuact_linear"
    assert read.startswith("arg") and "buf" in written
    values = {str(n.node.expr): hint for n, hint in zip(x.shape, shape, strict=True) if dynamic}
    size = np.prod(shape)
    assert numbers[2:4] == ["2.0", "inf"]
    numbers[2:4] = []
    assert [eval(n, values) for n in numbers] == [size // 2048, size % 2048, -(-size // 2048), 1, 1]
    assert all(re.search(r"s\d", n) for n in numbers[:3]) == dynamic


@pytest.mark.parametrize(
    ("shape", "tiles", "kinds"),
    [
        ((1,), [0, 1, 1], ["i32", "constexpr"]),
        ((2, 1024), [1, 0, 1], ["constexpr", "i32"]),
        ((0, 3), [0, 0, 0], ["i32", "i32"]),
        ((1 << 20, 1 << 13), [1 << 22, 0, 1 << 22], ["i32", "i32"]),
    ],
)
def test_inductor_launches_sizes_that_are_special(gpu, mode, shape, tiles, kinds, tmp_path):
    """What is 1 becomes a constant; nothing is of 64 bits."""
    x = fake(mode, shape)
    code = generated(mode, traced(mode, ops()["relu"], x), x)
    ((_, arguments),) = launches(code).items()
    assert arguments[2:] == [*map(str, tiles), "1", "1"]
    (found,) = emitted(code, tmp_path).values()
    assert [found.triton_meta["signature"][name] for name in ("whole", "rest")] == kinds
    assert "st.global" in compiled(found.fn, found.triton_meta)


def test_inductor_says_which_pointers_are_aligned(gpu, mode, tmp_path):
    x = fake(mode, (300, 70))
    graph = traced(mode, lambda x: ops()["relu"](torch.as_strided(x, (20999,), (1,), 1)), x)
    (found,) = emitted(generated(mode, graph, x), tmp_path).values()
    assert list(found.triton_meta["configs"][0]) == [(1,)]  # out
    ptx = compiled(found.fn, found.triton_meta)
    assert "ld.global.v4" not in ptx
    assert "st.global.v4" in ptx


# -- what fits ------------------------------------------------------------------------------------


def test_what_fits(mode):
    x = fake(mode, (300, 70))
    assert inline.fits((x,), (1.0, 2.0))
    assert inline.fits((x, fake(mode, (300, 70))), ())
    for dtype in TYPES:
        assert inline.fits((fake(mode, (4,), dtype=dtype),), ())
    for shape, strides in (*LAYOUTS.values(), ((), ()), ((0, 3), (3, 1)), ((4, 1, 5), (5, 77, 1))):
        assert inline.fits((fake(mode, shape, strides),) * 2, ())


def test_what_does_not_fit(mode):
    x = fake(mode, (300, 70))
    assert not inline.fits((torch.ones(3),), ())  # not on a GPU
    assert not inline.fits((x,), (0.5, fake(mode, (1,))))  # a parameter that is a tensor
    for dtype in ("float64", "int32"):
        assert not inline.fits((fake(mode, (4,), dtype=dtype),), ())
    for strides in ((0, 1), (80, 1), (1, 1), (140, 2)):
        assert not inline.fits((fake(mode, (300, 70), strides),), ())
        assert not inline.fits((fake(mode, (300, 70), strides), x), ())
        assert not inline.fits((x, fake(mode, (300, 70), strides)), ())
    assert not inline.fits((x, fake(mode, (300, 70), (1, 300))), ())
    assert not inline.fits((x, fake(mode, (299, 70))), ())
    assert not inline.fits((x, fake(mode, (300, 70), dtype="float16")), ())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sizes_stay_symbolic(mode, layout):
    x, y = (fake(mode, *LAYOUTS[layout], dynamic=True) for _ in range(2))
    assert inline.fits((x, x), ())
    assert not mode.shape_env.guards
    assert inline.fits((x, y), ())
    assert mode.shape_env.guards
    for guard in mode.shape_env.guards:
        assert not guard.expr.is_number
        assert not any(side.is_number for side in guard.expr.args), guard.expr
