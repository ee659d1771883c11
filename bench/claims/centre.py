"""Claim 4: outputs that are not centred on zero, and what that does to learning.

Sigmoid is compared with tanh, and with sigmoid − ½ from the very same function as a start: same
slopes, same loss, nothing but the mean of the outputs taken away (networks.centred). So what
differs between these two is the mean's doing, and nobody else's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

import numpy as np

from bench.digits import Network

from .networks import centred, epochs, flat, images, widths
from .table import Check, Effort, Fact, Figures, Finding, Raw, real

DEPTH = 3
RATES = (0.3, 1.0, 3.0, 10.0)
LOST = 10  # times the loss at the start: so large, it has diverged
REACHED = 0.3  # the loss to get to: about 94 % of the images are then right
BATCH = 32
NETWORKS: dict[str, Callable[[int], Network]] = {
    "sigmoid": lambda seed: Network("sigmoid", "float32", seed, widths(DEPTH)),
    "sigmoid − ½": lambda seed: centred(seed, DEPTH),
    "tanh": lambda seed: Network("tanh", "float32", seed, widths(DEPTH)),
}


def _means(network: Network) -> dict[str, list[float]]:
    """Of each hidden layer: |mean| over root mean square, of all outputs together, and of those of
    one unit, on average."""
    _, kept = network.forward(images().x)
    hs = [h.astype(np.float64) for _, h in kept]
    return {
        "layer": [float(abs(h.mean()) / np.sqrt((h**2).mean())) for h in hs],
        "unit": [float((abs(h.mean(0)) / np.sqrt((h**2).mean(0))).mean()) for h in hs],
        "mean": [float(h.mean()) for h in hs],
    }


def _same_sign(network: Network, batch: int) -> float:
    """Of the gradient of a unit's weights, the share that has the sign of most of them.

    Behind the first layer, whose inputs are pixels.
    """
    data, shares = images(), []
    batches = range(0, len(data.target) - batch + 1, batch)
    for at in batches[:: max(1, len(batches) // 50)]:
        chosen = slice(at, at + batch)
        _, gradients = network.gradients(data.x[chosen], data.target[chosen])
        for weights in gradients[2::2]:
            told = weights[:, (weights != 0).any(0)]
            positive = (told > 0).sum(0) / (told != 0).sum(0)
            shares.append(float(np.maximum(positive, 1 - positive).mean()))
    return mean(shares)


def _descent(network: Network, rate: float, steps: int) -> dict[str, Any]:
    """Plain steps of descent on all images at once, until the loss is REACHED."""
    data = images()
    start, path, before, reversals = flat(network.parameters), 0.0, None, 0
    losses: list[float] = []
    with np.errstate(all="ignore"):  # too large a rate diverges
        while len(losses) < steps:
            loss, gradients = network.gradients(data.x, data.target)
            losses.append(float(loss))
            if not REACHED < loss < LOST * losses[0]:
                break
            step = flat(gradients) * rate
            path += float(np.linalg.norm(step))
            reversals += before is not None and float(step @ before) < 0
            before = step
            for p, dp in zip(network.parameters, gradients, strict=True):
                p -= rate * dp
        progress = float(np.linalg.norm(flat(network.parameters) - start))
    done = len(losses) - 1
    reached = losses[-1] <= REACHED
    return {
        "steps": done if reached else None,  # None: not within so many
        "path over progress": path / progress if progress else None,
        "reversals": reversals / max(1, done - 1),  # steps against the one before
        "losses": losses,
    }


def measure(seed: int, effort: Effort) -> Raw:
    found: Raw = {}
    for name, make in NETWORKS.items():
        network = make(seed)
        found[f"{name}, means"] = _means(network)
        batches = 1, BATCH, len(images().target)
        found[f"{name}, same sign"] = [_same_sign(network, batch) for batch in batches]
        for _ in epochs(network, images(), seed, effort.epochs, 0.05):
            pass
        found[f"{name}, means after training"] = _means(network)
        found[f"{name}, same sign after training"] = _same_sign(network, BATCH)
        for rate in RATES:
            found[f"{name}, rate {rate:g}"] = _descent(make(seed), rate, effort.steps)
    return found


def _over(figures: Figures, rate: float, other: str) -> list[float]:
    """Path over progress of sigmoid, over that of another, where both arrived."""
    pairs = zip(figures[f"sigmoid, rate {rate:g}"], figures[f"{other}, rate {rate:g}"], strict=True)
    return [
        a["path over progress"] / b["path over progress"] if a["steps"] and b["steps"] else np.nan
        for a, b in pairs
    ]


def _fewest(figures: Figures, name: str) -> list[float]:
    """Steps at the best of the rates, for each seed."""
    seeds = range(len(figures[f"{name}, means"]))
    at = [[figures[f"{name}, rate {rate:g}"][seed]["steps"] for rate in RATES] for seed in seeds]
    return [float(min((s for s in row if s), default=np.nan)) for row in at]


def _turns(figures: Figures, name: str, rate: float) -> list[float]:
    return [each["reversals"] for each in figures[f"{name}, rate {rate:g}"]]


def _ratio(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def _at_one_rate(figures: Figures, rate: float) -> list[float]:
    """Steps of sigmoid over those of sigmoid − ½."""
    pairs = zip(
        figures[f"sigmoid, rate {rate:g}"], figures[f"sigmoid − ½, rate {rate:g}"], strict=True
    )
    return [a["steps"] / b["steps"] if a["steps"] and b["steps"] else np.nan for a, b in pairs]


def _signs(figures: Figures, name: str, at: int) -> list[float]:
    """Of one image, of BATCH, of all: by its place."""
    return [each[at] for each in figures[f"{name}, same sign"]]


def _zig_zag(figures: Figures, rate: float, core: bool) -> list[Check]:
    return [
        Check(
            f"rate {rate:g}, steps back",
            *(_turns(figures, "sigmoid", rate), "≥", 0.5),
            "it turns more often than it goes on",
            core=core,
        ),
        Check(
            f"rate {rate:g}, path",
            *(_over(figures, rate, "sigmoid − ½"), "≥", 1.2),
            "a fifth more of a way than the same network centred",
            core=core,
        ),
    ]


def judge(figures: Figures) -> list[Finding]:
    means = {name: figures[f"{name}, means"] for name in NETWORKS}
    trained = {name: figures[f"{name}, means after training"] for name in NETWORKS}
    fewest = {name: _fewest(figures, name) for name in NETWORKS}
    most = "the majority of 64 random signs is 0.55"
    small, middle, large = RATES[:3]
    return [
        Finding(
            "4a",
            "The outputs of sigmoid are not centred on zero, those of tanh are.",
            "|mean| over root mean square of a layer's outputs, over units and images; of "
            f"{DEPTH} hidden layers that with the least for sigmoid, with the most for tanh",
            [
                Check(
                    "sigmoid",
                    *([min(each["layer"]) for each in means["sigmoid"]], "≥", 0.5),
                    "at least half of its size is its mean",
                ),
                Check(
                    "tanh",
                    *([max(each["layer"]) for each in means["tanh"]], "<", 0.5),
                    "less than half of it is",
                ),
                *(
                    Check(
                        f"{name} after training",
                        *([worst(each["layer"]) for each in trained[name]], relation, 0.5),
                        "the same",
                    )
                    for name, worst, relation in (("sigmoid", min, "≥"), ("tanh", max, "<"))
                ),
                Check(
                    "tanh, each unit by itself",
                    *([max(each["unit"]) for each in means["tanh"]], "<", 0.5),
                    "the same",
                    core=False,
                ),
            ],
            [
                Fact("mean of sigmoid, layer 1", [each["mean"][0] for each in means["sigmoid"]]),
                Fact("of tanh, layer 1", [each["mean"][0] for each in means["tanh"]]),
            ],
            condition="over all units of a layer; a single unit of tanh has a mean of its own, of "
            "either sign",
        ),
        Finding(
            "4b",
            "So the gradients of all weights of a sigmoid unit have one sign.",
            "share of the components of a unit's weight gradient that have the sign of most of "
            "them, layers behind the first, at the start",
            [
                Check(
                    "sigmoid, one image",
                    *(_signs(figures, "sigmoid", 0), "=", 1.0),
                    "all of them",
                ),
                Check(
                    f"sigmoid, batches of {BATCH}",
                    *(_signs(figures, "sigmoid", 1), "=", 1.0),
                    "all of them",
                    core=False,
                ),
            ],
            [
                Fact("sigmoid, all images", _signs(figures, "sigmoid", 2)),
                Fact(
                    f"sigmoid, batches of {BATCH}, after training",
                    figures["sigmoid, same sign after training"],
                ),
                Fact("tanh, one image", _signs(figures, "tanh", 0)),
                Fact(f"tanh, batches of {BATCH} ({most})", _signs(figures, "tanh", 1)),
            ],
            condition="for one image; a mean over several mixes signs, if fewer than tanh's",
        ),
        Finding(
            "4c",
            "So its descent zig-zags.",
            f"descent on all images to a loss of {REACHED:g}: share of steps against the one "
            "before; and length of the path over the distance covered, sigmoid's over that of "
            f"sigmoid − ½ from the same function; rate {large:g} is the quickest for both",
            [
                check
                for rate in (large, small)
                for check in _zig_zag(figures, rate, core=rate == large)
            ],
            [
                Fact(
                    f"rate {large:g}, steps back of sigmoid − ½",
                    _turns(figures, "sigmoid − ½", large),
                    in_readme=True,
                ),
                *(
                    Fact(
                        f"rate {middle:g}, steps back of {name}",
                        _turns(figures, name, middle),
                        in_readme=True,
                    )
                    for name in NETWORKS
                ),
                *(
                    Fact(
                        f"rate {rate:g}, path over distance of {name}",
                        [real(e["path over progress"]) for e in figures[f"{name}, rate {rate:g}"]],
                    )
                    for rate in (small, middle, large)
                    for name in NETWORKS
                ),
            ],
            condition="at large steps, too large along the direction that the mean makes steep; "
            f"at small ones nothing turns back. At rate {large:g} sigmoid − ½ turns as often, at "
            f"rate {middle:g} tanh more often: what the mean adds is the length of the way",
        ),
        Finding(
            "4d",
            "So sigmoid learns more slowly than tanh.",
            f"descent on all images: steps to a loss of {REACHED:g} at the best rate of "
            f"{', '.join(f'{rate:g}' for rate in RATES)}",
            [
                Check(
                    "sigmoid over tanh",
                    *(_ratio(fewest["sigmoid"], fewest["tanh"]), "≥", 1.2),
                    "a fifth more",
                ),
                Check(
                    "sigmoid over sigmoid − ½, so by the mean alone",
                    *(_ratio(fewest["sigmoid"], fewest["sigmoid − ½"]), "≥", 1.2),
                    "a fifth more",
                ),
                Check(
                    "the same at one small rate, 0.3",
                    *(_at_one_rate(figures, 0.3), "≥", 1.2),
                    "a fifth more",
                    core=False,
                ),
            ],
            [Fact(f"{name}, steps", fewest[name]) for name in NETWORKS],
            condition="because its mean forbids large rates; at a small one it is no slower than "
            "sigmoid − ½",
        ),
    ]
