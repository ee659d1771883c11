"""DTensor through the operators: where arrays may be sharded, and what that must not change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests import harness

torch = harness.torch_or_skip()
import torch.distributed as dist
import torch.multiprocessing as mp

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("torch.distributed with gloo is not here", allow_module_level=True)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import gpuact

Tensor = torch.Tensor
RANKS = 2
TARGET = torch.tensor([[0, 3, 1], [2, 2, 0], [1, 3, 3], [0, -100, 2]])
WEIGHT = torch.tensor([0.5, 1.5, 1.0, 2.0], dtype=torch.float64)
MASK = torch.tensor([[True, True, False, True]]).expand(6, 4)


def loss(reduction: str, **more: Any) -> Callable[..., Any]:
    return lambda z, t: gpuact.cross_entropy(z, t, reduction=reduction, axis=-1, **more)


# What is called, its arguments, which dimension of each is sharded (None: replicated), which of the
# result, and the collective that it takes: none where sharding costs nothing.
Call = tuple[Callable[..., Any], Sequence[Any], Sequence[int | None], Placement | None, str | None]
GATHER, REDUCE = "all_gather_into_tensor", "all_reduce"
# A sum that is divided by a number: torch divides each rank's share, and 2.10 the sum of them all.
DIVIDED = REDUCE if torch.__version__.startswith("2.10.") else None
GATHERED = "_allgather_base_"  # of a few numbers a row
X = torch.linspace(-3, 2, 24, dtype=torch.float64).reshape(4, 6)
Z = torch.linspace(-3, 2, 48, dtype=torch.float64).sin().reshape(4, 3, 4)
P = torch.tensor([0.1, -0.2, 3.0, 0.5, 0.25, 1.0], dtype=torch.float64)
CALLS: dict[str, Call] = {
    "tanh": (gpuact.tanh, [X], [0], Shard(0), None),
    "relu": (gpuact.relu, [X], [1], Shard(1), None),
    "leaky_relu": (lambda x: gpuact.leaky_relu(x, 0.3), [X], [1], Shard(1), None),
    "sigmoid_backward": (gpuact.sigmoid_backward, [X, X.sigmoid()], [0, 0], Shard(0), None),
    "tanh_derivative": (lambda x: gpuact.tanh_derivative(x.detach()), [X], [0], Shard(0), None),
    "linear": (lambda x: gpuact.linear(x, 2.0, 1.0), [X], [0], Shard(0), None),
    "prelu, channels whole": (gpuact.prelu, [X, P], [0, None], Shard(0), None),
    "prelu, channels sharded": (gpuact.prelu, [X, P], [1, 0], Shard(1), None),
    "softmax, rows whole": (gpuact.softmax, [X], [0], Shard(0), None),
    "softmax, along another": (lambda x: gpuact.softmax(x, 0), [X], [1], Shard(1), None),
    "softmax, a mask": (
        lambda x, m: gpuact.softmax(x.transpose(0, 1), mask=m, scale=0.5),
        [X, MASK],
        [1, 0],
        Shard(0),
        None,
    ),
    "softmax, causal": (lambda x: gpuact.softmax(x, causal=True), [X], [0], Replicate(), GATHER),
    "log_softmax": (gpuact.log_softmax, [X], [0], Shard(0), None),
    "softmax_jacobian": (
        lambda x: gpuact.softmax_jacobian(x.detach(), 1), [X.softmax(1)], [0], Shard(0), None,
    ),
    "cross_entropy, none": (loss("none", weight=None), [Z, TARGET], [0, 0], Shard(0), None),
    "cross_entropy, the other": (loss("none"), [Z, TARGET], [1, 1], Shard(1), None),
    "cross_entropy, sum": (loss("sum", z_loss=0.1), [Z, TARGET], [0, 0], None, None),
    "cross_entropy, mean": (loss("mean", softcap=2.0), [Z, TARGET], [0, 0], None, REDUCE),
    "cross_entropy, mean with weights": (
        lambda z, t, w: gpuact.cross_entropy(z, t, weight=w.detach(), axis=-1),
        [Z, TARGET, WEIGHT],
        [1, 1, None],
        None,
        REDUCE,
    ),
    "cross_entropy, probabilities": (loss("mean"), [Z, Z.softmax(-1)], [0, 0], None, DIVIDED),
    # classes that are cut: gpuact.torch.distributed
    "softmax, classes cut": (gpuact.softmax, [X], [1], Shard(1), GATHERED),
    "log_softmax, classes cut": (gpuact.log_softmax, [X], [1], Shard(1), GATHERED),
    "cross_entropy, classes cut": (
        loss("mean", label_smoothing=0.1, z_loss=0.1), [Z, TARGET], [2, None], Replicate(), GATHERED
    ),
    "cross_entropy, classes cut, with lse": (
        lambda z, t: gpuact.cross_entropy(z, t, axis=-1, reduction="none", return_lse=True)[1],
        [Z, TARGET],
        [2, None],
        Replicate(),
        GATHERED,
    ),
    "fused": (
        lambda x, b, g: gpuact.fused(x, "tanh", scale=2.0, bias=b, gate=g),
        [X, P, X.cos()],
        [0, None, 0],
        Shard(0),
        None,
    ),
    "fused, dropout": (
        lambda x: gpuact.fused(x, "relu", dropout=gpuact.Dropout(0.5, 3)),
        [X],
        [0],
        Replicate(),
        GATHER,
    ),
}  # fmt: skip


def compared(name: str, mesh: Any) -> list[str]:
    """What is wrong of a call: of its values, its gradients, its placements, its collectives."""
    function, arguments, dims, placement, collective = CALLS[name]
    whole = [a.clone().requires_grad_(a.is_floating_point()) for a in arguments]
    placements = [[Replicate() if d is None else Shard(d)] for d in dims]
    parts = [
        distribute_tensor(a, mesh, p).requires_grad_(a.is_floating_point())
        for a, p in zip(arguments, placements, strict=True)
    ]
    want = function(*whole)
    with CommDebugMode() as counted:
        found = function(*parts)
    wrong = []
    if not isinstance(found, DTensor):
        return [f"{type(found).__name__} came out"]
    if placement is not None and tuple(found.placements) != (placement,):
        wrong.append(f"{found.placements} came out, expected was {placement}")
    collectives = {str(op).rpartition(".")[-1] for op in counted.get_comm_counts()}
    if collectives != ({collective} - {None}):
        wrong.append(f"{collectives} took place, expected was {collective}")
    if not torch.allclose(found.full_tensor(), want, rtol=1e-13, atol=1e-13):
        wrong.append(f"values: {found.full_tensor()}, expected were {want}")
    if not want.requires_grad:
        return wrong
    dy = want.detach().cos()
    want.backward(dy)
    found.redistribute(mesh, [Replicate()]).backward(distribute_tensor(dy, mesh, [Replicate()]))
    for k, (a, b) in enumerate(zip(parts, whole, strict=True)):
        if b.grad is None:
            continue
        if not torch.allclose(a.grad.full_tensor(), b.grad, rtol=1e-13, atol=1e-13):
            wrong.append(f"gradient {k}: {a.grad.full_tensor()}, expected was {b.grad}")
    return wrong


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{folder}/store", limit, RANKS, rank)
    mesh = init_device_mesh("cpu", (RANKS,))
    torch.save({name: compared(name, mesh) for name in CALLS}, f"{folder}/{rank}")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(_rank, (str(folder),), RANKS)
    ranks = [torch.load(folder / str(rank)) for rank in range(RANKS)]
    return {name: [line for rank in ranks for line in rank[name]] for name in CALLS}


def test_values_gradients_and_placements(found):
    """Of two ranks; in one test, since to start them takes seconds."""
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_every_operator_has_a_rule():
    from gpuact.torch import ops, registry, sharding

    assert ops.call is registry.call
    assert {type(rule) for rule, _ in registry.operators()} == set(sharding._WAYS)
