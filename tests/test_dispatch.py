"""Whose array it is and who computes: using(), GPUACT_BACKEND, mixtures, and what is missing.

Machines that lack a driver, a package, or have a broken one are played in processes of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuact
from gpuact import dispatch, routes
from gpuact.backends import BACKENDS
from gpuact.catalogue import FUNCTIONS, Function, Pass
from gpuact.libraries import Torch, library_of
from tests import harness
from tests.bounds import DTYPES
from tests.libraries import TORCH, libraries

ROOT = Path(__file__).resolve().parents[1]
X = np.array([-1.0, 2.0], np.float32)


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "ENVIRONMENT", "")


def runs(x: Any = X) -> str:
    """The backend that a call would run on now, or what the refusal says."""
    try:
        return dispatch.resolve(x=x).backend
    except TypeError as error:
        return str(error)


# -- using() --------------------------------------------------------------------------------------


def test_the_array_decides():
    assert runs() == "numpy"
    with gpuact.using("numpy"):
        assert runs() == "numpy"


@pytest.mark.parametrize("backend", ["cupy", "triton"])
def test_a_backend_that_cannot_take_the_array_names_those_that_can(backend):
    with gpuact.using(backend), pytest.raises(TypeError) as refused:
        gpuact.relu(X)
    message = str(refused.value)
    assert message.startswith(f'using("{backend}") cannot take an array of NumPy: numpy can')
    assert "moved" in message


def test_using_nests_and_ends():
    with gpuact.using("triton"):
        assert "triton" in runs()
        with gpuact.using("numpy"):
            assert runs() == "numpy"
            with gpuact.using("cupy"):
                assert "cupy" in runs()
            assert runs() == "numpy"
        assert "triton" in runs()
    assert runs() == "numpy"


def test_using_ends_with_an_exception():
    with pytest.raises(ZeroDivisionError), gpuact.using("cupy"):
        raise ZeroDivisionError
    assert runs() == "numpy"
    with gpuact.using("cupy"):
        for _ in range(2):
            with pytest.raises(TypeError):
                gpuact.relu(X)
        assert "cupy" in runs()


def test_using_decorates_functions():
    @gpuact.using("numpy")
    def work() -> str:
        return runs()

    with gpuact.using("cupy"):
        assert [work(), work()] == ["numpy"] * 2
        assert "cupy" in runs()


@pytest.mark.parametrize("name", ["gpu", "", "NumPy", "numpy ", None, 3])
def test_an_unknown_backend(name):
    allowed = r"^backend: .* came, allowed are numpy, cupy, triton$"
    with pytest.raises(ValueError, match=allowed), gpuact.using(name):
        pass
    assert runs() == "numpy"


# -- GPUACT_BACKEND -------------------------------------------------------------------------------


def test_the_environment_overrides_the_array(monkeypatch):
    monkeypatch.setattr(dispatch, "ENVIRONMENT", "numpy")
    assert runs() == "numpy"
    for backend in ("cupy", "triton"):
        monkeypatch.setattr(dispatch, "ENVIRONMENT", backend)
        with pytest.raises(TypeError, match=f"^GPUACT_BACKEND={backend} cannot take .*numpy can"):
            gpuact.softmax(X)
    monkeypatch.setattr(dispatch, "ENVIRONMENT", "")
    assert runs() == "numpy"


def test_using_beats_the_environment(monkeypatch):
    monkeypatch.setattr(dispatch, "ENVIRONMENT", "cupy")
    with gpuact.using("numpy"):
        assert runs() == "numpy"
        assert gpuact.relu(X).tolist() == [0.0, 2.0]
    assert "GPUACT_BACKEND=cupy" in runs()
    monkeypatch.setattr(dispatch, "ENVIRONMENT", "numpy")
    with gpuact.using("triton"):
        assert "triton" in runs()


def test_an_unknown_backend_in_the_environment(monkeypatch):
    monkeypatch.setattr(dispatch, "ENVIRONMENT", "cuda")
    allowed = "^GPUACT_BACKEND: 'cuda' came, allowed are numpy, cupy, triton$"
    with pytest.raises(ValueError, match=allowed):
        gpuact.relu(X)
    with pytest.raises(ValueError, match=allowed):
        gpuact.asarray([1.0])
    with gpuact.using("numpy"):
        assert gpuact.relu(X).tolist() == [0.0, 2.0]
    assert set(gpuact.backends()) == set(BACKENDS)


# -- mixtures -------------------------------------------------------------------------------------

MIXED: dict[str, Callable[[Any, Any], Any]] = {
    "scale": lambda x, other: gpuact.linear(x, other),
    "bias": lambda x, other: gpuact.linear(x, 1.0, other),
    "weight": lambda x, other: gpuact.prelu(x, other),
    "dy": lambda x, other: gpuact.tanh_backward(other, x),
    "target": lambda x, other: gpuact.cross_entropy(x, other),
    "lse": lambda x, other: gpuact.cross_entropy_backward(x[0], x, x, other),
    "dloss": lambda x, other: gpuact.cross_entropy_backward(other, x, x, x[0]),
}


@pytest.mark.parametrize("name", MIXED)
def test_two_libraries(name):
    torch = pytest.importorskip("torch")
    x, tensor = np.array([0.25, 0.75]), torch.tensor([0.25, 0.75], dtype=torch.float64)
    for first, other, type_name in ((x, tensor, "Tensor"), (tensor, x, "ndarray")):
        with pytest.raises(TypeError, match=f"^{name}: {type_name} came beside"):
            MIXED[name](first, other)


@pytest.mark.parametrize("name", MIXED)
def test_two_devices(name):
    torch = pytest.importorskip("torch")
    x = torch.tensor([0.25, 0.75])
    with pytest.raises(TypeError, match=f"^{name}: is on meta while .* is on cpu"):
        MIXED[name](x, x.to("meta"))


def test_a_device_that_nobody_runs_on(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(Torch, "home", lambda self, x: "PyTorch on mps")
    with pytest.raises(TypeError, match="PyTorch on mps came, allowed are NumPy, CuPy, PyTorch"):
        gpuact.relu(torch.ones(3, 7, 1, 11))
    with pytest.raises(TypeError, match=r"^logits: .*PyTorch on mps came"):
        gpuact.cross_entropy(torch.ones(3, 2, 1, 11), torch.zeros(3, 2, 1, dtype=torch.int64))


# -- torch tensors on the CPU ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_cpu_tensors_are_neither_copied_nor_shared(dtype):
    """out= is the tensor's own memory; a new result shares none with what went in."""
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    x = torch.linspace(-2, 2, 8).to(kind)
    for function in (gpuact.sigmoid, gpuact.softmax, gpuact.linear, gpuact.prelu):
        arguments = (x, 0.5) if function is gpuact.prelu else (x,)
        y = function(*arguments)
        assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
        memory = torch.full((20,), float("nan"), dtype=kind)
        out = memory[2:18:2]
        before = memory.data_ptr()
        assert function(*arguments, out=out) is out
        assert memory.data_ptr() == before
        assert torch.equal(memory[2:18:2], y)
        assert memory[3::2].isnan().all()
        view = x.clone()
        assert function(view, *arguments[1:], out=view).data_ptr() == view.data_ptr()
        assert torch.equal(view, y)


def test_a_parameter_or_a_buffer_comes_out_as_a_plain_tensor():
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.ones(3))
    with torch.no_grad():
        assert type(gpuact.relu(weight)) is torch.Tensor
    assert type(gpuact.relu(weight)) is torch.Tensor


@pytest.mark.parametrize("lib", TORCH, indirect=True)
def test_tensors_with_the_negative_bit(lib):
    """The imaginary part of a conjugate is a view whose sign lives in a flag, not in memory."""
    torch = pytest.importorskip("torch")
    device = lib.place(X).native.device
    z = torch.complex(torch.ones(4), torch.linspace(1, 4, 4)).to(device)
    x = z.conj().imag
    assert x.is_neg()
    want = x.resolve_neg()
    assert torch.equal(gpuact.leaky_relu(x, 0.5), 0.5 * want)
    assert torch.equal(gpuact.softmax(x), gpuact.softmax(want))
    dx, dweight = gpuact.prelu_backward(x, x, 0.5)
    assert torch.equal(dx, 0.5 * want)
    assert dweight == (want * want).sum()
    try:
        gpuact.leaky_relu(want, 0.5, out=x)
    except ValueError as refused:
        assert str(refused).startswith("out: ")
    else:
        assert torch.equal(x, 0.5 * want)


# -- asarray --------------------------------------------------------------------------------------


def test_asarray_on_numpy():
    with gpuact.using("numpy"):
        assert gpuact.asarray(X) is X
        for given, dtype in (([1, 2], np.int64), ([1.5], np.float64), (3, np.int64), (True, bool)):
            got = gpuact.asarray(given)
            assert isinstance(got, np.ndarray)
            assert got.dtype == dtype
            assert got.tolist() == given
        for dtype in DTYPES:
            for spelling in (dtype, DTYPES[dtype]):
                got = gpuact.asarray([1, 2.5], spelling)
                assert got.dtype == DTYPES[dtype]
                assert got.astype(float).tolist() == [1.0, 2.5]
        assert gpuact.asarray([1.9], int).tolist() == [1]


def test_asarray_leaves_tensors_where_they_are():
    torch = pytest.importorskip("torch")
    x = torch.ones(3)
    for backend in BACKENDS:
        with gpuact.using(backend):
            assert gpuact.asarray(x) is x
            assert gpuact.asarray(x, "float16").dtype == torch.float16
            assert gpuact.asarray(x, torch.bfloat16).dtype == torch.bfloat16
    assert gpuact.asarray([1.0], torch.float16).dtype == np.float16


@pytest.mark.parametrize("given", [None, "text", 1j, [object()], [[1], [1, 2]], b"x", {}])
def test_asarray_refuses_what_is_no_array(given):
    with gpuact.using("numpy"), pytest.raises((TypeError, ValueError)):
        gpuact.asarray(given)


@pytest.mark.parametrize("dtype", ["complex64", "object", "str", "datetime64[s]", "float8"])
def test_asarray_refuses_other_dtypes(dtype):
    with gpuact.using("numpy"), pytest.raises(TypeError, match="dtype"):
        gpuact.asarray([1.0], dtype)


def test_asarray_without_a_gpu():
    """NumPy by default; BackendError, with the reason, where a GPU was asked for."""
    if gpuact.backends()["cupy"].available:
        pytest.skip("a GPU answers here")
    assert isinstance(gpuact.asarray([1.0]), np.ndarray)
    for backend in ("cupy", "triton"):
        with gpuact.using(backend), pytest.raises(gpuact.BackendError) as refused:
            gpuact.asarray([1.0])
        assert isinstance(refused.value, RuntimeError)
        reason = str(refused.value)
        assert "backend cannot run: " in reason
        assert any(gpuact.backends()[name].reason in reason for name in ("cupy", "triton"))


@pytest.mark.cuda
def test_asarray_with_a_gpu():
    harness.needs_gpu("cupy")
    import cupy

    got = gpuact.asarray([1.0, 2.0], "bfloat16")
    assert isinstance(got, cupy.ndarray)
    assert got.dtype == DTYPES["bfloat16"]
    assert gpuact.asarray(got) is got
    with gpuact.using("numpy"):
        assert isinstance(gpuact.asarray([1.0]), np.ndarray)


# -- streams --------------------------------------------------------------------------------------


@pytest.mark.every
@pytest.mark.parametrize("stream", ["null", "another"])
@pytest.mark.parametrize("lib", libraries("cupy-on-triton", "torch-cuda-on-cupy"), indirect=True)
def test_another_librarys_backend_works_on_the_callers_stream(lib, stream):
    """Both libraries name the caller's stream as their current one, and only in there."""
    import cupy
    import torch

    x = lib.place(X).native
    library = library_of(x)
    assert library is not None
    if library.name == "cupy":
        mine = cupy.cuda.Stream.null if stream == "null" else cupy.cuda.Stream(non_blocking=True)
        entered, pointer = mine, mine.ptr
    else:
        mine = torch.cuda.default_stream() if stream == "null" else torch.cuda.Stream()
        entered, pointer = torch.cuda.stream(mine), mine.cuda_stream

    def current() -> tuple[int, int]:
        return cupy.cuda.get_current_stream().ptr, torch.cuda.current_stream().cuda_stream

    assert (pointer == 0) == (stream == "null")
    before = current()
    with entered:
        assert pointer in current()
        with library.on(x, lib.backend):
            assert current() == (pointer, pointer)
    assert current() == before


# -- warmup() -------------------------------------------------------------------------------------


def unprepared(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and losses go by the backend's own functions, not by what was learned or is prepared."""
    for name in ("prepare_rows", "prepare_losses"):
        monkeypatch.delattr(backend, name, raising=False)
    monkeypatch.setattr(routes, "_routes", {})


@pytest.mark.every
@pytest.mark.parametrize("lib", [*libraries("numpy", "cupy"), *TORCH], indirect=True)
def test_warmup_runs_every_function_and_its_backward(lib, monkeypatch):
    """Forward, backward and derivative; of rows both; of a loss both, and both at once."""
    ran: list[str] = []
    whole = ("cross_entropy", "cross_entropy_with_grad")
    for name in ("elementwise", "fused_backward", "rows", *whole):
        work = getattr(lib.executor.backend, name)

        def spy(*args: Any, name: str = name, work: Any = work, **options: Any) -> None:
            what = name if name in whole else args[0]
            ran.append(f"{what.activation}_backward" if name == "fused_backward" else what)
            work(*args, **options)

        monkeypatch.setattr(lib.executor.backend, name, spy)
    if prepare := getattr(lib.executor.backend, "prepare", None):

        def prepared(formula: str, *args: Any) -> Any:
            start = prepare(formula, *args)
            return lambda *given: (ran.append(formula), start(*given))

        monkeypatch.setattr(lib.executor.backend, "prepare", prepared)
    unprepared(lib.executor.backend, monkeypatch)
    like = lib.place(X).native
    each = {"elementwise": 3, "rows": 2, "loss": 3}
    calls = sum(each[f.kind] for f in FUNCTIONS.values())
    assert gpuact.warmup([(2, 3)], ["float32"], like=like) == calls
    kernels = {p.formula for f in FUNCTIONS.values() if f.kind != "loss" for p in passes(f)}
    assert kernels | {"linear_backward", "prelu_backward"} | set(whole) <= set(ran)
    assert gpuact.warmup([(2, 3), (4,)], ["float32", "float16"], ["relu"], like=like) == 4 * 3
    assert gpuact.warmup([], like=like) == 0


@pytest.mark.parametrize("lib", [*libraries("numpy", "cupy"), *TORCH], indirect=True)
def test_warmup_with_options(lib, monkeypatch):
    """Each goes to every function that takes it, and so to the kernels."""
    ran: list[Any] = []
    losses = ("cross_entropy", "cross_entropy_backward", "cross_entropy_with_grad")
    for name in ("rows", *losses):
        work = getattr(lib.executor.backend, name)

        def spy(*args: Any, name: str = name, work: Any = work, **options: Any) -> None:
            ran.append((args[0], args[3]) if name == "rows" else (name, args, options))
            work(*args, **options)

        monkeypatch.setattr(lib.executor.backend, name, spy)
    unprepared(lib.executor.backend, monkeypatch)
    x = lib.place(np.zeros((2, 3, 4), np.float32)).native
    mask = lib.place(np.ones((2, 1, 4), bool)).native
    options = {"scale": 0.5, "mask": mask, "causal": True, "all_masked": "zero"}
    assert gpuact.warmup([(2, 3, 4)], ["float32"], ["softmax"], like=x, **options) == 2
    (_, forward), (_, backward) = ran
    assert (forward.scale, forward.causal, forward.zero) == (0.5, 3, True)
    assert tuple(forward.mask.shape) == (2, 3, 4)
    assert (backward.scale, backward.mask, backward.causal) == (0.5, None, 0)

    ran.clear()
    weight = lib.place(np.ones(3, np.float32)).native
    options = {"weight": weight, "z_loss": 0.1, "softcap": 5.0, "label_smoothing": 0.1, "axis": 1}
    both = ["cross_entropy", "log_softmax"]
    assert gpuact.warmup([(2, 3, 4)], ["float32"], both, like=x, **options) == 5
    for name, args, given in (what for what in ran if what[0] in losses):
        assert (given["z_loss"], given["softcap"], given["label_smoothing"]) == (0.1, 5.0, 0.1)
        logits, target, *_ = args if name == "cross_entropy" else args[1:]
        assert (tuple(logits.shape), tuple(target.shape)) == ((2, 3, 4), (2, 4))
    ran.clear()
    options = {"target": x, "axis": -1, "gradient_in_forward": True, "reduction": "sum"}
    assert gpuact.warmup([(2, 3, 4)], ["float32"], ["cross_entropy"], like=x, **options) == 3
    tensors = lib.name.startswith("torch")
    # a backend may come back to its own face, with copies of what lies otherwise
    assert list(dict.fromkeys(name for name, *_ in ran)) == list(losses)
    assert len(ran) >= len(losses) + tensors
    for name, args, _ in ran:
        logits, target, *_ = args if name == "cross_entropy" else args[1:]
        assert tuple(logits.shape) == tuple(target.shape) == (6, 4, 1)


def passes(function: Function) -> list[Pass]:
    """What `elementwise` or `rows` is asked for; backward with sums is `fused_backward`."""
    own = [function.forward, function.slope, *([] if function.sums else [function.backward])]
    return [p for p in own if p is not None]


# -- backends(): what is here, and why not --------------------------------------------------------


def test_backends_says_what_is_here():
    found = gpuact.backends()
    assert list(found) == list(BACKENDS)
    assert found["numpy"].available
    assert found["numpy"].reason == ""
    assert found["numpy"].versions["numpy"] == np.__version__
    assert str(found["numpy"]).startswith("numpy: available (numpy ")
    for backend in found.values():
        assert backend.available == (backend.reason == "")
        assert "\n" not in str(backend)


# Machines, played by packages that stand in front of the real ones.
BROKEN = "raise OSError('libcudart.so.99: cannot open shared object file')"
STRANGE = "raise RuntimeError('incompatible\\nwith\\nthis machine')"
HALF = "ndarray = None"  # a package that imports and has nothing in it
DRIVERLESS = """
class CUDARuntimeError(RuntimeError): pass
class ndarray: pass
class runtime:
    @staticmethod
    def getDeviceCount(): raise CUDARuntimeError('cudaErrorNoDevice: no CUDA-capable device')
class cuda: pass
cuda.runtime = runtime
"""
GPU_SEEN = """
class Tensor: pass
class cuda:
    is_available = staticmethod(lambda: True)
    get_device_capability = staticmethod(lambda: (9, 0))
"""
GPU_UNSEEN = """
__version__ = "2.13.0"
class Tensor: pass
class cuda: is_available = staticmethod(lambda: False)
class version: cuda = {cuda!r}
"""
INTERPRETERLESS = """
class knobs:
    class runtime: interpret = False
"""
COMPILERLESS = """
class knobs:
    class runtime: interpret = False
class Driver:
    @property
    def active(self): raise RuntimeError('Failed to find C compiler.')
class runtime: driver = Driver()
"""
# name → (package → its __init__.py, None: not installed), (backend → what its reason says)
MACHINES: dict[str, tuple[dict[str, str | None], dict[str, str]]] = {
    "nothing installed": (
        {"cupy": None, "torch": None, "triton": None},
        {"cupy": "not installed.*gpuact.cuda1", "triton": "torch.*gpuact.torch"},
    ),
    "CuPy and no driver": ({"cupy": DRIVERLESS}, {"cupy": "driver.*no CUDA-capable.*--gpus all"}),
    "torch's CPU build": (
        {"torch": GPU_UNSEEN.format(cuda=None), "triton": INTERPRETERLESS},
        {"triton": "torch 2.13.0 is built without CUDA"},
    ),
    "a container without the GPU": (
        {"cupy": DRIVERLESS, "torch": GPU_UNSEEN.format(cuda="13.0"), "triton": INTERPRETERLESS},
        {"cupy": "driver.*--gpus all", "triton": "no CUDA GPU.*driver.*--gpus all"},
    ),
    "a driver and no CuPy": ({"cupy": None}, {"cupy": "CuPy is not installed"}),
    "torch without triton": ({"triton": None}, {"triton": "triton.*gpuact.torch"}),
    "broken CuPy": ({"cupy": BROKEN}, {"cupy": "libcudart.so.99"}),
    "strange CuPy": ({"cupy": STRANGE}, {"cupy": "incompatible"}),
    "hollow CuPy": ({"cupy": HALF}, {"cupy": "attribute"}),
    "broken triton": ({"triton": BROKEN}, {"triton": "libcudart.so.99"}),
    "broken torch": ({"torch": BROKEN}, {"triton": "libcudart.so.99"}),
    "hollow torch": ({"torch": "", "triton": ""}, {"triton": "attribute"}),
    "a GPU and no C compiler": (
        {"torch": GPU_SEEN, "triton": COMPILERLESS},
        {"triton": "find C compiler.*install gcc"},
    ),
    "no GPU to be seen": ({}, {"cupy": "driver|device", "triton": "GPU|torch"}),
}
PROGRAM = """
import re, sys
for name in {absent!r}:
    sys.modules[name] = None  # the import system's own way of saying that there is no such module
import numpy, gpuact
found = gpuact.backends()
assert found["numpy"].available
for name, word in {reasons!r}.items():
    assert not found[name].available
    assert re.search(word, found[name].reason), found[name].reason
    assert "\\n" not in found[name].reason, found[name].reason
    print(found[name])
assert gpuact.relu(numpy.array([-1.0, 2.0])).tolist() == [0.0, 2.0]
assert isinstance(gpuact.asarray([1.0]), numpy.ndarray)
for name in {reasons!r}:
    try:
        with gpuact.using(name):
            gpuact.asarray([1.0])
    except gpuact.BackendError as error:
        print(error)
    else:
        raise AssertionError("asarray gave an array without a GPU")
assert gpuact.backends() == found
"""


@pytest.mark.parametrize("machine", MACHINES)
def test_a_machine_that_lacks_something(machine, tmp_path):
    packages, reasons = MACHINES[machine]
    if "triton" in packages and "torch" not in packages:
        pytest.importorskip("torch", reason="the reason is torch's absence as long as it is absent")
    for name, text in packages.items():
        if text is not None:
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text(text)
    absent = [name for name, text in packages.items() if text is None]
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM.format(absent=absent, reasons=reasons)],
        env=environment | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""


def test_torch_tensors_when_the_gpu_packages_are_broken(tmp_path):
    """A broken CuPy or Triton is nobody's business on the CPU."""
    pytest.importorskip("torch")
    for name in ("cupy", "triton"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(BROKEN)
    program = (
        "import torch, gpuact; x = torch.ones(3, requires_grad=True); "
        "gpuact.softmax(x).sum().backward(); assert x.grad.tolist() == [0, 0, 0]"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
