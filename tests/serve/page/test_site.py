"""The page as a whole: its tabs, tokens, busy servers, notes, phones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from eve_vl.eve import Eve
from eve_vl.systems.medical.phantoms.generator import NO_MEDICINE
from helpers.browser_page import serving_page, upload
from helpers.tiny_runs import tiny_run

NUM_UNLABELED = """[...document.querySelectorAll("input, textarea, select")]
    .filter((field) => !field.labels?.length && !field.ariaLabel).length"""
FOCUSED_TAB = """[
    document.activeElement.innerText, document.activeElement.getAttribute('aria-selected')
]"""


def test_each_kind_of_call_has_a_tab(site, open_page):
    page = open_page(site)
    assert page.locator("[role=tab]").all_inner_texts() == [
        "Search",
        "Ask",
        "Verify",
        "Match",
        "Same item",
        "Classify",
        "Compare labels",
        "Fill in",
        "Complete the image",
        "Experts",
    ]
    page.evaluate("location.hash = '#verify'")
    page.wait_for_selector("#panel-verify:not([hidden])")


def test_token_is_asked_for_once(runs, open_page):
    with serving_page([runs["masked"]], token="open sesame") as address:
        page = open_page(address, wait_for="#token[open]")
        token = page.get_by_role("textbox", name="Token")
        token.fill("sesame")
        page.keyboard.press("Enter")
        page.get_by_text("Wrong token").wait_for()
        token.fill("open sesame")
        page.keyboard.press("Enter")
        page.wait_for_selector("[role=tab]")
        page.reload()
        page.wait_for_selector("[role=tab]")
        assert not page.locator("#token").is_visible(), "the tab of the browser keeps it"


def test_busy_server_is_asked_again_when_it_says_so(site, open_page):
    page = open_page(site)
    num_requests = 0

    def busy_at_first(route: Any) -> None:
        nonlocal num_requests
        num_requests += 1
        if num_requests > 2:
            route.continue_()
        else:
            route.fulfill(
                status=503,
                headers={"retry-after": "0.1"},
                json={},
            )

    page.route("**/v1/search", busy_at_first)
    page.locator("input[name=query]").fill("red")
    page.locator(".thumb img").first.wait_for()
    assert num_requests == 3


def test_runs_on_phantoms_say_that_they_are_no_medicine(runs, open_page):
    run = tiny_run("vqa", Path("chests"))
    data = replace(run.config.data, train=("phantoms:train",), val=("phantoms:val",))
    chests = Eve(replace(run, config=replace(run.config, data=data)))
    with serving_page([runs["vqa"], chests]) as address:
        page = open_page(address)
        assert page.inner_text("#note") == f"chests: {NO_MEDICINE}"
        assert page.locator("#note").bounding_box()["height"] < 30  # one line
    with serving_page([runs["vqa"]]) as address:
        assert not open_page(address).is_visible("#note")


PHONE = {
    "viewport": {"width": 360, "height": 700},
    "has_touch": True,
    "is_mobile": True,
    "color_scheme": "dark",
}


def test_phone_shows_all_tabs_by_keyboard_and_in_the_dark(runs, open_page):
    """There is no tab for what no run does, and nothing is wider than the screen."""
    with serving_page([runs["masked"]]) as address:
        page = open_page(address, **PHONE)
        tabs = ["Fill in", "Complete the image", "Experts"]
        assert page.locator("[role=tab]").all_inner_texts() == tabs
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 19, 24)"
        page.locator("#panel-fill-mask input[type=file]").set_input_files(upload(0))
        page.locator("[role=tab]").first.focus()
        for name in (*tabs[1:], *tabs):
            page.keyboard.press("ArrowRight")
            assert page.evaluate(FOCUSED_TAB) == [name, "true"]
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
            assert page.evaluate(NUM_UNLABELED) == 0
    page.get_by_role("tab", name="Experts").click()
    page.locator("#panel-experts [name=text]").fill("a circle")
    page.get_by_text("The server does not answer. Is it still running?").wait_for()
