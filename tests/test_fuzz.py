"""Random calls of the public functions: some here, a million in the record, and the fuzzer itself.

`python -m tests.fuzz` is what makes and judges them; what it found is held below in plain tests.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpuact
from tests import fuzz
from tests.fuzz.__main__ import main

RECORD = Path(__file__).with_name("records") / "fuzz.json"


def explain(report: fuzz.Report) -> str:
    return "\n\n".join(
        f"--only {seed}: {found.what}\n{found.detail}" for seed, found in report.findings
    )


def test_some_thousand_calls():
    report = fuzz.here(3000, seed=1)
    assert not report.findings, explain(report)
    assert report.count("right") > 1500
    assert report.count("refused") > 500


@pytest.mark.slow
def test_many_calls():
    report = fuzz.run(50_000, seed=2, workers=1)
    assert not report.findings, explain(report)
    assert report.calls == 50_000


def test_the_record_says_a_million_calls_and_no_finding():
    found = json.loads(RECORD.read_text())
    assert found["calls"] >= 1_000_000
    assert sum(found["outcomes"].values()) == found["calls"]
    assert found["findings"] == dict.fromkeys(fuzz.FINDINGS, 0)


def test_every_public_name_is_called():
    names = {target.name for target in fuzz.Fuzz(["numpy"]).of["numpy"]}
    assert names == {*gpuact.__all__} - {"BackendError", "ActivationStats"}  # none calls these


def test_every_function_and_layer_of_torch_is_called():
    torch_or_skip()
    from gpuact.torch import functional, nn

    names = {target.name for target in fuzz.Fuzz(["torch"]).of["torch"] if target.only}
    layers = {*nn.__all__} - {"Converted", "convert"}
    expected = {f"functional.{n}" for n in functional.__all__} | {f"nn.{n}" for n in layers}
    assert names == expected


def test_a_call_is_made_again_by_its_seed(capsys):
    seen = []
    for _ in range(2):
        main(["--only", "3000000007"])
        seen.append(capsys.readouterr().out)
    assert seen[0] == seen[1]
    c, again = (fuzz.Call(11, ["numpy"]) for _ in range(2))
    one, other = (call.given((3, 4)) for call in (c, again))
    assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


# -- the fuzzer finds what is planted -------------------------------------------------------------


def off_by_a_little(x: Any, **options: Any) -> Any:
    y = gpuact.sigmoid(x, **options)
    if isinstance(y, np.ndarray) and y.dtype == np.float64 and y.size:
        y[...] = np.nextafter(np.nextafter(y, 2), 2) + 4e-16
    return y


def raw(x: Any, **options: Any) -> Any:
    """A broadcast that NumPy refuses, where gpuact must."""
    gpuact.sigmoid(x, **options)
    return np.ones(3) + np.ones(4)


def warning(x: Any, **options: Any) -> Any:
    warnings.warn("something", RuntimeWarning, stacklevel=1)
    return gpuact.sigmoid(x, **options)


def divides(x: Any, **options: Any) -> Any:
    np.ones(1) / np.zeros(1)
    return gpuact.sigmoid(x, **options)


def writes(x: Any, **options: Any) -> Any:
    """One byte behind x's last element in memory."""
    y = gpuact.sigmoid(x, **options)
    if type(x) is np.ndarray and x.flags.c_contiguous and x.size:
        np.lib.stride_tricks.as_strided(x.view(np.uint8).reshape(-1), (x.nbytes + 1,))[-1] = 1
    return y


def half_done(x: Any, out: Any = None) -> Any:
    if isinstance(out, np.ndarray) and out.size and out.flags.writeable:
        out.reshape(-1)[:1] = 0
    raise TypeError("x: something came, allowed is nothing")


def no_sentence(x: Any, **_: Any) -> Any:
    return gpuact.describe("what\nnow")


def rarely(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype == np.float16


def hang(x: Any, **options: Any) -> Any:
    if rarely(x):
        time.sleep(60)
    return gpuact.sigmoid(x, **options)


def crash(x: Any, **options: Any) -> Any:
    if rarely(x):
        os._exit(3)
    return gpuact.sigmoid(x, **options)


def segmentation_fault(x: Any, **options: Any) -> Any:
    if rarely(x):
        import ctypes

        ctypes.string_at(0)
    return gpuact.sigmoid(x, **options)


@pytest.mark.parametrize(
    ("plant", "what", "detail"),
    [
        (off_by_a_little, "wrong", "ulp"),
        (raw, "wrong", "what is allowed was refused"),
        (raw, "raw", "could not be broadcast"),
        (warning, "warning", "RuntimeWarning: something"),
        (divides, "warning", "divide by zero"),
        (writes, "wrong", "memory beside out"),
        (half_done, "wrong", "written before it was refused"),
    ],
)
def test_what_is_planted_is_found(plant, what, detail):
    planted = fuzz.Fuzz(["numpy"], {"sigmoid": plant})
    report = fuzz.here(300, 5, planted)
    found = [outcome for _, outcome in report.findings if outcome.what == what]
    assert any(detail in outcome.detail for outcome in found), explain(report)[:2000]
    sound = fuzz.here(300, 5, fuzz.Fuzz(["numpy"], {"sigmoid": gpuact.sigmoid}))
    assert not sound.findings


def perturbed(entry: Any) -> None:
    """Its last element off by some parts of a hundred."""
    last = tuple(n - 1 for n in entry.shape)
    with np.errstate(all="ignore"):
        entry[last] += entry[last] / 16 + 1


OF_STATS = ("activation_with_stats", "activation_stats")
NUMBERS = [t.name for t in fuzz.targets_of_gpuact() if t.name not in fuzz.LIBRARYLESS]
NUMBERS = [name for name in NUMBERS if name not in OF_STATS]


@pytest.mark.parametrize("name", NUMBERS)
def test_values_of_every_function_are_judged(name):
    """Each of several results on its own."""
    seen, noticed, at = set(), set(), None

    def plant(*args: Any, **options: Any) -> Any:
        nonlocal at
        result = getattr(gpuact, name)(*args, **options)
        several = result if isinstance(result, dict) else {"": result}
        if isinstance(result, tuple):
            several = dict(enumerate(result))
        seen.update(several)
        at = next(
            (n for n, a in several.items() if n not in noticed and a.size and a.flags.writeable),
            None,
        )
        if at is not None:
            perturbed(several[at])
        return result

    fuzzer = fuzz.Fuzz(["numpy"], {name: plant})
    for k in range(150):
        at = None
        for _, found in fuzz.here(1, 8, fuzzer, k).findings:
            if found.what == "wrong" and ("ulp" in found.detail or "came out" in found.detail):
                noticed.add(at)
    assert noticed == seen


@pytest.mark.parametrize("wrong", ("count", "mean", "m2", "zeros", "saturated", "alive"))
@pytest.mark.parametrize("name", OF_STATS)
def test_statistics_are_judged(name, wrong, monkeypatch):
    backend = import_module("gpuact.backends.numpy")
    observe = backend.observe

    def plant(formula: Any, x: Any, *more: Any) -> None:
        observe(formula, x, *more)
        moments, alive = more[-3:-1]
        if wrong == "alive":
            alive[...] = 1 - alive
        else:
            moments[gpuact.stats.MOMENTS.index(wrong)] += 1 if wrong != "m2" else x.size * 1e6

    monkeypatch.setattr(backend, "observe", plant)
    target = next(t for t in fuzz.targets_of_gpuact() if t.name == name)
    report = fuzz.here(60, 8, fuzz.Fuzz(["numpy"], {name: target.call}))
    assert any("in agree" in outcome.detail for _, outcome in report.findings)


LEARNED = {  # of the others the first argument alone has a gradient
    "linear": {"x", "scale", "bias"},
    "prelu": {"x", "weight"},
    "functional.prelu": {"x", "weight"},
    "nn.PReLU": {"x", "weight"},
    "fused": {"x", "scale", "bias", "weight", "gate", "residual"},
}


def gradients_noticed(target: Any, expected: set[str]) -> set[str]:
    """Arguments whose gradient was noticed when it, and no other, was twice as large."""
    noticed, at = set[str](), ""

    def plant(**args: Any) -> Any:
        nonlocal at
        own = {target.rename.get(n, n): a for n, a in args.items()}
        learned = (n for n, a in own.items() if getattr(a, "requires_grad", False))
        at = next((n for n in learned if n not in noticed), "")
        if at:
            own[at].register_hook(lambda gradient: 2 * gradient)
        return target.call(**args)

    fuzzer = fuzz.Fuzz(["torch"], {target.name: plant})
    for k in range(600):
        for _, found in fuzz.here(1, 9, fuzzer, k).findings:
            if found.what == "wrong" and f"the gradient of {at}: " in found.detail:
                noticed.add(at)
        if noticed == expected:
            break
    return noticed


def test_gradients_of_every_function_are_judged():
    torch_or_skip()
    for target in {t.name: t for t in fuzz.Fuzz(["torch"]).of["torch"]}.values():
        if target.gradient is not None:
            first = "logits" if "cross" in target.name.lower() else "x"
            expected = LEARNED.get(target.name, {first})
            assert gradients_noticed(target, expected) == expected, target.name


CALLS = 9  # of which one or two are as the plants want it: a process takes a second to begin


def test_what_ends_a_process_or_stops_it_is_found(monkeypatch):
    """And the calls behind it are made all the same."""
    monkeypatch.setattr(fuzz.runs, "PATIENCE", 1.5)
    for plant, what, detail in (
        (crash, "crash", "ended with 3"),
        (segmentation_fault, "crash", "ended with -11"),
        (hang, "hang", "in hang"),
    ):
        report = fuzz.run(CALLS, 4, 1, ["numpy"], {"sigmoid": plant})
        assert report.calls == CALLS
        assert report.findings, what
        for seed, outcome in report.findings:
            assert (outcome.what, outcome.function) == (what, "sigmoid")
            assert detail in outcome.detail
            assert seed // fuzz.SPAN == 4


REFUSALS = {
    "a bare error of NumPy": (lambda: gpuact.relu(np.zeros(3)) + np.ones(4), "raised in"),
    "a word of ours": (lambda: gpuact.describe("gelu"), None),
    "an error of what was brought": (
        lambda: gpuact.softmax(np.ones(2), fuzz.dunders("I", __index__=fuzz.raises)),
        None,
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_whose_error_it_is(case):
    call, why = REFUSALS[case]
    with pytest.raises(Exception) as error:
        call()
    found = fuzz.refusal(error.value, {"name", "axis"})
    assert found is None if why is None else found is not None


def test_a_record_is_small(tmp_path):
    report = fuzz.here(200, 6)
    made = fuzz.record(report, 6, 1, ["numpy", "torch"])
    text = json.dumps(made, sort_keys=True)
    assert made["calls"] == 200 == sum(made["outcomes"].values()) + sum(made["findings"].values())
    assert len(text) < 20_000


# -- what was found -------------------------------------------------------------------------------

X = np.array([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]], np.float32)


@pytest.mark.parametrize("axis", [np.int64(0), np.int64(-1), np.int32(0), [0], (-1,), (), None])
def test_axes_of_a_0d_array(axis):
    one = np.float32(1)
    assert gpuact.softmax(one, axis) == 1
    assert gpuact.log_softmax(one, axis) == 0
    assert gpuact.softmax_backward(one, one, axis) == 0


@pytest.mark.parametrize("axis", [np.int32(7), np.array(2), (0, 0), 0.0, np.array([0, 1])])
def test_no_axes_of_a_0d_array(axis):
    with pytest.raises((np.exceptions.AxisError, TypeError), match=r"^axis: "):
        gpuact.softmax(np.float32(3), axis)


def test_a_jacobian_of_no_rows_takes_no_memory():
    """Of 2^20 columns the unit vectors alone would take terabytes."""
    assert gpuact.softmax_jacobian(np.zeros((0, 2**20), np.float32)).shape == (0, 2**20, 2**20)


def test_a_chance_that_drops_nothing_changes_nothing():
    drop = gpuact.Dropout(1e-11, 1)
    assert not drop.drops
    assert drop.scale == 1.0
    x = X.astype(np.float64)
    assert (gpuact.fused(x, "linear", dropout=drop) == x).all()


def test_ints_at_the_end_of_floats_where_others_went_before():
    for slope in (2, 2**1023, 2**1023):
        assert gpuact.leaky_relu(X, slope)[0, 1] == -2 * np.float32(slope if slope == 2 else np.inf)
    with pytest.raises(ValueError, match=r"^negative_slope: a number came that is too large"):
        gpuact.leaky_relu(X, 10**400)


def test_asarray_looks_at_what_comes_before_it_casts():
    with gpuact.using("numpy"):
        assert gpuact.asarray(np.array([0.5, np.nan]), "bool").tolist() == [True, True]
        for junk in (np.array(["1"]), "1.5", np.array([1j]), np.ma.ones(3), {}, object()):
            with pytest.raises(TypeError, match=r"^obj: "):
                gpuact.asarray(junk, "float32")


def torch_or_skip() -> Any:
    return pytest.importorskip("torch")


def test_a_tensor_of_another_device_beside_one_that_is_watched():
    """It was taken, and the result was memory that nobody had written."""
    torch = torch_or_skip()
    x, other = torch.ones(2, 3), torch.ones(3, device="meta")
    for call in (
        lambda: gpuact.linear_backward(x, x, other, 0.0),
        lambda: gpuact.fused(x, "relu", scale=other),
        lambda: gpuact.fused_backward(x, x, "relu", bias=other),
        lambda: gpuact.prelu_backward(x, x, other),
        lambda: gpuact.fused(x, "relu", gate=x.to("meta")),
    ):
        with pytest.raises(TypeError, match=r"^(scale|bias|weight|gate): is on meta"):
            call()


def test_gradients_of_integer_parameters_are_floats_in_operators_too():
    """They were rounded to the integers' own dtype."""
    torch = torch_or_skip()
    x = torch.tensor([0.25, 0.5])
    count = torch.tensor(2, dtype=torch.uint8)
    for scale in (torch.tensor(1.5), torch.tensor(1.5, requires_grad=True)):
        _, _, dbias = gpuact.linear_backward(x, x, scale, count)
        assert dbias.dtype == torch.float32
        assert dbias == 0.75
    with pytest.raises(TypeError, match=r"^scale: dtype complex64 came"):
        gpuact.linear_backward(x.requires_grad_(), x, torch.tensor(1j), 0.0)


def test_dloss_has_the_precision_of_the_loss_whatever_lse_has():
    """As a number it was rounded to the dtype of lse."""
    torch = torch_or_skip()
    z, t, lse = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0]), torch.zeros(1).bfloat16()
    for learned in (False, True):
        dz = gpuact.cross_entropy_backward(0.1, z, t, lse.requires_grad_(learned))
        assert dz.tolist() == [[0.0, 0.1]]


def test_out_is_returned_beside_a_subclass():
    torch = torch_or_skip()

    class Mine(torch.Tensor):
        pass

    out = torch.empty(2)
    assert gpuact.relu(torch.ones(2).as_subclass(Mine), out=out) is out
    assert out.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_softmax_of_half_types_on_meta(dtype):
    torch = torch_or_skip()
    x = torch.empty(2, 3, dtype=getattr(torch, dtype), device="meta")
    for y in (gpuact.softmax(x), gpuact.log_softmax(x, 0)):
        assert y.is_meta
        assert y.dtype == x.dtype


def test_bfloat16_scalars_are_numbers():
    assert gpuact.leaky_relu(X, ml_dtypes.bfloat16(0.5))[0, 1] == -1


@pytest.mark.parametrize("junk", [np.timedelta64(3, "s"), memoryview(bytearray(2)), [], {}])
def test_what_has_no_hash_is_refused_as_ever(junk):
    """Whichever way it says so: the kinds of calls that are known are asked first."""
    for function in (gpuact.softmax, gpuact.log_softmax):
        with pytest.raises(TypeError, match=r"^axis: "):
            function(X, ["0", junk])
    with pytest.raises(ValueError, match=r"^all_masked: "):
        gpuact.softmax(X, all_masked=junk)
    with pytest.raises(ValueError, match=r"^activation: "):
        gpuact.fused(X, junk)
