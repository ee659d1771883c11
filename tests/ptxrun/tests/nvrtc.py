"""Compile CUDA for the tests (skipped without CuPy)."""

from functools import cache
from pathlib import Path

import pytest

from tests.ptxrun import PTXModule


@cache
def compiled(source, arch=90, options=()):
    pytest.importorskip("cupy")
    from tests.ptxrun.cupyrun import nvrtc_ptx

    return PTXModule(nvrtc_ptx(source, arch, options))


def kernels(arch=90, options=()):
    return compiled((Path(__file__).parent / "kernels.cu").read_text(), arch, options)
