"""Vocab-parallel cross-entropy: what each rank pays in time and in memory.

    torchrun --nproc-per-node 2 -m bench vocab_parallel    two ranks, on a GPU each or on the CPU
    python -m bench vocab_parallel                         one

Each rank has its columns of the same rows. A call is forward and backward; it must read the shard
for each and write its gradient. Memory is the most that a call held beside its inputs: what CUDA's
allocator gave out, or how far the process's resident set rose. At last rank 0 puts the shards
together and compares with gpuact.cross_entropy in one process.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from rich.text import Text

import gpuact
from gpuact.torch import distributed

from . import console, result, words
from .measure import ROUNDS, WARM_UP
from .suite import TOLERANCE

Tensor = torch.Tensor

# rows, classes, dtype: of GPT-sized vocabularies on a GPU, of what a CPU does in a second elsewhere
SIZES = {"cuda": (8192, 128256, "bfloat16"), "cpu": (512, 32064, "float32")}


@dataclass(frozen=True)
class Measured:
    """Of one rank."""

    rank: int
    classes: int
    shard: int  # bytes
    peak: int | None  # bytes held beside logits and target, where the system tells
    low: float  # seconds of a call: the 20 % quantile
    median: float
    high: float

    @property
    def bytes(self) -> int:
        """Read for forward, read for backward, written: what a call must move."""
        return 3 * self.shard


@dataclass(frozen=True)
class Work:
    rows: int
    sizes: tuple[int, ...]  # classes of each rank
    dtype: torch.dtype
    device: torch.device

    def shard(self, rank: int) -> Tensor:
        """Any rank can make any shard again."""
        generator = torch.Generator(self.device).manual_seed(rank)
        shape = self.rows, self.sizes[rank]
        return torch.randn(shape, generator=generator, device=self.device, dtype=self.dtype)

    def target(self) -> Tensor:
        generator = torch.Generator().manual_seed(len(self.sizes))
        return torch.randint(sum(self.sizes), (self.rows,), generator=generator).to(self.device)


@contextmanager
def _group() -> Iterator[torch.device]:
    """torchrun's ranks, or this process alone; and this rank's device."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu else None
    if device:
        torch.cuda.set_device(device)
    backend = "nccl" if device else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield device or torch.device("cpu")
    finally:
        dist.destroy_process_group()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


FORGET, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def _resident(word: str) -> int:
    """VmRSS now, or VmHWM, the most since it was last forgotten; in bytes."""
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(word))


def _peak(call: Callable[[], object], device: torch.device) -> int | None:
    """The most bytes held while it runs, beside what was held before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    if not FORGET.exists():
        return None
    FORGET.write_text("5")  # the most so far
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _seconds(call: Callable[[], object], device: torch.device, budget: float) -> list[float]:
    """Of as many calls as fit in the budget. All ranks start together, and count alike."""

    def once() -> float:
        dist.barrier()
        _wait(device)
        start = perf_counter()
        call()
        _wait(device)
        return perf_counter() - start

    first = [max(once(), 1e-9) for _ in range(WARM_UP)][-1:]
    dist.broadcast_object_list(first, 0)
    return [once() for _ in range(int(np.clip(budget / first[0], *ROUNDS)))]


def measured(work: Work, budget: float) -> tuple[Measured, Tensor, Tensor]:
    """And the loss and the gradient, for they are still to be checked."""
    rank = dist.get_rank()
    logits, target = work.shard(rank).requires_grad_(), work.target()

    def call() -> tuple[Tensor, Tensor]:
        loss = distributed.cross_entropy(logits, target, sizes=work.sizes)
        (gradient,) = torch.autograd.grad(loss, logits)
        return loss.detach(), gradient

    loss, gradient = call()  # what is loaded and compiled the first time is nobody's memory
    gradient = gradient.cpu()
    peak = _peak(call, work.device)
    times = _seconds(call, work.device, budget)
    quantiles = (float(q) for q in np.quantile(times, (0.2, 0.5, 0.8)))
    size = logits.numel() * logits.element_size()
    return Measured(rank, logits.shape[1], size, peak, *quantiles), loss, gradient


def mistake(work: Work, loss: Tensor, gradient: Tensor) -> str | None:
    """What is wrong with rank 0's loss and gradient, beside one process that has all classes."""
    logits = torch.cat([work.shard(rank) for rank in range(len(work.sizes))], 1).requires_grad_()
    expected = gpuact.cross_entropy(logits, work.target())
    (whole,) = torch.autograd.grad(expected, logits)
    mine = whole[:, : work.sizes[0]].cpu()
    allowed = TOLERANCE[str(work.dtype).removeprefix("torch.")]
    for name, a, b in (("loss", loss, expected.detach()), ("gradient", gradient, mine)):
        a, b = a.double().cpu(), b.double().cpu()
        far = (a - b).abs() > allowed * b.abs().clamp(min=float(b.abs().mean()))
        if far.any() or a.isnan().any():
            worst = int((a - b).abs().argmax())
            return f"{name}: {a.flatten()[worst]:.6g} came, {b.flatten()[worst]:.6g} is expected"
    return None


def _table(rows: list[Measured]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name in ("rank", "classes", "shard", "peak", "moves", "time", "20–80 %", "GB/s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row(*(Text(str(column.header), "bold") for column in table.columns))
    for row in rows:
        shard, peak, moves = (
            "not known" if size is None else f"{size / 1e6:,.1f} MB"
            for size in (row.shard, row.peak, row.bytes)
        )
        time, low, high = (words.duration(t) for t in (row.median, row.low, row.high))
        rate = f"{row.bytes / row.median / 1e9:.2f}"
        table.add_row(
            *(str(row.rank), f"{row.classes:,}", shard, peak),
            *(moves, time, f"{low}–{high}", rate),
        )
    return table


def _shown(out: Console, work: Work, rows: list[Measured], wrong: str | None) -> None:
    console.print_machine(out, result.begun({"on_gpu": work.device.type == "cuda"}))
    what = f"{work.rows:,} rows × {sum(work.sizes):,} classes of {work.dtype}, integer targets"
    where = f"{len(rows)} {'rank' if len(rows) == 1 else 'ranks'} of {dist.get_backend()}"
    out.print(f"{what}; {where} on {work.device.type}")
    out.print(_table(rows))
    out.print(
        "peak: held beside logits and target; moves: the shard read twice, a gradient written"
    )
    out.print(f"beside one process with all classes: {wrong or 'the same loss and gradient'}")


def run(args: argparse.Namespace) -> int:
    with _group() as device:
        rows, classes, dtype = SIZES[device.type]
        rows, classes = args.rows or rows, args.classes or classes
        ranks = dist.get_world_size()
        thick = ceil(classes / ranks)
        sizes = tuple(max(0, min(thick, classes - k * thick)) for k in range(ranks))
        work = Work(rows, sizes, getattr(torch, args.dtype or dtype), device)
        mine, loss, gradient = measured(work, args.seconds)
        found: list[Any] = [None] * ranks
        dist.all_gather_object(found, mine)
        wrong = [mistake(work, loss, gradient) if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(wrong, 0)
        if dist.get_rank() == 0:
            _shown(console.console(), work, found, wrong[0])
    return int(args.check and wrong[0] is not None)
