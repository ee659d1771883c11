"""Whether an image is worth testing: `python docker/smoke.py`, in a container of it.

It imports gpuact, says what it finds, computes once on every library and device, and measures one
case of the benchmark into bench/results, whose files must then belong to whoever runs this. Leaves
with 1 and a traceback where something does not hold.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
CACHES = ("CUPY_CACHE_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "HOME")
sys.path.insert(0, str(ROOT))

import gpuact  # noqa: E402


def softmax_of(array: Callable[[Any], Any], back: Callable[[Any], Any] = np.asarray) -> None:
    """Forward on a library's arrays, against the formula in float64."""
    x = np.linspace(-4, 4, 60, dtype=np.float32).reshape(3, 20)
    e = np.exp(x.astype(np.float64))
    y = back(gpuact.softmax(array(x)))
    np.testing.assert_allclose(y, e / e.sum(1, keepdims=True), rtol=2e-6)


def on_numpy() -> None:
    softmax_of(np.asarray)


def on_cupy() -> None:
    import cupy

    softmax_of(cupy.asarray, cupy.asnumpy)


def on_torch(device: str) -> None:
    import torch

    softmax_of(lambda x: torch.asarray(x, device=device), lambda y: y.numpy(force=True))
    x = torch.linspace(-2, 2, 64, device=device, requires_grad=True)
    compiled = torch.compile(lambda x: gpuact.tanh(x) * 2, fullgraph=True)  # calls the C++ compiler
    (dx,) = torch.autograd.grad(compiled(x).sum(), x)
    torch.testing.assert_close(dx, 2 - 2 * x.detach().tanh().square())


COMPUTE: dict[str, Callable[[], None]] = {
    "numpy": on_numpy,
    "torch on the CPU": lambda: on_torch("cpu"),
    "cupy": on_cupy,
    "triton": lambda: on_torch("cuda"),
}


def on_everything() -> None:
    found = gpuact.backends()
    for name, compute in COMPUTE.items():
        if name in found and not found[name].available:
            print(f"{name}: not here")
            continue
        compute()
        print(f"{name}: softmax is right")
    missing = [name for name in ("cupy", "triton") if not found[name].available]
    if missing and os.environ.get("GPUACT_REQUIRE_GPU") == "1":
        reasons = "; ".join(f"{name}: {found[name].reason}" for name in missing)
        sys.exit(f"smoke: GPUACT_REQUIRE_GPU=1 came, and not every backend runs: {reasons}")


def what_may_be_written() -> None:
    """The caches, and of the sources nothing but results."""
    for name in CACHES:
        folder = Path(os.environ[name])
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    if os.getuid() != 0:
        assert not os.access(ROOT, os.W_OK), f"{ROOT} can be written by user {os.getuid()}"
    print(f"user {os.getuid()}:{os.getgid()} can write the caches")


def one_result() -> None:
    before = set(RESULTS.iterdir())
    command = [sys.executable, "-m", "bench", "--suite", "cpu", "--only", "relu float32 128"]
    subprocess.run([*command, "--providers", "gpuact", "--seconds", "0.05"], cwd=ROOT, check=True)
    written = sorted(set(RESULTS.iterdir()) - before)
    assert any(path.suffix == ".json" for path in written), written
    for path in written:
        assert path.stat().st_uid == os.getuid(), f"{path} belongs to user {path.stat().st_uid}"
    print(f"user {os.getuid()} owns {', '.join(path.name for path in written)}")


if __name__ == "__main__":
    what_may_be_written()
    subprocess.run([sys.executable, "-m", "gpuact", "info"], cwd=ROOT, check=True)
    on_everything()
    one_result()
