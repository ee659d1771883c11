"""The report: what stands on the page, that it needs nothing beside itself, and how it looks."""

from __future__ import annotations

import re
import shutil
import struct
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from bench import figures, page, words
from bench.figures import DARK, GRID, INK, LOOKS, OTHER, SAMPLE, SOFT, WARNING
from bench.measure import Timing
from bench.result import Judged, Result, read
from bench.suite import Row
from bench.tables import COPY

from . import bench_samples

BUILT = bench_samples.built()
NAMES = list(BUILT)
EMPTY = Result(time="2000-01-01T00:00:00+00:00")
VOID = {"meta", "link", "img", "source", "use", "path", "br", "wbr"}


class Page(HTMLParser):
    """What is on a page: elements that are opened are closed, in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        found = dict(attrs)
        assert len(found) == len(attrs), f"an attribute twice in {tag}"
        self.elements.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """By the names of the samples; all of them, and a result of nothing."""
    found = {name: page.page([result]) for name, result in BUILT.items()}
    return {**found, "all": page.page(list(BUILT.values())), "empty": page.page([EMPTY])}


EVERY = [*NAMES, "all", "empty"]


# -- the samples ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_samples_are_what_the_script_writes(name, tmp_path):
    path = bench_samples.SAMPLES / f"{name}.json"
    assert read(path) == BUILT[name]
    assert path.stat().st_size < 400_000
    bench_samples.main(tmp_path)
    assert path.read_text() == (tmp_path / f"{name}.json").read_text(), (
        "python -m tests.bench_samples writes them anew"
    )


def test_the_later_sample_differs_where_it_says_so():
    first, later = BUILT["gpu"], BUILT["gpu-later"]
    differ = {name for name in first.kernels if first.kernels[name] != later.kernels[name]}
    assert differ == {"cupy rows"}
    for a, b in zip(first.rows, later.rows, strict=True):
        assert (a.case, a.provider, a.status) == (b.case, b.provider, b.status)
        if a.timing and b.timing:
            ours = a.provider.startswith("gpuact")
            factor = bench_samples.LATER.get(a.case, 1.0) if ours else 1.0
            assert a.timing.median / b.timing.median == pytest.approx(factor, rel=0.02)


# -- the text -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_a_page_is_whole_and_loads_nothing(pages, name):
    found = Page(pages[name])
    assert found.all("html") == [{"lang": "en"}]
    assert not found.all("script")
    idents = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(idents) == len(set(idents))
    for tag, attributes in found.elements:
        for key in ("src", "srcset", "href"):
            to = attributes.get(key, "data:")
            assert to.startswith("data:") or (to[1:] in idents and to[0] == "#"), (tag, to)
    assert "url(" not in pages[name] and "@import" not in pages[name]
    assert len(pages[name]) < 3_000_000


@pytest.mark.parametrize("name", EVERY)
def test_a_page_can_be_read_without_seeing_it(pages, name):
    found = Page(pages[name])
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert all("scope" in attributes for attributes in found.all("th"))
    images = found.all("img")
    assert all(len(image["alt"]) > 60 for image in images)
    assert len({image["alt"] for image in images}) == len(images) or name == "all"
    assert bool(images) == (name != "empty")


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_says_so_in_its_section_and_in_every_figure(pages, name):
    assert "Made up: nothing was measured." in Page(pages[name]).text
    drawn = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", pages[name])
    assert drawn and all(SAMPLE in b64decode(text).decode() for text in drawn)
    for draw in (figures.headline, figures.bandwidths):
        assert SAMPLE in [text.get_text() for text in draw(BUILT[name]).texts]


def test_a_result_that_is_no_sample_does_not_say_so():
    result = replace(BUILT["gpu"], sample=False)
    text = page.page([result])
    drawn = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", text)
    assert "nothing was measured" not in Page(text).text
    assert not any("SAMPLE" in b64decode(one).decode() for one in drawn)


def _headline_table(text: str) -> str:
    return text.split('aria-label="headline cases by provider"')[1].split("</table>")[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_headline_case_and_provider_is_in_the_table(pages, name):
    rows = [row for row in BUILT[name].rows if row.headline]
    table = _headline_table(pages[name])
    text = Page(f"{table}</table>".partition(">")[2]).text.replace("\u00a0", " ")
    for case in {row.case for row in rows}:
        rest = case.partition(" ")[2]
        assert rest in text, case
    heads = Page(table[table.index("<thead") : table.index("</thead>")] + "</thead>").text
    assert heads.split("\n")[1:-1] == figures.ordered(row.provider for row in rows)
    assert table.count("<tr") == len({row.case for row in rows}) + 1
    for row in rows:
        if row.timing:
            assert words.duration(row.timing.median) in text
            assert row.provider == COPY or words.share(row.share_of_copy) in text


def test_the_best_of_a_line_is_told_apart_unless_all_are_equal():
    table = page._headline("x", BUILT["gpu"])
    for line in table.lines:
        assert sum(cell.best for cell in line.cells) == 1
        assert next(cell for cell in line.cells if cell.best).provider == "gpuact on CuPy"
    differ, alike = page._memory("x", BUILT["gpu"])
    assert {line.head for line in differ.lines} == {"cross_entropy", "cross_entropy_with_grad"}
    assert not any(cell.best for line in alike.lines for cell in line.cells)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_not_timed_says_why(pages, name):
    text = Page(pages[name]).text
    untimed = [row for row in BUILT[name].rows if row.reason]
    assert untimed
    for row in untimed:
        assert f"{row.status} {row.provider}" in text and row.reason in text
    for cost in BUILT[name].host_costs:
        assert cost.reason in text


def test_a_cell_without_a_number_leads_to_its_reason(pages):
    table = page._headline("r1-h", BUILT["gpu"])
    words_of = {cell.status: cell.to for line in table.lines for cell in line.cells if cell.status}
    assert set(words_of) == {"wrong", "failed", "lost", "not run"}
    assert set(words_of.values()) == {reason.ident for reason in table.reasons}
    for status, ident in words_of.items():
        assert f'href="#{ident}">{status}</a>' in pages["gpu"]
        assert f'<li id="{ident}">' in pages["gpu"]


def test_the_machine_and_what_became_of_it(pages):
    text = Page(pages["gpu"]).text
    for words_ in (
        *("sample GPU (made up), 80 GiB, driver 000.00", "sample processor (made up), 16 cores"),
        *("0123456789ab", "torch 2.0.0", "suite gpu", "2000-01-01 12:00 UTC", "6.9 minutes"),
        *("The run finished.", "SwPowerCap after softmax bfloat16 8192×262144", "SM clock, MHz"),
    ):
        assert words_ in text
    assert "only" not in page._facts(BUILT["gpu"])["settings"]
    assert "89abcdef0123 with changes" in Page(pages["gpu-later"]).text
    assert "Stopped early: KeyboardInterrupt" in Page(pages["cpu"]).text


def test_who_is_timed_with_his_launches_is_marked_and_the_reason_told(pages):
    page = pages["gpu"]
    rows = [row for row in BUILT["gpu"].rows if row.headline and row.method == "events"]
    assert {row.provider for row in rows} == {"Liger"}
    for row in rows:
        assert f"{words.duration(row.timing.median)} *" in page
    assert rows[0].note in page
    assert page.count(" *<") == len(rows)


def test_a_gpu_that_was_often_slowed_down_is_not_listed_reading_by_reading():
    hot = [replace(c, throttled="SwPowerCap") for c in BUILT["gpu"].conditions]
    told = page._conditions(replace(BUILT["gpu"], conditions=hot)).throttled
    assert told.startswith(f"Slowed down at {len(hot)} of {len(hot)} readings: SwPowerCap ")
    assert told.endswith(f"; {len(hot) - page.TOLD} more.")
    silent = [replace(c, throttled=None) for c in hot]
    told = page._conditions(replace(BUILT["gpu"], conditions=silent)).throttled
    assert told == "The driver does not tell whether anything slowed it down."
    cool = [replace(c, throttled="") for c in hot[1:]]
    told = page._conditions(replace(BUILT["gpu"], conditions=[*cool, silent[0]])).throttled
    assert told == f"Nothing slowed it down at any of {len(cool)} readings."
    assert page._conditions(replace(BUILT["gpu"], conditions=[])) is None


def test_of_several_results_each_has_its_section(pages):
    found = Page(pages["all"])
    sections = [s["id"] for s in found.all("section") if s.get("class") == "result"]
    assert sections == ["r1", "r2", "r3"]
    for ident, result in zip(sections, BUILT.values(), strict=True):
        assert f'<a href="#{ident}">{result.title}</a>' in pages["all"]
    assert 'aria-label="Results"' not in pages["gpu"]


def test_goals_are_told_with_those_that_are_missed_first(pages):
    section = pages["gpu"].split('id="r1-goals"')[1].split("<h3")[0]
    verdicts = re.findall(r'<span class="verdict[^>]*>([^<]+)<', section)
    goals = BUILT["gpu"].goals
    assert sorted(verdicts) == sorted(map(words.verdict, goals))
    assert verdicts == sorted(verdicts, key=["missed", "not measured", "held"].index)
    assert {"missed", "not measured", "held"} == set(verdicts)


def test_a_result_of_nothing_is_a_page(pages):
    text = Page(pages["empty"]).text
    assert "The run did not finish." in text
    assert "No case had been run" in text
    assert [h for h, _ in Page(pages["empty"]).elements if h == "h3"] == ["h3"]


def test_names_and_reasons_are_text_and_no_markup():
    bad = "<q>&\"'</q>{{ 7 * 7 }}$x^2$"
    timed = BUILT["gpu"].rows[1]
    lost = Row(bad, 8, bad, bad, "lost", bad, function="relu", dtype="float32", shape=(1,),
               suite="elementwise", headline=True)  # fmt: skip
    goal = Judged(bad, bad, bad, "ms", 1.0, None, False)
    rows = [replace(timed, case=bad, note=bad, provider=who) for who in (bad, COPY)]
    result = replace(
        BUILT["gpu"], rows=[*rows, lost], goals=[goal], stopped=bad, finished=False,
        settings={"suite": bad}, versions={bad: bad}, commit=bad,
    )  # fmt: skip
    found = Page(page.page([result]))
    assert "q" not in {tag for tag, _ in found.elements}
    assert found.text.count(bad) >= 10
    assert any(bad in attributes.get("title", "") for attributes in found.all("td"))
    light, _ = figures.svg(figures.headline(result))
    assert "<q>" not in light and "$x^2$" in light


def test_the_same_result_gives_the_same_bytes(pages, tmp_path):
    assert page.page([BUILT["gpu"]]) == pages["gpu"]
    first = [path.read_bytes() for path in page.write([BUILT["cpu"]], tmp_path / "a", "run")]
    assert first == [
        path.read_bytes() for path in page.write([BUILT["cpu"]], tmp_path / "b", "run")
    ]


def test_the_colours_of_the_two_pages_are_pairs():
    pairs = [*(look[:2] for look in (*LOOKS.values(), OTHER)), INK, SOFT, GRID, WARNING]
    assert len(DARK) == len(pairs), "a light colour stands for two dark ones"
    assert len(set(DARK.values())) == len(pairs)
    for look in LOOKS.values():
        for colour, paper in ((look.light, "#ffffff"), (look.dark, "#0f1216")):
            assert contrast(colour, paper) >= 3, colour


def contrast(a: str, b: str) -> float:
    """As WCAG defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


# -- which rows a figure has ----------------------------------------------------------------------


def _row(case: str, size: int, shape: tuple[int, ...], suite: str = "elementwise") -> Row:
    function, dtype, *_ = case.split()
    timing = Timing(1e-3, 1e-3, 1e-3, 7)
    about = {"suite": suite, "function": function, "dtype": dtype, "shape": shape}
    rate = {"bytes_per_second": size * 1e3, "share_of_copy": 0.5}
    return Row(case, size, "", "torch", "timed", timing=timing, **rate, **about)


def test_a_panel_has_three_sizes_or_is_not_drawn():
    rows = [_row(f"relu float32 2^{k}", 8 << k, (1 << k,)) for k in (10, 20, 24)]
    assert figures.panels(rows[:2]) == []
    (panel,) = figures.panels(rows)
    assert panel.xs == [8 << 10, 8 << 20, 8 << 24] and not panel.by_length


def test_row_functions_are_drawn_over_the_length_of_their_rows():
    def softmax(m: int, n: int) -> Row:
        return _row(f"softmax float32 {m}×{n}", 8 * m * n, (m, n), "rows")

    rows = [softmax(4096, n) for n in (256, 1024, 4096)]
    (panel,) = figures.panels(
        [*rows, softmax(64, 1024), softmax(4096 * 4, 4096), softmax(4, 131072)]
    )
    assert panel.by_length and panel.xs == [256, 1024, 4096]
    assert [row.shape for row in panel.lines["torch"]] == [(4096, 256), (4096, 1024), (16384, 4096)]


def test_a_variant_is_what_a_name_says_beside_function_dtype_and_shape():
    cases = {
        "relu bfloat16 2^28": "",
        "softmax float32 8192×8192 axis 0": "axis 0",
        "fused sigmoid(x)·gate + residual bfloat16 32768×4096": "sigmoid(x)·gate + residual",
    }
    for case, want in cases.items():
        shape = tuple(map(int, (re.findall(r"(\d+)×(\d+)", case) or [(1,)])[0]))
        dtype = "float32" if "float32" in case else "bfloat16"
        row = _row(f"{case.split()[0]} {dtype}", 8, shape)
        assert figures.variant(replace(row, case=case)) == want
    axis = _row("softmax float32 8192×8192 axis 0", 1 << 30, (8192, 8192), "rows")
    assert figures.largest([axis]) == {}


def test_a_colour_is_that_of_the_number_shown():
    shares = {0.0: 0, 0.494: 0, 0.496: 1, 0.7: 3, 0.946: 6, 1.2: 6}
    assert {share: page.step(share) for share in shares} == shares


def test_a_functions_backward_stands_behind_it():
    names = ("relu", "prelu_backward", "softmax", "relu_backward", "prelu", "relu")
    want = ["relu", "relu_backward", "prelu", "prelu_backward", "softmax"]
    assert figures.families(names) == want


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (words.duration(9.996e-6), "10.0 µs"),
        (words.duration(0.0123), "12.3 ms"),
        (words.duration(1.5e-4), "150 µs"),
        (words.duration(3.14e-8), "31.4 ns"),
        (words.duration(0.9996e-3), "1.00 ms"),
        (words.duration(2.5), "2.50 s"),
        (words.duration(0.0), "0 ns"),
        (words.size(8192), "8.19 kB"),
        (words.size(1_000_000), "1 MB"),
        (words.size(12), "12 B"),
        (words.gigabytes(4.312e12), "4,312"),
        (words.gigabytes(9.1e9), "9.10"),
        (words.digits(0.0), "0"),
        (words.digits(-0.0123), "-0.0123"),
        (words.aim("GB/s", 1900.0), "≥ 1,900 GB/s"),
        (words.aim("ms", 1.5), "≤ 1.5 ms"),
        (words.aim("not behind", 1.0), "not behind"),
    ],
)
def test_numbers_have_three_digits(got, want):
    assert got == want


# -- the pictures ---------------------------------------------------------------------------------


def test_written_are_the_page_and_the_pictures_of_each_result(tmp_path):
    one = page.write([BUILT["cpu"]], tmp_path, "run")
    assert [path.name for path in one] == ["run.html", "run-headline.png", "run-bandwidth.png"]
    two = page.write([BUILT["cpu"], EMPTY], tmp_path, "both")
    assert [path.name for path in two] == [
        "both.html",
        "both-1-headline.png",
        "both-1-bandwidth.png",
    ]
    for path in one[1:]:
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", data[16:24])
        assert 1000 < width < 2600 and 300 < height < 3000
        assert 20_000 < len(data) < 1_000_000


# -- in a browser ---------------------------------------------------------------------------------

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-quic"),
)
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
}
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is there")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield found
        found.close()


@pytest.fixture(scope="module")
def written(pages, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in pages}


def opened(browser: Any, path: Path, complaints: list[str], **options: Any) -> Any:
    """The page, where whatever it says or asks for ends up among the complaints."""
    context = browser.new_context(**options)
    found = context.new_page()
    found.on("console", lambda message: complaints.append(message.text))
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("requestfailed", lambda request: complaints.append(request.url[:100]))

    def asked(request: Any) -> None:
        if not request.url.startswith(("data:", "file:")):
            complaints.append(request.url)

    found.on("request", asked)
    found.goto(path.as_uri())
    return found


@pytest.mark.parametrize(
    ("device", "scheme"),
    [
        (PHONE, "light"),
        (DESKTOP, "dark"),
        *(
            pytest.param(*other, marks=pytest.mark.slow)
            for other in ((PHONE, "dark"), (DESKTOP, "light"))
        ),
    ],
    ids=["phone light", "desktop dark", "phone dark", "desktop light"],
)
@pytest.mark.parametrize("name", ["all", "empty"])
def test_a_page_fits(browser, written, name, device, scheme):
    complaints: list[str] = []
    shown = opened(browser, written[name], complaints, color_scheme=scheme, **device)
    shown.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    wide, inner = shown.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
    assert wide <= inner == device["viewport"]["width"]
    for heading in shown.locator("h1, h2, h3, h4").all():
        assert heading.is_visible()
    images = shown.evaluate(
        """[...document.images].map(i => [i.complete && i.naturalWidth > 0, i.currentSrc === i.src,
            ["left", "right"].every(s => 0 <= i.getBoundingClientRect()[s] &&
                i.getBoundingClientRect()[s] <= innerWidth)])"""
    )
    assert all(image == [True, scheme == "light", True] for image in images)
    dark = shown.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    small = shown.evaluate(
        """Math.min(...[...document.querySelectorAll('p, dd, li, td:not(.all td), .grid small')]
            .filter(e => e.checkVisibility()).map(e => parseFloat(getComputedStyle(e).fontSize)))"""
    )
    assert small >= (14 if device is PHONE else 13)
    assert complaints == []
    shown.context.close()


def test_tables_have_a_line_a_case(browser, written):
    result = BUILT["gpu"]
    shown = opened(browser, written["gpu"], [], **DESKTOP)
    rows = "[aria-label='{}'] tbody tr"
    headline = {row.case for row in result.rows if row.headline}
    assert shown.locator(rows.format("headline cases by provider")).count() == len(headline)
    costs = {cost.case for cost in result.host_costs}
    assert shown.locator(rows.format("cost of a call to the host, µs")).count() == len(costs)
    every = [row for row in result.rows if row.case]
    cases = {row.case for row in every}
    assert shown.locator(rows.format("every row")).count() == len(every) + len(cases)
    assert shown.locator(".heat").count() == 2
    assert shown.locator("figure").count() == len(figures.panels(result.rows)) + 3
    shown.context.close()


def test_on_a_phone_a_case_is_a_list_of_who_ran_it(browser, written):
    shown = opened(browser, written["gpu"], [], **PHONE)
    first = shown.locator("[aria-label='headline cases by provider'] tbody tr").first
    mine = [row for row in BUILT["gpu"].rows if row.case == BUILT["gpu"].rows[0].case]
    assert first.locator("td:visible .who").all_inner_texts() == figures.ordered(
        row.provider for row in mine
    )
    boxes = [cell.bounding_box() for cell in first.locator("td:visible").all()]
    assert {box["x"] for box in boxes} == {boxes[0]["x"]}
    assert all(340 < box["width"] <= 390 for box in boxes)
    assert all(a["y"] + a["height"] <= b["y"] for a, b in pairwise(boxes))
    shown.context.close()


def test_a_page_is_printed_on_light_paper(browser, written):
    shown = opened(browser, written["gpu"], [], color_scheme="dark", viewport=PHONE["viewport"])
    shown.emulate_media(media="print")
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert shown.locator("img").first.evaluate("i => i.currentSrc === i.src")
    assert not shown.locator("details.every").first.is_visible()
    shown.set_viewport_size({"width": 700, "height": 1000})  # a sheet of A4 between its margins
    assert shown.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    cut = shown.evaluate(
        """[...document.querySelectorAll('table')].filter(t => t.checkVisibility()
            && t.getBoundingClientRect().right > innerWidth + 1).map(t => t.className)"""
    )
    assert cut == []
    pdf = shown.pdf(format="A4", print_background=True)
    assert pdf.startswith(b"%PDF") and len(pdf) > 50_000
    shown.context.close()
