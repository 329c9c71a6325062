"""The files of the web page and the headers that protect it."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

# other sites cannot show or measure images
SAME_ORIGIN: Mapping[str, str] = {"cross-origin-resource-policy": "same-origin"}
# the page loads these files and the server's answers only; no code or style in a text is run
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS: Mapping[str, str] = {
    **SAME_ORIGIN,
    "content-security-policy": POLICY,
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def page_files() -> dict[str, Path]:
    """Return the files of the page by their URL paths."""
    package = Path(str(files("eve_vl")))
    paths = {f"/{path.name}": path for path in sorted((package / "serve" / "page").iterdir())}
    return {
        "/": paths.pop("/index.html"),
        "/report.css": package / "pages" / "templates" / "style.css",
        **paths,
    }
