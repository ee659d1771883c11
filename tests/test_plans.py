"""Launches planned once for a layout never serve another; after warmup nothing is compiled."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpuact
from gpuact import routes
from gpuact.scores import Scores
from tests import harness
from tests.harness import Executor, executors
from tests.test_backends import Losses, ce_inputs, row_operands, run_rows
from tests.truth import Array

N = 70
# Parameters of which Triton looks at the type alone: a test below holds that to be so.
FREE = {"ignore_index", "s_outer", "s_inner", "head"}


@pytest.fixture(params=executors("cupy-ptx", "triton-ptx"))
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Executor:
    return harness.make(request.param, monkeypatch)


def normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


# Rows of one shape and dtype
LIES: dict[str, Callable[[], Array]] = {
    "dense": lambda: normal(4, N, 1),
    "one element behind": lambda: normal(4 * N + 1)[1:].reshape(4, N, 1),
    "of wider rows": lambda: normal(4, N + 3, 1)[:, :N],
    "every other row": lambda: normal(8, N, 1)[::2],
    "every other column": lambda: normal(4, 2 * N, 1)[:, ::2],
    "transposed": lambda: normal(1, N, 4).transpose(2, 1, 0),
}


def test_rows_that_lie_otherwise(executor):
    for _ in range(2):
        for make in LIES.values():
            x = make()
            run_rows(executor, "softmax", [x])
            run_rows(executor, "softmax_backward", row_operands("softmax_backward", x))
            run_rows(executor, "softmax", [x], out=normal(4, N + 1, 1)[:, 1:])
            run_rows(executor, "softmax", [x], alias=0)


def test_an_array_that_comes_twice(executor):
    a, b = normal(4, N, 1), normal(4, N, 1) - 1
    for arrays in ([a, b], [a, a], [b, a], [b, b]) * 2:
        once = {id(x): executor.place(x).native for x in arrays}
        given = tuple(once[id(x)] for x in arrays)
        out = executor.place(np.empty_like(a), blank=True)
        executor.backend.rows("softmax_backward", given, out.native, None, executor.empty)
        dy, y = (x.astype(np.float64) for x in arrays)
        want = y * (dy - (y * dy).sum(1, keepdims=True))
        assert np.allclose(out.numpy(), want, rtol=1e-4, atol=1e-4)


def test_scores_that_differ(executor):
    x = normal(4, N, 1)
    place = executor.place(x)
    found = set()
    for scale in (0.5, 1.0, -2.0, 0.5):
        for causal in (0, 4, 2):
            out = executor.place(np.empty_like(x), blank=True)
            scores = Scores(scale, None, causal, False)
            executor.backend.rows("softmax", (place.native,), out.native, scores, executor.empty)
            z = x.astype(np.float64) * scale
            if causal:
                z[np.arange(N)[None, :, None] > np.arange(4)[:, None, None] % causal] = -np.inf
            e = np.exp(z - z.max(1, keepdims=True))
            assert np.allclose(out.numpy(), e / e.sum(1, keepdims=True), rtol=1e-5, atol=1e-7)
            found.add(out.numpy().tobytes())
    assert len(found) == 9


def test_losses_that_differ(executor):
    cases: tuple[dict[str, Any], ...] = (
        {},
        {"label_smoothing": 0.1},
        {"label_smoothing": 0.4},
        {"weight": True},
        {"target": "probabilities"},
    )
    for case in cases * 2:
        losses = Losses(executor, ce_inputs((4, N, 1), "float32", case))
        losses.forward()
        losses.backward()
        losses.with_grad(alias=True)


def test_plans_do_not_pile_up(executor, monkeypatch):
    monkeypatch.setattr(executor.backend, "PLANS", 4, raising=False)
    for n in range(1, 12):
        run_rows(executor, "softmax", [normal(2, n, 1)])
    if executor.name.startswith("cupy"):
        assert len(executor.backend._plans) <= 4


@pytest.mark.interpreter
def test_after_warmup_nothing_is_compiled(monkeypatch):
    """Other values of the same kinds launch kernels that were compiled for it."""
    torch = pytest.importorskip("torch")
    backend = harness.make("triton-interpreter", monkeypatch).backend
    monkeypatch.setattr(routes, "_routes", {})
    compiled: set[Any] = set()
    launch = backend.launch

    def spy(plan: Any, args: tuple[Any, ...]) -> None:
        free = {i for i, p in enumerate(inspect.signature(plan.kernel.fn).parameters) if p in FREE}
        kinds = tuple(
            getattr(a, "dtype", a if isinstance(a, int) and i not in free else type(a))
            for i, a in enumerate(args)
        )
        compiled.add((plan.kernel, tuple(map(str, plan.constexprs.items())), plan.warps, kinds))
        launch(plan, args)

    monkeypatch.setattr(backend, "launch", spy)
    x, y = torch.randn(4, N), torch.randn(4, N, requires_grad=True)
    target = torch.tensor([3, 0, N - 1, -100])
    options = {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 5.0, "ignore_index": 7}
    each = options | {"reduction": "none"}
    scores = {"scale": 0.5, "causal": True, "all_masked": "zero"}
    with gpuact.using("triton"):
        functions = ["softmax", "cross_entropy"]
        gpuact.warmup([(4, N)], ["float32"], functions, like=x, **options, **scores)
        gpuact.warmup([(4, N)], ["float32"], functions[1:], like=x, **each)
        before = set(compiled)
        for other in (-100, 1, 48):  # which Triton would tell apart
            gpuact.cross_entropy(x, target, **options | {"ignore_index": other})
        gpuact.cross_entropy(y, target, **each).sum().backward()
        options["ignore_index"] = -100
        gpuact.softmax(x, **scores)
        gpuact.softmax(y, **scores).backward(torch.randn(4, N))
        gpuact.cross_entropy(x, target, **options)
        gpuact.cross_entropy(y, target, **options).backward()
        gpuact.cross_entropy_with_grad(x, target, **options)
    assert before
    assert compiled == before


def test_triton_does_not_tell_free_parameters_apart():
    triton = pytest.importorskip("triton")
    from gpuact.kernels.triton import cross_entropy

    if triton.knobs.runtime.interpret:
        pytest.skip("the interpreter's functions know nothing of it")
    for kernel in (cross_entropy.cross_entropy, cross_entropy.cross_entropy_chunks):
        assert {p.name for p in kernel.params if p.do_not_specialize} >= FREE
    assert any(
        p.name == "ignore_index" and p.do_not_specialize for p in cross_entropy.target_weight.params
    )
