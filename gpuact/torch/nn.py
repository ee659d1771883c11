"""torch.nn's activations and cross-entropy, computed by gpuact, and `convert` for a whole model.

Each class is a subclass of its namesake in torch.nn that overrides forward alone: arguments,
attributes, parameters, buffers, state_dict and repr are the namesake's. Where results differ is
listed in `gpuact.torch.functional`. torch.jit.script does not take them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from . import functional as F

__all__ = [
    "Converted",
    "CrossEntropyLoss",
    "LeakyReLU",
    "LogSoftmax",
    "PReLU",
    "ReLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "convert",
]


class Watchable:
    """A module whose outputs `gpuact.torch.monitor` counts in the pass that computes them."""

    # From the module and its input the output, counted, or None where it cannot be. An instance has
    # one of its own in a step that is looked at; else this attribute is all that being watched
    # costs. Read once a call: another thread may end the look.
    _watch: Callable[[torch.nn.Module, Tensor], Tensor | None] | None = None


class Sigmoid(torch.nn.Sigmoid, Watchable):
    """torch.nn.Sigmoid by `functional.sigmoid`: any shape, any dtype but complex.

    >>> import torch, gpuact.torch.nn
    >>> gpuact.torch.nn.Sigmoid()(torch.zeros(2))
    tensor([0.5000, 0.5000])
    """

    def forward(self, input: Tensor) -> Tensor:
        watch = self._watch
        if watch is not None and (y := watch(self, input)) is not None:
            return y
        return F.sigmoid(input)


class Tanh(torch.nn.Tanh, Watchable):
    """torch.nn.Tanh by `functional.tanh`: any shape, any dtype but complex.

    >>> import torch, gpuact.torch.nn
    >>> gpuact.torch.nn.Tanh()(torch.zeros(2))
    tensor([0., 0.])
    """

    def forward(self, input: Tensor) -> Tensor:
        watch = self._watch
        if watch is not None and (y := watch(self, input)) is not None:
            return y
        return F.tanh(input)


class ReLU(torch.nn.ReLU, Watchable):
    """torch.nn.ReLU by `functional.relu`: any shape, any real dtype.

    >>> import torch, gpuact.torch.nn
    >>> gpuact.torch.nn.ReLU(inplace=True)(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """

    def forward(self, input: Tensor) -> Tensor:
        watch = self._watch
        if watch is not None and (y := watch(self, input)) is not None:
            return y
        return F.relu(input, self.inplace)


class LeakyReLU(torch.nn.LeakyReLU, Watchable):
    """torch.nn.LeakyReLU by `functional.leaky_relu`: any shape, any floating dtype.

    >>> import torch, gpuact.torch.nn
    >>> gpuact.torch.nn.LeakyReLU(0.5)(torch.tensor([-1.0, 2.0]))
    tensor([-0.5000,  2.0000])
    """

    def forward(self, input: Tensor) -> Tensor:
        watch = self._watch
        if watch is not None and (y := watch(self, input)) is not None:
            return y
        return F.leaky_relu(input, self.negative_slope, self.inplace)


class PReLU(torch.nn.PReLU, Watchable):
    """torch.nn.PReLU by `functional.prelu`: num_parameters is 1 or the size of input's dim 1.

    >>> import torch, gpuact.torch.nn
    >>> gpuact.torch.nn.PReLU(2, init=0.5)(torch.tensor([[-1.0, 2.0]])).tolist()
    [[-0.5, 2.0]]
    """

    def forward(self, input: Tensor) -> Tensor:
        watch = self._watch
        if watch is not None and (y := watch(self, input)) is not None:
            return y
        return F.prelu(input, self.weight)


class Softmax(torch.nn.Softmax):
    """torch.nn.Softmax by `functional.softmax`, along dim.

    >>> import torch, gpuact.torch.nn
    >>> gpuact.torch.nn.Softmax(dim=-1)(torch.zeros(4))
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.softmax(input, self.dim, _stacklevel=5)


class LogSoftmax(torch.nn.LogSoftmax):
    """torch.nn.LogSoftmax by `functional.log_softmax`, along dim.

    >>> import torch, gpuact.torch.nn
    >>> gpuact.torch.nn.LogSoftmax(dim=-1)(torch.tensor([0.0, -1000.0]))
    tensor([    0., -1000.])
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.log_softmax(input, self.dim, _stacklevel=5)


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """torch.nn.CrossEntropyLoss by `functional.cross_entropy`, which tells shapes and dtypes.

    z_loss, softcap and gradient_in_forward are those of `gpuact.cross_entropy`, attributes like the
    others; by default they change nothing.

    >>> import torch, gpuact.torch.nn
    >>> loss = gpuact.torch.nn.CrossEntropyLoss(z_loss=1e-4)
    >>> loss
    CrossEntropyLoss(z_loss=0.0001)
    >>> loss(torch.zeros(2, 4), torch.tensor([0, 3]))
    tensor(1.3865)
    """

    # of the class too: a module that was converted has none of its own
    z_loss: float = 0.0
    softcap: float | None = None
    gradient_in_forward: bool = False

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
        softcap: float | None = None,
        gradient_in_forward: bool = False,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.z_loss, self.softcap = z_loss, softcap
        self.gradient_in_forward = gradient_in_forward

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            softcap=self.softcap,
            gradient_in_forward=self.gradient_in_forward,
        )

    def extra_repr(self) -> str:
        """What is gpuact's own, where it is set."""
        names = ("z_loss", "softcap", "gradient_in_forward")
        values = {name: getattr(self, name) for name in names}
        return ", ".join(
            f"{name}={value}"
            for name, value in values.items()
            if value != getattr(CrossEntropyLoss, name)
        )


# -- a whole model --------------------------------------------------------------------------------

M = TypeVar("M", bound=torch.nn.Module)
Module = torch.nn.Module
Kind = type[Module]

_OURS: tuple[Kind, ...] = (
    Sigmoid,
    Tanh,
    ReLU,
    LeakyReLU,
    PReLU,
    Softmax,
    LogSoftmax,
    CrossEntropyLoss,
)
_THEIRS: tuple[Kind, ...] = tuple([ours.__bases__[0] for ours in _OURS])
_REPLACEMENTS = dict(zip(_THEIRS, _OURS, strict=True))


class Converted(NamedTuple, Generic[M]):
    """What `convert` did: the model, and modules by their qualified names ("" is the model itself).

    replaced: the old type and the new one. left: what could have been meant and was not replaced,
    and why.

    >>> import torch, gpuact.torch.nn
    >>> model, replaced, left = gpuact.torch.nn.convert(torch.nn.Tanh())
    >>> replaced, left
    ({'': (<class 'torch.nn.modules.activation.Tanh'>, <class 'gpuact.torch.nn.Tanh'>)}, {})
    """

    model: M
    replaced: dict[str, tuple[Kind, Kind]]
    left: dict[str, str]


def convert(model: M) -> Converted[M]:
    """Make gpuact compute the activations and cross-entropies of `model` that are torch.nn modules.

    The model is changed, and returned: each torch.nn.Sigmoid, Tanh, ReLU, LeakyReLU, PReLU,
    Softmax, LogSoftmax and CrossEntropyLoss in it, or the model itself, takes the class of its
    namesake here. It stays the same object, so parameters, buffers, hooks, device, mode and whoever
    holds it see no difference, and a state_dict fits before and after. Convert copy.deepcopy(model)
    to keep the old one. A module that occurs under several names is told under each.

    Left as they are, with the reason: subclasses, and modules whose forward was replaced, for both
    may compute something else; LeakyReLU in place whose slope is not above 0, which cannot learn.
    Not found: functions that a forward calls by their name (torch.relu, F.softmax), or that were
    given as such, as to torch.nn.TransformerEncoderLayer (by default F.relu; activation=
    torch.nn.ReLU() is found). Convert before torch.compile.

    >>> import torch, gpuact.torch.nn
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Softmax(dim=1))
    >>> list(gpuact.torch.nn.convert(model).replaced)
    ['1', '2']
    >>> model(torch.zeros(2, 4)).shape
    torch.Size([2, 8])
    """
    replaced: dict[str, tuple[Kind, Kind]] = {}
    left: dict[str, str] = {}
    found: list[tuple[Module, Kind]] = []
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, _THEIRS) or isinstance(module, _OURS):
            continue
        reason = _why_not(module)
        if reason is not None:
            left[name] = reason
            continue
        old = type(module)
        replaced[name] = old, _REPLACEMENTS[old]
        found.append((module, _REPLACEMENTS[old]))
    for module, new in found:
        module.__class__ = new  # of the same attributes: nothing else is to be done
    return Converted(model, replaced, left)


def _why_not(module: Module) -> str | None:
    kind = type(module)
    if kind not in _REPLACEMENTS:
        return f"{kind.__module__}.{kind.__qualname__} is a subclass, which may compute otherwise"
    if "forward" in vars(module):
        return "its forward was replaced by one that may compute otherwise"
    if isinstance(module, torch.nn.LeakyReLU) and module.inplace and not module.negative_slope > 0:
        return (
            f"negative_slope={module.negative_slope} with inplace=True has no gradient: what was "
            "above 0 is lost"
        )
    return None
