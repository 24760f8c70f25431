"""The page of examples/web in a headless chromium: by keyboard, its lists, its errors, and who can use it."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from edge_runtimes import ROOT, Trained, in_python, need_node_modules, open_browser, train_small_model

from ipsrec_onnx.model_file import open_model_file

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

SHOWN = 12
KINDS = ["tea", "coffee", "soup", "bread", "cheese", "jam"]
KINDS_OF_KIND = ["green", "black", "white", "sweet", "sour", "fine", "plain", "mild", "strong", "mixed"]
PHONE, DESK = {"width": 380, "height": 800}, {"width": 1280, "height": 900}


@dataclass(frozen=True)
class Site:
    """A built page, and the model in it."""

    folder: Path
    trained: Trained
    item_ids: list[int]
    names: dict[int, str]

    def lists(self, history: list[int], *, use_providers: bool = True) -> list[str]:
        """What Python gives for a history, as far as the page shows it."""
        found: list[str] = in_python(self.trained.edge, [history], use_providers=use_providers)[0]["itemIds"]
        return found[:SHOWN]

    def history_with_another_list(self) -> list[int]:
        """A history for which the switch changes what is shown."""
        pairs = [[one, other] for one in self.item_ids[:10] for other in self.item_ids[10:20]]
        return next(pair for pair in pairs if set(self.lists(pair)) != set(self.lists(pair, use_providers=False)))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The page with a small trained model, built as `make web` does."""
    pl = pytest.importorskip("polars")
    modules = need_node_modules()
    folder = tmp_path_factory.mktemp("web")
    rng = np.random.default_rng(20260)
    trained = train_small_model(folder, rng, top_k=40, string_ids=False)
    item_ids = open_model_file(trained.model).catalog.item_ids.to_pylist()
    described = [f"{one} {kind}" for kind in KINDS for one in KINDS_OF_KIND]
    names = dict(zip(item_ids, described, strict=True))
    rows = {
        "item_id": item_ids,
        "manufacturer_id": [1_000 + place // 5 for place in range(len(item_ids))],
        "brand": ["Private" if place % 3 else "National" for place in range(len(item_ids))],
        "category": [KINDS[place // 10] for place in range(len(item_ids))],
        "description": described,
        "size": ["12 oz"] * len(item_ids),
    }
    pl.DataFrame(rows).write_parquet(folder / "products.parquet")
    histories = [[-1, *item_ids[start : start + 9]] for start in range(0, 30, 3)]
    households = {"user_id": list(range(len(histories))), "item_history": histories}
    pl.DataFrame(households).write_parquet(folder / "households.parquet")
    script = ROOT / "examples" / "web" / "build.py"
    options = ["--model", trained.model, "--edge", trained.edge, "--products", folder / "products.parquet"]
    options += ["--households", folder / "households.parquet", "--output", folder / "site", "--node-modules", modules]
    subprocess.run([sys.executable, script, *map(str, options)], check=True)
    return Site(folder / "site", trained, item_ids, names)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@dataclass
class Opened:
    """A page that is open, and what went wrong in it."""

    page: Page
    address: str
    complaints: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)

    def shown(self) -> list[str]:
        found: list[str] = self.page.eval_on_selector_all("#list > li", "items => items.map(item => item.dataset.id)")
        return found

    def wait_for(self, expected: list[str]) -> None:
        """Wait until a list is shown; where another one stays, say which."""
        same = "ids => [...document.querySelectorAll('#list > li')].map(i => i.dataset.id).join() === ids.join()"
        try:
            self.page.wait_for_function(same, arg=expected, timeout=20_000)
        finally:
            assert self.shown() == expected

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)


@pytest.fixture
def server(site: Site, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Address of the page on loopback; of a copy without some files, where a test names them."""
    folder = site.folder
    if missing := getattr(request, "param", []):
        folder = shutil.copytree(site.folder, tmp_path / "site")
        for name in missing:
            (folder / name).unlink()
    serving = runpy.run_path(str(ROOT / "examples" / "web" / "serve.py"))["open_server"](folder, 0)
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{serving.server_port}/"
    serving.shutdown()
    thread.join()
    serving.server_close()


def open_page(browser: Browser, address: str, **options: Any) -> Opened:
    context: BrowserContext = browser.new_context(**({"viewport": DESK, "reduced_motion": "reduce"} | options))
    opened = Opened(context.new_page(), address)
    opened.page.on("console", lambda message: opened.complaints.append(message.text) if message.type == "error" else 0)
    opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.page.on("request", lambda asked: opened.fetched.append(asked.url))
    return opened


@pytest.fixture
def opened(browser: Browser, server: str) -> Iterator[Opened]:
    """The page, ready; whatever a test does with it, nothing goes wrong in it, and it asks nobody else."""
    opened = open_page(browser, server)
    load(opened)
    yield opened
    opened.page.context.close()
    assert opened.complaints == []
    assert opened.fetched and all(address.startswith(server) for address in opened.fetched)


def load(opened: Opened, history: list[int] | None = None) -> None:
    hash_of = f"#history={','.join(map(str, history))}" if history else ""
    opened.page.goto("about:blank")
    opened.page.goto(opened.address + hash_of)
    opened.page.wait_for_selector("body[data-ready]", timeout=60_000)


def focused(opened: Opened) -> str:
    found: str = opened.page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")
    return found


def test_an_empty_history_shows_popular_products(opened: Opened, site: Site) -> None:
    opened.wait_for(site.lists([]))
    assert "Popular with everybody" in opened.text("#comparison")
    assert opened.page.is_visible("#history-empty")


def test_a_product_is_added_by_keyboard_alone(opened: Opened, site: Site) -> None:
    keyboard = opened.page.keyboard
    for _ in range(5):
        keyboard.press("Tab")
        if focused(opened) == "search":
            break
    keyboard.type("cheese sour")
    search = opened.page.locator("#search")
    assert search.get_attribute("aria-expanded") == "true"
    keyboard.press("ArrowDown")
    active = search.get_attribute("aria-activedescendant")
    assert opened.page.get_attribute(f"#{active}", "aria-selected") == "true"
    assert "sour cheese" in opened.text(f"#{active}").lower()
    keyboard.press("Enter")
    (item_id,) = (item_id for item_id, name in site.names.items() if name == "sour cheese")
    opened.wait_for(site.lists([item_id]))
    assert search.input_value() == "" and search.get_attribute("aria-expanded") == "false"
    assert focused(opened) == "search"
    announced = opened.page.locator("[role=status]")
    assert "12 products recommended, first" in (announced.text_content() or "")


def test_escape_closes_the_suggestions_and_then_clears_the_field(opened: Opened) -> None:
    search = opened.page.locator("#search")
    search.press_sequentially("tea")
    assert opened.page.locator("[role=option]").count() == 8
    search.press("Escape")
    assert search.input_value() == "tea" and search.get_attribute("aria-expanded") == "false"
    search.press("Escape")
    assert search.input_value() == ""
    search.press_sequentially("no such thing")
    assert search.get_attribute("aria-expanded") == "false"
    assert opened.page.text_content("[role=status]") == "No product has these words"


def test_products_are_clicked_removed_and_cleared(opened: Opened, site: Site) -> None:
    numbers = {name: item_id for item_id, name in site.names.items()}
    picks = opened.page.locator("#picks button")
    history = []
    for place in range(3):
        name = (picks.nth(place).text_content() or "").removeprefix("Add ")
        picks.nth(place).click()
        history.append(numbers[name])
        opened.wait_for(site.lists(history))
    assert opened.text("#history-count") == "3 products, newest first"
    remove = opened.page.locator("#history .remove")
    remove.nth(1).click()  # the one in the middle
    del history[1]
    opened.wait_for(site.lists(history))
    assert focused(opened) == f"Remove {site.names[history[0]]}"  # the one that is in its place now
    remove.nth(1).click()
    opened.wait_for(site.lists(history[1:]))
    assert focused(opened) == f"Remove {site.names[history[1]]}"
    opened.page.click("#clear")
    opened.wait_for(site.lists([]))
    assert focused(opened) == "search"


def test_a_household_is_taken_and_its_address_keeps_it(opened: Opened, site: Site) -> None:
    opened.page.click("#household")
    opened.page.wait_for_selector("#history > li")
    history = [int(item_id) for item_id in opened.page.url.partition("#history=")[2].split(",")]
    assert 6 <= len(history) <= 9 and set(history) <= set(site.item_ids)
    opened.wait_for(site.lists(history))
    opened.page.reload()
    opened.wait_for(site.lists(history))


def test_unknown_ids_alone_show_popular_products_and_among_others_do_not_count(opened: Opened, site: Site) -> None:
    load(opened, [-7, 5])
    opened.wait_for(site.lists([]))
    assert "Product -7" in opened.text("#history")
    load(opened, [site.item_ids[3], -7])
    opened.wait_for(site.lists([site.item_ids[3]]))


def test_a_history_of_everything_leaves_nothing_and_says_so(opened: Opened, site: Site) -> None:
    load(opened, site.item_ids)
    opened.wait_for(site.lists(site.item_ids))
    assert opened.shown() == []
    assert (opened.page.text_content("[role=status]") or "").startswith("Nothing more to recommend.")


def test_the_switch_shows_what_providers_change(opened: Opened, site: Site) -> None:
    history = site.history_with_another_list()
    load(opened, history)
    with_providers, without = site.lists(history), site.lists(history, use_providers=False)
    for shown, other, way in ((with_providers, without, "without"), (without, with_providers, "with")):
        opened.wait_for(shown)
        marks = opened.page.eval_on_selector_all("#list .mark", "marks => marks.map(mark => mark.title)")
        for place, (item_id, title) in enumerate(zip(shown, marks, strict=True)):
            by = other.index(item_id) - place if item_id in other else None
            expected = {None: "new: not among", 0: "in the same place"}.get(by, f"{abs(by or 0)} place")
            assert title.startswith(expected) and title.endswith(f"{way} providers")
            assert by in (None, 0) or ("higher" in title) == (by > 0)
        gone = [site.names[int(item_id)] for item_id in other if item_id not in shown]
        assert opened.page.eval_on_selector_all("#gone-list s", "all => all.map(one => one.textContent)") == gone
        opened.page.focus("#use-providers")
        opened.page.keyboard.press("Space")
        assert focused(opened) == "use-providers"
    opened.wait_for(with_providers)


def test_the_last_of_several_quick_changes_is_what_stays(opened: Opened, site: Site) -> None:
    history = site.item_ids[:3]
    opened.page.evaluate(
        """histories => histories.forEach(ids => {
            location.hash = "#history=" + ids; dispatchEvent(new HashChangeEvent("hashchange"));
        })""",
        [",".join(map(str, history[:length])) for length in (1, 2, 3)],
    )
    opened.wait_for(site.lists(history))


def test_facts_are_measured(opened: Opened, site: Site) -> None:
    size = site.trained.edge.stat().st_size
    assert opened.text("#model-size") == f"{size / 1e6:.1f} MB"
    assert opened.text("#product-count") == str(len(site.item_ids))
    assert opened.text("#provider-count") == "12"
    for name in ("#latency", "#load-time"):
        value, unit = opened.text(name).split()
        assert float(value) > 0 and unit == "ms"


@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_everybody_can_use_it(
    browser: Browser, server: str, site: Site, viewport: dict[str, int], colours: str
) -> None:
    """axe finds nothing with an empty history, a full one and open suggestions; nothing is wider than the screen."""
    opened = open_page(browser, server, viewport=viewport, color_scheme=colours)
    axe = (need_node_modules() / "axe-core" / "axe.min.js").read_text(encoding="utf-8")
    for history in ([], [*site.history_with_another_list(), -7]):
        load(opened, history)
        opened.page.evaluate(axe)
        for typed in ("", "tea"):
            opened.page.locator("#search").press_sequentially(typed)
            found = opened.page.evaluate("axe.run()")["violations"]
            assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []
            wide = """() => [...document.querySelectorAll("body *")].filter(
                e => !e.matches(".skip") && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML)"""
            assert opened.page.evaluate(wide) == []
            assert opened.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    opened.page.context.close()


@pytest.mark.parametrize(
    ("server", "said"),
    [(["model.onnx"], "model.onnx: the server says 404"), (["ort/ort-wasm-simd-threaded.wasm"], "wasm")],
    indirect=["server"],
    ids=["model", "wasm"],
)
def test_what_cannot_be_loaded_is_said(browser: Browser, server: str, said: str) -> None:
    opened = open_page(browser, server)
    opened.page.goto(server)
    opened.page.wait_for_selector("[role=alert]:visible", timeout=60_000)
    assert opened.text("[role=alert]").startswith("The model cannot answer.")
    assert said in opened.text("[role=alert]")
    assert opened.page.is_disabled("#search")
    opened.page.context.close()


def test_ids_with_commas_and_spaces_survive_a_reload(browser: Browser, server: str) -> None:
    opened = open_page(browser, server)  # which complains: this model's ids are numbers
    opened.page.goto(f"{server}#history=a%2Cb,%20c%20,100%25,%")
    for _ in range(2):
        opened.page.wait_for_selector("[role=alert]:visible", timeout=60_000)
        names = "all => all.map(one => one.textContent)"
        shown = opened.page.eval_on_selector_all("#history .name", names)
        assert shown == ["Product %", "Product 100%", "Product  c ", "Product a,b"]
        opened.page.reload()
    opened.page.context.close()


def test_an_id_that_is_no_number_is_said(browser: Browser, server: str, site: Site) -> None:
    opened = open_page(browser, server)
    opened.page.goto(f"{server}#history=tea")
    opened.page.wait_for_selector("[role=alert]:visible", timeout=60_000)
    assert 'item id "tea" is not a whole number' in opened.text("[role=alert]")
    opened.page.click("#clear")
    opened.wait_for(site.lists([]))
    assert not opened.page.is_visible("[role=alert]")
    opened.page.context.close()
