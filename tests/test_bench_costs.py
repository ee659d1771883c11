"""What a call costs the host, alone and inside PyTorch, and what autograd holds of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bench import cases, held, host, in_torch, measure, providers, suite, tables
from tests.benchmarks import chain, raising

Array = Any


def places(*names: str) -> dict[str, measure.Host]:
    return {name: measure.PLACES[name]() for name in names or ("numpy", "torch on the CPU")}


# -- what a call costs the host -------------------------------------------------------------------

TIMED = {
    tables.PLAIN: ["gpuact on NumPy", "NumPy", "gpuact on torch tensors", "torch"],
    tables.OUT: ["gpuact on NumPy", "NumPy", "gpuact on torch tensors", "torch"],
    tables.RECORDED: ["gpuact on torch tensors", "torch", "an empty autograd function"],
}


@pytest.mark.parametrize("way", TIMED)
def test_host_costs_are_of_calls_that_are_right(way: str) -> None:
    pytest.importorskip("torch")
    wrong = replace(
        providers.CALLERS_ON_CPU[0], name="wrong", ways=lambda x, y: {tables.PLAIN: lambda: x}
    )
    able, name = [*providers.CALLERS_ON_CPU, wrong], tables.HOST[way]
    rows = host.cost(name, able, places(), 0.001)
    assert {row.case for row in rows} == {name}
    assert [row.provider for row in rows if row.timing] == TIMED[way]
    assert all(0 < row.timing.median < 0.1 for row in rows if row.timing)
    assert {row.bytes for row in rows} == {2 * 2 * 2048}
    others = [row for row in rows if row.timing is None]
    assert [(row.provider, row.status) for row in others] == (
        [("wrong", "wrong")] if way == tables.PLAIN else []
    )
    assert all("values differ" in row.reason for row in others)
    assert host.cost(name, [], {}, 0.001) == []


def test_it_is_told_who_calls() -> None:
    told: list[str] = []
    host.cost(
        tables.HOST[tables.PLAIN], providers.CALLERS_ON_CPU[:2], places("numpy"), 0.0, told.append
    )
    two = ["gpuact on NumPy", "NumPy"]
    assert told == two * (len(told) // 2)  # set up, checked, then timed
    assert len(told) == 2 * (2 + 1 + measure.ROUNDS[0])


def test_every_way_of_calling_has_a_row() -> None:
    assert list(tables.HOST) == list(TIMED)
    assert len(set(tables.HOST.values())) == 3
    assert tables.CALL.bytes == 2 * 4096


def test_calls_under_autograd_record() -> None:
    torch = pytest.importorskip("torch")
    x = torch.randn(8)
    for caller in providers.CALLERS_ON_CPU[2:]:
        y = caller.ways(x, torch.empty_like(x))[tables.RECORDED]()
        assert y.requires_grad
        assert y.grad_fn is not None


# -- what a call costs inside PyTorch -------------------------------------------------------------


def test_rows_inside_torch_are_named_and_all_there() -> None:
    pytest.importorskip("rich")
    from bench import console

    names = [row.name.removesuffix(" float32 8×128") for row in in_torch.ROWS]
    assert len(set(names)) == len(names) == 16
    functions = ("relu", "sigmoid", "prelu", "softmax", "log_softmax", "cross_entropy")
    for name in (*functions, "relu→tanh→softmax"):
        assert {f"{name} forward", f"{name} forward + backward"} <= set(names)
    assert {"softmax torch.func.vmap", "softmax torch.func.grad"} <= set(names)
    widths = console.OVERHEAD
    assert max(map(len, names)) <= widths[0]
    assert widths[0] + len(providers.IN_TORCH_ON_CPU) * (1 + widths[1]) < 80
    for on_cpu, on_gpu in zip(providers.IN_TORCH_ON_CPU, providers.IN_TORCH_ON_GPU, strict=True):
        assert (on_cpu.name, on_cpu.compiles) == (on_gpu.name, on_gpu.compiles)
        assert {on_cpu.place, on_gpu.place} == set(in_torch.MODES) == set(in_torch.WHAT)


@pytest.mark.parametrize("row", in_torch.ROWS, ids=lambda row: row.name)
def test_costs_inside_torch_are_of_calls_that_are_right(row: in_torch.Row) -> None:
    """gpuact and its modules beside torch, in every row; faults are rows that say so."""
    pytest.importorskip("torch")
    theirs, _, ours, _, modules = providers.IN_TORCH_ON_CPU
    wrong = replace(
        ours, name="wrong", spell=lambda case: lambda *args: 1.01 * providers._torch(case)(*args)
    )
    broken = replace(ours, name="broken", spell=raising)
    lacking = replace(ours, name="lacking", spell=lambda case: None)
    who = (theirs, ours, modules, wrong, broken, lacking)
    told: list[str] = []
    rows = in_torch.cost(row, who, places("torch on the CPU"), 0.001, told.append)
    assert {found.case for found in rows} == {row.name}
    timed = dict.fromkeys(("torch", "gpuact", "gpuact.torch.nn"), "timed")
    found = {each.provider: each.status for each in rows}
    assert found == {**timed, "wrong": "wrong", "broken": "failed"}
    assert all(0 < each.timing.median < 0.1 for each in rows if each.timing)
    assert rows[-1].reason == "RuntimeError: no such kernel"
    assert told[:6] == [provider.name for provider in who]


def test_nobody_inside_torch_has_no_rows() -> None:
    pytest.importorskip("torch")
    assert in_torch.cost(in_torch.ROWS[0], [], {}, 0.001) == []


def test_a_wrong_gradient_inside_torch_is_found() -> None:
    torch = pytest.importorskip("torch")
    off = replace(
        providers.IN_TORCH_ON_CPU[0], spell=lambda case: lambda x: torch.relu(x) + x - x.detach()
    )
    row = in_torch.Row(("relu",), in_torch.BACKWARD)
    (found,) = in_torch.cost(row, [off], places("torch on the CPU"), 0.001)
    assert (found.status, found.timing) == ("wrong", None)
    assert "values differ" in found.reason


def test_a_cpu_s_costs_inside_torch_are_of_one_thread() -> None:
    torch = pytest.importorskip("torch")
    threads: list[int] = []

    def relu(x: Array) -> Array:
        threads.append(torch.get_num_threads())
        return torch.relu(x)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        spied = replace(providers.IN_TORCH_ON_CPU[0], spell=lambda case: relu)
        in_torch.cost(in_torch.ROWS[0], [spied], places("torch on the CPU"), 0.001)
        assert set(threads) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("row", in_torch.ROWS, ids=lambda row: row.name)
def test_gradients_inside_torch_are_taken_where_the_row_says_so(row: in_torch.Row) -> None:
    pytest.importorskip("torch")
    place = measure.TorchHost()
    learned = 2 if row.functions == ("prelu",) else 1
    for provider in providers.IN_TORCH_ON_CPU[::2]:
        found = in_torch.call_of(row, provider, place)()
        if row.way == in_torch.BACKWARD:
            y, *gradients = found
            assert y.requires_grad
            assert len(gradients) == learned
            assert all(g.abs().sum() > 0 and not g.requires_grad for g in gradients)
        else:
            assert not found.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("row", in_torch.ROWS, ids=lambda row: row.name)
def test_calls_inside_torch_compile_in_one_graph(
    row: in_torch.Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the compiler behind, which would be asked for seconds."""
    torch = pytest.importorskip("torch")
    asked: list[dict[str, Any]] = []
    compiled = torch.compile

    def compile(function: Any, **options: Any) -> Any:
        asked.append(options)
        return compiled(function, fullgraph=True, dynamic=False, backend="aot_eager")

    monkeypatch.setattr("torch.compile", compile)
    place, expected = measure.TorchHost(), in_torch._right(row)
    for provider in providers.IN_TORCH_ON_CPU:
        torch.compiler.reset()
        call = in_torch.call_of(row, provider, place)
        assert suite.checked(row.cases[0], place, call, expected) == ("timed", "", None)
    assert asked == [{"fullgraph": True, "dynamic": False, "mode": "default"}] * 2


# -- what autograd holds --------------------------------------------------------------------------


HOLDS = {  # bytes an element of bfloat16, and of what: gpuact, then torch eager
    "linear": ({}, {}),
    "sigmoid": ({"y": 2}, {"y": 2}),
    "tanh": ({"y": 2}, {"y": 2}),
    "relu": ({"y": 2}, {"y": 2}),
    "leaky_relu": ({"y": 2}, {"x": 2}),  # y is what the next layer keeps anyway
    "prelu": ({"x": 2}, {"x": 2}),
    tables.SCALED: ({"x": 2}, {"x": 2, "y": 2}),
    tables.GATED: ({"x": 2, "gate": 2}, {"gate": 2, "the rest": 2}),
    tables.DROPPED: ({"x": 2}, {"x": 2, "the rest": 2}),  # on a CPU the mask is of x's dtype
    tables.EVERYTHING: ({"x": 2, "gate": 2}, {"x": 2, "gate": 2, "the rest": 6}),
}


def test_what_autograd_holds_is_measured() -> None:
    pytest.importorskip("torch")
    found: dict[str, dict[str, dict[str, float]]] = {}
    for case in tables.HELD:
        rows = held.held(case, providers.HOLDERS_ON_CPU, places("torch on the CPU"))
        for row in rows:
            assert (row.case, row.reason) == (case.name, "")
            assert row.bytes == sum(row.kept.values())
            each = {name: size / row.elements for name, size in row.kept.items()}
            key = getattr(case, "text", case.function)
            found.setdefault(key, {})[row.provider] = each
    assert {key: tuple(by.values()) for key, by in found.items()} == HOLDS
    assert all(list(by) == ["gpuact on torch tensors", "torch"] for by in found.values())


def test_it_is_told_who_is_asked_what_he_holds() -> None:
    pytest.importorskip("torch")
    told: list[str] = []
    held.held(tables.HELD[0], providers.HOLDERS_ON_CPU, places("torch on the CPU"), told.append)
    assert told == ["gpuact on torch tensors", "torch"]


def test_who_compiles_is_asked_what_he_holds_of_chains_alone() -> None:
    pytest.importorskip("torch")
    compiles = replace(providers.HOLDERS_ON_CPU[1], compiles=True)
    here = places("torch on the CPU")
    for case in tables.HELD:
        rows = held.held(case, [compiles], here)
        assert len(rows) == isinstance(case, cases.Chain) == case.compiled


def test_what_a_compiled_chain_holds_is_measured() -> None:
    torch = pytest.importorskip("torch")
    case = replace(chain(tables.SCALED), shape=(64, 1024))
    compiled = torch.compile(providers._torch(case), backend="aot_eager")
    place = measure.TorchHost()
    arrays = {name: place.put(array) for name, array in cases.inputs(case).items()}
    assert {"x", "y"} <= set(held.kept(compiled, arrays))


def test_what_cannot_be_held_says_why() -> None:
    pytest.importorskip("torch")
    broken = replace(providers.HOLDERS_ON_CPU[0], spell=lambda case: raising)
    here = places("torch on the CPU")
    (row,) = held.held(tables.HELD[0], [broken], here)
    assert row.reason == "TypeError: raising() got an unexpected keyword argument 'scale'"
    assert (row.bytes, row.kept) == (0, {})
    lacking = replace(broken, spell=lambda case: None)
    assert held.held(tables.HELD[0], [lacking], here) == []
    assert held.held(tables.HELD[0], [], {}) == []
