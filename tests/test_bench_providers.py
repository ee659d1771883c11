"""Every spelling computes what it should, gpuact's and its rivals'.

What needs a GPU is run without one: kernels of CuPy by the PTX interpreter, torch's spellings on
CPU tensors, compiled ones without the compiler behind, and rivals that are not here by modules
with their signatures.
"""

from __future__ import annotations

import shutil
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

import gpuact
from bench import cases, measure, providers, suite, tables
from gpuact.libraries import numpy_dtype
from tests.benchmarks import (
    CHAINS,
    EVERY,
    ON_GPU,
    RIVALS,
    WATCHED,
    chain,
    judged,
    on_torch,
    rows_of,
    small,
)

Array = Any

# -- on a CPU -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("name", EVERY)
def test_every_spelling_computes_what_it_should(name: str, rival: str) -> None:
    provider, case = RIVALS[rival], EVERY[name]
    reason = provider.why_not()
    if reason is not None:
        pytest.skip(reason)
    if provider.spell(case) is not None:
        assert judged(case, provider) == ("timed", "")


def test_who_is_asked_and_where() -> None:
    """gpuact on each backend, and nobody twice."""
    for table, places in (
        (providers.ON_CPU, {"numpy", "torch on the CPU"}),
        (providers.ON_GPU, {"cupy", "torch on CUDA"}),
    ):
        names = [provider.name for provider in table]
        assert len(set(names)) == len(names)
        assert {provider.place for provider in table} == places <= set(measure.PLACES)
    backends = {p.name: p.backend for p in (*providers.ON_CPU, *providers.ON_GPU) if p.backend}
    assert backends == {
        "gpuact on NumPy": "numpy",
        "gpuact on CuPy": "cupy",
        "gpuact on Triton": "triton",
    }
    assert list(RIVALS) == ["gpuact on NumPy", "NumPy", "SciPy", "numexpr", "Numba", "torch"]
    rivals = [provider.name for provider in providers.ON_GPU if not provider.backend]
    assert rivals == [
        *("torch", "torch.compile", "torch.compile, tuned", "CuPy ElementwiseKernel"),
        *("cupy.fuse", "cupyx", "Liger", "QuACK", "FlagGems"),
    ]


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs of which a sigmoid saturates at one in fifty, and exp(x) is still a float16."""
    normal = cases._normal

    def wider(dtype: str, count: int, seed: int = 0) -> Array:
        return (2 * normal("float32", count, seed)).astype(numpy_dtype(dtype))

    monkeypatch.setattr(cases, "_normal", wider)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("rival", ["gpuact on NumPy", "NumPy", "torch"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", [n for n, c in WATCHED.items() if c.dtype == "float32"])
def test_what_others_count_is_what_we_count(name: str, dtype: str, rival: str) -> None:
    """To the last element, though a half type has few numbers near the bounds; but NumPy rounds to
    float16 after every step of a sigmoid. A sum of so many squares is more than a float16 holds."""
    if rival == "torch":
        pytest.importorskip("torch")
    case = replace(WATCHED[name], dtype=dtype, shape=(300, 700))
    arrays, place = cases.inputs(case), measure.PLACES[RIVALS[rival].place]()
    found = RIVALS[rival].spell(case)(*map(place.put, arrays.values()))
    found = tuple(map(place.take, found if isinstance(found, tuple) else (found,)))
    expected = suite.reference(case, arrays)
    stray = suite.STRAY["float16"] if (rival, dtype) == ("NumPy", "float16") else 0.0
    assert suite.mistake_in_stats(case, found, expected, stray) is None
    count, _, _, zeros, saturated = expected[-1]
    assert count == 210_000
    assert (0.45 < zeros / count < 0.55) == (case.activation == "relu")
    assert saturated > 0.01 * count


def test_bounds_are_numbers_of_the_dtype_and_none_between_is_saturated() -> None:
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        kind = numpy_dtype(dtype)
        case = cases.Watched("activation_stats", dtype, (1, 1), activation="sigmoid")
        saturated = providers._saturated(case)
        compute = np.float64 if dtype == "float64" else np.float32
        for bound in map(compute, case.record.saturated):
            low = high = kind.type(bound)
            for _ in range(3):
                low, high = (np.nextafter(a, kind.type(b)) for a, b in ((low, 0), (high, 1)))
            for y in (low, kind.type(bound), high):
                beyond = y <= bound if bound < 0.5 else y >= bound
                assert saturated(y) == beyond


def module(name: str, **functions: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    vars(made).update(functions)
    return made


# -- numexpr and Numba: modules that have what is asked of numexpr 2.14 and Numba 0.66 ------------


def numexpr() -> types.ModuleType:
    def evaluate(ex: str, local_dict: Any = None, global_dict: Any = None) -> Array:
        assert global_dict == {}  # what is not named is not looked up
        assert not [v for v in local_dict.values() if type(v) in (int, float)]  # would widen
        knows = {name: getattr(np, name) for name in ("where", "exp", "tanh")}
        return eval(ex, {"__builtins__": {}, **knows}, local_dict)

    return module("numexpr", evaluate=evaluate)


def numba() -> types.ModuleType:
    def vectorize(signatures: list[str], target: str) -> Callable[[Any], Any]:
        (signature,) = signatures
        dtype, _, takes = signature.removesuffix(")").partition("(")
        assert target == "parallel"
        assert set(takes.split(", ")) == {dtype}

        def made(loop: Any) -> Any:
            assert loop.__code__.co_argcount == len(takes.split(", "))
            return np.vectorize(loop, otypes=[dtype])

        return made

    return module("numba", vectorize=vectorize)


LOOPS = {
    *("linear", "sigmoid", "sigmoid_backward", "tanh", "tanh_backward"),
    *("relu", "relu_backward", "leaky_relu", "leaky_relu_backward"),
    *(tables.SCALED, tables.GATED),
}


@pytest.mark.parametrize(("name", "stand_in"), [("numexpr", numexpr), ("Numba", numba)])
def test_loops_of_others_are_spelled_where_they_are_not_installed(
    name: str, stand_in: Callable[[], types.ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = stand_in()
    monkeypatch.setitem(sys.modules, made.__name__, made)
    assert RIVALS[name].why_not() is None
    spelled = set()
    for case in EVERY.values():
        if RIVALS[name].spell(case) is not None:
            assert judged(case, RIVALS[name]) == ("timed", "")
            spelled.add((getattr(case, "text", case.function), case.dtype, case.backward))
    assert spelled == {
        (text, dtype, text.endswith("_backward"))
        for text in LOOPS
        for dtype in ("float32", "float64")
    }


@pytest.mark.parametrize("package", ["numexpr", "numba", "scipy", "torch"])
def test_who_is_not_installed_says_so(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (provider,) = (p for p in providers.ON_CPU if p.name.lower() == package)
    assert str(provider.why_not()).startswith(f"{package} cannot be imported (")


# -- torch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [n for n, c in EVERY.items() if c.function == "cross_entropy_with_grad"]
)
def test_torch_compiles_a_loss_and_its_gradient_in_one_graph(name: str) -> None:
    torch = pytest.importorskip("torch")
    compiled = providers._torch(
        EVERY[name],
        lambda function: torch.compile(function, backend="aot_eager", fullgraph=True),
    )
    assert judged(EVERY[name], on_torch(compiled)) == ("timed", "")


@pytest.mark.parametrize("name", WATCHED)
def test_torch_compiles_what_is_watched_in_one_graph(name: str) -> None:
    torch = pytest.importorskip("torch")
    compiled = providers._torch(
        WATCHED[name],
        lambda function: torch.compile(function, backend="aot_eager", fullgraph=True),
    )
    assert judged(WATCHED[name], on_torch(compiled)) == ("timed", "")


@pytest.mark.parametrize("activation", tables.WATCHED)
@pytest.mark.parametrize("function", ["activation_with_stats", "activation_stats"])
def test_no_compiler_is_spared_the_dead(function: str, activation: str) -> None:
    """They are among what it is asked for, though nobody compares them."""
    pytest.importorskip("torch")
    case = cases.Watched(function, "float32", (3, 4), activation=activation)
    seen: list[tuple[Array, ...]] = []

    def compiled(function: Any) -> Any:
        return lambda x: seen.append(function(x)) or seen[-1]

    (x,) = cases.inputs(case).values()
    x = np.where(np.arange(4) == 2, np.float32(0 if function == "activation_stats" else -9), x)
    place = measure.PLACES["torch on the CPU"]()
    found = providers._torch(case, compiled)(place.put(x))
    assert len(found) == len(seen[0]) - 1 == 1 + case.computes
    look = gpuact.activation_with_stats if case.computes else gpuact.activation_stats
    stats = look(x, activation)
    dead = (stats[1] if case.computes else stats).dead
    assert dead[2]
    assert not dead.all()
    assert seen[0][-1].tolist() == dead.tolist()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", CHAINS)
def test_chains_have_a_torch_spelling_to_compile(name: str, dtype: str) -> None:
    """Without the compiler: it would be asked for these very functions."""
    pytest.importorskip("torch")
    case = replace(CHAINS[name], dtype=dtype, shape=(64, 96))
    spelled = providers._torch(case, compiled=lambda function: function)
    assert judged(case, on_torch(spelled)) == ("timed", "")


def test_torch_compiles_a_chain_s_backward_whole() -> None:
    """In one graph: nothing of `torch.func.vjp` is left to Python. No C++ compiler is called."""
    torch = pytest.importorskip("torch")
    case = replace(chain(tables.GATED, backward=True), shape=(16, 24))
    compiled = providers._torch(
        case, lambda function: torch.compile(function, backend="aot_eager", fullgraph=True)
    )
    assert judged(case, on_torch(compiled)) == ("timed", "")


@pytest.mark.filterwarnings(  # of how torch finds a compiler
    "ignore:The distutils package:DeprecationWarning", "ignore:Distutils was imported before"
)
def test_where_nothing_compiles_the_compiled_say_why() -> None:
    torch = pytest.importorskip("torch")
    from torch._inductor import config

    probe = providers._no_compiler.__wrapped__  # which is asked once
    torch.compiler.reset()
    with config.patch({"cpp.cxx": ("no such compiler",)}):
        reason = probe("cpu")
    assert reason.startswith("torch.compile cannot compile here (InductorError: InvalidCxxCompiler")
    assert "no such compiler" in reason
    assert "\n" not in reason
    torch.compiler.reset()
    if shutil.which("g++"):
        assert probe("cpu") is None


def test_an_error_in_a_line_says_what_went_wrong() -> None:
    said = providers.in_a_line(RuntimeError("backend='inductor' raised:\nKeyError: 'x'\n\nSet …"))
    assert said == "RuntimeError: backend='inductor' raised: KeyError: 'x'"
    assert providers.in_a_line(ValueError("one\ntwo")) == "ValueError: one"
    assert providers.in_a_line(ValueError()) == "ValueError: "


# -- kernels of others: modules with the signatures of Liger 0.8, QuACK 0.6 and FlagGems 5.0 -----


def smoothed_loss(logits: Array, target: Array, reduction: str, smoothing: float) -> Array:
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits, target, reduction=reduction, label_smoothing=smoothing)


def loss_and_gradient(logits: Array, target: Array, smoothing: float = 0.0) -> tuple[Array, Array]:
    import torch

    z = logits.detach().clone().requires_grad_()
    loss = smoothed_loss(z, target, "none", smoothing)
    (dlogits,) = torch.autograd.grad(loss.sum(), z)
    return loss.detach(), dlogits


def liger() -> list[types.ModuleType]:
    import torch

    def settings(n: int) -> tuple[int, int]:
        if n > 65536:
            raise RuntimeError(f"Cannot launch Triton kernel since n = {n} exceeds")
        return 1 << (n - 1).bit_length(), 4

    class Softmax:
        @staticmethod
        def forward(ctx: Any, input_: Array) -> Array:
            settings(input_.shape[-1])
            ctx.save_for_backward(input_)
            return torch.softmax(input_, -1)

        @staticmethod
        def backward(ctx: Any, grad_output: Array) -> Array:
            (y,) = ctx.saved_tensors
            assert settings(y.shape[-1]) == (ctx.BLOCK_SIZE, ctx.num_warps)
            assert not ctx.multi_block_launch
            return torch.ops.aten._softmax_backward_data(grad_output, y, -1, y.dtype)

    def cross_entropy_forward(
        _input: Array,
        target: Array,
        weight: None,
        ignore_index: int,
        lse_square_scale: float,
        label_smoothing: float,
        reduction: str,
        softcap: None,
        return_z_loss: bool,
        return_token_accuracy: bool = False,
        return_predicted_tokens: bool = False,
    ) -> tuple[Any, ...]:
        assert (weight, ignore_index, lse_square_scale, softcap) == (None, -100, 0.0, None)
        assert (reduction, return_z_loss) == ("none", False)
        loss, dlogits = loss_and_gradient(_input, target, label_smoothing)
        if _input.requires_grad:
            _input.data.copy_(dlogits)
        return loss, None, None, None, _input

    return [
        module("liger_kernel"),
        module("liger_kernel.ops"),
        module("liger_kernel.ops.softmax", LigerSoftmaxFunction=Softmax),
        module("liger_kernel.ops.cross_entropy", cross_entropy_forward=cross_entropy_forward),
        module("liger_kernel.ops.utils", calculate_settings=settings),
    ]


def quack() -> list[types.ModuleType]:
    import torch

    def cross_entropy_fwd(
        x: Array,
        target: Array,
        target_logit: None = None,
        weight: None = None,
        ignore_index: int = -100,
        return_lse: bool = False,
        return_dx: bool = False,
        inplace_backward: bool = False,
    ) -> Any:
        loss, dlogits = loss_and_gradient(x, target)
        return (loss, dlogits) if return_dx else loss

    return [
        module("quack"),
        module(
            "quack.softmax",
            softmax_fwd=lambda x: torch.softmax(x, -1),
            softmax_bwd=lambda dy, y: torch.ops.aten._softmax_backward_data(dy, y, -1, y.dtype),
        ),
        module("quack.cross_entropy", cross_entropy_fwd=cross_entropy_fwd),
    ]


def flag_gems() -> list[types.ModuleType]:
    import torch

    def cross_entropy_loss(
        inp: Array,
        target: Array,
        weight: None = None,
        reduction: str = "mean",
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> Array:
        return smoothed_loss(inp, target, reduction, label_smoothing)

    aten = torch.ops.aten
    return [
        module(
            "flag_gems",
            relu=torch.relu,
            softmax=lambda self, dim, half_to_float=False: torch.softmax(self, dim),
            log_softmax=lambda self, dim, half_to_float=False: torch.log_softmax(self, dim),
            softmax_backward=aten._softmax_backward_data,
            log_softmax_backward=aten._log_softmax_backward_data,
            cross_entropy_loss=cross_entropy_loss,
        )
    ]


OTHERS = {  # and the functions that each has
    "Liger": (
        liger,
        {"softmax", "softmax_backward", "cross_entropy", "cross_entropy_with_grad"},
    ),
    "QuACK": (
        quack,
        {"softmax", "softmax_backward", "cross_entropy", "cross_entropy_with_grad"},
    ),
    "FlagGems": (
        flag_gems,
        {"relu", "softmax", "softmax_backward", "log_softmax", "log_softmax_backward"}
        | {"cross_entropy", "cross_entropy_with_grad"},
    ),
}


def other(name: str, monkeypatch: pytest.MonkeyPatch) -> providers.Provider:
    """The rival on CPU tensors, with such modules in place of its own."""
    pytest.importorskip("torch")
    for made in OTHERS[name][0]():
        monkeypatch.setitem(sys.modules, made.__name__, made)
    (found,) = (p for p in providers.ON_GPU if p.name == name)
    return replace(found, place="torch on the CPU", why_not=lambda: None)


@pytest.mark.parametrize("name", OTHERS)
def test_kernels_of_others_are_called_as_they_ask(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rival = other(name, monkeypatch)
    spelled = set()
    asked = [small(case) for of in ON_GPU.values() for case in of("full")]
    for case in {case.name: case for case in asked}.values():
        if rival.spell(case) is not None:
            assert judged(case, rival) == ("timed", "")
            spelled.add(case.function)
            assert name == "FlagGems" or "axis" not in case.options
            assert name != "QuACK" or "label_smoothing" not in case.options
    assert spelled == OTHERS[name][1]


def test_what_keeps_another_s_kernels_from_running_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(providers, "_no_torch_gpu", lambda: None)
    monkeypatch.setitem(sys.modules, "flag_gems", None)
    assert str(providers._no_rival("flag_gems")).startswith("flag_gems cannot be imported (")
    assert providers._no_rival("json") is None
    monkeypatch.setattr(providers, "_no_torch_gpu", lambda: "torch finds no CUDA GPU")
    assert providers._no_rival("json") == "torch finds no CUDA GPU"


def test_liger_s_limit_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases.Case("softmax", "float32", (1, 65537))
    row = rows_of(case, other("Liger", monkeypatch))["Liger"]
    assert row.status == "failed"
    assert row.reason.startswith("RuntimeError: Cannot launch Triton kernel since n = 65537")


def test_who_overwrites_his_input_has_one_of_his_own(monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases.Case("cross_entropy_with_grad", "float32", (5, 7), tables.ROWWISE)
    before = cases.inputs(case)["logits"].copy()
    found = rows_of(case, other("Liger", monkeypatch), RIVALS["torch"])
    assert [row.status for row in found.values()] == ["timed"] * 3
    assert [row.note for row in found.values()] == ["", suite.OVERWRITES, ""]
    assert np.array_equal(cases.inputs(case)["logits"], before)


# -- CuPy -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"axis": 0}])
@pytest.mark.parametrize("function", ["sigmoid", "softmax", "log_softmax"])
def test_cupyx_functions_take_our_axis_and_keep_the_dtype(
    function: str, options: dict[str, int], dtype: str
) -> None:
    """Its functions are SciPy's by name and meaning, but of float32 in place of a half type."""
    pytest.importorskip("cupy")
    special = pytest.importorskip("scipy").special
    if options and function == "sigmoid":
        return
    case = cases.Case(function, dtype, (5, 7), options)
    x = cases.inputs(case)["x"]
    wide = {name: getattr(special, name) for name, _ in providers.SCIPY.values()}
    stands = {name: lambda x, f=f, **o: f(x.astype(np.float32), **o) for name, f in wide.items()}
    with pytest.MonkeyPatch.context() as patch:
        import cupyx.scipy.special

        for name, stand in stands.items():
            patch.setattr(cupyx.scipy.special, name, stand)
        y = providers._cupyx(case)(x, **options)
    assert suite.mistake(case, (y,), suite.reference(case, {"x": x})) is None


@pytest.mark.parametrize("name", ["cupy.fuse", "CuPy ElementwiseKernel", "cupyx"])
def test_what_is_not_written_for_cupy_is_declined(name: str) -> None:
    """Of every case, without a look at options that are no numbers: a bfloat16 of "none" crashes
    the process."""
    pytest.importorskip("cupy")
    (provider,) = (p for p in providers.ON_GPU if p.name == name)
    spelled = {
        (getattr(case, "text", case.function), case.backward)
        for case in EVERY.values()
        if provider.spell(case) is not None
    }
    has = {"cupy.fuse": WRITTEN, "CuPy ElementwiseKernel": providers.ELEMENTWISE}
    functions = has.get(name, providers.SCIPY)
    assert spelled == {(text, text.endswith("_backward")) for text in functions}


# -- CuPy's kernels, executed by the PTX interpreter ----------------------------------------------


def stated(key: str, dtype: str) -> cases.Case:
    """A small case of a function, or of a chain by its text."""
    table = (*tables.elementwise_on_gpu("quick"), *tables.fused_on_gpu("quick"))
    case = next(c for c in table if key in (getattr(c, "text", c.function), c.function))
    return replace(case, dtype=dtype, shape=(100,) if len(case.shape) == 1 else (20, 5))


def operands(case: cases.Case) -> list[Any]:
    """What a kernel takes: parameters lie along axis 1."""
    arrays = cases.inputs(case)
    return [
        a.reshape(1, -1) if name in cases.PARAMETERS else a for name, a in arrays.items()
    ] + list(case.options.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("key", providers.ELEMENTWISE)
def test_plain_cupy_kernels_compute_what_they_should(key: str, dtype: str) -> None:
    """So that the rival is known to be right without a GPU."""
    pytest.importorskip("cupy")
    from tests.ptxrun import cupyrun

    case = stated(key, dtype)
    given = operands(case)
    if key == "linear_backward":  # x and bias are for the sums
        given = [given[0], given[2]]
    out = np.full(case.shape, np.nan, numpy_dtype(dtype))
    cupyrun.elementwise(providers.plain_kernel(key), given, [out], arch=90)
    expected = suite.reference(case, cases.inputs(case))
    assert suite.mistake(case, (out,), expected[:1]) is None


SUMMED = {
    "x·dy": lambda dy, x: x * dy,
    "dy": lambda dy: dy,
    "x·dy where x ≤ 0": lambda dy, x: np.where(x > 0, 0, x * dy),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("terms", providers.SUMS)
def test_plain_cupy_sums_are_right(terms: str, dtype: str) -> None:
    pytest.importorskip("cupy")
    rng = np.random.default_rng(0)
    kernel = providers.plain_sum(terms)
    arrays = [rng.standard_normal((40, 3)).astype(numpy_dtype(dtype)) for _ in range(kernel.nin)]
    out = np.full(3, np.nan, numpy_dtype(dtype))
    reduced(kernel, arrays, out)
    exact = SUMMED[terms](*(a.astype(np.float64) for a in arrays)).sum(0)
    assert np.allclose(out.astype(np.float64), exact, rtol=suite.TOLERANCE[dtype])


def reduced(kernel: Any, arrays: Sequence[Array], out: Array) -> None:
    """A ReductionKernel over the first axis, as CuPy writes it for one block an output."""
    import cupy
    from cupy._core import _carray, _kernel, _reduction, _scalar

    from tests.ptxrun import cupyrun, memory, run_ptx

    element = out.dtype.type
    infos, args = [], []
    for array in (*arrays, out):
        infos.append(_kernel._ArgInfo(1, cupy.ndarray, out.dtype, array.ndim, True, True))
        args.append(memory.carray(array))
    for shape in (arrays[0].shape, out.shape):
        infos.append(_kernel._ArgInfo(2, _carray.Indexer, None, len(shape), True, True))
        args.append(memory.cindexer(shape))
    infos.append(_kernel._ArgInfo(3, _scalar.CScalar, np.dtype(np.int32), 0, True, True))
    names = [p.name for p in kernel.in_params]
    code = _reduction._create_reduction_function_code(
        kernel.name, 32, kernel.reduce_type, kernel._params, tuple(infos), kernel.identity,
        kernel.map_expr, kernel.reduce_expr, kernel.post_map_expr,
        _kernel._TypeMap((("T", element), ("IndexT", "int32"))),
        "".join(f"const T {name} = _raw_{name}[_in_ind.get()];" for name in names),
        "T &out = _raw_out[_out_ind.get()];", kernel.preamble, (),
    )  # fmt: skip
    source = cupyrun.Source(cupyrun._HEADERS + code, (), [*args, np.int32(1)])
    run_ptx(cupyrun.parsed(source.ptx(90)), kernel.name, out.size, 32, source.args)


WRITTEN = ("linear", "sigmoid", "sigmoid_backward", "sigmoid_derivative", "tanh", "tanh_backward",
           "tanh_derivative", "relu", "relu_backward", "leaky_relu", "leaky_relu_backward", "prelu",
           tables.SCALED, tables.GATED)  # fmt: skip


@cache
def unowned() -> Any:
    import cupy

    return cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(1 << 12, 1 << 12, None, 0), 0)


def fused_kernel(fused: Any, arguments: Sequence[Any]) -> Any:
    """The ElementwiseKernel that `cupy.fuse` makes; of an array it looks at dtype and ndim."""
    import cupy
    from cupy._core import fusion

    looked_at = [
        cupy.ndarray((1,) * a.ndim, a.dtype, unowned()) if isinstance(a, np.ndarray) else a
        for a in arguments
    ]
    history = fusion._FusionHistory()
    fusion._thread_local.history, fusion._thread_local.is_old_fusing = history, True
    try:
        kernel, _ = history.get_fusion(fused.func, tuple(looked_at), fused.name)
    finally:
        fusion._thread_local.history, fusion._thread_local.is_old_fusing = None, False
    return kernel


def test_all_that_is_written_for_cupy_is_fused() -> None:
    assert set(WRITTEN) == set(providers._as_written(np))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("key", WRITTEN)
def test_what_cupy_fuses_computes_what_it_should(key: str, dtype: str) -> None:
    pytest.importorskip("cupy")
    from tests.ptxrun import cupyrun

    case = stated(key, dtype)
    fused = providers.fused_by_cupy(case)
    arrays = operands(case)
    given = [*arrays[: len(arrays) - len(case.options)], *providers.numbers(case)]
    kernel = fused_kernel(fused, given)
    made = kernel.out_params[0].dtype
    if dtype == "bfloat16" and key in ("leaky_relu_backward", "prelu"):
        # CuPy's `where` makes float32 of it: on a GPU that is a row that says so
        assert made == np.float32
    else:
        assert made == numpy_dtype(dtype)
    out = np.full(case.shape, np.nan, made)
    cupyrun.elementwise(kernel, given, [out], arch=90)
    expected = suite.reference(case, cases.inputs(case))
    wide = tuple(y.astype(made) for y in expected)
    assert suite.mistake(case, (out,), wide, suite.STRAY.get(dtype, 0)) is None
