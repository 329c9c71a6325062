"""The page in a real browser, against the same calls in Python.

Skipped where there is no Chromium or no playwright (extra `browser`), which drives it.
"""

import base64
import io
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eve_vl.eve import Eve
from eve_vl.search.index import Index
from eve_vl.serve.application import application
from eve_vl.serve.server import Server, listening, settings
from eve_vl.systems.medical.phantoms.generator import NO_MEDICINE
from eve_vl.systems.mlim.pair.config import PairConfig
from eve_vl.tasks.classification.config import ClassificationConfig
from helpers.tiny_runs import TEXT, TEXTS, noise, tiny_run, write_run

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright, which drives a browser, is not installed"
)
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
HTML = '<img src="x" onerror="document.title = \'broken into\'"> & <b>bold</b>'
PATCH = 4


def png(seed: int, size: tuple[int, int] = (16, 16)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(seed, *size)).save(file, "PNG")
    return file.getvalue()


def file(seed: int) -> Any:
    return {"name": f"{seed}.png", "mimeType": "image/png", "buffer": png(seed)}


class Site:
    """A server with its page, in a thread of its own."""

    def __init__(self, runs: list[Eve], index: Index | None = None, token: str | None = None):
        listener = listening("127.0.0.1", 0)
        self.server = Server(settings(application(runs, index, token=token, with_page=True)))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]})
        self.thread.start()
        self.address = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Eve]:
    made = {name: Eve(tiny_run(name, Path(name))) for name in ("vqa", "nlvr2", "masked")}
    made["pair"] = Eve(tiny_run("masked", Path("pair"), task=PairConfig()))
    made["colors"] = Eve(
        tiny_run("masked", Path("colors"), task=ClassificationConfig(inputs="image"))
    )
    return {
        "retrieval": Eve.load(
            write_run(tiny_run("retrieval"), tmp_path_factory.mktemp("runs") / "retrieval")
        ),
        **made,
    }


@pytest.fixture(scope="module")
def index(runs, tmp_path_factory) -> Index:
    """Thirty images, two of them near-duplicates, four with captions, one of which looks like HTML."""
    folder = tmp_path_factory.mktemp("site") / "photos"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02}.png").write_bytes(png(number, (20, 30)))
    almost = noise(7, 20, 30)
    almost[0, 0] += 1
    Image.fromarray(almost).save(folder / "again.png")
    for number, text in enumerate((*TEXTS, HTML)):
        (folder / f"{number:02}.txt").write_text(text)
    return runs["retrieval"].index(folder, folder.parent / "index")


@pytest.fixture(scope="module")
def site(runs, index) -> Iterator[str]:
    started = Site([*runs.values()], index)
    yield started.address
    started.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM)
        yield started
        started.close()


@pytest.fixture
def open_page(browser) -> Iterator[Any]:
    """Opens pages whose console must stay empty: no error of the program, nothing that the policy of contents refuses."""
    contexts, said = [], []

    def opened(address: str, wait_for: str = "[role=tab]", **options: Any) -> Any:
        contexts.append(
            browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        page.wait_for_selector(wait_for)
        return page

    yield opened
    for context in contexts:
        context.close()
    own = "Failed to load resource"  # the browser notes refusals, and that nobody answers, itself
    assert not [line for line in said if own not in line]


DROP = """([selector, event, data]) => {
    const transfer = new DataTransfer();
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], "dropped.png", {type: "image/png"}));
    const [kind, name] = event === "drop" ? [DragEvent, "dataTransfer"] : [ClipboardEvent, "clipboardData"];
    document.querySelector(selector).dispatchEvent(new kind(event, {bubbles: true, cancelable: true, [name]: transfer}));
}"""
REMOVED_WHILE_READ = """async () => {
    const { ImageField } = await import("/parts.js");
    const field = new ImageField("Image", () => {});
    const file = await new Promise((done) => document.createElement("canvas").toBlob(done));
    const reading = field.take(file);
    field.set(null);
    await reading;
    return field.value;
}"""
UNLABELED = """[...document.querySelectorAll("input, textarea, select")]
    .filter((each) => !each.labels?.length && !each.ariaLabel).length"""


def drop(page: Any, selector: str, seed: int, event: str = "drop") -> None:
    """Drop an image on something, or paste it there."""
    page.evaluate(DROP, [selector, event, base64.b64encode(png(seed)).decode()])


def names(page: Any) -> list[str]:
    titles = page.locator(".found .thumb").evaluate_all("all => all.map((each) => each.title)")
    return [title.removeprefix("photos/") for title in titles]


def expected(index: Index, *args: Any, **options: Any) -> list[str]:
    return [Path(hit.name).name for hit in index.search(*args, **options)]


def shown(page: Any, selector: str) -> np.ndarray:
    """The pixels of an image of the page that has come as PNG."""
    data = page.locator(selector).get_attribute("src").removeprefix("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def until(page: Any, found: Any, wanted: Any) -> None:
    """Wait until the page shows something."""
    for _ in range(100):
        if found() == wanted:
            return
        page.wait_for_timeout(50)
    assert found() == wanted


def refine(page, index) -> None:
    """Refine the search for "red circle"."""
    page.get_by_text("Refine").click()
    page.get_by_label("Find by").select_option("vectors")
    until(page, lambda: names(page), expected(index, "red circle", by="vectors"))
    page.get_by_label("How many").select_option("50")
    until(page, lambda: len(names(page)), 31)
    assert page.locator(".near").all_inner_texts() in (
        ["near-duplicate of 07.png"],
        ["near-duplicate of again.png"],
    )
    page.get_by_label("Find by").select_option("both")
    until(page, lambda: names(page), expected(index, "red circle", top=50))
    folder = page.get_by_label("In the folder")
    folder.press_sequentially("photo")
    page.wait_for_timeout(400)
    assert names(page) == expected(index, "red circle", top=50), "half of a name is not looked for"
    folder.press("Enter")
    page.get_by_text("folder: no folder 'photo'").wait_for()
    folder.fill(page.locator("#folders option").get_attribute("value"))
    folder.blur()
    until(page, lambda: names(page), expected(index, "red circle", top=50))
    folder.fill("")
    page.get_by_label("Captions").check()
    until(
        page,
        lambda: page.locator(".found .text").all_inner_texts(),
        [hit.name for hit in index.search("red circle", captions=True)],
    )
    assert HTML in page.locator(".found .text").all_inner_texts()
    assert page.title() == "Search · EVE"


def test_search_as_you_type(site, index, open_page):
    page = open_page(site)
    assert page.locator("[role=tab]").all_inner_texts() == [
        *("Search", "Ask", "Verify", "Match", "Same item", "Classify", "Compare labels", "Fill in"),
        *("Complete the image", "Experts"),
    ]
    assert "among 31 images" in page.locator("#panel-search .status").inner_text()
    held: list[Any] = []

    def first_comes_last(route: Any) -> None:
        held.append(route) if route.request.post_data_json["query"] == "red" else route.continue_()

    page.route("**/v1/search", first_comes_last)
    words = page.locator("input[name=query]")
    words.press_sequentially("red")
    page.wait_for_selector(".status[data-state=busy]")
    until(page, lambda: len(held), 1)
    words.press_sequentially(" circle", delay=5)
    until(page, lambda: names(page), expected(index, "red circle"))
    held[0].continue_()
    page.wait_for_timeout(200)
    assert names(page) == expected(index, "red circle"), "what was asked before does not come back"
    hits = index.search("red circle")
    scores = (
        [f"{hit.score:.3f}" for hit in hits]
        if hits[0].match is None
        else [f"match {100 * hit.match:.1f} %" for hit in hits]
    )
    assert all(
        score in text
        for score, text in zip(scores, page.locator(".score").all_inner_texts(), strict=True)
    )
    assert "20 of 31 images in" in page.locator("#panel-search .status").inner_text()
    until(
        page, lambda: page.locator(".thumb img").first.evaluate("(image) => image.naturalWidth"), 30
    )

    refine(page, index)
    words.fill("日本")
    page.get_by_text("tokens is known to the run's tokenizer").wait_for()
    words.fill("")
    page.get_by_text("Type what you want to see").wait_for()
    examples = page.get_by_role("group", name="Examples").get_by_role("button")
    assert examples.all_inner_texts() == [*TEXTS, HTML]
    page.get_by_role("radio", name="Images").check()
    examples.first.click()
    until(page, lambda: names(page), expected(index, TEXTS[0], top=50))
    assert (words.input_value(), examples.count()) == (TEXTS[0], 0)


def test_search_by_a_image(site, index, open_page, tmp_path):
    page = open_page(site)
    like = lambda seed: expected(index, image=png(seed))  # noqa: E731
    drop(page, "body", 3)
    until(page, lambda: names(page), like(3))
    page.get_by_label("Remove image to find the like of").click()
    assert names(page) == []
    drop(page, "input[name=query]", 5, "paste")
    until(page, lambda: names(page), like(5))
    page.locator(".found li").nth(2).get_by_text("More like this").click()
    until(page, lambda: names(page)[0], like(5)[2])
    page.locator(".thumb").first.click()
    dialog = page.get_by_role("dialog")
    assert dialog.get_by_role("button").all_inner_texts()[0] == "More like this"
    page.keyboard.press("Escape")
    until(page, lambda: page.get_by_role("dialog").count(), 0)
    page.locator(".thumb").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Ask").click()
    until(
        page,
        lambda: page.locator("#panel-ask .zone img").evaluate("(image) => image.naturalWidth"),
        30,
    )
    chosen = page.locator("#panel-ask input[type=file]")
    Image.new("RGBA", (1500, 1200)).save(tmp_path / "large.png")
    chosen.set_input_files(tmp_path / "large.png")
    until(
        page,
        lambda: page.locator("#panel-ask .zone img").evaluate("(image) => image.naturalWidth"),
        1024,
    )
    sent = (
        page.locator("#panel-ask .zone img")
        .get_attribute("src")
        .removeprefix("data:image/jpeg;base64,")
    )
    assert (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(sent)))).min() > 250
    )  # transparency on white
    assert page.evaluate(REMOVED_WHILE_READ) is None
    chosen.set_input_files({"name": "notes.png", "mimeType": "image/png", "buffer": b"no"})
    page.get_by_text("This browser cannot read notes.png as an image").wait_for()


def test_a_image_that_cannot_be_shown_says_so(site, open_page):
    page = open_page(site)
    page.route("**/v1/images/**", lambda route: route.fulfill(status=404, json={"error": "gone"}))
    drop(page, "body", 3)
    page.locator(".thumb").first.click()
    page.get_by_role("dialog").get_by_text("This image cannot be shown").wait_for()
    assert page.get_by_role("dialog").locator("img").count() == 0


def test_what_is_typed_dropped_or_pasted_goes_where_it_is_meant(site, index, open_page):
    """Enter within the pause after a key searches once; texts are a field's, though an image of them comes along."""
    page, asked = open_page(site), []
    page.route(
        "**/v1/search",
        lambda route: (asked.append(route.request.post_data_json["query"]), route.continue_()),
    )
    words = page.locator("input[name=query]")
    words.press_sequentially("red")
    words.press("Enter")
    until(page, lambda: names(page), expected(index, "red"))
    page.wait_for_timeout(400)
    assert asked == ["red"]
    is_left = """([name, words, selector]) => {
        const transfer = new DataTransfer();
        transfer.setData("text/plain", words);
        if (name === "paste") transfer.items.add(new File(["x"], "x.png", {type: "image/png"}));
        const [kind, key] = name === "paste" ? [ClipboardEvent, "clipboardData"] : [DragEvent, "dataTransfer"];
        return document.querySelector(selector)
            .dispatchEvent(new kind(name, {bubbles: true, cancelable: true, [key]: transfer}));
    }"""
    assert [
        page.evaluate(is_left, [name, "blue", "input[name=query]"])
        for name in ("dragover", "drop", "paste")
    ] == [True] * 3
    assert (
        page.evaluate(is_left, ["paste", "blue", "body"]) is False
    )  # nothing but the image is of use there
    page.evaluate("location.hash = '#verify'")
    page.wait_for_selector("#panel-verify:not([hidden])")


def test_the_focus_stays_where_it_was(site, runs, open_page):
    page = open_page(f"{site}/#ask")
    page.locator("#panel-ask input[type=file]").set_input_files(file(0))
    page.get_by_label("Question").fill(TEXT)
    page.keyboard.press("Enter")
    page.wait_for_selector("#panel-ask .heat")
    assert "need not add up to 100 %" in page.locator("#panel-ask .answers").inner_text()
    focused = "document.activeElement.textContent"
    second = page.locator("#panel-ask .bars button").nth(1)
    words = second.evaluate("(button) => button.textContent")
    second.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#panel-ask .bars li:nth-child(2) [aria-pressed=true]")
    assert page.evaluate(focused) == words
    page.get_by_role("button", name="blue", exact=True).last.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#panel-ask .chip[aria-pressed=true]:text-is('blue')")
    assert page.evaluate(focused) == "blue"


def test_lines_of_a_class_are_read_together(site, runs, open_page):
    page, sent = open_page(f"{site}/#zero-shot"), []
    page.route(
        "**/zero_shot",
        lambda route: (sent.append(route.request.post_data_json["prompts"]), route.continue_()),
    )
    page.locator("#panel-zero-shot input[type=file]").set_input_files(file(0))
    page.locator("textarea[name=prompts]").fill(
        "red: a red circle\nblue: a blue square\nred: two red squares; red\n__proto__"
    )
    page.get_by_role("button", name="Compare labels").click()
    page.wait_for_selector("#panel-zero-shot .bars")
    assert sent == [
        {
            "red": ["a red circle", "two red squares", "red"],
            "blue": ["a blue square"],
            "__proto__": ["__proto__"],
        }
    ]


def test_an_index_without_words_or_images_says_so(site, open_page):
    def changed(**index: Any) -> Any:
        def answer(route: Any) -> None:
            found = route.fetch().json()
            route.fulfill(json=found | {"index": found["index"] | index})

        page = open_page("about:blank", wait_for="html")
        page.route("**/v1/runs", answer)
        page.goto(site)
        page.wait_for_selector("[role=tab]")
        return page

    page = changed(text_queries=False, captions_searchable=False, columns=["color"])
    assert page.get_by_role("searchbox").is_disabled() and not page.get_by_label("Captions").count()
    page.get_by_text("Refine").click()
    assert page.get_by_label("Where column").inner_text().split() == ["any", "color"]
    changed(images=0).get_by_text("The index is empty: it holds no image yet.").wait_for()


def test_ask(site, runs, open_page):
    page = open_page(f"{site}/#ask")
    page.get_by_label("Question").press("Enter")
    page.get_by_text("Still missing: image, question").wait_for()
    page.locator("#panel-ask input[type=file]").set_input_files(file(0))
    page.get_by_label("Question").fill(TEXT)
    page.keyboard.press("Enter")
    page.wait_for_selector("#panel-ask .heat")
    answers = runs["vqa"].answer(noise(0), TEXT)
    rows = [f"{each.answer}\n{100 * each.probability:.1f} %" for each in answers]
    assert page.locator("#panel-ask .bars li").all_inner_texts() == rows
    assert page.locator("#panel-ask .verdict").inner_text() == answers[0].answer
    until(
        page,
        lambda: shown(page, ".heat").tolist(),
        runs["vqa"].explain(noise(0), TEXT).overlays()[0].tolist(),
    )
    page.get_by_role("button", name="blue", exact=True).last.click()
    word = runs["vqa"].explain(noise(0), TEXT, word="blue").overlays()[0]
    until(page, lambda: shown(page, ".heat").tolist(), word.tolist())
    page.locator("#panel-ask .bars button").nth(1).click()
    other = runs["vqa"].explain(noise(0), TEXT, answer=answers[1].answer).overlays()[0]
    until(page, lambda: shown(page, ".heat").tolist(), other.tolist())


def test_judge(site, runs, open_page):
    page = open_page(f"{site}/#verify")
    drop(page, "#panel-verify .image:nth-child(1) .zone", 0)
    drop(page, "#panel-verify .image:nth-child(2) .zone", 1)
    page.get_by_label("Statement about the two").fill(TEXT)
    page.keyboard.press("Enter")
    page.wait_for_selector("#panel-verify .heat >> nth=1")
    found = runs["nlvr2"].verify(noise(0), noise(1), TEXT)
    assert page.locator("#panel-verify .verdict").inner_text() == str(found.is_true).lower()
    assert (
        f"{100 * found.probability:.1f} %"
        in page.locator("#panel-verify .bars li").first.inner_text()
    )

    page.get_by_role("tab", name="Same item").click()
    page.locator("#panel-same input[type=file]").nth(1).set_input_files(file(1))
    for place, text in enumerate(TEXTS[:2]):
        page.locator("#panel-same input[type=text]").nth(place).fill(text)
    page.keyboard.press("Enter")
    same = runs["pair"].same(noise(0), TEXTS[0], noise(1), TEXTS[1])
    words = "the same" if same.same else "not the same"
    until(page, lambda: page.locator("#panel-same .verdict").all_inner_texts(), [words])


def test_forms_of_one_image(site, runs, open_page):
    """The image that was chosen on one tab is there on the next."""
    page = open_page(f"{site}/#match")
    page.locator("#panel-match input[type=file]").set_input_files(file(0))
    page.locator("#panel-match [name=text]").fill(TEXT)
    page.keyboard.press("Enter")
    share = f"{100 * float(runs['retrieval'].match(noise(0), TEXT)):.1f} %"
    until(page, lambda: page.locator("#panel-match .bars b").all_inner_texts()[:1], [share])

    page.get_by_role("tab", name="Classify").click()
    page.get_by_role("button", name="Classify").click()
    labels = [each.label for each in runs["colors"].classify(noise(0))]
    until(page, lambda: page.locator("#panel-classify .bars span").all_inner_texts(), labels)

    page.get_by_role("tab", name="Compare labels").click()
    page.locator("[name=prompts]").fill("round: a red circle; a blue circle\nsquare")
    page.get_by_role("button", name="Compare labels").click()
    classes = runs["retrieval"].zero_shot(
        noise(0), {"round": ["a red circle", "a blue circle"], "square": ["square"]}
    )
    rows = [f"{each.label}\n{each.score:.3f}" for each in classes]
    until(page, lambda: page.locator("#panel-zero-shot .bars li").all_inner_texts(), rows)

    page.get_by_role("tab", name="Fill in").click()
    page.locator("#panel-fill-mask [name=text]").fill("[MASK] small [MASK] squares")
    page.keyboard.press("Enter")
    filled = runs["masked"].fill_mask(noise(0), "[MASK] small [MASK] squares")
    until(page, lambda: page.locator("#panel-fill-mask .verdict").all_inner_texts(), [filled.text])
    guesses = [
        f"{number}: {guess.text}"
        for number, of in enumerate(filled.guesses, start=1)
        for guess in of
    ]
    assert page.locator("#panel-fill-mask .bars span").all_inner_texts() == guesses
    page.locator("#panel-fill-mask [name=text]").fill("a circle")
    page.keyboard.press("Enter")
    page.get_by_text("nothing to fill in: write [MASK] in the text").wait_for()


def test_reconstruct(site, runs, open_page):
    page = open_page(f"{site}/#reconstruct")
    page.locator("#panel-reconstruct input[type=file]").set_input_files(file(0))
    page.get_by_text("Write a caption").wait_for()
    hidden = page.locator("#panel-reconstruct .patches [aria-pressed=true]")
    assert hidden.count() == 12, "three quarters of 16"
    page.get_by_role("button", name="Show all").click()
    page.locator("#panel-reconstruct [name=text]").fill(TEXT)
    page.get_by_text("No patch is masked").wait_for()

    def reconstructed(*places: int) -> None:
        assert [patch.get_attribute("aria-pressed") == "true" for patch in patches.all()] == [
            n in places for n in range(16)
        ]
        wanted = (
            runs["masked"]
            .reconstruct(noise(0), TEXT, keep=[n for n in range(16) if n not in places])
            .reconstructed
        )
        until(
            page,
            lambda: shown(page, "#panel-reconstruct figure:nth-child(2) img").tolist(),
            wanted.tolist(),
        )

    patches = page.locator("#panel-reconstruct .patches button")
    patches.nth(5).click()
    page.get_by_text("1 of 16 patches reconstructed").wait_for()
    reconstructed(5)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    page.get_by_text("2 of 16 patches reconstructed").wait_for()
    reconstructed(5, 9)
    start, end = (patches.nth(number).bounding_box() for number in (12, 15))
    page.mouse.move(start["x"] + 9, start["y"] + 9)
    page.mouse.down()
    page.mouse.move(end["x"] + 9, end["y"] + 9, steps=20)
    page.mouse.up()
    page.get_by_text("6 of 16 patches reconstructed").wait_for()
    reconstructed(5, 9, 12, 13, 14, 15)


def test_routing(site, runs, open_page):
    page = open_page(f"{site}/#experts")
    assert page.locator("#panel-experts select option").count() == 6, "all runs have experts here"
    page.locator("#panel-experts [name=text]").fill(TEXT)
    page.locator("#panel-experts input[type=file]").set_input_files(file(0))
    page.wait_for_selector("#panel-experts .patches")
    found = runs["retrieval"].experts(noise(0), TEXT)
    cards = page.locator("#panel-experts article")
    assert cards.count() == len(found.blocks)
    for card, block in zip(cards.all(), found.blocks, strict=True):
        first = block.experts[:, 0].tolist()
        assert [int(text) for text in card.locator(".patches .token").all_inner_texts()] == first[
            1:17
        ]
        words = [f"{word}\n{expert}" for word, expert in zip(found.words, first[17:], strict=True)]
        assert card.locator(".tokens .token").all_inner_texts() == words
        card.locator(".experts button").first.focus()
        assert card.locator(".token:not(.dim)").count() == [*first[1:]].count(min(first))


def test_the_token_is_asked_for_once_and_a_busy_server_again(runs, index, open_page):
    guarded = Site([runs["retrieval"]], index, token="open sesame")
    try:
        page = open_page(guarded.address, wait_for="#token[open]")
        for given, answer in (("sesame", "Wrong token"), ("open sesame", None)):
            page.get_by_role("textbox", name="Token").fill(given)
            page.keyboard.press("Enter")
            if answer is not None:
                page.get_by_text(answer).wait_for()
        page.wait_for_selector("[role=tab]")
        refused: list[int] = []

        def busy_at_first(route: Any) -> None:
            refused.append(503)
            route.continue_() if len(refused) > 2 else route.fulfill(
                status=503, headers={"retry-after": "0.1"}, json={}
            )

        page.route("**/v1/search", busy_at_first)
        page.locator("input[name=query]").fill("red")
        page.wait_for_selector(".found img[src^='blob:']")
        assert len(refused) == 3, "a busy server is asked again when it says so"
        page.reload()
        page.wait_for_selector("[role=tab]")
        assert not page.locator("#token").is_visible(), "the tab of the browser keeps it"
    finally:
        guarded.stop()


def test_images_behind_a_token_come_when_they_are_near(runs, index, open_page):
    """As those do that browsers ask for themselves."""
    site, asked = Site([runs["retrieval"]], index, token="sesame"), []
    try:
        page = open_page("about:blank", wait_for="html", viewport={"width": 400, "height": 300})
        page.add_init_script("sessionStorage.setItem('eve-token', 'sesame')")
        page.route(
            "**/v1/images/**", lambda route: (asked.append(route.request.url), route.continue_())
        )
        page.goto(site.address)
        page.locator("input[name=query]").fill("red")
        page.locator(".thumb img[src]").first.wait_for()
        page.wait_for_timeout(300)
        few = len(asked)
        assert few < 20
        page.locator(".thumb").last.scroll_into_view_if_needed()
        page.locator(".thumb img").last.and_(page.locator("[src]")).wait_for()
        assert len(asked) > few
    finally:
        site.stop()


def test_runs_on_phantoms_say_that_they_are_no_medicine(runs, open_page):
    run = tiny_run("vqa", Path("chests"))
    data = replace(run.config.data, train=("phantoms:train",), val=("phantoms:val",))
    chests = Eve(replace(run, config=replace(run.config, data=data)))
    for served, says in (
        ([chests], NO_MEDICINE),
        ([runs["vqa"], chests], f"chests: {NO_MEDICINE}"),
        ([runs["vqa"]], ""),
    ):
        started = Site(served)
        page = open_page(started.address)
        assert page.inner_text("#note") == says and page.is_visible("#note") == bool(says)
        if says:
            assert page.locator("#note").bounding_box()["height"] < 30  # one line
        started.stop()


def test_runs_offer_what_they_can_and_a_phone_shows_it(runs, open_page):
    """No tab for what no run does, nothing wider than the screen, all of it by keyboard, and dark where that is wanted."""
    phone = Site([runs["masked"]])
    try:
        page = open_page(
            phone.address,
            viewport={"width": 360, "height": 700},
            has_touch=True,
            is_mobile=True,
            color_scheme="dark",
        )
        tabs = ["Fill in", "Complete the image", "Experts"]
        assert page.locator("[role=tab]").all_inner_texts() == tabs
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 19, 24)"
        page.locator("#panel-fill-mask input[type=file]").set_input_files(file(0))
        page.locator("[role=tab]").first.focus()
        for name in (*tabs[1:], *tabs):
            page.keyboard.press("ArrowRight")
            focused = page.evaluate(
                "[document.activeElement.innerText, document.activeElement.getAttribute('aria-selected')]"
            )
            assert focused == [name, "true"]
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
            assert page.evaluate(UNLABELED) == 0
    finally:
        phone.stop()
    page.get_by_role("tab", name="Experts").click()
    page.locator("#panel-experts [name=text]").fill("a circle")
    page.get_by_text("The server does not answer. Is it still running?").wait_for()
