"""gpuact for PyTorch; loaded only when torch is in use.

For users: `nn` and `functional` (torch.nn's modules and functions, by gpuact), `monitor` (how a
network's activations fare in training), `distributed` (a vocabulary spread over a process group),
`ops` (importing it registers torch.ops.gpuact.*).

Inside: `autograd` is the way of a plain call; `registry` says what an operator consists of,
`elementwise`, `rows` and `losses` are their rules, `composite` stands for them where there can be
no autograd function, `inline` is what torch.compile launches, and `sharding` is for DTensor.
`watching` is the monitor, and `health` what it reports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from .watching import Monitor


def monitor(model: torch.nn.Module, every: int = 10, *, channel_axis: int | None = None) -> Monitor:
    """Watch how a model's activations fare in training, at every `every`-th step.

    A step is a forward pass in training mode with gradients enabled. `monitor(…).report()` has, per
    layer, mean, standard deviation, the shares of zeros and of saturated outputs, dead units, the
    norm of the gradient (of the scaled loss, under a loss scaler) and its ratio to the layer above,
    and plain advice. Where a step has several forward passes, choose an `every` without a common
    factor with their number. What is watched, how, at which cost, and what is raised,
    `gpuact.torch.watching.Monitor` tells.

    >>> import torch, gpuact.torch
    >>> from gpuact.torch import nn
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), nn.ReLU(), torch.nn.Linear(8, 1))
    >>> with gpuact.torch.monitor(model, every=2) as watch:
    ...     for _ in range(6):
    ...         model(torch.randn(16, 4)).sum().backward()
    >>> report = watch.report()
    >>> report.steps, report.looks, [(layer.name, layer.units) for layer in report.layers]
    (6, 3, [('1', 8)])
    """
    from .watching import Monitor

    return Monitor(model, every, channel_axis=channel_axis)
