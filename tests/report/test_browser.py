"""The report in a browser: on a phone and on a desk, with scripts and without."""

import re
import shutil

import numpy as np
import pytest
from test_judged import judged
from test_report import config, entries, write

import parse_results
from lowshot.evaluation.metrics import N_PLACES

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")

HOSTILE = "</script><script>document.title = 'broken out'</script><img src=x onerror=document.title='broken'>"
WIDTHS = pytest.mark.parametrize("width", [400, 1400])


def results_file(method, gain, n_shots=(1, 5)):
    """Results of two trials with everything that a report draws."""
    one, base = judged(12, method=method), np.linspace(0.9, 0, N_PLACES)
    curve = {"base": base.tolist(), "novel": (0.7 - 0.7 * (base / 0.9) ** 2).tolist()}
    rows = [
        {**row, "n_shot": n, "top1_novel": gain + 0.1 * row["trial"] + 0.02 * n, "base_novel": curve}
        for row in one["trials"]
        for n in n_shots
    ]
    hostile = [{**pair, "n_shot": 5, "name": HOSTILE} for pair in one["confusions"]]
    one["classes"][3]["name"] = HOSTILE
    return one | {"trials": rows, "confusions": one["confusions"] + hostile}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser") / "some results"
    systems = {f"system{i}": results_file(f"classifier{i}" + " + addition" * i, 0.05 * i) for i in range(6)}
    hostile = results_file(HOSTILE, 0.3)
    history = {(s, t, n): 0.1 + 0.05 * s for s in range(3) for t in (1, 2) for n in (1, 5)}
    return parse_results.main(config(write(folder, **systems, hostile=hostile | {"history": entries(history)})))


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, report):
    """Open the report. At the end: no error, no request to anywhere, and nothing wider than the window."""
    contexts, problems = [], []

    def open_page(width, scripts=True, **changes):
        window = {"width": width, "height": 900}
        contexts.append(browser.new_context(viewport=window, java_script_enabled=scripts, **changes))
        page = contexts[-1].new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
        page.goto(report.as_uri())
        if scripts:
            page.wait_for_function("document.querySelectorAll('.is-drawn').length >= 4")
        return page

    yield open_page
    for context in contexts:
        page = context.pages[0]
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
        assert page.title().endswith("some results: low-shot recognition")
        context.close()
    assert problems == []


def open_all(page):
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")


def column(table, place):
    return [cells.nth(place).inner_text() for cells in (row.locator("td") for row in table.locator("tbody tr").all())]


@WIDTHS
def test_everything_is_drawn_and_fits(visit, width):
    page = visit(width)
    open_all(page)
    n_charts = page.locator(".chart").count()
    page.wait_for_function(f"document.querySelectorAll('.is-drawn').length == {n_charts}")
    page.wait_for_function("document.querySelectorAll('table.sortable:not(.dataTable)').length == 0")
    assert n_charts == 6  # classes, curves, base-novel, two over steps, differences
    for figure in page.locator(".chart, .picture img:visible").all():
        box = figure.bounding_box()
        assert box["width"] > 100 and box["height"] > 100
    for chart in page.locator(".chart").all():
        assert (
            chart.locator("svg [aria-roledescription]").count() > 5 and not chart.locator(".static").first.is_visible()
        )
    for table in page.locator("table.sortable").all():
        first, box = table.locator("tbody td").first.bounding_box(), table.locator("..").bounding_box()
        table.locator("..").evaluate("box => { box.scrollLeft = 200 }")
        assert table.locator("tbody td").first.bounding_box()["x"] == pytest.approx(first["x"], abs=1)  # it stays
        assert box["x"] + box["width"] <= width


@WIDTHS
def test_without_scripts_tables_and_figures_are_there(visit, width):
    page = visit(width, scripts=False)
    closed = page.locator("details:not([open]) > summary:visible")
    while closed.count():  # details hold details
        closed.first.click()
    for one in [*page.locator("table").all(), *page.locator(".picture img").all()]:
        box = one.bounding_box()
        assert one.is_visible() and box["width"] > 100 and box["height"] > 20
    assert page.locator(".picture img").count() >= 8 and not page.locator(".scripted").first.is_visible()


def test_columns_sort_as_numbers_and_rows_are_filtered(visit):
    page = visit(1400)
    table = page.locator("table.sortable").first
    place = [name.strip() for name in table.locator("th").all_inner_texts()].index("n = 5")
    for least_first in (True, False):
        table.locator("th").nth(place).click()
        means = [float(re.match(r"[\d.]+", cell)[0]) for cell in column(table, place)]
        assert len(means) == 7 and means == sorted(means, reverse=not least_first)
    page.locator("input[type=search]").first.fill("classifier3")
    assert column(table, 0) == ["conv4: classifier3 + addition + addition + addition"]


def test_differences_sort_by_sign(visit):
    page = visit(1400)
    table = page.locator("figure.table", has_text="paired differences").first.locator("table")
    table.locator("th").last.click()
    cells = [cell.replace("\u00a0", " ").replace("−", "-") for cell in column(table, -1)]
    means = [float(re.match(r"[-+\d.]+", cell)[0]) for cell in cells]
    assert means == sorted(means) and means[0] < 0 < means[-1]


def test_hover_tells_numbers_and_the_switch_changes_the_measure(visit):
    page = visit(1400)
    chart = page.locator(".chart:visible").first
    chart.locator("svg path[aria-roledescription=point]").last.hover(force=True)
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    assert "System" in tip.inner_text() and "±" in tip.inner_text()
    before = chart.locator("svg.marks").inner_html()
    chart.locator("select").first.select_option("Top-5 accuracy, mean over classes")
    page.wait_for_function(
        "before => document.querySelector('.chart.is-drawn svg.marks').innerHTML != before", arg=before
    )
    assert "Top-5 accuracy, mean over classes" in chart.locator("svg.marks").text_content()


def test_names_from_results_files_are_shown_and_not_run(visit, report):
    page = visit(1400, color_scheme="dark")
    assert page.locator("td", has_text=HOSTILE).count() > 1
    open_all(page)
    page.wait_for_function("document.querySelectorAll('.is-drawn').length == 6")
    page.locator(".chart", has=page.locator("select")).first.locator("select").first.select_option(f"conv4: {HOSTILE}")
    assert "broken" not in page.title()
    assert HOSTILE not in report.read_text(encoding="utf-8")
