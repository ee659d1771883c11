"""What a call costs inside PyTorch: eager, compiled, as a module, under torch.func.

Arrays are of 4 KiB, so that what is timed is the host: on a GPU it launches, and nobody waits for
the device. On a CPU the host is also who computes, in one thread: waking others takes longer than
arrays so small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .cases import Case, inputs
from .host import Call, Cost, compared
from .measure import Host, TorchHost
from .providers import IN_TORCH_ON_CPU, Function, Provider
from .suite import failed

DTYPE, SHAPE = "float32", (8, 128)
OF = f" {DTYPE} {'×'.join(map(str, SHAPE))}"  # behind the name of a row

# Tensors require grad in BACKWARD alone. Under torch.func gpuact's operators run in eager mode;
# torch.compile is given PyTorch's there (gpuact/torch/composite.py).
FORWARD, BACKWARD = "forward", "forward + backward"
VMAP, GRAD = "torch.func.vmap", "torch.func.grad"

# Of torch.compile: the best of each place, but without CUDA graphs, which would copy every input.
MODES = {"torch on the CPU": "default", "torch on CUDA": "max-autotune-no-cudagraphs"}
WHAT = {
    "torch on the CPU": "torch on the CPU, in one thread: all that a call takes",
    "torch on CUDA": "torch on CUDA: what a call costs the host; nobody waits for the device",
}


@dataclass(frozen=True)
class Row:
    """Functions, each of what the one before it returns, called in one way."""

    functions: tuple[str, ...]
    way: str

    @property
    def name(self) -> str:
        return f"{'→'.join(self.functions)} {self.way}{OF}"

    @property
    def cases(self) -> list[Case]:
        return [Case(function, DTYPE, SHAPE) for function in self.functions]


FUNCTIONS = ("relu", "sigmoid", "prelu", "softmax", "log_softmax", "cross_entropy")
CHAIN = ("relu", "tanh", "softmax")
QUICK = ("relu", "softmax", "cross_entropy")  # where there is no time for all: one of each kind
ROWS = (
    *(Row((name,), way) for name in FUNCTIONS for way in (FORWARD, BACKWARD)),
    *(Row(CHAIN, way) for way in (FORWARD, BACKWARD)),
    *(Row(("softmax",), way) for way in (VMAP, GRAD)),
)


def _chained(functions: Sequence[Function]) -> Function:
    import torch

    if len(functions) == 1:
        return functions[0]
    if isinstance(functions[0], torch.nn.Module):
        return torch.nn.Sequential(*functions)
    first, second, third = functions
    return lambda x: third(second(first(x)))


def _arguments(function: Function, tensors: dict[str, Any]) -> list[Any]:
    """What it is called with: all, but for a module those that its parameters are set to."""
    import torch

    own = dict(function.named_parameters()) if isinstance(function, torch.nn.Module) else {}
    for name in own:
        tensors[name] = torch.nn.Parameter(tensors[name], tensors[name].requires_grad)
        setattr(function, name, tensors[name])
    return [tensor for name, tensor in tensors.items() if name not in own]


def call_of(row: Row, provider: Provider, place: Host) -> Call | None:
    """What returns the result, in BACKWARD with all gradients; None where a function is lacking."""
    import torch

    functions = [function for case in row.cases if (function := provider.spell(case))]
    if len(functions) < len(row.functions):
        return None
    arrays = inputs(row.cases[0])
    tensors = {name: place.put(array) for name, array in arrays.items()}
    for tensor in tensors.values() if row.way == BACKWARD else ():
        tensor.requires_grad_(tensor.is_floating_point())
    args = _arguments(functions[0], tensors)
    dy = place.put(np.roll(next(iter(arrays.values())), 1))  # of other values than x
    plain = _chained(functions)
    transformed = {
        VMAP: lambda x: torch.func.vmap(plain)(x),
        GRAD: lambda x: torch.func.grad(lambda x: (plain(x) * dy).sum())(x),
    }
    function = transformed.get(row.way, plain)
    if provider.compiles:
        mode = MODES[provider.place]
        function = torch.compile(function, fullgraph=True, dynamic=False, mode=mode)
    if row.way != BACKWARD:
        return partial(function, *args)
    leaves = [tensor for tensor in tensors.values() if tensor.requires_grad]

    def both() -> tuple[Any, ...]:
        y = function(*args)
        return y, *torch.autograd.grad(y, leaves, dy if y.ndim else None)

    return both


def _right(row: Row) -> tuple[Any, ...]:
    """What torch computes on the CPU."""
    place = TorchHost()
    call = call_of(row, IN_TORCH_ON_CPU[0], place)
    assert call is not None
    found = call()
    return tuple(place.take(y) for y in (found if isinstance(found, tuple) else (found,)))


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cost(
    row: Row,
    able: Sequence[Provider],
    places: Mapping[str, Host],
    budget: float,
    at: Callable[[str], object] = lambda who: None,
) -> list[Cost]:
    """The costs of one row, with `budget` seconds of timing."""
    import torch

    torch.compiler.reset()  # what was compiled before would be looked at in every call
    calls: dict[str, tuple[Host, Call]] = {}
    broken = []
    with _one_thread():
        for provider in able:
            at(provider.name)
            place = places[provider.place]
            try:
                call = call_of(row, provider, place)
            except Exception as error:
                broken.append(Cost(row.name, provider.name, *failed(error)))
            else:
                if call is not None:
                    calls[provider.name] = place, call
        return compared(row.cases[0], row.name, calls, _right(row), budget, at) + broken
