"""Right and wrong examples of a fine-tuned run as HTML."""

from collections.abc import Sequence

import numpy as np

from eve_vl.report.examples import Asked, Claimed, Examples
from eve_vl.report.markup import esc, missing, percent, picture, section
from eve_vl.report.search import Item, Query, Searches


def examples_section(examples: Examples, name: str = "examples", title: str = "Right and wrong") -> str:
    """Return the cards of answered questions or judged statements. name: the section's anchor, unique on a page."""
    what = "questions" if any(isinstance(each, Asked) for each in examples.shown) else "statements"
    intro = (
        f"Of {examples.num_seen} {what} spread over the validation data, {examples.num_right} are right; here are the first "
        "right ones and the first wrong ones, kinds in turns."
    )
    if what == "questions":
        intro += (
            " Bars: the three most probable answers. Heat, blue to red: what in the picture speaks for the first (Grad-CAM)."
        )
    else:
        intro += " Heat, blue to red: what in the pictures speaks for the statement being true (Grad-CAM)."
    known = [("right", "Right", True), ("wrong", "Wrong", False), ("unknown", "Truth kept back", None)]
    body = ""
    for key, heading, verdict in known:
        cards = [_card(each, name, key) for each in examples.shown if each.is_right is verdict]
        if cards:
            body += f'<h3>{heading}</h3><div class="examples">{"".join(cards)}</div>'
        elif verdict is not None and any(each.is_right is not None for each in examples.shown):
            body += f"<h3>{heading}</h3>" + missing("There is none among them.")
    return section(name, title, intro, body)


def _card(each: Asked | Claimed, name: str, key: str) -> str:
    return _question_card(each, name, key) if isinstance(each, Asked) else _statement_card(each, name, key)


def _question_card(each: Asked, name: str, key: str) -> str:
    rows = "".join(
        f'<li class="{_right(choice.is_right)}" style="--length:{100 * choice.probability:.1f}%">'
        f"<span>{esc(choice.text)}</span><span>{percent(choice.probability)}</span></li>"
        for choice in each.choices
    )
    truths = list(dict.fromkeys(each.truths))
    truth = f'<p class="truth"><span class="label">truth</span> {esc(", ".join(truths))}</p>' if truths else ""
    return (
        f'<article class="card example {key}">{_pictures(each, name)}<div>'
        f'<p class="caption">{esc(each.question)} {_mark(each.is_right)}</p>'
        f'<ol class="choices">{rows}</ol>{truth}</div></article>'
    )


def _statement_card(each: Claimed, name: str, key: str) -> str:
    said = each.probability if each.verdict else 1 - each.probability
    verdict = f"{str(each.verdict).lower()} {percent(said)}"
    truth = "" if each.label is None else f' <span class="label">truth</span> {str(each.label).lower()}'
    return (
        f'<article class="card example {key}">{_pictures(each, name)}<div><p class="caption">{esc(each.statement)}</p>'
        f'<p class="truth"><span class="label">verdict</span> {verdict} {_mark(each.is_right)}{truth}</p></div></article>'
    )


def _pictures(each: Asked | Claimed, name: str) -> str:
    if isinstance(each, Asked):
        shown, looked_for = [("picture", each.picture)], each.choices[0].text
    else:
        shown, looked_for = [("left", each.left), ("right", each.right)], "true"
    heat = zip([what for what, _ in shown], each.heat, strict=False)
    return _thumbs(
        [(f"{name} {each.where}: {what}", what, pixels) for what, pixels in shown]
        + [(f"{name} {each.where}: heat, {what}", f"for “{esc(looked_for)}”", pixels) for what, pixels in heat]
    )


def _thumbs(shown: Sequence[tuple[str, str, np.ndarray]]) -> str:
    """Return pictures in a row. shown: alternative text, caption in HTML, pixels."""
    figures = "".join(
        f"<figure>{picture(pixels, alt)}<figcaption>{caption}</figcaption></figure>" for alt, caption, pixels in shown
    )
    size = {1: "", 2: " two"}.get(len(shown), " four")
    return f'<div class="thumbs{size}">{figures}</div>'


def searches_section(searches: Searches, name: str = "examples", title: str = "Found") -> str:
    """Return the cards of queries and what they find. name: the section's anchor, unique on a page."""
    order = "ordered by the contrast features"
    if searches.num_reranked:
        order += f", the first {searches.num_reranked} put in order again by the matching head"
    intro = (
        f"Searched among {searches.num_pictures} pictures and {searches.num_texts} texts of the validation data, {order}. "
        "The five best, true ones framed: first queries whose first hit is true, then some whose first hit is not. "
        "Heat, blue to red: what a word of the picture's true text takes from it that speaks for the match (Grad-CAM)."
    )
    body = ""
    for title_, queries in (("Text → picture", searches.by_text), ("Picture → text", searches.by_picture)):
        cards = "".join(_query_card(query, name, number) for number, query in enumerate(queries))
        body += f'<h3>{title_}</h3><div class="queries">{cards}</div>'
    return section(name, title, intro, body)


def _query_card(query: Query, name: str, number: int) -> str:
    key, mark = _right(query.is_right), _mark(query.is_right)
    alt = f"{name} of {query.item.where}"
    found = "".join(
        f'<li class="{_right(is_match)}">{_item(item, f"{alt}, found {place}: {item.where}")}</li>'
        for place, (item, is_match) in enumerate(zip(query.found, query.is_match, strict=True), start=1)
    )
    truth = (
        ""
        if any(query.is_match)
        else f'<div class="truth"><span class="label">true</span> {_item(query.truth, f"{alt}, true")}</div>'
    )
    if query.item.picture is None:
        return (
            f'<article class="card query {key}"><p class="caption">{esc(query.item.text)} {mark}</p>'
            f'<ol class="found pictures">{found}</ol>{truth}</article>'
        )
    heat = [(f"{alt}: heat", f"“{esc(query.word)}”", pixels) for pixels in query.heat]
    thumbs = _thumbs([(alt, f"picture {mark}", query.item.picture), *heat])
    return f'<article class="card example {key}">{thumbs}<div><ol class="found texts">{found}</ol>{truth}</div></article>'


def _item(item: Item, alt: str) -> str:
    return esc(item.text) if item.picture is None else picture(item.picture, alt)


def _right(is_right: bool) -> str:
    return "right" if is_right else "wrong"


def _mark(is_right: bool | None) -> str:
    if is_right is None:
        return ""
    sign = "✓" if is_right else "✗"
    return f'<span class="mark {_right(is_right)}" role="img" aria-label="{_right(is_right)}">{sign}</span>'
