"""Hooks of the site: links to files outside docs/ work in the repository and on the site."""

from typing import Any

PAGES = {"](../benchmarks/RESULTS.md": "](results.md"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page whose links to files of the repository lead to the site's pages of them."""
    for link, page in PAGES.items():
        markdown = markdown.replace(link, page)
    return markdown
