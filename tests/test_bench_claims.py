"""What courses say, measured: verdicts follow from figures, and every claim's figures are real.

The runs are tiny: what they find is not what the claims' own numbers of epochs and seeds find.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

import gpuact
from bench import digits, ledger, result
from bench.__main__ import main
from bench.claims import (
    centre,
    cost,
    depth,
    drawings,
    linear,
    networks,
    page,
    ranges,
    record,
    rows,
    run,
    saturation,
    sparse,
)
from bench.claims import readme as claims_readme
from bench.claims.course import CLAIMS, chosen
from bench.claims.record import Record, committed, path_of, read, text
from bench.claims.table import (
    CONDITION,
    FAILS,
    HOLDS,
    NOT_MEASURED,
    SEEDS,
    VERDICTS,
    Check,
    Claim,
    Effort,
    Fact,
    Finding,
    collected,
    number,
    spread,
)
from bench.digits import Digits, Network
from bench.measure import Calls, Host
from bench.readme import END, README
from bench.result import Unreadable
from bench.words import escaped

from . import bench_samples
from .test_bench_page import Page

TINY = Effort(
    epochs=2,
    depths=(2, 8),
    steps=60,
    few_steps=40,
    elements=(1 << 10, 1 << 12),
    seconds=0.0,
    classes=(10, 33),
)
NAN = math.nan
# What 60 steps do not reach: these have no figure.
TOO_FEW = ("rate 0.3, path", "the same at one small rate, 0.3")


FEW = 200  # images to learn from


@pytest.fixture(scope="module", autouse=True)
def few_images() -> Iterator[None]:
    def few(dtype: str) -> Digits:
        found = digits.digits(dtype)
        return replace(found, x=found.x[:FEW], target=found.target[:FEW])

    with pytest.MonkeyPatch.context() as patch, gpuact.using("numpy"):
        patch.setattr(networks, "digits", few)
        networks.images.cache_clear()
        yield
    networks.images.cache_clear()


@pytest.fixture(scope="module")
def figures(few_images: None) -> dict[str, dict[str, list[Any]]]:
    """Of each claim, one seed."""
    return {claim.number: collected([run.one_seed(claim, 0, TINY)]) for claim in CLAIMS}


@pytest.fixture(scope="module")
def kept(figures: dict[str, Any]) -> Record:
    """A run of all claims."""
    findings = [one for claim in CLAIMS for one in claim.judge(figures[claim.number])]
    begun = record.begun(SEEDS, "", False, TINY)
    return replace(begun, figures=figures, findings=findings, seconds=1.5, finished=True)


# -- verdicts -------------------------------------------------------------------------------------


def check(values: Sequence[float], relation: str, core: bool = True) -> Check:
    return Check("a figure", values, relation, 0.25, "a reason", core)


@pytest.mark.parametrize(
    ("relation", "held", "missed"),
    [
        ("≤", [0.25, 0.1], [0.25, 0.2500001]),
        ("<", [0.2499], [0.25]),
        ("≥", [0.25, 3], [0.2499999, 3]),
        (">", [0.2501], [0.25]),
        ("=", [0.25, 0.25], [0.25, 0.2500001]),
    ],
)
def test_every_value_must_keep_the_limit(
    relation: str, held: list[float], missed: list[float]
) -> None:
    assert check(held, relation).held
    assert not check(missed, relation).held
    assert not check([*held, NAN], relation).held
    assert not check([], relation).held


GOOD, BAD = check([0.2], "≤"), check([0.3], "≤")


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ([GOOD], HOLDS),
        ([GOOD, replace(GOOD, core=False)], HOLDS),
        ([GOOD, replace(BAD, core=False)], CONDITION),
        ([GOOD, BAD], FAILS),
        ([BAD, replace(GOOD, core=False)], FAILS),
        ([replace(GOOD, core=False)], FAILS),
        ([], FAILS),
    ],
)
def test_the_verdict_follows_from_the_checks(checks: list[Check], verdict: str) -> None:
    found = Finding("1a", "It is so.", "looked", checks, condition="if so", remark="it is not")
    assert found.verdict == verdict
    told = {HOLDS: HOLDS, CONDITION: f"{CONDITION}: if so", FAILS: f"{FAILS}: it is not"}
    assert found.told == told[verdict]
    missing = replace(found, missing="no GPU")
    assert (missing.verdict, missing.told) == (NOT_MEASURED, f"{NOT_MEASURED}: no GPU")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"), (0.25, "0.25"), (-1.5, "−1.5"), (1e-3, "0.001"), (9.9e-4, "9.9e−4"),
        (2e-20, "2e−20"), (1790.4, "1,790"), (50257, "50,300"), (123456.0, "1.2e5"),
        (math.inf, "∞"), (NAN, "NaN"),
    ],
)  # fmt: skip
def test_numbers_as_they_are_read(value: float, shown: str) -> None:
    assert number(value) == shown


def test_a_spread_has_the_median_and_the_ends() -> None:
    assert spread([3, 1, 2]) == "2 (1 to 3)"
    assert spread([2, 2]) == "2"
    assert spread([1, NAN]) == "NaN in 1 of 2"
    assert check([0.5, 0.2, 0.1], "≤").text == "✗ a figure: 0.2 (0.1 to 0.5), asked ≤ 0.25"


def verdicts(claim: Claim, figures: dict[str, Any]) -> dict[str, str]:
    return {finding.number: finding.verdict for finding in claim.judge(figures)}


# Figures that are made up: one is changed, and the verdict with it.
CHANGED: list[tuple[str, str, Any, str]] = [
    ("2", "2a", {}, CONDITION),
    ("2", "2a", {"sigmoid least": [6e-8]}, HOLDS),
    ("2", "2a", {"sigmoid most": [0.2502]}, FAILS),
    ("2", "2a", {"sigmoid at": [0.001]}, FAILS),
    ("8", "8a", {}, CONDITION),
    ("8", "8a", {"apart": [[0.0] * 12]}, HOLDS),
    ("8", "8a", {"apart": [[0.1] * 12]}, FAILS),
    ("8", "8b", {}, HOLDS),
    ("8", "8b", {"wrong": [[0.51, 0.5, 0.0]]}, FAILS),
    ("1", "1a", {}, HOLDS),
    ("1", "1a", {"difference": [1e-9]}, FAILS),
    ("1", "1b", {"accuracy": [[[0.8, 0.9, 0.9, 0.9], [0.9, 0.9, 0.9, 0.9225]]]}, HOLDS),
    ("1", "1b", {"accuracy": [[[0.9, 0.8, 0.8, 0.92], [0.8, 0.9, 0.9, 0.85]]]}, CONDITION),
    ("1", "1b", {"accuracy": [[[0.9, 0.9, 0.92, 0.9], [0.9, 0.9, 0.93, 0.9]]]}, FAILS),
    ("1", "1c", {}, FAILS),
    ("1", "1c", {"gradient error": [0.5], "loss": [[1.0, 1.0]]}, HOLDS),
    ("1", "1d", {}, HOLDS),
    ("1", "1d", {"slopes": [0.1]}, FAILS),
    ("9", "9b", {"from numeric": [1e-8]}, FAILS),
    ("9", "9c", {}, CONDITION),
    ("9", "9c", {"float64": [{"lost": 0, "long": 1e-12, "short": 0}]}, FAILS),
]


def logistic(**steps: tuple[float, float]) -> dict[str, Any]:
    """Of cross-entropy and of squared error, by the bias."""
    return {
        f"{loss}, {bias.replace('_', ' ')}": [{"steps": count, "dz": dz}]
        for bias, counts in steps.items()
        for loss, count, dz in zip(saturation.LOSSES, counts, (1.0, 0.001), strict=True)
    }


CHANGED += [
    # ten times as many steps are not enough where they are six times as many from no bias
    ("5", "5d", logistic(bias_0=(1, 4), bias_4=(1, 8), bias_8=(1, 8)), HOLDS),
    ("5", "5d", logistic(bias_0=(1, 4), bias_4=(1, 7), bias_8=(1, 8)), CONDITION),
    ("5", "5d", logistic(bias_0=(1, 6), bias_4=(1, 12), bias_8=(1, 10)), FAILS),
    ("5", "5d", logistic(bias_0=(0, 0), bias_4=(1, 8), bias_8=(1, 8)), FAILS),
]


@pytest.mark.parametrize(("claim", "finding", "changes", "verdict"), CHANGED)
def test_figures_decide(
    figures: dict[str, Any], claim: str, finding: str, changes: dict[str, Any], verdict: str
) -> None:
    (one,) = chosen(claim)
    assert verdicts(one, {**figures[claim], **changes})[finding] == verdict


def test_the_deepest_gradients_decide(figures: dict[str, Any]) -> None:
    """Of sigmoid by a factor of 0.25 a layer at most; of what ReLU keeps with its own weights."""
    (claim,) = chosen("3")
    found = deepcopy(figures["3"])
    assert verdicts(claim, found)["3a"] == CONDITION
    found["sigmoid, gain 1, 8 layers"][0]["factor"] = 0.26
    assert verdicts(claim, found)["3a"] == FAILS
    found["relu, gain own, 8 layers"][0]["norms"] = [0.09, *[1.0] * 7]
    assert verdicts(claim, found)["3d"] == FAILS
    found["relu, gain own, 8 layers"][0]["norms"] = [1.0] * 8
    found["relu, gain 1, 8 layers"][0]["norms"] = [0.09, *[1.0] * 7]
    assert verdicts(claim, found)["3d"] == CONDITION
    found["relu, gain 1, 8 layers"][0]["norms"] = [0.1, *[1.0] * 7]
    assert verdicts(claim, found)["3d"] == HOLDS


def test_a_single_layer_may_have_a_larger_factor_than_all_on_average() -> None:
    norms = {2: [0.2, 1.0], 4: [0.01, 0.05, 0.25, 0.75]}
    figures = {
        f"{activation}, gain 1, {layers} layers": [{"norms": of}]
        for activation in (depth.ACTIVATIONS[0], "sigmoid")
        for layers, of in norms.items()
    }
    assert depth._single(figures, "sigmoid", "1") == [pytest.approx(1 / 3)]


def test_a_descent_zig_zags_if_it_turns_and_goes_a_longer_way(figures: dict[str, Any]) -> None:
    (claim,) = chosen("4")
    there = {"steps": 9, "path over progress": 1.0, "reversals": 0.0}
    found = figures["4"] | {
        f"{name}, rate {rate:g}": [there] for name in centre.NETWORKS for rate in centre.RATES
    }
    zig_zags = {**there, "path over progress": 1.2, "reversals": 0.5}
    assert verdicts(claim, found)["4c"] == FAILS
    for change in ({"reversals": 0.49}, {"path over progress": 1.19}, {"steps": None}):
        some = found | {"sigmoid, rate 3": [zig_zags | change]}
        assert verdicts(claim, some)["4c"] == FAILS
    found["sigmoid, rate 3"] = [zig_zags]
    assert verdicts(claim, found)["4c"] == CONDITION
    assert verdicts(claim, found | {"sigmoid, rate 0.3": [zig_zags]})["4c"] == HOLDS


def test_what_cures_dead_units_does_so_by_a_bias_and_at_large_rates(
    figures: dict[str, Any],
) -> None:
    (claim,) = chosen("7")
    found = deepcopy(figures["7"])
    runs = sparse.LOW, sparse.FASTER, sparse.FAST
    for activation in ("prelu", "leaky_relu", sparse.WIDER):
        for name in runs:
            found[f"{activation}, {name}"][0]["accuracy"] = 0.8
    assert [verdicts(claim, found)[n] for n in ("7c", "7d")] == [HOLDS, HOLDS]
    found[f"prelu, {sparse.FASTER}"][0]["accuracy"] = 0.79
    found[f"leaky_relu, {sparse.LOW}"][0]["accuracy"] = 0.79
    assert [verdicts(claim, found)[n] for n in ("7c", "7d")] == [CONDITION, CONDITION]
    found[f"prelu, {sparse.LOW}"][0]["accuracy"] = 0.79
    found[f"{sparse.WIDER}, {sparse.LOW}"][0]["accuracy"] = 0.79
    assert [verdicts(claim, found)[n] for n in ("7c", "7d")] == [FAILS, FAILS]


def test_weights_are_called_by_their_gain() -> None:
    """Usual in claim 5 would be another gain than in claim 3."""
    assert [saturation.gain(a, s) for a in ("sigmoid", "tanh") for s in (1, 16)] == [4, 64, 1, 16]


def test_sigmoid_and_tanh_are_found_apart_beside_what_numpy_takes(figures: dict[str, Any]) -> None:
    (claim,) = chosen("6")
    found = deepcopy(figures["6"])
    ns = {"relu": 4.0, "np.maximum": 2.0, "sigmoid": 5.0, "tanh": 4.9, "np.tanh": 3.0}
    found[cost.CACHE][0]["ns"] |= ns
    assert [verdicts(claim, found)[n] for n in ("6a", "6b")] == [HOLDS, FAILS]
    (tanh,) = (one for one in claim.judge(found) if one.number == "6b")
    assert tanh.how.startswith("gpuact on NumPy")
    over = {fact.what: fact.values for fact in tanh.facts if fact.in_readme}
    assert over["gpuact's tanh over np.maximum(x, 0), in the cache"] == [2.45]
    assert over["np.tanh over np.maximum(x, 0), in the cache"] == [1.5]


def test_without_a_gpu_its_finding_is_not_measured_and_with_one_it_is(
    figures: dict[str, Any],
) -> None:
    (claim,) = chosen("6")
    places = {name: found for name, found in figures["6"].items() if name.startswith("numpy")}
    assert verdicts(claim, places)["6d"] == NOT_MEASURED
    ways = "", "_backward", " fused"
    ns = {"copy": 1.0} | {name + way: 1.0 for name in cost.COMPARED for way in ways}
    dear = {**ns, "tanh": 1.2}
    for cached, verdict in ((ns, HOLDS), (dear, CONDITION)):
        gpu = {
            "cupy, in the cache": [{"elements": 1 << 20, "ns": cached}],
            "cupy, in memory": [{"elements": 1 << 26, "ns": ns}],
        }
        assert verdicts(claim, places | gpu)["6d"] == verdict
    gpu["cupy, in memory"][0]["ns"] = dear
    assert verdicts(claim, places | gpu)["6d"] == FAILS


class Graphs(Host):
    """A GPU's ways on NumPy arrays: a cache to go around, and graphs that are plain calls."""

    batch = 0.0
    cache = 1 << 14
    graphs = True
    around: ClassVar[list[int]] = []

    def recorded(self, calls: Calls) -> Callable[[], object]:
        self.around.append(len({id(call.args[0]) for call in calls}))
        return lambda: [call() for call in calls]


def test_on_a_gpu_calls_go_around_memory_or_stay_in_the_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(cost.HOMES, "cupy", "numpy")
    monkeypatch.setattr(cost, "PLACES", {"numpy": Graphs})
    for cached in (True, False):
        Graphs.around.clear()
        ns = cost._timed("cupy", cost.Regime("made up", 1 << 12, cached), 0.0)
        functions = [name + way for name in cost.FUNCTIONS for way in ("", "_backward")]
        assert [*ns] == [*functions, *(f"{name} fused" for name in cost.COMPARED), "copy"]
        assert all(value > 0 for value in ns.values())
        assert ({*Graphs.around} == {1}) == cached


def test_a_wrong_function_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "reference", lambda case, _: (np.zeros(case.shape, np.float32),))
    with pytest.raises(RuntimeError, match=r"relu float32 2\^12: .* values differ"):
        cost._timed("numpy", cost.Regime("made up", 1 << 12, True), 0.0)


# -- the figures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.number)
def test_a_tiny_run_gives_a_figure_for_every_check(claim: Claim, figures: dict[str, Any]) -> None:
    findings = claim.judge(figures[claim.number])
    assert [one.number for one in findings] == [
        f"{claim.number}{letter}" for letter in "abcdefg"[: len(findings)]
    ]
    for finding in findings:
        assert any(each.core for each in finding.checks) != bool(finding.missing)
        assert finding.verdict != CONDITION or finding.condition
        for each in finding.checks:
            assert len(each.values) == 1
            assert each.why
            if each.what not in TOO_FEW:
                assert math.isfinite(each.values[0]), (finding.number, each.what)
        for fact in finding.facts:
            assert isinstance(fact, Fact) and fact.text


def test_norms_and_factors_of_gradients_are_what_they_are_called() -> None:
    assert depth.factor([1e-6, 1e-4, 1e-2, 1.0]) == pytest.approx(0.01)
    with gpuact.using("numpy"):
        network = Network("prelu", "float64", 1, networks.widths(3))
        data = networks.images("float64")
        x, target = data.x[:32], data.target[:32]
        dz, zs, weights = networks.dzs(network, x, target)
        step, whole = 1e-6, []
        for sign in (1, -1):  # through the bias of the second layer, which z has a part of
            network.layers[1].bias += sign * step
            whole.append(float(network.gradients(x, target)[0]))
            network.layers[1].bias -= sign * step
    assert [each.shape for each in dz] == [(32, 64)] * 3 == [z.shape for z in zs]
    assert [each.shape for each in weights] == [(64, 64)] * 3 + [(64, 10)]
    assert dz[1].sum() == pytest.approx((whole[0] - whole[1]) / (2 * step), rel=1e-5)


def test_sigmoid_and_sigmoid_less_its_mean_are_one_function() -> None:
    with gpuact.using("numpy"):
        x = networks.images("float64").x
        ours = networks.centred(3, 3, "float64").forward(x)[0]
        plain = Network("sigmoid", "float64", 3, networks.widths(3)).forward(x)[0]
        assert np.allclose(ours, plain, rtol=0, atol=1e-12)


def test_a_single_sigmoid_unit_s_gradients_have_one_sign() -> None:
    with gpuact.using("numpy"):
        network = Network("sigmoid", "float32", 0, networks.widths(2))
        assert centre._same_sign(network, 1) == 1.0
        assert 0.5 < centre._same_sign(Network("tanh", "float32", 0, networks.widths(2)), 1) < 0.7


def test_every_finite_float16_is_there_once() -> None:
    x = ranges.every_float16()
    assert len(x) == 63488 == len(np.unique(x.view(np.uint16)))
    assert (x[0], x[-1]) == (-65504, 65504)


def test_what_is_off_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong function of gpuact changes the figure of its claim."""
    right = gpuact.softmax
    monkeypatch.setattr(gpuact, "softmax", lambda x: right(x) * x.dtype.type(1.0001))
    assert rows._sums(10, np.random.default_rng(0))[1] > 1
    monkeypatch.setattr(gpuact, "prelu", lambda x, weight: np.maximum(weight * x, x))
    found = collected([ranges.measure_maximum(0, TINY)])
    assert [one.verdict for one in ranges.judge_maximum(found)] == [HOLDS, FAILS]


def test_deep_linear_layers_multiply_out_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with gpuact.using("numpy"):
        assert linear._difference(0, 4) < 1e-14
        monkeypatch.setattr(linear, "Network", lambda name, *rest: Network("tanh", *rest))
        assert linear._difference(0, 4) > 0.1


# -- the run, the file, the page ------------------------------------------------------------------


def test_claims_are_chosen_by_number_or_words() -> None:
    assert [claim.number for claim in CLAIMS] == list("123456789")
    assert chosen("") == list(CLAIMS)
    assert [claim.number for claim in chosen("relu")] == ["7", "8"]
    assert [claim.number for claim in chosen("3")] == ["3"]
    assert chosen("10") == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--seeds", "0"), "--seeds: 0 came, 1 or more are allowed"),
        (("--only", "nought"), "--only: 'nought' came, the claims are 1 linear layers collapse, "),
    ],
)
def test_mistakes_get_one_sentence(
    words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["claims", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bench: {told}")


def test_the_command_measures_shows_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["claims", "--only", "2", "--seeds", "2", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "2a The derivative of" in printed and HOLDS in printed
    assert f"README takes no fewer. Of {SEEDS}" not in printed and "Of 2 seeds" in printed
    (path,) = tmp_path.glob(f"*{result.CLAIMS}")
    names = {each.name for each in tmp_path.iterdir()}
    assert names == {path.name, f"{path.stem}.html", f"{path.stem}-ranges.png"}
    found = read(path)
    assert found.finished and not found.whole and found.settings["seeds"] == 2
    assert found.findings == ranges.judge(found.figures["2"])
    # the page of a file is drawn again by `report`
    (tmp_path / f"{path.stem}.html").unlink()
    assert main(["report", str(path)]) == 0
    assert {each.name for each in tmp_path.iterdir()} == names


def test_without_out_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["claims", "--only", "2", "--seeds", "1", "--no-out"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_keeps_whole_claims_and_names_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(seed: int, effort: Effort) -> Any:
        if seed == 1:
            raise KeyboardInterrupt
        return {"figure": 1.0}

    stopped = Claim("9", "stopped", pressed, lambda figures: [])
    monkeypatch.setattr(run, "chosen", lambda only: [*chosen("2"), stopped])
    assert run.run("", 5, tmp_path, TINY) == 130
    assert "interrupted: claims 9 are missing, the others are kept" in capsys.readouterr().out
    (path,) = tmp_path.glob("*.json")
    found = read(path)
    assert (found.finished, found.stopped, list(found.figures)) == (False, "interrupted", ["2"])
    monkeypatch.setattr(run, "chosen", lambda only: [stopped])
    assert run.run("", 5, tmp_path / "none", TINY) == 130
    assert not (tmp_path / "none").exists()


def test_a_record_is_read_as_it_was_written(kept: Record, tmp_path: Path) -> None:
    path = path_of(kept, tmp_path)
    assert path.name.endswith(result.CLAIMS)
    result.put(text(kept), path)
    found = read(path)
    assert text(found) == text(kept)  # NaN is not itself
    assert found.whole
    assert [one.verdict for one in found.findings] == [one.verdict for one in kept.findings]
    again = [one for claim in CLAIMS for one in claim.judge(found.figures[claim.number])]
    assert [one.told for one in again] == [one.told for one in found.findings]
    kinds = [
        [fact.in_readme for one in some for fact in one.facts] for some in (again, found.findings)
    ]
    assert kinds[0] == kinds[1] and any(kinds[0])


def test_a_file_that_says_otherwise_than_its_figures_is_refused(
    kept: Record, tmp_path: Path
) -> None:
    path = tmp_path / f"x{result.CLAIMS}"
    path.write_text(text(kept).replace(f'"verdict": "{FAILS}"', f'"verdict": "{HOLDS}"', 1))
    with pytest.raises(Unreadable, match=r"the figures say 'does not hold', not 'holds'"):
        read(path)
    for wrong, told in (("[]", "schema None came"), ("{", "not JSON"), ("{}", "schema None")):
        path.write_text(wrong)
        with pytest.raises(Unreadable, match=told):
            read(path)


def test_those_who_read_results_pass_claims_over(
    kept: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result, "_git", lambda *words: None)
    measured = replace(bench_samples.gpu(), sample=False)
    result.write(measured, tmp_path / "gpu.json")
    result.put(text(kept), path_of(kept, tmp_path))
    assert result.committed(tmp_path) == [measured]
    drawn = ledger.draw(tmp_path)
    assert (list(drawn.files), drawn.passed_over) == (["gpu.json"], ())
    assert [text(one) for one in committed(tmp_path)] == [text(kept)]


def test_the_page_is_whole_and_has_every_finding_and_picture(kept: Record) -> None:
    drawn = drawings.drawn(kept.figures)
    found = Page(page.html(kept, drawn))
    names = [name for some in drawn.values() for name, _, _ in some]
    assert len(names) == len(set(names)) == len(found.all("img")) == len(found.all("source"))
    assert set(claims_readme.SHOWN) <= set(names)
    for image in found.all("img"):
        assert image["src"].startswith("data:image/svg+xml") and image["alt"]
    for one in kept.findings:
        assert f"{one.number} {one.says}" in found.text
        assert one.told in " ".join(found.text.split()) or one.told in found.text
    idents = [a["id"] for _, a in found.elements if "id" in a]
    assert len(idents) == len(set(idents))
    assert {a["href"] for a in found.all("a")} <= {f"#{ident}" for ident in idents}
    assert "gpuact benchmark" not in found.text


def test_colours_of_the_pictures_have_dark_counterparts() -> None:
    from bench.figures import DARK

    used = [look.light for look in (*drawings.OF.values(), *drawings.STEPS)]
    assert set(used) <= set(DARK)
    assert len({look.light for look in drawings.OF.values()}) == len(drawings.OF)


@pytest.mark.parametrize(
    ("y", "told"), [(1.0, "1"), (0.3, "0.3"), (1e-4, "10⁻⁴"), (1e-20, "10⁻²⁰"), (1e5, "10⁵")]
)
def test_powers_are_told_as_such(y: float, told: str) -> None:
    assert drawings.power(y) == told


# -- README ---------------------------------------------------------------------------------------


def test_the_readme_has_what_is_committed() -> None:
    """After a run is added to git: python -m bench readme."""
    if result._git("ls-files") is None:
        pytest.skip("without git nobody knows which results are committed")
    written = README.read_text(encoding="utf-8")
    assert claims_readme.BEGIN + claims_readme.section(committed()) + END in written


def test_the_section_is_of_the_newest_whole_run(kept: Record, tmp_path: Path) -> None:
    section = claims_readme.section
    few = replace(kept, settings={**kept.settings, "seeds": SEEDS - 1})
    part = replace(kept, figures={"2": kept.figures["2"]})
    lost = replace(kept, finished=False)
    assert section([few, part, lost], tmp_path) == f"{claims_readme.NONE}\n"
    later = replace(kept, time="2999-01-01T00:00:00+00:00", seconds=77.0)
    told = section([later, kept, few], tmp_path)
    assert told.startswith(f"{kept.device}, 2999-01-01") and "77 seconds" in told
    brief, _, whole = told.partition("<details>")
    # every sentence under its claim's title, with its verdict
    said = [line for line in brief.splitlines() if line.startswith("| ")][2:]
    assert [line for line in said if line.endswith("| |")] == [
        f"| **{claim.number} {claim.title}** | |" for claim in CLAIMS
    ]
    marks = [line.strip("| *").split()[0] for line in said]
    assert marks == sorted([*"123456789", *(finding.number for finding in kept.findings)])
    for finding in kept.findings:
        (line,) = (line for line in said if line.startswith(f"| {finding.number} "))
        assert escaped(finding.says) in line
        assert line.endswith(
            f"**{finding.verdict}**{escaped(finding.told[len(finding.verdict) :])} |"
        )
        assert finding.verdict in VERDICTS
        assert line.replace("\\|", "").count("|") == 3
    # what it was measured by
    table = [line for line in whole.splitlines() if line.startswith("| ")]
    assert len(table) == 2 + len(kept.findings)
    for line, finding in zip(table[2:], kept.findings, strict=True):
        assert line.startswith(f"| {finding.number} | {escaped(finding.how)}.")
        assert line.replace("\\|", "").count("|") == 3
        shown = [*finding.checks, *(fact for fact in finding.facts if fact.in_readme)]
        assert line.count("<br>") == len(shown)
        assert all(escaped(one.text) in line for one in shown)
    assert any(not fact.in_readme for one in kept.findings for fact in one.facts)


def test_pictures_that_lie_there_are_shown(
    kept: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_readme, "ROOT", tmp_path.parent)
    picture = f"{path_of(kept, tmp_path).stem}-depth.png"
    (tmp_path / picture).touch()
    told = claims_readme.section([kept], tmp_path)
    assert told.endswith(f"]({tmp_path.name}/{picture})\n")
    assert told.count("![") == 1
