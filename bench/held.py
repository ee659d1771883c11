"""What autograd holds of a forward call until backward has run: memory that training pays for.

Counted are the storages behind all that was saved, each once, without the parameters, which are
held anyway. So is the output, as a rule, by the layer that reads it next: hence the names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from .cases import PARAMETERS, Case, inputs
from .measure import Host
from .providers import Provider
from .suite import failed

Tensor = Any


@dataclass(frozen=True)
class Held:
    """What one provider holds for a case, or why nobody knows."""

    case: str
    provider: str
    elements: int
    bytes: int = 0
    kept: Mapping[str, int] = field(default_factory=dict)  # bytes of x, gate, y, and of the rest
    reason: str = ""


def kept(function: Callable[..., Tensor], arrays: Mapping[str, Tensor]) -> dict[str, int]:
    """Bytes held for backward after one call in which every argument is learned."""
    import torch

    leaves = {name: array.detach().requires_grad_() for name, array in arrays.items()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = function(*leaves.values())
    names = {y.untyped_storage().data_ptr(): "y"}
    names |= {tensor.untyped_storage().data_ptr(): name for name, tensor in leaves.items()}
    found: dict[str, int] = {}
    for pointer, size in saved.items():
        name = names.get(pointer, "the rest")  # what the call made for itself
        if name not in PARAMETERS:
            found[name] = found.get(name, 0) + size
    return found


def held(
    case: Case,
    able: Sequence[Provider],
    places: Mapping[str, Host],
    at: Callable[[str], object] = lambda who: None,
) -> list[Held]:
    """What each of the providers, all of torch tensors, holds for a case."""
    given = inputs(case)
    rows = []
    for provider in able:
        if provider.compiles and not case.compiled:
            continue
        at(provider.name)
        arrays = {name: places[provider.place].put(array) for name, array in given.items()}
        row = Held(case.name, provider.name, given["x"].size)
        try:
            function = provider.spell(case)
            if function is None:
                continue
            found = kept(partial(function, **case.options), arrays)
        except Exception as error:
            rows.append(replace(row, reason=failed(error)[1]))
        else:
            rows.append(replace(row, bytes=sum(found.values()), kept=found))
    return rows
