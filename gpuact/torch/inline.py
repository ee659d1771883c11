"""Elementwise kernels launched where torch.compile sees them, and takes the launch over.

In the place of an operator PyTorch traces `launch`; Inductor then launches the kernel by itself,
with no Python of ours in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.library import wrap_triton

from ..backends.triton import OPTIONS
from ..catalogue import Pass
from ..kernels.triton import elementwise, inline

Tensor = torch.Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def fits(arrays: Sequence[Tensor], params: Sequence[float | Tensor]) -> bool:
    """Whether `launch` takes these: dense tensors alike on a GPU, and numbers.

    Of symbolic sizes and strides it asks whether they are equal, never what they are. It calls an
    operator: what holds for `launch` as to modes of dispatch holds here, too.
    """
    x = arrays[-1]
    if not x.is_cuda or x.dtype not in DTYPES or any(isinstance(p, Tensor) for p in params):
        return False
    if any((a.layout, a.dtype, a.device) != (torch.strided, x.dtype, x.device) for a in arrays):
        return False
    # Of a tensor without gaps, and of no other, empty_like keeps the strides.
    dense = torch.empty_like(x).stride()
    return all(
        a.shape == x.shape
        and all(s == d or n == 1 for n, s, d in zip(a.shape, a.stride(), dense, strict=True))
        for a in arrays
    )


def launch(kernel: Any, arrays: Sequence[Tensor], numbers: Sequence[float]) -> Tensor:
    """What a kernel of `KERNELS` (wrapped by wrap_triton) computes of arrays that fit.

    The options are for launches outside of torch.compile: Inductor accepts them, and has its own.
    num_warps is left out: it would bring an autotuner at every trace, and is 4 anyway, as the tile
    has it. A grid of no programs nobody launches.
    """
    out = torch.empty_like(arrays[-1])
    size, block = out.numel(), elementwise.block(out.element_size())
    grid = ((size + block - 1) // block,)
    tiles = size // block, size % block
    kernel[grid](*arrays, out, *tiles, *numbers, BLOCK=block, **OPTIONS)
    return out


def kernel_of(p: Pass) -> Any:
    return inline.KERNELS[p.formula]


def body(p: Pass) -> Callable[..., Tensor]:
    """What an operator that runs this pass is, traced: its tensors first, then its numbers."""
    kernel, count = kernel_of(p), len(p.reads)

    def op(*operands: Any) -> Tensor:
        return launch(wrap_triton(kernel), operands[:count], operands[count:])

    return op
