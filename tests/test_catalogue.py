"""The lists that must agree: records, public functions, their signatures and their documentation,
and the formulas in all three languages.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

import gpuact
from gpuact import activations, reference
from gpuact.catalogue import FUNCTIONS, Function, Pass, describe
from tests.bounds import BOUNDS, EXACT, HALF

ROOT = Path(__file__).resolve().parents[1]
ENDS = {
    "elementwise": ("_backward", "_derivative"),
    "rows": ("_backward",),
    "loss": ("_backward", "_with_grad"),
}


def signatures(function: Function) -> dict[str, str]:
    """What an elementwise function without parameters of many elements looks like."""
    arguments = ["x", *(f"{name}={default!r}" for name, default in function.defaults.items())]
    forward = f"({', '.join(arguments)}, *, out=None)"
    backward = f"({', '.join(['dy', *function.saved, *arguments[1:]])})"
    ends = {"": forward, "_backward": backward, "_derivative": forward}
    return {function.name + end: signature for end, signature in ends.items()}


# Names, order, kinds and defaults: they change only through a deprecation.
OPTIONS = (
    "*, weight=None, ignore_index=-100, reduction='mean', label_smoothing=0.0, z_loss=0.0, "
    "softcap=None, axis=None"
)
SCORES = "scale=1.0, mask=None, causal=False, all_masked='nan'"
FUSED = (
    "negative_slope=0.01, weight=None, scale=None, bias=None, gate=None, residual=None, "
    "dropout=None, channel_axis=-1"
)
SIGNATURES = {
    name: signature
    for function in FUNCTIONS.values()
    if function.kind == "elementwise"
    for name, signature in signatures(function).items()
} | {
    "linear": "(x, scale=1.0, bias=0.0, *, out=None)",
    "linear_backward": "(dy, x, scale, bias)",
    "linear_derivative": "(x, scale=1.0, bias=0.0, *, out=None)",
    "sigmoid": "(x, *, out=None)",
    "sigmoid_backward": "(dy, y)",
    "sigmoid_derivative": "(x, *, out=None)",
    "tanh": "(x, *, out=None)",
    "tanh_backward": "(dy, y)",
    "tanh_derivative": "(x, *, out=None)",
    "relu": "(x, *, out=None)",
    "relu_backward": "(dy, y)",
    "relu_derivative": "(x, *, out=None)",
    "leaky_relu": "(x, negative_slope=0.01, *, out=None)",
    "leaky_relu_backward": "(dy, x, negative_slope=0.01)",
    "leaky_relu_derivative": "(x, negative_slope=0.01, *, out=None)",
    "prelu": "(x, weight, *, channel_axis=1, out=None)",
    "prelu_backward": "(dy, x, weight, *, channel_axis=1)",
    "prelu_derivative": "(x, weight, *, channel_axis=1, out=None)",
    "softmax": f"(x, axis=-1, *, dtype=None, {SCORES}, out=None)",
    "softmax_backward": "(dy, y, axis=-1, *, scale=1.0)",
    "softmax_jacobian": "(y, axis=-1)",
    "log_softmax": "(x, axis=-1, *, dtype=None, out=None)",
    "log_softmax_backward": "(dy, y, axis=-1)",
    "cross_entropy": f"(logits, target, {OPTIONS}, return_lse=False, gradient_in_forward=False)",
    "cross_entropy_backward": f"(dloss, logits, target, lse, {OPTIONS})",
    "cross_entropy_with_grad": f"(logits, target, {OPTIONS}, dlogits_out=None)",
    "fused": f"(x, activation, *, {FUSED}, out=None)",
    "fused_backward": f"(dy, x, activation, *, {FUSED})",
    "activation_with_stats": (
        "(x, activation, *, negative_slope=0.01, weight=None, channel_axis=-1, into=None)"
    ),
    "activation_stats": "(y, activation='linear', *, channel_axis=-1, into=None)",
    "Dropout": "(p, seed, offset=0)",
    "asarray": "(obj, dtype=None)",
    "using": "(backend)",
    "backends": "()",
    "describe": "(name)",
}
# Beside the functions: these, and warmup, whose arguments are its own.
OTHERS = {"asarray", "using", "backends", "describe", "warmup", "BackendError", "Dropout"}
OTHERS |= {"fused", "fused_backward"}
OTHERS |= {"activation_with_stats", "activation_stats", "ActivationStats"}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    found = inspect.signature(getattr(gpuact, name))
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
    assert str(inspect.Signature(bare)) == SIGNATURES[name]


def test_every_public_name_has_a_signature_here():
    assert set(gpuact.__all__) == set(SIGNATURES) | {"warmup", "BackendError", "ActivationStats"}
    assert len(set(gpuact.__all__)) == len(gpuact.__all__)
    for name in gpuact.__all__:
        assert getattr(gpuact, name) is not None


def test_every_record_has_its_public_functions():
    names = {f.name + end for f in FUNCTIONS.values() for end in ("", *ENDS[f.kind])}
    assert names - set(dir(activations)) == set(), "add these to gpuact/activations.py"
    assert names - set(gpuact.__all__) == set(), "export these in gpuact/__init__.py"
    assert names | {"softmax_jacobian"} | OTHERS == set(gpuact.__all__)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=lambda f: f.name)
def test_a_record_agrees_with_the_signatures(function):
    """Parameters and their defaults, and what backward reads."""
    forward = inspect.signature(getattr(gpuact, function.name)).parameters
    backward = inspect.signature(getattr(gpuact, f"{function.name}_backward")).parameters
    assert tuple(forward)[: len(function.forward.reads)] == function.forward.reads
    for name, default in function.defaults.items():
        assert forward[name].default == (inspect.Parameter.empty if default is None else default)
        assert name in backward
    assert set(function.forward.parameters) == set(function.defaults)
    assert set(function.backward.reads + function.backward.parameters) <= set(backward)
    learned = {"linear": {"scale", "bias"}, "prelu": {"weight"}}
    assert set(function.sums) == learned.get(function.name, set())
    assert (function.slope is not None) == (function.kind == "elementwise")
    assert function.backward.reads[0] in ("dy", "dloss")


def passes(function: Function) -> list[Pass]:
    own = [function.forward, function.backward, function.slope, *function.sums.values()]
    return [p for p in own if p is not None]


FORMULAS = sorted(
    {p.formula for f in FUNCTIONS.values() if f.kind == "elementwise" for p in passes(f)}
)


SPELLED = {
    "gpuact/reference.py": r"^def {}\(",
    "kernels/cupy/formulas.cuh": r"^GPUACT_\w+ .*\b{}\(",
    "kernels/triton/formulas.py": r"^@triton\.jit(\(.*\))?\ndef {}\(",
    "tests/truth.py": r'^    "{}": ',
}


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("file", SPELLED)
def test_a_formula_is_spelled_in_all_three_languages_and_as_the_truth(file, formula):
    text = (ROOT / file).read_text(encoding="utf-8")
    found = re.search(SPELLED[file].format(formula), text, re.MULTILINE)
    assert found, f"add {formula} to {file}"


def test_a_formula_has_its_bound():
    own = {p.formula for f in FUNCTIONS.values() for p in f.sums.values()}
    assert sorted(set(FORMULAS) - own - set(BOUNDS)) == [], "add these to BOUNDS in tests/bounds.py"


def test_the_formulas_stand_in_one_order():
    """Whoever has found one in one language finds it in the others."""
    texts = {
        "reference.py": ((ROOT / "gpuact/reference.py").read_text(), r"^def (\w+)\("),
        "formulas.cuh": (
            (ROOT / "kernels/cupy/formulas.cuh").read_text(),
            r"^GPUACT_\w+ .*?(\w+)\(",
        ),
        "formulas.py": ((ROOT / "kernels/triton/formulas.py").read_text(), r"^def (\w+)\("),
    }
    orders = {}
    for file, (text, pattern) in texts.items():
        found = re.findall(pattern, text, re.MULTILINE)
        orders[file] = list(dict.fromkeys(name for name in found if name in FORMULAS))
    assert set(orders["reference.py"]) == set(FORMULAS)
    assert orders["formulas.cuh"] == orders["reference.py"]
    assert orders["formulas.py"] == orders["reference.py"]


def test_rows_and_losses_are_spelled_in_the_reference():
    for function in FUNCTIONS.values():
        for kernel in passes(function):
            assert callable(getattr(reference, kernel.formula)), kernel


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=lambda f: f.name)
def test_a_record_says_everything(function):
    for field in ("formula", "derivative", "range", "kink", "uses", "limitations"):
        assert len(getattr(function, field)) >= 3, field
    text = str(describe(function.name))
    for field in ("formula", "derivative", "range", "kink", "keeps", "uses", "limitations"):
        assert getattr(function, field) in text
    with pytest.raises(dataclasses.FrozenInstanceError):
        function.name = "other"
    assert describe(function.name) is function


@pytest.mark.parametrize("name", [n for n in SIGNATURES if n not in OTHERS])
def test_a_docstring_gives_the_formula(name):
    """In its first line; cross_entropy_with_grad points to the two it is made of."""
    first = (inspect.getdoc(getattr(gpuact, name)) or "").splitlines()[0]
    assert re.search(r" = |diag\(s\) − s sᵀ|`cross_entropy` and its gradient", first), first


USUAL = ("x = 0|±?inf|NaN", "Range", "Source")
DOCUMENTED = {
    "sigmoid": ("0.5|1/4", "NaN|tail", "Range"),
    "tanh": ("1 at x = 0", "Range", "Source"),
    "relu": ("kink|x ≤ 0", "NaN stays NaN", "Integers", "Range", "Source"),
    "leaky_relu": ("at x = 0", "Integers", "Range", "Source"),
    "prelu": ("at x = 0", "channel_axis", "Integers", "Source"),
    "linear": ("No kink", "broadcast", "range"),
    "softmax": ("all −inf", "NaN", "Range", "axis", "dtype", "causal", "all_masked", "Source"),
    "log_softmax": ("NaN", "Range", "axis", "dtype", "Source"),
    "cross_entropy": (
        "IndexError",
        "NaN",
        "ignore_index",
        "z_loss",
        "softcap",
        "gradient_in_forward",
        "Source",
        "float32 for half types",
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_docstring_says_what_happens_at_the_edges(name):
    """The kink, NaN and infinities, dtypes that are special, the range, the source."""
    doc = inspect.getdoc(getattr(gpuact, name)) or ""
    for word in DOCUMENTED.get(name, USUAL):
        assert re.search(word, doc), word


def error(formula: str) -> str:
    """What a docstring must say of a formula's bound: the largest of all backends'."""
    single, double = (
        max(BOUNDS[formula][family][k] for family in ("numpy", "cupy", "triton")) for k in (0, 1)
    )
    if formula == "linear":
        return f"at most {single:g} ulp of |scale·x| + |bias|."
    if single <= EXACT[0]:
        return "half an ulp, the rounding." if single else "none."
    assert HALF <= 0.51
    return f"at most {single:g} ulp in float32, {double:g} in float64, 0.51 in half types."


@pytest.mark.parametrize(
    "function", [f for f in FUNCTIONS.values() if f.kind == "elementwise"], ids=lambda f: f.name
)
def test_a_docstring_states_the_bound(function):
    for end, kernel in zip(("", *ENDS["elementwise"]), passes(function)[:3], strict=True):
        text = inspect.getdoc(getattr(gpuact, function.name + end)) or ""
        what = "Error of dx" if end == "_backward" and function.sums else "Error"
        assert f"{what}: {error(kernel.formula)}" in text, function.name + end


def test_the_readme_lists_every_function():
    text = (ROOT / "README.md").read_text()
    assert [name for name in FUNCTIONS if f"`{name}" not in text] == []
