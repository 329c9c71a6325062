"""The tabs of calls show what Python returns."""

from typing import Any

from helpers.browser_page import drop, shown_pixels, upload, wait_for
from helpers.tiny_runs import TEXT, TEXTS, noise


def percent(probability: float) -> str:
    return f"{100 * probability:.1f} %"


def ask(page: Any) -> None:
    """Ask a question on the tab for questions."""
    page.locator("#panel-ask input[type=file]").set_input_files(upload(0))
    page.get_by_label("Question").fill(TEXT)
    page.keyboard.press("Enter")
    page.wait_for_selector("#panel-ask .heat")


def wait_for_heat(page: Any, heatmap: Any) -> None:
    wait_for(page, lambda: shown_pixels(page, ".heat"), heatmap.overlays()[0].tolist())


def test_ask_shows_answers_and_heatmaps(site, runs, open_page):
    page = open_page(f"{site}/#ask")
    page.get_by_label("Question").press("Enter")
    page.get_by_text("Still missing: image, question").wait_for()
    ask(page)
    answers = runs["vqa"].answer(noise(0), TEXT)
    rows = [f"{answer.answer}\n{percent(answer.probability)}" for answer in answers]
    assert page.locator("#panel-ask .bars li").all_inner_texts() == rows
    assert page.locator("#panel-ask .verdict").inner_text() == answers[0].answer
    assert "need not add up to 100 %" in page.locator("#panel-ask .answers").inner_text()
    explain = runs["vqa"].explain
    wait_for_heat(page, explain(noise(0), TEXT))
    page.get_by_role("button", name="blue", exact=True).last.click()
    wait_for_heat(page, explain(noise(0), TEXT, word="blue"))
    page.locator("#panel-ask .bars button").nth(1).click()
    wait_for_heat(page, explain(noise(0), TEXT, answer=answers[1].answer))


def test_focus_stays_on_the_chosen_answer_and_word(site, open_page):
    page = open_page(f"{site}/#ask")
    ask(page)
    focused = "document.activeElement.textContent"
    second = page.locator("#panel-ask .bars button").nth(1)
    answer = second.evaluate("(button) => button.textContent")
    second.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#panel-ask .bars li:nth-child(2) [aria-pressed=true]")
    assert page.evaluate(focused) == answer
    page.get_by_role("button", name="blue", exact=True).last.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#panel-ask .chip[aria-pressed=true]:text-is('blue')")
    assert page.evaluate(focused) == "blue"


def test_verify_and_same_item(site, runs, open_page):
    """The image that was chosen on one tab is there on the next."""
    page = open_page(f"{site}/#verify")
    drop(page, "#panel-verify .image:nth-child(1) .zone", 0)
    drop(page, "#panel-verify .image:nth-child(2) .zone", 1)
    page.get_by_label("Statement about the two").fill(TEXT)
    page.keyboard.press("Enter")
    page.wait_for_selector("#panel-verify .heat >> nth=1")
    verified = runs["nlvr2"].verify(noise(0), noise(1), TEXT)
    assert page.locator("#panel-verify .verdict").inner_text() == str(verified.is_true).lower()
    bar = page.locator("#panel-verify .bars li").first.inner_text()
    assert percent(verified.probability) in bar

    page.get_by_role("tab", name="Same item").click()
    page.locator("#panel-same input[type=file]").nth(1).set_input_files(upload(1))
    for number, text in enumerate(TEXTS[:2]):
        page.locator("#panel-same input[type=text]").nth(number).fill(text)
    page.keyboard.press("Enter")
    same = runs["pair"].same(
        noise(0),
        TEXTS[0],
        noise(1),
        TEXTS[1],
    )
    verdict = "the same" if same.same else "not the same"
    wait_for(page, page.locator("#panel-same .verdict").all_inner_texts, [verdict])


def test_match_and_classify(site, runs, open_page):
    page = open_page(f"{site}/#match")
    page.locator("#panel-match input[type=file]").set_input_files(upload(0))
    page.locator("#panel-match [name=text]").fill(TEXT)
    page.keyboard.press("Enter")
    share = percent(float(runs["retrieval"].match(noise(0), TEXT)))
    bars = page.locator("#panel-match .bars b")
    wait_for(page, lambda: bars.all_inner_texts()[:1], [share])

    page.get_by_role("tab", name="Classify").click()
    page.get_by_role("button", name="Classify").click()
    labels = [label.label for label in runs["colors"].classify(noise(0))]
    wait_for(page, page.locator("#panel-classify .bars span").all_inner_texts, labels)


def test_lines_of_a_class_are_its_prompts(site, runs, open_page):
    page = open_page(f"{site}/#zero-shot")
    page.locator("#panel-zero-shot input[type=file]").set_input_files(upload(0))
    lines = ("red: a red circle", "blue: a blue square", "red: two red squares; red", "__proto__")
    page.locator("[name=prompts]").fill("\n".join(lines))
    page.get_by_role("button", name="Compare labels").click()
    prompts = {
        "red": ["a red circle", "two red squares", "red"],
        "blue": ["a blue square"],
        "__proto__": ["__proto__"],
    }
    classes = runs["retrieval"].zero_shot(noise(0), prompts)
    rows = [f"{label.label}\n{label.score:.3f}" for label in classes]
    wait_for(page, page.locator("#panel-zero-shot .bars li").all_inner_texts, rows)


def test_fill_in(site, runs, open_page):
    page = open_page(f"{site}/#fill-mask")
    page.locator("#panel-fill-mask input[type=file]").set_input_files(upload(0))
    text = page.locator("#panel-fill-mask [name=text]")
    text.fill("[MASK] small [MASK] squares")
    page.keyboard.press("Enter")
    filled = runs["masked"].fill_mask(noise(0), "[MASK] small [MASK] squares")
    wait_for(page, page.locator("#panel-fill-mask .verdict").all_inner_texts, [filled.text])
    rows = []
    for number, guesses in enumerate(filled.guesses, start=1):
        rows += [f"{number}: {guess.text}" for guess in guesses]
    assert page.locator("#panel-fill-mask .bars span").all_inner_texts() == rows
    text.fill("a circle")
    page.keyboard.press("Enter")
    page.get_by_text("nothing to fill in: write [MASK] in the text").wait_for()


def test_patches_are_reconstructed_by_mouse_and_keyboard(site, runs, open_page):
    page = open_page(f"{site}/#reconstruct")
    page.locator("#panel-reconstruct input[type=file]").set_input_files(upload(0))
    page.get_by_text("Write a caption").wait_for()
    patches = page.locator("#panel-reconstruct .patches button")
    masked = page.locator("#panel-reconstruct .patches [aria-pressed=true]")
    assert masked.count() == 12, "three quarters of 16"
    page.get_by_role("button", name="Show all").click()
    page.locator("#panel-reconstruct [name=text]").fill(TEXT)
    page.get_by_text("No patch is masked").wait_for()

    def wait_for_reconstruction(*masked: int) -> None:
        page.get_by_text(f"{len(masked)} of 16 patches reconstructed").wait_for()
        pressed = [patch.get_attribute("aria-pressed") == "true" for patch in patches.all()]
        assert pressed == [number in masked for number in range(16)]
        keep = [number for number in range(16) if number not in masked]
        expected = runs["masked"].reconstruct(noise(0), TEXT, keep=keep).reconstructed.tolist()
        image = "#panel-reconstruct figure:nth-child(2) img"
        wait_for(page, lambda: shown_pixels(page, image), expected)

    patches.nth(5).click()
    wait_for_reconstruction(5)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    wait_for_reconstruction(5, 9)
    start = patches.nth(12).bounding_box()
    end = patches.nth(15).bounding_box()
    page.mouse.move(start["x"] + 9, start["y"] + 9)
    page.mouse.down()
    page.mouse.move(end["x"] + 9, end["y"] + 9, steps=20)
    page.mouse.up()
    wait_for_reconstruction(5, 9, 12, 13, 14, 15)


def test_experts_of_patches_and_tokens(site, runs, open_page):
    page = open_page(f"{site}/#experts")
    assert page.locator("#panel-experts select option").count() == 6, "all runs have experts here"
    page.locator("#panel-experts [name=text]").fill(TEXT)
    page.locator("#panel-experts input[type=file]").set_input_files(upload(0))
    page.wait_for_selector("#panel-experts .patches")
    routing = runs["retrieval"].experts(noise(0), TEXT)
    cards = page.locator("#panel-experts article")
    assert cards.count() == len(routing.blocks)
    for card, block in zip(cards.all(), routing.blocks, strict=True):
        experts = block.experts[:, 0].tolist()
        patches = [int(text) for text in card.locator(".patches .token").all_inner_texts()]
        assert patches == experts[1:17]
        tokens = zip(routing.words, experts[17:], strict=True)
        rows = [f"{word}\n{expert}" for word, expert in tokens]
        assert card.locator(".tokens .token").all_inner_texts() == rows
        card.locator(".experts button").first.focus()
        assert card.locator(".token:not(.dim)").count() == experts[1:].count(min(experts))
