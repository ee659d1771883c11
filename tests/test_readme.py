"""What README.md says is true: its table is the catalogue's, its examples run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gpuact.catalogue import FUNCTIONS

README = (Path(__file__).parent.parent / "README.md").read_text()


# torchrun of itself asks the network for the name of this machine; where none is known, it waits.
ALONE = ("--standalone", "--local-addr=localhost")


def row(name: str) -> str:
    f = FUNCTIONS[name]
    cells = (f"`{name}`", f.formula, f.derivative, f.range, f.kink)
    return "| " + " | ".join(cells) + " |"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_table_of_functions_is_the_catalogue():
    table = README.split("<!-- functions -->\n")[1].split("\n<!-- end -->")[0]
    rows = [row(name) for name in FUNCTIONS]
    assert table.splitlines() == rows, "the rows of README.md must be:\n" + "\n".join(rows)


@pytest.mark.parametrize(
    ("library", "first"),
    [
        ("numpy", "import numpy"),
        ("torch", "import torch"),
        ("gpuact", "import gpuact"),
        ("numpy", "from gpuact import activation_with_stats"),
        ("torch", "from torch import"),
        ("torch", "from torch.func"),
        ("torch", "from gpuact.torch import nn"),
        ("torch", "from gpuact.torch import monitor"),
    ],
)
def test_the_examples_run(library, first):
    pytest.importorskip(library)
    (code,) = (b for b in blocks() if b.startswith(first))
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    if first == "import numpy":
        slope, dx = names["slope"], names["dx"]
        assert slope == pytest.approx(dx, rel=1e-5)
    elif library == "gpuact":
        assert 0.05 < (names["y"] == names["residual"]).mean() < 0.6  # dropped, or negative
        assert names["grads"]["x"].shape == (32, 1024)
        assert names["grads"]["bias"].shape == (1024,)
    elif first == "from gpuact import activation_with_stats":
        stats = names["stats"]
        assert stats.count == 10 * 32 * 1024
        assert stats.zeros == pytest.approx(0.5, abs=0.01)
    elif first == "from torch.func":
        assert names["curvature"].shape == (16, 8, 8)
        assert bool(names["x"].grad.abs().sum() > 0)
    elif first == "from gpuact.torch import nn":
        assert list(names["replaced"]) == ["1"]
        assert bool(names["model"][1].weight.grad.abs().sum() > 0)
    elif first == "from gpuact.torch import monitor":
        assert f"\n{names['report'].sentence}\n" in README
        assert [layer.dead for layer in names["report"].layers] == [0, 48]
    elif first == "from torch import":
        assert (names["attention"][..., 12:] == 0).all()
        assert names["attention"].sum(-1).ravel().tolist() == pytest.approx([1.0] * 128)
        assert bool(names["logits"].grad.abs().sum() > 0)
    else:
        assert names["x"].grad.shape == (8, 16, 10)
        assert bool(names["weight"].grad.abs().sum() > 0)


def test_the_example_of_ranks_runs(tmp_path):
    """As its first line says, on two ranks, which find the same loss."""
    pytest.importorskip("torch")
    (code,) = (b for b in blocks() if b.startswith("# torchrun"))
    words = code.partition("\n")[0].removeprefix("# torchrun ").split()
    (tmp_path / words[-1]).write_text(code)
    run = [sys.executable, "-m", "torch.distributed.run", *ALONE, *words]
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    environment["PYTHONWARNINGS"] = "ignore"
    done = subprocess.run(
        run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    losses = re.findall(r"\d+\.\d+", done.stdout)  # words of two ranks may come in any order
    assert len(losses) == 2 and len(set(losses)) == 1
    assert done.stdout.count("torch.Size([16, 1000])") == 2
