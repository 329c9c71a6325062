"""The search tab finds what the index finds."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eve_vl.search.index import Index
from helpers.browser_page import (
    SIDE,
    drop,
    hit_names,
    index_names,
    natural_width,
    serving_page,
    wait_for,
)
from helpers.serving import png
from helpers.tiny_runs import TEXTS

STATUS = "#panel-search .status"
REMOVED_WHILE_READ = """async () => {
    const { ImageField } = await import("/parts.js");
    const field = new ImageField("Image", () => {});
    const file = await new Promise((done) => document.createElement("canvas").toBlob(done));
    const reading = field.take(file);
    field.set(null);
    await reading;
    return field.value;
}"""


@pytest.fixture
def page(site, open_page) -> Any:
    return open_page(site)


@pytest.fixture
def query(page) -> Any:
    return page.locator("input[name=query]")


def wait_for_hits(page: Any, index: Index, text: str = "", **options: Any) -> None:
    wait_for(page, lambda: hit_names(page), index_names(index, text, **options))


def names_like(index: Index, seed: int) -> list[str]:
    return index_names(index, image=png(seed, SIDE, SIDE))


def test_late_answer_does_not_replace_a_newer_one(page, query, index):
    held: list[Any] = []

    def hold_first(route: Any) -> None:
        if route.request.post_data_json["query"] == "red":
            held.append(route)
        else:
            route.continue_()

    assert "among 31 images" in page.locator(STATUS).inner_text()
    page.route("**/v1/search", hold_first)
    query.press_sequentially("red")
    page.wait_for_selector(".status[data-state=busy]")
    wait_for(page, lambda: len(held), 1)
    query.press_sequentially(" circle", delay=5)
    wait_for_hits(page, index, "red circle")
    held[0].continue_()
    page.wait_for_timeout(200)
    assert hit_names(page) == index_names(index, "red circle")


def test_hits_have_their_scores_and_images(page, query, index):
    query.fill("red circle")
    wait_for_hits(page, index, "red circle")
    scores = page.locator(".score").all_inner_texts()
    for text, hit in zip(scores, index.search("red circle"), strict=True):
        score = f"{hit.score:.3f}" if hit.match is None else f"match {100 * hit.match:.1f} %"
        assert score in text
    assert "20 of 31 images in" in page.locator(STATUS).inner_text()
    wait_for(page, lambda: natural_width(page, ".thumb img"), 30)


def test_search_is_refined(page, query, index):
    query.fill("red circle")
    page.get_by_text("Refine").click()
    page.get_by_label("Find by").select_option("vectors")
    wait_for_hits(page, index, "red circle", by="vectors")
    page.get_by_label("How many").select_option("50")
    wait_for(page, lambda: len(hit_names(page)), 31)
    (near,) = page.locator(".near").all_inner_texts()
    assert near in ("near-duplicate of 07.png", "near-duplicate of again.png")
    page.get_by_label("Find by").select_option("both")
    wait_for_hits(page, index, "red circle", top=50)


def test_folder_is_searched_when_its_name_is_complete(page, query, index):
    query.fill("red circle")
    wait_for_hits(page, index, "red circle")
    page.get_by_text("Refine").click()
    folder = page.get_by_label("In the folder")
    folder.press_sequentially("photo")
    page.wait_for_timeout(400)
    assert hit_names(page) == index_names(index, "red circle"), "half of a name is not looked for"
    folder.press("Enter")
    page.get_by_text("folder: no folder 'photo'").wait_for()
    folder.fill(page.locator("#folders option").get_attribute("value"))
    folder.blur()
    wait_for_hits(page, index, "red circle")


def test_captions_are_shown_as_text(page, query, index):
    query.fill("red circle")
    page.get_by_text("Refine").click()
    page.get_by_label("Captions").check()
    captions = [hit.name for hit in index.search("red circle", captions=True)]
    assert any("onerror" in caption for caption in captions)
    wait_for(page, lambda: page.locator(".found .text").all_inner_texts(), captions)
    assert page.title() == "Search · EVE"


def test_examples_and_errors_of_queries(page, query, index):
    query.fill("日本")
    page.get_by_text("tokens is known to the run's tokenizer").wait_for()
    query.fill("")
    page.get_by_text("Type what you want to see").wait_for()
    examples = page.get_by_role("group", name="Examples").get_by_role("button")
    assert examples.all_inner_texts() == index.examples()
    examples.first.click()
    wait_for_hits(page, index, TEXTS[0])
    assert query.input_value() == TEXTS[0]
    assert examples.count() == 0


def test_search_by_an_image_that_is_dropped_or_pasted(page, index):
    drop(page, "body", 3)
    wait_for(page, lambda: hit_names(page), names_like(index, 3))
    page.get_by_label("Remove image to find the like of").click()
    assert hit_names(page) == []
    drop(page, "input[name=query]", 5, "paste")
    wait_for(page, lambda: hit_names(page), names_like(index, 5))
    page.locator(".found li").nth(2).get_by_text("More like this").click()
    wait_for(page, lambda: hit_names(page)[0], names_like(index, 5)[2])


def test_hit_opens_in_a_dialog_and_goes_to_other_tabs(page, query):
    query.fill("red")
    page.locator(".thumb").first.click()
    dialog = page.get_by_role("dialog")
    assert dialog.get_by_role("button").all_inner_texts()[0] == "More like this"
    page.keyboard.press("Escape")
    wait_for(page, dialog.count, 0)
    page.locator(".thumb").first.click()
    dialog.get_by_role("button", name="Ask").click()
    wait_for(page, lambda: natural_width(page, "#panel-ask .zone img"), 30)


def test_image_that_cannot_be_shown_says_so(page, query):
    page.route("**/v1/images/**", lambda route: route.fulfill(status=404, json={"error": "gone"}))
    query.fill("red")
    page.locator(".thumb").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("This image cannot be shown").wait_for()
    assert dialog.locator("img").count() == 0


def test_large_image_is_shrunk_on_white(site, open_page, tmp_path):
    page = open_page(f"{site}/#ask")
    Image.new("RGBA", (1500, 1200)).save(tmp_path / "large.png")
    field = page.locator("#panel-ask input[type=file]")
    field.set_input_files(tmp_path / "large.png")
    wait_for(page, lambda: natural_width(page, "#panel-ask .zone img"), 1024)
    source = page.locator("#panel-ask .zone img").get_attribute("src")
    data = base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))
    assert np.asarray(Image.open(io.BytesIO(data))).min() > 250
    assert page.evaluate(REMOVED_WHILE_READ) is None
    field.set_input_files(
        {
            "name": "notes.png",
            "mimeType": "image/png",
            "buffer": b"no",
        }
    )
    page.get_by_text("This browser cannot read notes.png as an image").wait_for()


def test_enter_after_a_key_searches_once(page, query, index):
    queries = []

    def note_and_continue(route: Any) -> None:
        queries.append(route.request.post_data_json["query"])
        route.continue_()

    page.route("**/v1/search", note_and_continue)
    query.press_sequentially("red")
    query.press("Enter")
    wait_for_hits(page, index, "red")
    page.wait_for_timeout(400)
    assert queries == ["red"]


IS_LEFT_TO_BROWSER = """([name, words, selector]) => {
    const transfer = new DataTransfer();
    transfer.setData("text/plain", words);
    if (name === "paste") transfer.items.add(new File(["x"], "x.png", {type: "image/png"}));
    const [kind, key] = name === "paste"
        ? [ClipboardEvent, "clipboardData"] : [DragEvent, "dataTransfer"];
    return document.querySelector(selector)
        .dispatchEvent(new kind(name, {bubbles: true, cancelable: true, [key]: transfer}));
}"""


def test_text_that_is_dropped_on_a_field_stays_text(page):
    """Though an image of it comes along. On the rest of the page, only the image is of use."""
    for event in ("dragover", "drop", "paste"):
        assert page.evaluate(IS_LEFT_TO_BROWSER, [event, "blue", "input[name=query]"])
    assert not page.evaluate(IS_LEFT_TO_BROWSER, ["paste", "blue", "body"])


def test_index_without_words_or_images_says_so(site, open_page):
    def open_with(**changes: Any) -> Any:
        def answer(route: Any) -> None:
            facts = route.fetch().json()
            route.fulfill(json={**facts, "index": {**facts["index"], **changes}})

        page = open_page("about:blank", wait_for="html")
        page.route("**/v1/runs", answer)
        page.goto(site)
        page.wait_for_selector("[role=tab]")
        return page

    page = open_with(
        text_queries=False,
        captions_searchable=False,
        columns=["color"],
    )
    assert page.get_by_role("searchbox").is_disabled()
    assert page.get_by_label("Captions").count() == 0
    page.get_by_text("Refine").click()
    assert page.get_by_label("Where column").inner_text().split() == ["any", "color"]
    open_with(images=0).get_by_text("The index is empty: it holds no image yet.").wait_for()


def test_images_behind_a_token_are_loaded_when_they_are_near(runs, index, open_page):
    """As those are that browsers load themselves."""
    urls = []

    def note_and_continue(route: Any) -> None:
        urls.append(route.request.url)
        route.continue_()

    with serving_page([runs["retrieval"]], index, token="sesame") as address:
        page = open_page("about:blank", wait_for="html", viewport={"width": 400, "height": 300})
        page.add_init_script("sessionStorage.setItem('eve-token', 'sesame')")
        page.route("**/v1/images/**", note_and_continue)
        page.goto(address)
        page.locator("input[name=query]").fill("red")
        page.locator(".thumb img[src]").first.wait_for()
        page.wait_for_timeout(300)
        num_at_first = len(urls)
        assert num_at_first < 20
        page.locator(".thumb").last.scroll_into_view_if_needed()
        page.locator(".thumb img").last.and_(page.locator("[src]")).wait_for()
        assert len(urls) > num_at_first
