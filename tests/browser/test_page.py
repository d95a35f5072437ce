"""The leaderboard's page in a real browser, opened from disk: what a reader does, and that nothing is fetched.

Needs playwright's Python package and a Chromium: ``$CHROMIUM``, or one of that name on the path (Debian's will do).
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from record_factory import make_record, point
from test_leaderboard_page import HOSTILE, thousand

from bench.leaderboard.aggregate import aggregate
from bench.leaderboard.render import render
from bench.leaderboard.reported import load_reported
from bench.records.record import Record

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)"),
]
ARGUMENTS = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
             "--disable-component-update --disable-sync --disable-extensions")  # fmt: skip
# Of a wait, in milliseconds: machines that run trainings beside the tests are slow.
PATIENCE = float(os.environ.get("BROWSER_PATIENCE_MS", "60000"))
COMMITTED = Path(__file__).parents[2] / "leaderboards" / "reported"

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS.split(), timeout=PATIENCE)
        yield browser
        browser.close()


def write_page(folder: Path, records: list[Record]) -> str:
    papers = load_reported(COMMITTED)
    path = folder / "index.html"
    path.write_text(str(render(aggregate(records, papers), papers)["index.html"]), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    records = []
    for k, method in enumerate(("qcfs", "srp", "cos")):
        for seed in range(3):
            curve = [point(T, top1 + (k + seed) / 100, synops=None) for T, top1 in ((2, 0.71), (4, 0.82), (8, 0.89))]
            records.append(make_record(seed, curve, method__name=method))
    cheap = [point(T, 0.5 + T / 20, synops=1e6 * T) for T in (1, 2, 4, 8)]
    records.append(make_record(0, cheap, data__name="cifar100"))
    records.append(make_record(0, data__name="digits", run__argv=[HOSTILE], environment__device=HOSTILE))
    return write_page(tmp_path_factory.mktemp("page"), records)


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """Opens pages; afterwards the console must be silent and nothing but the pages themselves asked for."""
    contexts, heard, asked, given = [], [], [], set()

    def visit(address: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("dialog", lambda dialog: (heard.append("dialog"), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url.split("#")[0]))
        given.add(address.split("#")[0])
        page.goto(address)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert heard == []
    assert {url for url in asked if not url.startswith("data:")} == given


def column(page: Any, name: str) -> list[str]:
    return page.evaluate(
        """(name) => {
          const heads = [...document.querySelectorAll("#table thead th")];
          const at = heads.findIndex((head) => head.dataset.column === name);
          return [...document.querySelectorAll("#table tbody tr")].map((row) => {
            const cell = row.children[at];
            return (cell.querySelector(".top1, .open") ?? cell).textContent;
          });
        }""",
        name,
    )


def test_tabs_by_pointer_and_by_arrow_keys(visit: Open, address: str) -> None:
    page = visit(address)
    tabs = page.get_by_role("tab")
    assert tabs.evaluate_all("(all) => all.map((tab) => tab.ariaSelected)") == ["true", "false", "false", "false"]
    tabs.nth(1).click()
    assert page.locator("#caption").inner_text().startswith("CIFAR-100: 1 measured row")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.name") == "digits"
    assert page.locator("#panel").get_attribute("aria-labelledby") == "tab-digits"
    page.keyboard.press("Home")
    assert tabs.nth(0).get_attribute("aria-selected") == "true"
    assert tabs.evaluate_all("(all) => all.map((tab) => tab.tabIndex)") == [0, -1, -1, -1]


def test_filters_and_columns(visit: Open, address: str) -> None:
    page = visit(address)
    page.select_option("#by-method", "qcfs")
    assert set(column(page, "method")) == {"QCFS (ICLR 2022)"}
    page.select_option("#by-show", "measured")
    assert column(page, "T4") == ["83.00"]
    page.select_option("#by-values", "seeds")
    assert column(page, "T4") == ["82.00", "83.00", "84.00"]
    page.select_option("#by-T", "4")
    assert column(page, "difference") == ["▼ −1.75", "▼ −0.75", "= +0.25"]
    assert column(page, "synops") == ["not measured"] * 3
    page.click("#reset")
    assert len(column(page, "method")) > 60
    page.select_option("#by-arch", "cifar_vgg16")
    assert set(column(page, "arch")) == {"cifar_vgg16"}


def test_a_mean_over_fewer_seeds_and_an_ann_with_noise_say_so(visit: Open, tmp_path: Path) -> None:
    records = [make_record(seed, [point(4, 0.8)], method__name="nq") for seed in range(2)]
    records.append(make_record(2, [point(4, 0.8), point(8, 0.9)], method__name="nq"))
    records = [record.model_copy(update={"extras": {"ann_noisy": 0.7785}}) for record in records]
    page = visit(write_page(tmp_path, records))
    page.select_option("#by-show", "measured")
    head, row = page.locator("#table thead th"), page.locator("#table tbody tr")
    at = {name: k for k, name in enumerate(head.evaluate_all("(all) => all.map((th) => th.dataset.column)"))}
    cells = row.locator("td, th").all_inner_texts()
    assert "(n=1)" in cells[at["T8"]] and "(n=" not in cells[at["T4"]]
    assert "noisy: 77.85" in cells[at["ann"]]
    page.locator("#table .open").click()
    detail = page.locator("#detail").inner_text()
    assert "90.00 (n=1)" in detail and "noisy: 77.85" in detail


def test_a_row_ticked_by_keyboard_keeps_the_focus(visit: Open, address: str) -> None:
    page = visit(address)
    box = page.locator("#table tbody input").nth(1)
    label = box.get_attribute("aria-label")
    box.focus()
    for ticked in (True, False):
        page.keyboard.press("Space")
        assert box.is_checked() is ticked
        assert page.evaluate("document.activeElement.ariaLabel") == label


def test_what_is_printed_as_at_least_512_is_not_drawn_at_512(visit: Open, address: str) -> None:
    page = visit(address)
    page.select_option("#by-show", "printed")
    page.select_option("#by-T", "512+")
    page.locator("#table tbody input").first.check()
    points = page.evaluate("document.getElementById('curve').plot.series.flatMap(({ points }) => points)")
    assert points and max(point["x"] for point in points) < 512


def test_every_column_sorts_both_ways_with_unknown_values_last(visit: Open, address: str) -> None:
    page = visit(address)
    for head in page.locator("#table [data-column]").all():
        name = head.get_attribute("data-column")
        for _ in range(2):
            head.locator("button").click()
            order = head.get_attribute("aria-sort")
            assert order in ("ascending", "descending")
            assert page.locator("#table [aria-sort]").count() == 1
            if name in ("method", "arch"):
                texts = column(page, name)
                assert texts == sorted(texts, key=str.casefold, reverse=order == "descending")
            if name in ("rank", "n"):
                values = [int(text) for text in column(page, name) if text not in ("", "–")]
                assert values == sorted(values, reverse=order == "descending") and values
            if name.startswith("T"):
                texts = column(page, name)
                values = [float(text) for text in texts if text]
                assert values == sorted(values, reverse=order == "descending")
                assert texts[len(values) :] == [""] * (len(texts) - len(values))


def test_values_by_pointer_and_by_keyboard(visit: Open, address: str) -> None:
    page = visit(address)
    page.locator("#curve").scroll_into_view_if_needed()
    page.locator("#curve .full").first.hover(force=True)
    assert "% at T = 2" in page.locator("#curve .tip").inner_text()
    page.locator("#curve").focus()
    page.keyboard.press("ArrowRight")
    first = page.locator("#live").inner_text()
    page.keyboard.press("ArrowRight")
    second = page.locator("#live").inner_text()
    page.keyboard.press("ArrowDown")
    assert len({first, second, page.locator("#live").inner_text()}) == 3
    page.keyboard.press("Escape")
    assert page.locator("#curve .tip").is_hidden()


def test_the_plot_follows_the_selection(visit: Open, address: str) -> None:
    page = visit(address)
    assert page.locator("#legend li").count() == 3
    page.locator("#table tbody input").nth(1).check()
    assert page.locator("#legend li").count() == 1
    page.select_option("#by-method", "nq")
    assert page.locator("#legend li").count() == 1, "what is picked stays"


def test_costs_say_that_they_are_not_measured_and_are_drawn_where_they_are(visit: Open, address: str) -> None:
    page = visit(address)
    assert "have not been measured" in page.locator("#pareto").inner_text()
    page.get_by_role("tab").nth(1).click()
    assert page.locator("#pareto .full").count() == 4
    assert page.locator("#pareto .front").count() == 1


def test_a_link_restores_everything(visit: Open, address: str) -> None:
    page = visit(address)
    page.select_option("#by-show", "measured")
    page.select_option("#by-T", "8")
    page.locator("[data-column=method] button").click()
    page.locator("#table tbody input").nth(2).check()
    page.locator("#table .open").nth(1).click()
    link, opened = page.evaluate("location.href"), page.locator("#detail").inner_text()
    again = visit(link)
    assert again.locator("#table").inner_text() == page.locator("#table").inner_text()
    assert again.locator("#legend").inner_text() == page.locator("#legend").inner_text()
    assert again.locator("#detail").inner_text() == opened
    assert again.locator("#table input:checked").count() == 1
    assert again.locator("[data-column=method]").get_attribute("aria-sort") == "ascending"
    assert again.evaluate("location.href") == link
    odd = visit(address + "#data=none&T=%3Cb%3E&sort=x&dir=y&pick=z&open=q&values=v&method=__proto__")
    assert odd.locator("#table tbody tr").count() >= 1


def test_the_panel_has_the_command_and_gives_the_focus_back(visit: Open, address: str) -> None:
    page = visit(address)
    page.locator("#table .open").first.focus()
    page.keyboard.press("Enter")
    text = page.locator("#detail").inner_text()
    for wanted in ("git checkout " + "b" * 40, "python -m bench fit", "a" * 40, "weights, SHA-256", "Lightning 2"):
        assert wanted in text
    assert page.locator("#detail").get_attribute("role") == "dialog"
    assert page.evaluate("document.activeElement.id") == "detail"
    page.keyboard.press("Escape")
    assert page.locator("#detail").is_hidden()
    assert page.evaluate("document.activeElement.className") == "open"


def test_light_and_dark(visit: Open, address: str) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = visit(address, color_scheme="light"), visit(address, color_scheme="dark")
    shades = [light.evaluate(ground), dark.evaluate(ground)]
    assert shades[0] != shades[1]
    light.click("#theme")
    dark.click("#theme")
    assert [dark.evaluate(ground), light.evaluate(ground)] == shades
    light.reload()
    assert light.evaluate(ground) == shades[1], "the choice is kept"


def test_a_phone_scrolls_the_table_and_not_the_page(visit: Open, address: str) -> None:
    page = visit(address, viewport={"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#table .open").first.click()
    assert page.evaluate("document.getElementById('detail').scrollWidth") <= 390


def test_hostile_text_is_shown_as_text(visit: Open, address: str) -> None:
    page = visit(address + "#data=digits")
    page.locator("#table .open").first.click()
    assert "<img src=x onerror=alert(1)>" in page.locator("#detail").inner_text()
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2


def test_everything_to_press_has_a_name(visit: Open, address: str) -> None:
    page = visit(address)
    page.locator("#table .open").first.click()
    nameless = """() => [...document.querySelectorAll("button, input, select, [tabindex='0']")]
      .filter((node) => !(node.textContent.trim() || node.getAttribute("aria-label") || node.labels?.length))
      .map((node) => node.outerHTML)"""
    assert page.evaluate(nameless) == []
    assert page.locator("table caption").count() == page.locator("table").count()


@pytest.mark.slow
def test_a_thousand_records_open_and_all_are_shown_on_demand(visit: Open, tmp_path: Path) -> None:
    page = visit(write_page(tmp_path, thousand()) + "#values=seeds&show=measured")
    assert page.locator("#table tbody tr").count() == 200
    page.click("#more")
    assert page.locator("#table tbody tr").count() == 501
    assert page.locator("#more").is_hidden()
