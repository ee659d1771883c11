"""The public functions: what each means, stated once.

Common to all. Arrays are NumPy's, CuPy's or PyTorch's; the result is of the same library, on the
same device, of the same shape and dtype. Lists and numbers count as NumPy arrays. Dtypes: float16,
bfloat16, float32, float64; half types compute in float32 and round once. Integers and bools are
taken as float32 unless a function says otherwise. Parameters enter in the precision of the
computation and never widen the result. Any shape, 0-d and empty ones too, and any strides. NaN in
x gives NaN out. `out` receives the result and is returned; it may be x itself.

Errors are in units in the last place (ulp) of the exact value, on whatever backend, and held by the
tests; float32 and bfloat16 results below 2⁻¹²⁶ may be 0 on a GPU instead.

On torch tensors everything is differentiable, of every order, in reverse and in forward mode, under
torch.func, and inside torch.compile and torch.export; the functions named *_backward too. The
*_derivative functions, softmax_jacobian, fused_backward and the gradient that
cross_entropy_with_grad returns are not, and say so (NotImplementedError) if they are to be; inside
torch.compile as soon as it compiles them for a tensor that requires grad: detach it. Masks and
class weights are constants: ValueError says so in every mode.
torch.autocast makes softmax and log_softmax of half types compute and return float32.

Raised by all: TypeError (a dtype, library or device that is not allowed), ValueError (a shape or
value), numpy.exceptions.AxisError (an axis), BackendError (a GPU asked for that does not answer).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeVar, overload

from . import calls, stats
from .catalogue import FUNCTIONS
from .dispatch import asarray
from .fusion import Dropout
from .libraries import word
from .operations import Reduction
from .stats import ActivationStats


class Array(Protocol):
    """What numpy.ndarray, cupy.ndarray and torch.Tensor have in common."""

    @property
    def shape(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...


A = TypeVar("A", bound=Array)


# -- linear ---------------------------------------------------------------------------------------


def linear(
    x: A, scale: Array | float = 1.0, bias: Array | float = 0.0, *, out: A | None = None
) -> A:
    """y = scale·x + bias, elementwise; dy/dx = scale everywhere.

    scale, bias: numbers, or arrays that broadcast to x's shape (and no further). No kink; the
    range is that of the reals. Infinities follow IEEE arithmetic: 0·inf is NaN.
    Source: the affine map; as an activation, the identity of the perceptron's output unit.
    Error: at most 1 ulp of |scale·x| + |bias|.

    >>> import gpuact, numpy as np
    >>> gpuact.linear(np.array([1.0, 2.0]), 3.0, 1.0)
    array([4., 7.])
    """
    result: A = calls.activation("linear", x, out, scale=scale, bias=bias)
    return result


def linear_backward(dy: Array, x: A, scale: Array | float, bias: Array | float) -> tuple[A, A, A]:
    """(dx, dscale, dbias) = (scale·dy, Σ x·dy, Σ dy), each of its argument's shape.

    Sums run over the axes along which scale and bias were broadcast (numbers: over all, to 0-d),
    in float32 for half types, in the same order every time. dy has x's shape.
    Error of dx: half an ulp, the rounding.

    >>> import gpuact, numpy as np
    >>> dx, dscale, dbias = gpuact.linear_backward(np.ones(2), np.array([1.0, 2.0]), 3.0, 1.0)
    >>> print(dx, dscale, dbias)
    [3. 3.] 3.0 2.0
    """
    dx, dscale, dbias = calls.activation_backward("linear", dy, {"x": x}, scale=scale, bias=bias)
    return dx, dscale, dbias


def linear_derivative(
    x: A, scale: Array | float = 1.0, bias: Array | float = 0.0, *, out: A | None = None
) -> A:
    """f'(x) = scale, whatever x is; NaN at NaN.

    Error: half an ulp, the rounding.

    >>> import gpuact, numpy as np
    >>> gpuact.linear_derivative(np.array([-1.0, 5.0]), 3.0)
    array([3., 3.])
    """
    result: A = calls.derivative("linear", x, out, scale=scale, bias=bias)
    return result


# -- sigmoid --------------------------------------------------------------------------------------


def sigmoid(x: A, *, out: A | None = None) -> A:
    """y = 1 / (1 + e^−x), the logistic function; dy/dx = y (1 − y), at most 1/4 at x = 0.

    Computed from e^−|x|, so neither tail overflows or loses its digits. −inf gives 0, +inf gives 1.
    Range (0, 1), closed by rounding. Source: Verhulst 1838; Rumelhart, Hinton and Williams 1986.
    Error: at most 8.5 ulp in float32, 3 in float64, 0.51 in half types.

    >>> import gpuact, numpy as np
    >>> gpuact.sigmoid(np.array([-np.inf, 0.0, np.inf]))
    array([0. , 0.5, 1. ])
    """
    result: A = calls.activation("sigmoid", x, out)
    return result


def sigmoid_backward(dy: Array, y: A) -> A:
    """dx = dy·y (1 − y), from sigmoid's output y; dy has y's shape and is taken in its dtype.

    Error: at most 2.5 ulp in float32, 2.5 in float64, 0.51 in half types.

    >>> import gpuact, numpy as np
    >>> gpuact.sigmoid_backward(np.array([1.0, 2.0]), np.array([0.5, 0.5]))
    array([0.25, 0.5 ])
    """
    (dx,) = calls.activation_backward("sigmoid", dy, {"y": y})
    result: A = dx
    return result


def sigmoid_derivative(x: A, *, out: A | None = None) -> A:
    """f'(x) = z / (1 + z)² with z = e^−|x|: right in the tails, where y (1 − y) is not.

    Range (0, 1/4], closed by rounding; 0 at ±inf, NaN at NaN.
    Error: at most 9 ulp in float32, 4.5 in float64, 0.51 in half types.

    >>> import gpuact, numpy as np
    >>> gpuact.sigmoid_derivative(np.array([0.0, np.inf]))
    array([0.25, 0.  ])
    """
    result: A = calls.derivative("sigmoid", x, out)
    return result


# -- tanh -----------------------------------------------------------------------------------------


def tanh(x: A, *, out: A | None = None) -> A:
    """y = (e^x − e^−x) / (e^x + e^−x); dy/dx = 1 − y², 1 at x = 0.

    ±inf give ±1, tanh(−x) = −tanh(x). Range (−1, 1), closed by rounding, centred on zero.
    Source: LeCun, Bottou, Orr and Müller, Efficient BackProp, 1998.
    Error: at most 4.5 ulp in float32, 2 in float64, 0.51 in half types.

    >>> import gpuact, numpy as np
    >>> gpuact.tanh(np.array([-np.inf, 0.0, np.inf]))
    array([-1.,  0.,  1.])
    """
    result: A = calls.activation("tanh", x, out)
    return result


def tanh_backward(dy: Array, y: A) -> A:
    """dx = dy·(1 − y²), from tanh's output y; dy has y's shape and is taken in its dtype.

    Error: at most 2.5 ulp in float32, 2.5 in float64, 0.51 in half types.

    >>> import gpuact, numpy as np
    >>> gpuact.tanh_backward(np.array([1.0, 2.0]), np.array([0.0, 0.5]))
    array([1. , 1.5])
    """
    (dx,) = calls.activation_backward("tanh", dy, {"y": y})
    result: A = dx
    return result


def tanh_derivative(x: A, *, out: A | None = None) -> A:
    """f'(x) = 4z / (1 + z)² with z = e^−2|x|: right in the tails, where 1 − y² is not.

    Range (0, 1], closed by rounding; 0 at ±inf, NaN at NaN.
    Error: at most 9 ulp in float32, 4.5 in float64, 0.51 in half types.

    >>> import gpuact, numpy as np
    >>> gpuact.tanh_derivative(np.array([0.0, np.inf]))
    array([1., 0.])
    """
    result: A = calls.derivative("tanh", x, out)
    return result


# -- relu -----------------------------------------------------------------------------------------


def relu(x: A, *, out: A | None = None) -> A:
    """y = max(0, x); dy/dx = 1 for x > 0 and 0 for x ≤ 0, the kink included.

    NaN stays NaN (a bare max() on a GPU drops it), relu(−0.0) is +0.0. Integers keep their dtype;
    bool is refused. Range [0, inf). Source: Nair and Hinton 2010.
    Error: none.

    >>> import gpuact, numpy as np
    >>> gpuact.relu(np.array([-2.0, np.nan, 3.0]))
    array([ 0., nan,  3.])
    """
    result: A = calls.activation("relu", x, out)
    return result


def relu_backward(dy: Array, y: A) -> A:
    """dx = 0 where y ≤ 0, else dy; y is relu's output (its input serves as well).

    Error: none.

    >>> import gpuact, numpy as np
    >>> gpuact.relu_backward(np.array([1.0, 1.0]), np.array([0.0, 3.0]))
    array([0., 1.])
    """
    (dx,) = calls.activation_backward("relu", dy, {"y": y})
    result: A = dx
    return result


def relu_derivative(x: A, *, out: A | None = None) -> A:
    """f'(x) = 1 for x > 0, 0 for x ≤ 0, NaN at NaN; integers give float32.

    Error: none.

    >>> import gpuact, numpy as np
    >>> gpuact.relu_derivative(np.array([-1.0, 0.0, 1.0]))
    array([0., 0., 1.])
    """
    result: A = calls.derivative("relu", x, out)
    return result


# -- leaky_relu -----------------------------------------------------------------------------------


def leaky_relu(x: A, negative_slope: float = 0.01, *, out: A | None = None) -> A:
    """y = x for x > 0, else negative_slope·x; dy/dx = 1 or negative_slope, the latter at x = 0.

    Any slope: above 1 or negative ones too, where max(slope·x, x) would be another function.
    Integers and bool are refused. Range (−inf, inf) for a slope above 0. Source: Maas, Hannun and
    Ng 2013.
    Error: half an ulp, the rounding.

    >>> import gpuact, numpy as np
    >>> gpuact.leaky_relu(np.array([-2.0, 3.0]), 0.5)
    array([-1.,  3.])
    """
    result: A = calls.activation("leaky_relu", x, out, negative_slope=negative_slope)
    return result


def leaky_relu_backward(dy: Array, x: A, negative_slope: float = 0.01) -> A:
    """dx = dy where x > 0, else negative_slope·dy; NaN takes the slope.

    For a slope above 0 the output y may stand in for x: it has the same sign.
    Error: half an ulp, the rounding.

    >>> import gpuact, numpy as np
    >>> gpuact.leaky_relu_backward(np.array([1.0, 1.0]), np.array([-2.0, 3.0]), 0.5)
    array([0.5, 1. ])
    """
    (dx,) = calls.activation_backward("leaky_relu", dy, {"x": x}, negative_slope=negative_slope)
    result: A = dx
    return result


def leaky_relu_derivative(x: A, negative_slope: float = 0.01, *, out: A | None = None) -> A:
    """f'(x) = 1 for x > 0, negative_slope for x ≤ 0, NaN at NaN.

    Error: half an ulp, the rounding.

    >>> import gpuact, numpy as np
    >>> gpuact.leaky_relu_derivative(np.array([-1.0, 0.0, 1.0]), 0.5)
    array([0.5, 0.5, 1. ])
    """
    result: A = calls.derivative("leaky_relu", x, out, negative_slope=negative_slope)
    return result


# -- prelu ----------------------------------------------------------------------------------------


def prelu(x: A, weight: Array | float, *, channel_axis: int = 1, out: A | None = None) -> A:
    """y = x for x > 0, else weight·x, weight learned; at x = 0 the derivative is weight.

    weight: a number or one element (shared), 1-D with one slope for each element of x along
    `channel_axis`, or an array of x's number of dimensions that broadcasts to x's shape. Any value:
    negative slopes and slopes above 1 too. Integers and bool are refused.
    Source: He, Zhang, Ren and Sun 2015.
    Error: half an ulp, the rounding.

    >>> import gpuact, numpy as np
    >>> gpuact.prelu(np.array([[-2.0, -2.0]]), np.array([0.5, 3.0]))
    array([[-1., -6.]])
    """
    result: A = calls.activation("prelu", x, out, channel_axis=channel_axis, weight=weight)
    return result


def prelu_backward(dy: Array, x: A, weight: Array | float, *, channel_axis: int = 1) -> tuple[A, A]:
    """(dx, dweight): dx = dy where x > 0, else weight·dy; dweight = Σ x·dy over x ≤ 0.

    x is tested, never y: slopes may be negative. dweight has weight's shape (a number: 0-d) and is
    summed over the axes it was shared along, in the same order every time.
    Error of dx: half an ulp, the rounding.

    >>> import gpuact, numpy as np
    >>> dx, dweight = gpuact.prelu_backward(np.ones(2), np.array([-2.0, 3.0]), 0.5)
    >>> print(dx, dweight)
    [0.5 1. ] -2.0
    """
    dx, dweight = calls.activation_backward(
        "prelu", dy, {"x": x}, channel_axis=channel_axis, weight=weight
    )
    return dx, dweight


def prelu_derivative(
    x: A, weight: Array | float, *, channel_axis: int = 1, out: A | None = None
) -> A:
    """f'(x) = 1 for x > 0, weight for x ≤ 0, NaN at NaN.

    Error: half an ulp, the rounding.

    >>> import gpuact, numpy as np
    >>> gpuact.prelu_derivative(np.array([-1.0, 0.0, 1.0]), 3.0)
    array([3., 3., 1.])
    """
    result: A = calls.derivative("prelu", x, out, channel_axis=channel_axis, weight=weight)
    return result


# -- fused ----------------------------------------------------------------------------------------


def fused(
    x: A,
    activation: str,
    *,
    negative_slope: float = 0.01,
    weight: Array | float | None = None,
    scale: Array | float | None = None,
    bias: Array | float | None = None,
    gate: Array | None = None,
    residual: Array | None = None,
    dropout: Dropout | None = None,
    channel_axis: int = -1,
    out: A | None = None,
) -> A:
    """y = dropout(act(scale·x + bias))·gate + residual, elementwise, in one kernel.

    activation: linear (the identity here), sigmoid, tanh, relu, leaky_relu (with negative_slope) or
    prelu (with weight). What is None is left out. scale, bias, weight: a number, one element, 1-D
    (one entry a channel, along channel_axis), or x.ndim dimensions that broadcast to x.shape. gate
    and residual: of x's shape, in any floating dtype. dropout: a `Dropout`; what it drops is 0
    whatever it was, NaN too, the rest is multiplied by 1/(1 − p).

    Everything is computed in one precision (float32 for half types) and rounded once, to x's dtype.
    Kinks and special values are the activation's own. With tensors that require grad the result is
    differentiable by every floating tensor among the arguments, in one kernel again; only the
    inputs are kept for it, no mask and nothing in between.
    Error: the activation's own is at most 9 ulp (of a half type 0.01), each other step rounds once
    in the precision of the computation, and the result once to x's dtype.
    Source: kernel fusion after Tillet et al., "Triton" (2019); dropout: Srivastava et al. (2014).

    >>> import gpuact, numpy as np
    >>> gpuact.fused(np.array([-1.0, 2.0]), "relu", scale=2.0, bias=1.0, residual=np.ones(2))
    array([1., 6.])
    """
    operands = (x, scale, bias, weight, negative_slope, gate, residual)
    result: A = calls.fused(activation, dropout, channel_axis, out, operands)
    return result


def fused_backward(
    dy: Array,
    x: A,
    activation: str,
    *,
    negative_slope: float = 0.01,
    weight: Array | float | None = None,
    scale: Array | float | None = None,
    bias: Array | float | None = None,
    gate: Array | None = None,
    residual: Array | None = None,
    dropout: Dropout | None = None,
    channel_axis: int = -1,
) -> dict[str, A]:
    """The gradients of `fused` by name: "x", and each of scale, bias, weight, gate, residual given.

    The arguments are those of `fused`, and dy its incoming gradient, of x's shape and taken in x's
    dtype. Each gradient has the shape and dtype of its argument (a number's is 0-d, of x's dtype);
    that of residual is dy, itself where the dtypes agree. One pass over dy and x computes them all,
    the sums without atomics: the same bits every time. The activation's derivative is taken at
    scale·x + bias; at a kink it is the one that the activation's own docstring states.

    >>> import gpuact, numpy as np
    >>> x, dy = np.array([-1.0, 2.0]), np.array([10.0, 20.0])
    >>> gradients = gpuact.fused_backward(dy, x, "relu", scale=2.0)
    >>> gradients["x"], gradients["scale"]
    (array([ 0., 40.]), array(40.))
    """
    operands = (x, scale, bias, weight, negative_slope, gate, residual)
    result: dict[str, A] = calls.fused_backward(activation, dropout, channel_axis, dy, operands)
    return result


# -- statistics -----------------------------------------------------------------------------------


def activation_with_stats(
    x: A,
    activation: str,
    *,
    negative_slope: float = 0.01,
    weight: Array | float | None = None,
    channel_axis: int = -1,
    into: ActivationStats | None = None,
) -> tuple[A, ActivationStats]:
    """(y, stats): an activation, and what its outputs are like, in one pass over memory (an x that
    is not dense is copied first).

    activation: linear (the identity here), sigmoid, tanh, relu, leaky_relu (with negative_slope) or
    prelu (with weight). y, its dtype and its gradients are those of the function of that name; but
    integers are taken as float32 by relu too. channel_axis: the axis of units, of which each may be
    dead: the last one, 1 for images (N, C, H, W). A 0-d array is one unit. into: `ActivationStats`
    of an earlier call with the same activation, number of units and device, to be gathered in;
    nothing is read of it, and nothing waits for the device, before a figure is asked for.

    weight: a number, one element or one a unit, along channel_axis; other shapes that prelu takes
    are computed first and looked through in a second pass. Under torch.compile or torch.func there
    is no memory to look at: TypeError.
    Error: counts are exact. mean and std are those of y as it is rounded, and the same bits every
    time: about means, in float32 for half types, of parts that are merged in float64.
    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances" (1979).

    >>> import gpuact, numpy as np
    >>> y, stats = gpuact.activation_with_stats(np.array([[-2.0, 3.0], [-1.0, -4.0]]), "relu")
    >>> y.tolist(), stats.zeros, stats.dead.tolist()
    ([[0.0, 3.0], [0.0, 0.0]], 0.75, [True, False])
    """
    y, found = stats.activation_with_stats(
        x, activation, negative_slope, weight, channel_axis, into
    )
    return y, found


def activation_stats(
    y: Array,
    activation: str = "linear",
    *,
    channel_axis: int = -1,
    into: ActivationStats | None = None,
) -> ActivationStats:
    """What outputs that are there already are like: `activation_with_stats` without the activation.

    y: outputs of any function, floating (integers count as float32). activation: the one that made
    them, as far as saturation tells; "linear" never saturates. channel_axis and into are those of
    `activation_with_stats`, and so are the errors. One pass that reads y and writes nothing of its
    size.

    >>> import gpuact, numpy as np
    >>> stats = gpuact.activation_stats(np.array([[0.5, 1.0], [0.25, 0.999]]), "sigmoid")
    >>> stats.mean, stats.saturated, stats.dead.tolist()
    (0.68725, 0.5, [False, True])
    """
    return stats.activation_stats(y, activation, channel_axis, into)


# -- softmax --------------------------------------------------------------------------------------


def softmax(
    x: A,
    axis: int | tuple[int, ...] | None = -1,
    *,
    dtype: Any = None,
    scale: float = 1.0,
    mask: Array | None = None,
    causal: bool = False,
    all_masked: Literal["nan", "zero"] = "nan",
    out: A | None = None,
) -> A:
    """s_i = e^z_i / Σ_k e^z_k along `axis`, z = scale·x; ∂s_i/∂x_j = scale·s_i (δ_ij − s_j).

    The row's maximum is subtracted first, so nothing overflows. axis: an int, a tuple (one softmax
    over all of them), or None for all. dtype: x is cast to it first, and it is the result's. A row
    all −inf, or with +inf or NaN in it, gives NaN; one finite value beside −inf never does. Range
    (0, 1), closed by rounding. Source: Boltzmann 1868; Bridle 1990; of attention scores: Vaswani et
    al. 2017.

    For attention scores, in the same pass: scale, a number. mask, which broadcasts to x's shape: of
    bool, where False takes no part, whatever x holds there, NaN too; or of a floating dtype, cast
    to x's and added: z = scale·x + mask. It is read where it lies, unless its axes beside the row
    are more than four that no stride joins. causal: column j takes part in row i if j ≤ i, i along
    the axis before the row's, which must be the last: as is_causal of torch's
    scaled_dot_product_attention, also where the two differ in length. Mask and causal hold both.
    all_masked: a row whose z are all −inf, because of a mask or of x, gives NaN, or 0 ("zero").
    What takes no part is 0, and so is its gradient (NaN in a row of NaN). For backward the result
    alone is kept. A mask is a constant: one that requires grad raises ValueError.

    >>> import gpuact, numpy as np
    >>> gpuact.softmax(np.array([1000.0, 1000.0, -np.inf]))
    array([0.5, 0.5, 0. ])
    >>> gpuact.softmax(np.zeros((2, 3)), causal=True)
    array([[1. , 0. , 0. ],
           [0.5, 0.5, 0. ]])
    >>> gpuact.softmax(np.zeros((2, 2)), mask=np.array([[True], [False]]), all_masked="zero")
    array([[0.5, 0.5],
           [0. , 0. ]])
    """
    result: A = calls.rows(
        "softmax",
        x,
        axis,
        dtype,
        out,
        scale=scale,
        mask=mask,
        causal=causal,
        all_masked=all_masked,
    )
    return result


def softmax_backward(
    dy: Array, y: A, axis: int | tuple[int, ...] | None = -1, *, scale: float = 1.0
) -> A:
    """dx = scale·y (dy − Σ y·dy) along `axis`, from softmax's output y: the Jacobian times dy.

    scale is that of `softmax`. Masks need not be told: what took no part has y = 0, and so dx = 0.

    >>> import gpuact, numpy as np
    >>> gpuact.softmax_backward(np.array([1.0, 0.0]), np.array([0.5, 0.5]))
    array([ 0.25, -0.25])
    """
    result: A = calls.rows_backward("softmax", dy, y, axis, scale=scale)
    return result


def softmax_jacobian(y: A, axis: int = -1) -> A:
    """diag(s) − s sᵀ for each row s = y of softmax's output along `axis`.

    The result has y's other axes first, then two of length n: ∂s_i/∂x_j in its last two axes.

    >>> import gpuact, numpy as np
    >>> gpuact.softmax_jacobian(np.array([0.5, 0.5]))
    array([[ 0.25, -0.25],
           [-0.25,  0.25]])
    """
    result: A = calls.softmax_jacobian(y, axis)
    return result


# -- log_softmax ----------------------------------------------------------------------------------


def log_softmax(
    x: A, axis: int | tuple[int, ...] | None = -1, *, dtype: Any = None, out: A | None = None
) -> A:
    """y_i = x_i − log Σ_k e^x_k along `axis`; ∂y_i/∂x_j = δ_ij − e^y_j.

    Exact where log(softmax(x)) underflows to −inf. axis, dtype and the treatment of NaN and
    infinities are softmax's. Range (−inf, 0]. Source: Bridle 1990.

    >>> import gpuact, numpy as np
    >>> gpuact.log_softmax(np.array([0.0, -1000.0]))
    array([    0., -1000.])
    """
    result: A = calls.rows("log_softmax", x, axis, dtype, out)
    return result


def log_softmax_backward(dy: Array, y: A, axis: int | tuple[int, ...] | None = -1) -> A:
    """dx = dy − e^y Σ dy along `axis`, from log_softmax's output y.

    >>> import gpuact, numpy as np
    >>> gpuact.log_softmax_backward(np.array([1.0, 0.0]), np.log([0.5, 0.5]))
    array([ 0.5, -0.5])
    """
    result: A = calls.rows_backward("log_softmax", dy, y, axis)
    return result


# -- cross_entropy --------------------------------------------------------------------------------


@overload
def cross_entropy(
    logits: A,
    target: Array,
    *,
    weight: Array | None = ...,
    ignore_index: int = ...,
    reduction: Reduction = ...,
    label_smoothing: float = ...,
    z_loss: float = ...,
    softcap: float | None = ...,
    axis: int | None = ...,
    gradient_in_forward: bool = ...,
    return_lse: Literal[False] = ...,
) -> A: ...


@overload
def cross_entropy(
    logits: A,
    target: Array,
    *,
    weight: Array | None = ...,
    ignore_index: int = ...,
    reduction: Reduction = ...,
    label_smoothing: float = ...,
    z_loss: float = ...,
    softcap: float | None = ...,
    axis: int | None = ...,
    gradient_in_forward: bool = ...,
    return_lse: Literal[True],
) -> tuple[A, A]: ...


@overload
def cross_entropy(
    logits: A,
    target: Array,
    *,
    weight: Array | None = ...,
    ignore_index: int = ...,
    reduction: Reduction = ...,
    label_smoothing: float = ...,
    z_loss: float = ...,
    softcap: float | None = ...,
    axis: int | None = ...,
    gradient_in_forward: bool = ...,
    return_lse: bool,
) -> A | tuple[A, A]: ...


def cross_entropy(
    logits: A,
    target: Array,
    *,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    axis: int | None = None,
    return_lse: bool = False,
    gradient_in_forward: bool = False,
) -> A | tuple[A, A]:
    """loss = −Σ_k w_k Y_k log S_k with S = softmax(logits); dZ = S Σ_k w_k Y_k − w ⊙ Y.

    logits: (…, C), or with the classes along `axis`; (N, C, d1, …) and (…, C) are read where they
    lie. target: integer classes of logits' shape without that axis, or probabilities Y of logits'
    shape (they need not sum to 1). axis: the last by default; where logits have more than two
    dimensions and the target fits axis 1 as well, it must be given.
    weight: (C,), one a class. label_smoothing ε takes (1 − ε) Y + ε/C for Y. Rows whose target is
    `ignore_index` (integers only) give 0 and do not count. reduction: "none" gives a loss a row,
    "sum" their sum, "mean" their sum over the weight of the targets that count (probabilities:
    over the rows); a mean over no rows that count is NaN with gradient 0, and one over rows whose
    weights are all 0 is divided by 0. A class whose share w_k Y_k is 0 adds nothing, whatever its
    logit. Probabilities are taken in logits' dtype, and not checked: an infinite one makes the
    loss infinite or NaN, by backend.
    z_loss, a finite number from 0 on, adds z_loss·lse² to the loss of every row that counts, and
    2 z_loss·lse·S to its dZ; a mean divides as without it. softcap, a finite number above 0, takes
    cap·tanh(z/cap) for the logits, in lse too (an infinity counts as ±cap then), and multiplies dZ
    by 1 − tanh²(z/cap).

    Returns the loss, or (loss, lse) with `return_lse`, lse = log Σ_k e^z_k of every row, which
    `cross_entropy_backward` reads. Both are float32 for half types, else of logits' dtype. A row
    that is all −inf, or holds +inf or NaN, gives NaN (under a softcap NaN alone does). A class out
    of range raises IndexError on NumPy; on a GPU that row's loss and gradient are NaN, nothing is
    read out of bounds, and the host looks only under GPUACT_CHECK=1. On torch tensors the loss is
    differentiable by logits and by probabilities, lse by logits; logits, target and lse are kept.
    gradient_in_forward: on logits that require grad, forward finds the gradient in the pass that
    finds the loss and keeps that alone; backward multiplies it by the loss's gradient, in place,
    when it is rounded to logits' dtype already, and 0 by an infinite one gives NaN. So
    there is one backward and no double one (RuntimeError and NotImplementedError say so), and
    "none", return_lse and probabilities that require grad are refused (ValueError). Where nothing
    requires grad the option changes nothing.
    Source: Bridle 1990; label smoothing: Szegedy et al. 2016; z_loss: Chowdhery et al. 2022;
    softcap: Gemma Team 2024.

    >>> import gpuact, numpy as np
    >>> print(gpuact.cross_entropy(np.zeros((2, 4)), np.array([0, 3])).round(6))
    1.386294
    """
    return calls.cross_entropy(
        logits,
        target,
        return_lse,
        gradient_in_forward,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        axis=axis,
    )


def cross_entropy_backward(
    dloss: Array | float,
    logits: A,
    target: Array,
    lse: Array,
    *,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    axis: int | None = None,
) -> A:
    """dlogits = dloss·(S Σ_k w_k Y_k − w ⊙ Y), S = e^(logits − lse), scaled as the reduction says.

    z_loss adds 2 z_loss·lse·S, softcap caps the logits and multiplies all by its slope. S comes
    from lse as it is stored: its rounding, u·|lse|, is the error of S, so logits far from 0 cost
    digits that `cross_entropy_with_grad` keeps.
    dloss: a number or 0-d, or of lse's shape for "none"; lse and the options are those of
    `cross_entropy`. The result has logits' shape and dtype. Rows that were ignored get 0.

    >>> import gpuact, numpy as np
    >>> z, t = np.zeros((1, 2)), np.array([0])
    >>> loss, lse = gpuact.cross_entropy(z, t, return_lse=True)
    >>> gpuact.cross_entropy_backward(1.0, z, t, lse)
    array([[-0.5,  0.5]])
    """
    result: A = calls.cross_entropy_backward(
        dloss,
        logits,
        target,
        lse,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        axis=axis,
    )
    return result


def cross_entropy_with_grad(
    logits: A,
    target: Array,
    *,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    axis: int | None = None,
    dlogits_out: A | None = None,
) -> tuple[A, A]:
    """(loss, dlogits) at once: `cross_entropy` and its gradient for a loss gradient of 1.

    With "none", dlogits is the gradient of the losses' sum. dlogits_out: receives the gradient; it
    may be logits itself, which are then overwritten, never unasked. The options are those of
    `cross_entropy`. Meant for training loops written by hand: autograd records nothing.

    >>> import gpuact, numpy as np
    >>> loss, dlogits = gpuact.cross_entropy_with_grad(np.zeros((1, 2)), np.array([0]))
    >>> dlogits
    array([[-0.5,  0.5]])
    """
    loss, dlogits = calls.cross_entropy_with_grad(
        logits,
        target,
        dlogits_out,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        axis=axis,
    )
    return loss, dlogits


# -- beside the functions -------------------------------------------------------------------------


def warmup(
    shapes: Sequence[Sequence[int]] = ((1024, 1024),),
    dtypes: Sequence[str] = ("float16", "bfloat16", "float32"),
    functions: Sequence[str] | None = None,
    *,
    like: Any = None,
    **options: Any,
) -> int:
    """Compile the kernels that the given functions need, ahead; returns how many calls that took.

    Runs each function (all by default), forward and backward, on C-contiguous arrays of the given
    shapes and dtypes. like: an array of the library and device to warm up; by default what
    `asarray` gives, CuPy where a GPU answers. After it, such calls compile nothing, so that they
    can be captured in a CUDA graph.

    options: any of the functions' own (axis, scale, mask, causal, weight, label_smoothing, z_loss,
    softcap, reduction, …), each passed to every function that takes it; without them the defaults
    are warmed up, and integer classes along the last axis. `target` says which target cross_entropy
    will get. An array stands for all of its dtype, shape and strides, a number for every other that
    is not the default. One call warms up one variant, as for attention
    `warmup([(8, 16, 512, 512)], ["bfloat16"], ["softmax"], scale=0.125, mask=mask, causal=True)`;
    what differs otherwise (views of x that are strided or misaligned, `out`, softmax_jacobian, a
    gradient that comes to lse, or goes to probabilities) is to be called once itself.

    >>> import gpuact
    >>> with gpuact.using("numpy"):
    ...     gpuact.warmup([(2, 3)], ["float32"], ["relu"])
    3
    """
    named = [*FUNCTIONS] if functions is None else calls.listed("functions", functions, "names")
    unknown = [word(name) for name in named if not (isinstance(name, str) and name in FUNCTIONS)]
    if unknown:
        came = ", ".join(unknown)
        raise ValueError(f"functions: {came} came, allowed are {', '.join(FUNCTIONS)}")
    array = asarray(0.0) if like is None else like
    return calls.warmup(array, shapes, dtypes, named, options)
