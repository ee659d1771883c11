"""One frozen record per function: tests, benchmarks, the command line and PyTorch enumerate it.

A record says in words what a function is, and in names what runs: which formula, which arrays it
reads, which parameters it takes. The formulas themselves are spelled three times, on purpose:
`reference.py` (NumPy), `kernels/cupy/formulas.cuh` (CUDA C++) and `kernels/triton/formulas.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import sqrt
from types import MappingProxyType
from typing import Any, Literal

from .libraries import word


@dataclass(frozen=True)
class Pass:
    """One kernel: the formula's name, the arrays it reads, the parameters it takes, in order."""

    formula: str
    reads: tuple[str, ...]
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Function:
    """What a function is (in words) and what it runs (in names)."""

    name: str
    kind: Literal["elementwise", "rows", "loss"]
    formula: str
    derivative: str
    range: str
    kink: str  # the derivative chosen where there is none, or "smooth"
    keeps: str  # what autograd keeps of forward for backward
    uses: str
    limitations: str
    forward: Pass
    backward: Pass
    slope: Pass | None = None  # f'(x) from x; elementwise functions only
    defaults: Mapping[str, float | None] = field(default_factory=lambda: MappingProxyType({}))
    sums: Mapping[str, Pass] = field(default_factory=lambda: MappingProxyType({}))
    integers: Literal["float32", "kept", "refused"] = "float32"
    sign: str | None = None  # where this parameter is positive, y has x's sign and serves for it
    # |f'| is below 1 % where y is no more than the first or no less than the second
    saturated: tuple[float | None, float | None] = (None, None)

    @property
    def saved(self) -> tuple[str, ...]:
        """What backward reads of forward: its arrays but the incoming gradient."""
        return tuple(name for name in self.backward.reads if name not in ("dy", "dloss"))

    def keep(self, values: Mapping[str, Any], learned: Iterable[str] = ()) -> str | None:
        """Which array an elementwise backward needs: "y" where it can, which the next layer keeps
        anyway. values: of the parameters; learned: those whose gradient is asked for.
        """
        if self.sign is not None and values[self.sign] > 0:
            return "y"
        if len(self.backward.reads) > 1:
            return self.backward.reads[1]
        for name in learned:
            if len(self.sums[name].reads) > 1:
                return self.sums[name].reads[1]
        return None

    def __str__(self) -> str:
        lines = {
            "formula": self.formula,
            "derivative": self.derivative,
            "range": self.range,
            "at the kink": self.kink,
            "backward reads": ", ".join(self.backward.reads + self.backward.parameters),
            "kept for it": self.keeps,
            "uses": self.uses,
            "limitations": self.limitations,
        }
        return "\n".join([self.name, *(f"  {key}: {text}" for key, text in lines.items())])


FUNCTIONS: Mapping[str, Function] = MappingProxyType(
    {
        f.name: f
        for f in (
            Function(
                name="linear",
                kind="elementwise",
                formula="y = scale·x + bias",
                derivative="scale",
                range="(−inf, inf)",
                kink="smooth",
                keeps="x where scale is learned, else nothing",
                uses="output layer of a regression, where any real number may be the answer",
                limitations="the derivative carries no information of x, and a stack of linear "
                "layers is one linear layer: nothing nonlinear can be learned",
                forward=Pass("linear", ("x",), ("scale", "bias")),
                backward=Pass("linear_backward", ("dy",), ("scale",)),
                slope=Pass("linear_derivative", ("x",), ("scale",)),
                defaults=MappingProxyType({"scale": 1.0, "bias": 0.0}),
                sums=MappingProxyType(
                    {
                        "scale": Pass("linear_dscale", ("dy", "x")),
                        "bias": Pass("linear_dbias", ("dy",)),
                    }
                ),
            ),
            Function(
                name="sigmoid",
                kind="elementwise",
                formula="y = 1 / (1 + e^−x)",
                derivative="y (1 − y)",
                range="(0, 1)",
                kink="smooth",
                keeps="y",
                uses="output of a binary classifier, where the answer is a probability; gates",
                limitations="saturates on both sides and its derivative is at most 1/4, so "
                "gradients vanish in depth; outputs are not centred on zero; needs an exponential",
                forward=Pass("sigmoid", ("x",)),
                backward=Pass("sigmoid_backward", ("dy", "y")),
                slope=Pass("sigmoid_derivative", ("x",)),
                saturated=((1 - sqrt(0.96)) / 2, (1 + sqrt(0.96)) / 2),  # y (1 − y) = 0.01
            ),
            Function(
                name="tanh",
                kind="elementwise",
                formula="y = (e^x − e^−x) / (e^x + e^−x)",
                derivative="1 − y²",
                range="(−1, 1)",
                kink="smooth",
                keeps="y",
                uses="hidden layers of small and recurrent networks: outputs are centred on zero",
                limitations="saturates on both sides, so gradients vanish in depth, if later than "
                "the sigmoid's; needs an exponential",
                forward=Pass("tanh", ("x",)),
                backward=Pass("tanh_backward", ("dy", "y")),
                slope=Pass("tanh_derivative", ("x",)),
                saturated=(-sqrt(0.99), sqrt(0.99)),  # 1 − y² = 0.01
            ),
            Function(
                name="relu",
                kind="elementwise",
                formula="y = max(0, x)",
                derivative="1 if x > 0 else 0",
                range="[0, inf)",
                kink="0 at x = 0",
                keeps="y",
                uses="hidden layers, the usual first choice: cheap, sparse, no saturation for x>0",
                limitations="a unit that is negative on every input has gradient 0 and stays dead; "
                "outputs are not centred on zero",
                forward=Pass("relu", ("x",)),
                backward=Pass("relu_backward", ("dy", "y")),
                slope=Pass("relu_derivative", ("x",)),
                integers="kept",
                saturated=(0.0, None),
            ),
            Function(
                name="leaky_relu",
                kind="elementwise",
                formula="y = x if x > 0 else negative_slope·x",
                derivative="1 if x > 0 else negative_slope",
                range="(−inf, inf)",
                kink="negative_slope at x = 0",
                keeps="y where negative_slope > 0, else x",
                uses="hidden layers where units die under ReLU: a small slope keeps them learning",
                limitations="the slope is fixed by hand; its gain over ReLU is not consistent",
                forward=Pass("leaky_relu", ("x",), ("negative_slope",)),
                backward=Pass("leaky_relu_backward", ("dy", "x"), ("negative_slope",)),
                slope=Pass("leaky_relu_derivative", ("x",), ("negative_slope",)),
                defaults=MappingProxyType({"negative_slope": 0.01}),
                integers="refused",
                sign="negative_slope",
            ),
            Function(
                name="prelu",
                kind="elementwise",
                formula="y = x if x > 0 else weight·x, weight learned",
                derivative="1 if x > 0 else weight; by weight: x if x ≤ 0 else 0",
                range="(−inf, inf)",
                kink="weight at x = 0",
                keeps="x",
                uses="hidden layers whose slope is to be learned, one for all or one a channel",
                limitations="more parameters to learn and to overfit with; max(weight·x, x) is the "
                "same function only for weight ≤ 1",
                forward=Pass("leaky_relu", ("x",), ("weight",)),
                backward=Pass("leaky_relu_backward", ("dy", "x"), ("weight",)),
                slope=Pass("leaky_relu_derivative", ("x",), ("weight",)),
                defaults=MappingProxyType({"weight": None}),
                sums=MappingProxyType({"weight": Pass("prelu_dweight", ("dy", "x"))}),
                integers="refused",
            ),
            Function(
                name="softmax",
                kind="rows",
                formula="s_i = e^x_i / Σ_k e^x_k",
                derivative="∂s_i/∂x_j = s_i (δ_ij − s_j): the Jacobian diag(s) − s sᵀ",
                range="(0, 1)",
                kink="smooth",
                keeps="y",
                uses="output layer of a classifier over exclusive classes; attention weights, with "
                "scale, mask and causality in the same pass",
                limitations="every output depends on every input; saturates when one input leads",
                forward=Pass("softmax", ("x",)),
                backward=Pass("softmax_backward", ("dy", "y")),
            ),
            Function(
                name="log_softmax",
                kind="rows",
                formula="y_i = x_i − log Σ_k e^x_k",
                derivative="∂y_i/∂x_j = δ_ij − e^y_j",
                range="(−inf, 0]",
                kink="smooth",
                keeps="y",
                uses="log-probabilities for losses and sampling: log(softmax(x)) would underflow",
                limitations="every output depends on every input",
                forward=Pass("log_softmax", ("x",)),
                backward=Pass("log_softmax_backward", ("dy", "y")),
            ),
            Function(
                name="cross_entropy",
                kind="loss",
                formula="loss = −Σ_k w_k Y_k log S_k, S = softmax(logits)",
                derivative="dZ = S Σ_k w_k Y_k − w ⊙ Y; S − Y in the plain case",
                range="[0, inf)",
                kink="smooth",
                keeps="logits, target and lse; with gradient_in_forward the gradient alone",
                uses="training a classifier: the softmax and its loss in one, exact where the "
                "Jacobian route overflows; z_loss and softcap keep the logits of a large one small",
                limitations="one confidently wrong label costs without bound; classes that are not "
                "exclusive need a sigmoid each",
                forward=Pass("cross_entropy", ("logits", "target")),
                backward=Pass("cross_entropy_backward", ("dloss", "logits", "target", "lse")),
            ),
        )
    }
)


def describe(name: str) -> Function:
    """The record of a function; as text: formula, derivative, range, kink, uses, limitations.

    >>> import gpuact
    >>> gpuact.describe("relu").kink
    '0 at x = 0'
    """
    asked: Any = name
    if not (isinstance(asked, str) and asked in FUNCTIONS):
        raise ValueError(f"name: {word(name)} came, allowed are {', '.join(FUNCTIONS)}")
    return FUNCTIONS[name]
