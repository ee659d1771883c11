"""gpuact for PyTorch; loaded only when torch is in use.

For users: `nn` and `functional` (torch.nn's modules and functions, by gpuact), `distributed` (a
vocabulary spread over a process group), `ops` (importing it registers torch.ops.gpuact.*).

Inside: `autograd` is the way of a plain call; `registry` says what an operator consists of,
`elementwise`, `rows` and `losses` are their rules, `composite` stands for them where there can be
no autograd function, `inline` is what torch.compile launches, and `sharding` is for DTensor.
"""
