"""Many threads at once, tasks, generators and forks: the results of one thread alone, to the bit.

Races that lazy loading could have are rare: processes are forked that have loaded nothing yet, and
threads hand over to each other between any two steps.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuact
from gpuact import dispatch, routes
from tests import harness
from tests.bounds import DTYPES
from tests.libraries import Library, libraries, values

ROOT = Path(__file__).resolve().parents[1]
THREADS = 16
X = np.array([-1.0, 2.0], np.float32)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads hand the interpreter over as often as they can; nothing was asked for outside."""
    monkeypatch.setattr(dispatch, "ENVIRONMENT", "")
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def at_once(work: Callable[[int], Any], count: int = THREADS) -> list[Any]:
    """What each thread gives, of threads that begin together; the first one's error is raised."""
    gate = threading.Barrier(count)

    def begin(k: int) -> Any:
        gate.wait(60)
        return work(k)

    with ThreadPoolExecutor(count) as pool:
        return [future.result(60) for future in [pool.submit(begin, k) for k in range(count)]]


def bits(result: Any) -> Any:
    """Something to compare a result, or several, by."""
    if isinstance(result, tuple | list):
        return [bits(each) for each in result]
    if hasattr(result, "detach"):
        result = harness._from_torch(result.detach())
    elif hasattr(result, "get"):
        result = result.get()
    return result.dtype.name, result.shape, result.tobytes()


def runs(x: Any = X) -> str:
    """The backend that a call would run on now, or what the refusal says."""
    try:
        return dispatch.resolve(x=x).backend
    except TypeError as error:
        return str(error).partition(" cannot")[0]


# -- values ---------------------------------------------------------------------------------------

DROPOUT = gpuact.Dropout(0.5, seed=7)

# x and dy, (rows, columns); w, a column; t, a class for each row
CALLS: dict[str, Callable[[Any, Any, Any, Any], Any]] = {
    "relu": lambda x, dy, w, t: gpuact.relu(x),
    "linear": lambda x, dy, w, t: gpuact.linear(x, w, 0.5),
    "linear_backward": lambda x, dy, w, t: gpuact.linear_backward(dy, x, w, w),
    "sigmoid": lambda x, dy, w, t: gpuact.sigmoid_backward(dy, gpuact.sigmoid(x)),
    "tanh_derivative": lambda x, dy, w, t: gpuact.tanh_derivative(x),
    "leaky_relu": lambda x, dy, w, t: gpuact.leaky_relu_backward(dy, x, 0.3),
    "prelu": lambda x, dy, w, t: gpuact.prelu(x, w, channel_axis=-1),
    "prelu_backward": lambda x, dy, w, t: gpuact.prelu_backward(dy, x, w, channel_axis=-1),
    "softmax": lambda x, dy, w, t: gpuact.softmax(x, scale=0.5, causal=True),
    "softmax_backward": lambda x, dy, w, t: gpuact.softmax_backward(dy, gpuact.softmax(x)),
    "log_softmax": lambda x, dy, w, t: gpuact.log_softmax_backward(dy, gpuact.log_softmax(x, 0), 0),
    "cross_entropy": lambda x, dy, w, t: gpuact.cross_entropy(x, t, label_smoothing=0.1),
    "with_grad": lambda x, dy, w, t: gpuact.cross_entropy_with_grad(x, t, reduction="none"),
    "fused": lambda x, dy, w, t: gpuact.fused(
        x, activation="tanh", bias=w, gate=dy, residual=x, dropout=DROPOUT
    ),
    "asarray": lambda x, dy, w, t: gpuact.relu(gpuact.asarray(x, "float64")),
}
SHAPES = ((2, 3), (7, 40), (9, 301))


def arguments(lib: Library, shape: tuple[int, int], dtype: str, seed: int = 0) -> list[Any]:
    """In the order of CALLS."""
    given = (values(s, dtype, seed, (0.0, -0.0)) for s in (shape, shape, shape[1:]))
    classes = np.random.default_rng(seed).integers(0, shape[1], shape[0])
    return [lib.place(np.array(a)).native for a in (*given, classes)]


@pytest.mark.parametrize(
    "lib",
    libraries("numpy", "numpy-in-pieces", "torch-cpu", "cupy", "torch-cuda"),
    indirect=True,
)
def test_sixteen_threads_mix_functions(lib):
    """Each begins elsewhere in the list, so that at any moment all sorts of calls are on their way.

    On a GPU they share the default stream."""
    with gpuact.using(lib.backend or lib.executor.backend.__name__.rpartition(".")[2]):
        work = [
            (call, arguments(lib, shape, dtype, k))
            for k, dtype in enumerate(DTYPES)
            for shape in SHAPES
            for call in CALLS.values()
        ]
        context = contextvars.copy_context()
    want = [bits(call(*args)) for call, args in work]

    def several(k: int) -> list[Any]:
        order = [(k * 11 + 7 * i) % len(work) for i in range(len(work))]  # 7 is prime to the number
        found: list[Any] = [None] * len(work)
        for i in order:
            call, args = work[i]
            found[i] = bits(call(*args))
        return found

    assert len(work) % 7 and len(work) % 11
    for found in at_once(lambda k: context.copy().run(several, k)):
        assert found == want


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_threads_that_each_have_threads_of_their_own(dtype):
    """Arrays so large that the NumPy backend shares them, from four callers at once."""
    shape = (1031, 1031)  # beyond 2^20 elements
    x, dy = values(shape, dtype, 0, ()), values(shape, dtype, 1, ())
    target = np.arange(shape[0])
    work: list[Callable[[], Any]] = [
        lambda: gpuact.tanh(x),
        lambda: gpuact.softmax(x),
        lambda: gpuact.linear_backward(dy, x, x[0], x[0]),
        lambda: gpuact.cross_entropy_with_grad(x, target),
    ]
    want = [bits(each()) for each in work]
    for k, found in enumerate(at_once(lambda k: bits(work[k % 4]()), 8)):
        assert found == want[k % 4]


def loss(x: Any, w: Any, target: Any) -> Any:
    """Through most of autograd's functions."""
    h = gpuact.fused(x, activation="sigmoid", bias=w, dropout=DROPOUT)
    h = gpuact.prelu(gpuact.linear(h, w), w, channel_axis=-1) + gpuact.tanh(x)
    h = gpuact.softmax(h, scale=3.0) + gpuact.log_softmax(gpuact.leaky_relu(h), 0)
    return gpuact.cross_entropy(gpuact.relu(h), target, label_smoothing=0.1)


@pytest.mark.parametrize("lib", libraries("torch-cpu", "torch-cuda"), indirect=True)
def test_backward_in_sixteen_threads(lib):
    """Once to the gradient, and once more through it; some tensors are of all threads."""
    import torch

    work = []
    for k, dtype in enumerate(DTYPES):
        for shape in SHAPES[1:2]:
            x, _, w, target = arguments(lib, shape, dtype, k)
            work.append((x.requires_grad_(), w.requires_grad_(), target))

    def gradients(k: int) -> list[Any]:
        found: list[Any] = [None] * len(work)
        for i in range(len(work)):
            x, w, target = work[(i + k) % len(work)]
            twice = torch.autograd.grad(loss(x, w, target), (x, w), create_graph=True)
            more = torch.autograd.grad(sum(g.square().sum() for g in twice), (x, w))
            mine = x.detach().clone().requires_grad_()
            loss(mine, w.detach(), target).backward()
            found[(i + k) % len(work)] = bits([*twice, *more, mine.grad])
        return found

    want = gradients(0)
    assert any(np.frombuffer(want[0][2][2], "u1"))  # the second derivative is something
    context = contextvars.copy_context()
    for found in at_once(lambda k: context.copy().run(gradients, k)):
        assert found == want


# -- what is kept from call to call ---------------------------------------------------------------


@pytest.mark.parametrize("lib", libraries("numpy", "torch-cpu"), indirect=True)
def test_routes_found_and_dropped_by_many(lib, monkeypatch):
    """Sixteen threads meet new shapes while there is room for eight kinds of call."""
    monkeypatch.setattr(routes, "_routes", {})
    monkeypatch.setattr(routes, "MOST", 8)
    work = [
        (CALLS[name], arguments(lib, (1 + n % 3, 2 + n), "float32"))
        for n in range(24)
        for name in ("relu", "prelu_backward", "softmax_backward", "with_grad", "fused")
    ]
    want = [bits(call(*args)) for call, args in work]
    for found in at_once(lambda k: [bits(call(*args)) for call, args in work]):
        assert found == want
    assert len(routes._routes) <= 8 + THREADS


Seen = list[Any]


def recorder(executor: harness.Executor, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Seen]:
    """Has the backend's launches written down by each thread for itself, and nothing executed."""
    mine = threading.local()

    def record(*launched: Any) -> None:
        mine.seen.append(launched)

    def plain(args: Any) -> list[Any]:
        return [tuple(a.shape) if hasattr(a, "shape") else str(a) for a in args]

    if executor.name == "triton-ptx":
        monkeypatch.setattr(
            executor.backend,
            "launch",
            lambda plan, args: record(
                plan.kernel.__name__, plan.grid, str(plan.constexprs), plan.warps, plain(args)
            ),
        )
    else:
        monkeypatch.setattr(
            executor.backend,
            "launch_raw",
            lambda module, name, grid, block, args, *more: record(
                name, grid, block, plain(args), more
            ),
        )
        monkeypatch.setattr(
            executor.backend,
            "launch_elementwise",
            lambda kernel, arrays, numbers, size: record(kernel.name, plain(arrays), numbers, size),
        )

    def begin() -> Seen:
        mine.seen = []
        return mine.seen

    return begin


@pytest.mark.parametrize("name", ["cupy-ptx", "triton-ptx"])
def test_plans_made_and_dropped_by_many(name, monkeypatch):
    """As above, of the plans of GPU backends: each call launches what it launches alone. The PTX
    interpreter itself is of one thread, so launches are written down, not executed."""
    executor = harness.make(name, monkeypatch, run=False)
    backend, empty = executor.backend, executor.empty
    begin = recorder(executor, monkeypatch)
    monkeypatch.setattr(backend, "PLANS", 8)
    work: list[Callable[[], None]] = []

    def new(*shape: int) -> Any:
        return executor.place(np.ones(shape, np.float32)).native

    for n in range(20):
        x, y, w = new(2, 5 + n, 3), new(2, 5 + n, 3), new(1, 5 + n, 1)
        z, dz, per_row = new(3, 70 + 50 * n, 1), new(3, 70 + 50 * n, 1), new(3, 1)
        t = executor.place(np.zeros((3, 1), np.int64)).native
        how = {"ignore_index": -100, "label_smoothing": 0.1, "z_loss": 0.0, "softcap": 0.0}
        work += [
            lambda x=x, y=y, w=w: backend.elementwise("leaky_relu", (x,), (w,), y, empty),
            lambda x=x, y=y, w=w: backend.reduce("linear_dscale", (x, y), w, empty),
            lambda z=z, dz=dz: backend.rows("softmax", (z,), dz, None, empty),
            lambda z=z, dz=dz, t=t, r=per_row, how=how: backend.cross_entropy_with_grad(
                r, z, t, None, r, dz, empty=empty, **how
            ),
        ]

    def launched(k: int) -> list[Any]:
        seen = begin()
        found = []
        for i in range(len(work)):
            seen.clear()
            work[(i + 5 * k) % len(work)]()
            found.append([*seen])
        return [found[(i - 5 * k) % len(work)] for i in range(len(work))]

    want = launched(0)
    assert all(want)
    for found in at_once(launched):
        assert found == want
    assert len(backend._plans) <= 8 + THREADS


@pytest.mark.interpreter
def test_kernels_launched_by_many(monkeypatch):
    """New layouts from sixteen threads. Triton's interpreter is of one thread, so kernels take
    turns; all above them does not."""
    pytest.importorskip("torch")
    backend = harness.make("triton-interpreter", monkeypatch).backend
    lib = Library("interpreter", harness.EXECUTORS["triton-interpreter"](), "triton")
    turn, launch = threading.Lock(), backend.launch

    def one_by_one(plan: Any, args: tuple[Any, ...]) -> None:
        with turn:
            launch(plan, args)

    monkeypatch.setattr(backend, "launch", one_by_one)
    names = ("prelu", "softmax_backward", "with_grad")
    work = [
        (CALLS[name], arguments(lib, (2, 3 + n), "float32")) for n in range(2) for name in names
    ]

    def all_of_them(k: int) -> list[Any]:
        with gpuact.using("triton"):
            return [bits(call(*args)) for call, args in work]

    want = all_of_them(0)
    monkeypatch.setattr(backend, "_plans", {})
    monkeypatch.setattr(routes, "_routes", {})
    for found in at_once(all_of_them):
        assert found == want


# -- first use, and forks -------------------------------------------------------------------------


def run(program: str, *args: str) -> None:
    """In a process of its own, which must end well."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


FIRST_USE = """
import json, os, signal, sys, threading, traceback, warnings
import numpy as np
{imports}
import gpuact

warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)  # newer Pythons: threads beside
warnings.filterwarnings("ignore", ".torch.jit", DeprecationWarning)  # torch's own
warnings.filterwarnings("ignore", ".*distutils")
X, W, T = np.linspace(-2, 2, 12).reshape(3, 4), np.linspace(0, 1, 4), np.array([3, 0, 1])
{first}

def alone(k):
    return FIRST[k % len(FIRST)]()

def child(many):
    signal.alarm(100)  # whoever waits without end is ended
    sys.setswitchinterval(1e-6)
    found, gate = {{}}, threading.Barrier(16)
    def begin(k):
        gate.wait()
        try:
            found[k] = np.asarray(alone(k), np.float64).tolist()
        except BaseException:
            traceback.print_exc()
    if many:
        threads = [threading.Thread(target=begin, args=(k,)) for k in range(16)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    else:
        for k in range(16): found[k] = np.asarray(alone(k), np.float64).tolist()
    return found

def forked(many):
    there, here = os.pipe()
    if not os.fork():
        try:
            with os.fdopen(here, "w") as file:
                json.dump(child(many), file)
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(here)
    with os.fdopen(there) as file:
        found = json.load(file)
    assert os.wait()[1] == 0
    return found

want = forked(False)
assert len(want) == 16
for _ in range(int(sys.argv[1])):
    found = forked(True)
    assert found == want, (found, want)
assert "gpuact.backends.numpy" not in sys.modules  # so it was everybody's first use
"""

FIRST = {
    # the backend, ml_dtypes
    "NumPy": (
        "",
        """
def here(*args):
    with gpuact.using("numpy"):
        return gpuact.asarray(*args)
FIRST = [
    lambda: gpuact.tanh(X),
    lambda: gpuact.relu(here([[-1, 2]], "bfloat16")).astype("f8"),
    lambda: gpuact.softmax([1.0, 2.0]),
    lambda: gpuact.cross_entropy_with_grad(X, T)[1],
    lambda: gpuact.fused(X, activation="prelu", weight=W, dropout=gpuact.Dropout(0.5, seed=1)),
    lambda: here([1, 2]),
]
""",
    ),
    # autograd, operators, double backward, functions and modules
    "PyTorch": (
        "import torch",
        """
x, w, t = torch.from_numpy(X), torch.from_numpy(W), torch.from_numpy(T)
def grad(f, **how):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(f(leaf).square().sum(), leaf, **how)[0]
def twice():
    leaf = x.clone().requires_grad_()
    first, = torch.autograd.grad(gpuact.tanh(leaf).sum(), leaf, create_graph=True)
    return torch.autograd.grad(first.sum(), leaf)[0]
def operator():
    from gpuact.torch import ops
    return torch.ops.gpuact.sigmoid(x)
def module():
    from gpuact.torch import nn
    return nn.PReLU(4)(x.float().reshape(3, 4)).detach()
def function():
    import gpuact.torch.functional as F
    return F.softmax(x, -1)
FIRST = [
    lambda: grad(gpuact.tanh),
    lambda: grad(lambda x: gpuact.linear(x, w)),
    lambda: grad(lambda x: gpuact.cross_entropy(x, t)),
    twice,
    operator,
    module,
    function,
    lambda: gpuact.relu(x.bfloat16()).double(),
    lambda: gpuact.log_softmax(X),
    lambda: torch.func.grad(lambda x: gpuact.sigmoid(x).sum())(x),
    lambda: grad(lambda x: gpuact.fused(x, activation="tanh", bias=w)),
]
""",
    ),
    # some import it while others know nothing of it
    "PyTorch imported on the way": (
        "",
        """
def tensors(f):
    def work():
        import torch
        x = torch.from_numpy(X).requires_grad_()
        return torch.autograd.grad(f(x).square().sum(), x)[0]
    return work
FIRST = [
    lambda: gpuact.tanh(X),
    tensors(gpuact.softmax),
    lambda: gpuact.cross_entropy(X, T),
    tensors(gpuact.relu),
    lambda: len(gpuact.backends()),
    lambda: np.array(gpuact.asarray([1.5], "bfloat16").tolist()),  # looks for a GPU
]
""",
    ),
}


@pytest.mark.parametrize(
    ("mix", "times"),
    [
        ("NumPy", 8),
        ("PyTorch", 1),
        pytest.param("NumPy", 100, marks=pytest.mark.slow),
        pytest.param("PyTorch", 25, marks=pytest.mark.slow),
        pytest.param("PyTorch imported on the way", 6, marks=pytest.mark.slow),
    ],
)
def test_first_use_by_sixteen_threads(mix, times):
    imports, first = FIRST[mix]
    if "torch" in imports + first:
        pytest.importorskip("torch")
    run(FIRST_USE.format(imports=imports, first=first), str(times))


def test_many_threads_and_a_fork():
    """Calls from many threads at once, each large enough for the executor's own threads; then from
    a forked process, which has none of them.
    """
    run(MANY_THREADS_AND_A_FORK)


MANY_THREADS_AND_A_FORK = """
import os, signal, threading, warnings
from concurrent.futures import ThreadPoolExecutor
import numpy as np, gpuact
from gpuact.backends import numpy as backend

backend.WORKERS, backend.PARALLEL = 4, 1 << 10
arrays = [np.linspace(-3, 3, 60_000).reshape(60, 1000) + k for k in range(8)]
want = [(np.tanh(x), np.exp(x) / np.exp(x).sum(-1, keepdims=True)) for x in arrays]

def compute(k):
    with gpuact.using("numpy"):
        return gpuact.tanh(arrays[k]), gpuact.softmax(arrays[k])

def check(results):
    for got, right in zip(results, want, strict=True):
        for a, b in zip(got, right, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)

def fork():
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # a lost thread would be waited for without end
        check(map(compute, range(8)))
        with ThreadPoolExecutor(8) as pool:
            check(pool.map(compute, range(8)))
        assert any(t.name.startswith("gpuact") for t in threading.enumerate())  # its own now
        os._exit(0)
    return child

warnings.simplefilter("ignore")  # newer Pythons warn of a fork among threads
children = [fork()]
with ThreadPoolExecutor(8) as pool:
    for _ in range(5):
        check(pool.map(compute, range(8)))
    for _ in range(4):  # in the middle of it
        results = pool.map(compute, range(8))
        children.append(fork())
        check(results)
children.append(fork())
for child in children:
    assert os.waitpid(child, 0)[1] == 0
"""


def test_tensors_and_a_fork():
    """After import, and after autograd has run on threads."""
    pytest.importorskip("torch")
    run(TENSORS_AND_A_FORK)


TENSORS_AND_A_FORK = """
import os, signal, threading, warnings
import torch, gpuact
warnings.simplefilter("ignore")
x, t = torch.linspace(-2, 2, 60).reshape(6, 10), torch.arange(6)

def compute():
    leaf = x.clone().requires_grad_()
    loss = gpuact.cross_entropy(gpuact.tanh(gpuact.linear(leaf, 2.0)), t)
    g, = torch.autograd.grad(loss, leaf, create_graph=True)
    h, = torch.autograd.grad(g.square().sum(), leaf)
    return torch.stack([g.detach(), h])

def fork():
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if torch.allclose(compute(), want, 1e-5, 1e-8) else 3)
    assert os.waitpid(child, 0)[1] == 0

z = torch.tanh(2 * x).double()
want = torch.zeros(2, 6, 10)
fork_first = os.fork()
if fork_first == 0:
    signal.alarm(60)
    os._exit(0 if compute().isfinite().all() else 3)
assert os.waitpid(fork_first, 0)[1] == 0
want = compute()
fork()
threads = [threading.Thread(target=compute) for _ in range(8)]
for thread in threads: thread.start()
fork()
for thread in threads: thread.join()
fork()
"""


AFTER_THE_END = """
import atexit, sys, threading, time
import numpy as np
import gpuact

x = np.linspace(-3, 3, (1 << 20) + 7)
want = np.maximum(x, 0).tobytes()
if sys.argv[1] == "used":
    gpuact.relu(x)

def work():
    if gpuact.relu(x).tobytes() == want:
        print("done", flush=True)

def late():
    while threading.main_thread().is_alive():
        time.sleep(0.001)
    work()

threading.Thread(target=late).start()
atexit.register(work)
"""


@pytest.mark.parametrize("used", ["used", "unused"])
def test_threads_that_outlive_the_main_one_and_functions_at_exit(used):
    """Where Python starts no threads any more."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", AFTER_THE_END, used],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("done\n" * 2, "")


@pytest.mark.parametrize("given", [0, 1])
def test_a_system_that_gives_no_more_threads(given, monkeypatch):
    """The caller does the work with those that there are, and nobody goes on behind its back."""
    backend = harness.make("numpy", monkeypatch).backend
    backend._pool.cache_clear()
    for name, value in {"BLOCK": 64, "PARALLEL": 256, "WORKERS": 4, "SPANS": 12}.items():
        monkeypatch.setattr(backend, name, value)
    start, started = threading.Thread.start, []

    def refused(thread: threading.Thread) -> None:
        if len(started) >= given:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    x = values((5000,), "float32", 0, ())
    want = gpuact.tanh(x[:255]).tobytes()  # without threads
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        found = gpuact.tanh(x)
        assert (found[:255].tobytes(), len(started)) == (want, given)
        assert gpuact.tanh(x).tobytes() == found.tobytes()
    assert gpuact.tanh(x).tobytes() == found.tobytes()


def test_a_thread_that_comes_too_late(monkeypatch):
    """A system refuses a thread, after the work was queued; one that is free later does not begin
    what nobody would wait for."""
    backend = harness.make("numpy", monkeypatch).backend
    backend._pool.cache_clear()
    monkeypatch.setattr(backend, "WORKERS", 4)
    free, who = threading.Event(), []
    busy = backend._pool(os.getpid()).submit(free.wait, 10)

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def work(piece: int) -> None:
        who.append(threading.current_thread())
        free.set()
        time.sleep(0.02)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        backend._share(work, range(5), backend.PARALLEL)
    assert busy.result(10)
    assert who == [threading.current_thread()] * 5


# -- using() --------------------------------------------------------------------------------------


def test_using_is_a_matter_of_the_thread():
    found: dict[str, str] = {}
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        with gpuact.using("triton"):
            inside.set()
            found["other"] = runs()
            done.wait(10)

    def bystander() -> None:
        found["bystander"] = runs()

    with gpuact.using("cupy"):
        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(10)
        found["here"] = runs()
        second = threading.Thread(target=bystander)
        second.start()
        second.join()
        done.set()
        thread.join()
    assert found == {
        "other": 'using("triton")',
        "here": 'using("cupy")',
        "bystander": "numpy",
    }


def test_using_is_a_matter_of_the_task():
    async def task(backend: str, steps: int) -> list[str]:
        seen = []
        with gpuact.using(backend):
            for _ in range(steps):
                await asyncio.sleep(0)
                seen.append(runs())
        seen.append(runs())
        return seen

    async def both() -> list[list[str]]:
        with gpuact.using("triton"):  # tasks inherit what held where they were made
            return await asyncio.gather(task("numpy", 3), task("cupy", 5))

    first, second = asyncio.run(both())
    assert first == ["numpy"] * 3 + ['using("triton")']
    assert second == ['using("cupy")'] * 5 + ['using("triton")']
    assert runs() == "numpy"


def nested(seed: int, depth: int = 6) -> None:
    """Blocks in blocks, some left by exceptions; inside each what was asked for last."""
    around = runs()
    backend = ("numpy", "cupy", "triton")[(seed + depth) % 3]
    inside = "numpy" if backend == "numpy" else f'using("{backend}")'
    try:
        with gpuact.using(backend):
            assert runs() == inside
            if depth:
                nested(seed, depth - 1)
                nested(seed + 1, depth - 1)
            assert runs() == inside
            if seed % 2:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert seed % 2
    assert runs() == around


def test_nested_blocks_in_threads():
    at_once(nested)
    assert runs() == "numpy"


def test_nested_blocks_in_tasks():
    async def task(seed: int, depth: int = 4) -> None:
        around = runs()
        backend = ("numpy", "cupy", "triton")[(seed + depth) % 3]
        with gpuact.using(backend):
            await asyncio.sleep(0)
            if depth:
                await asyncio.gather(task(seed, depth - 1), task(seed + 1, depth - 1))
            assert runs() == ("numpy" if backend == "numpy" else f'using("{backend}")')
        await asyncio.sleep(0)
        assert runs() == around

    async def several() -> None:
        await asyncio.gather(*[task(seed) for seed in range(8)])

    asyncio.run(several())
    assert runs() == "numpy"


def test_a_copied_context_brings_the_block_along():
    """And keeps it when the block has ended; what a thread does in it is its own."""
    with gpuact.using("cupy"):
        contexts = [contextvars.copy_context() for _ in range(THREADS)]

    def work(k: int) -> list[str]:
        seen = [runs()]
        with gpuact.using("triton"):
            seen.append(runs())
        return [*seen, runs()]

    for seen in at_once(lambda k: contexts[k].run(work, k)):
        assert seen == ['using("cupy")', 'using("triton")', 'using("cupy")']
    assert at_once(lambda k: runs()) == ["numpy"] * THREADS


def holding(backend: str) -> Iterator[str]:
    with gpuact.using(backend):
        while True:
            yield runs()


def test_generators_that_hold_blocks_end_in_any_order():
    """What is open last holds; when all have ended, nothing does."""
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        opened = [holding(backend) for backend in ("triton", "cupy", "triton")]
        names = [next(each) for each in opened]
        assert names == ['using("triton")', 'using("cupy")', 'using("triton")']
        still = [0, 1, 2]
        for k in order:
            opened[k].close()
            still.remove(k)
            assert runs() == (names[still[-1]] if still else "numpy")


def test_a_block_around_generators_outlives_them():
    with gpuact.using("cupy"):
        first, second = holding("triton"), holding("numpy")
        assert (next(first), next(second)) == ('using("triton")', "numpy")
        first.close()
        assert runs() == "numpy"
        second.close()
        assert runs() == 'using("cupy")'
    assert runs() == "numpy"


def test_a_generator_that_ends_elsewhere_changes_nothing_there():
    """In another thread, or in another context, as asyncio ends generators that were dropped."""
    for end in (lambda close: at_once(lambda k: close(), 1), contextvars.Context().run):
        opened = holding("cupy")
        seen: list[str] = []

        def close(opened: Any = opened, seen: list[str] = seen) -> None:
            with gpuact.using("triton"):
                opened.close()
                seen.append(runs())
            seen.append(runs())

        contextvars.copy_context().run(next, opened)
        end(close)
        assert seen == ['using("triton")', "numpy"]
        assert runs() == "numpy"


# -- GPUs -----------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.parametrize("backend", ["triton", "cupy"])
def test_sixteen_threads_with_a_stream_each(backend):
    """Each call follows a copy on the stream of its thread, and is followed by another."""
    harness.needs_gpu("triton")
    harness.needs_gpu(backend)
    import torch

    rng = np.random.default_rng(0)
    hosts = [torch.from_numpy(rng.standard_normal((64, 5000 + k))).float() for k in range(THREADS)]
    devices = [host.cuda() for host in hosts]
    targets = [torch.arange(64, device="cuda") for _ in range(THREADS)]

    def all_of_them(x: Any, target: Any) -> list[Any]:
        with gpuact.using(backend):
            found = [gpuact.tanh(x), gpuact.softmax(x)]
            return [*found, *gpuact.cross_entropy_with_grad(x, target)]

    want = [bits(all_of_them(x, t)) for x, t in zip(devices, targets, strict=True)]
    torch.cuda.synchronize()

    def threaded(k: int) -> list[Any]:
        seen = []
        with torch.cuda.stream(torch.cuda.Stream()):
            x = torch.empty_like(devices[k])
            for _ in range(20):
                x.fill_(float("nan"))
                x.copy_(devices[k], non_blocking=True)
                found = all_of_them(x, targets[k])
                x.fill_(float("nan"))
                torch.cuda.current_stream().synchronize()
                seen.append(bits(found))
        return seen

    for k, seen in enumerate(at_once(threaded)):
        assert seen == [want[k]] * 20


@pytest.mark.cuda
@pytest.mark.parametrize("backend", ["triton", "cupy"])
def test_two_devices(backend):
    """Threads on either device, neither of which is the current one everywhere; then both in one
    call, which is refused."""
    harness.needs_gpu("triton")
    harness.needs_gpu(backend)
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("there is one device")
    x = torch.linspace(-3, 3, 3000).reshape(6, 500)
    placed = [x.to(f"cuda:{k}") for k in (0, 1)]

    def work(k: int) -> list[Any]:
        here = placed[k % 2]
        found = []
        with torch.cuda.device(k // 2 % 2), gpuact.using(backend):
            for _ in range(20):
                results = [gpuact.tanh(here), gpuact.softmax(here), gpuact.linear(here, here[0])]
                assert all(each.device == here.device for each in results)
                torch.cuda.synchronize(here.device)
                found.append(bits(results))
        return found

    want = work(0)
    for found in at_once(work):
        assert found == want
    with pytest.raises(TypeError, match="is on cuda:1 while"):
        gpuact.linear(placed[0], placed[1][0])
