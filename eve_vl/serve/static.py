"""The page for people: a few files of our own under /, which ask the server as any other client does."""

from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse

OWN_PAGES: Mapping[str, str] = {"cross-origin-resource-policy": "same-origin"}  # other sites show and measure no image
HEADERS: Mapping[str, str] = {
    **OWN_PAGES,
    # nothing but these files and what the server says; no code or style in a text, whoever wrote it
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def page_files() -> dict[str, Path]:
    """Return the files of the page by the paths under which they are shown."""
    package = Path(str(files("eve_vl")))
    own = {f"/{path.name}": path for path in sorted((package / "serve" / "page").iterdir())}
    return {"/": own.pop("/index.html"), "/report.css": package / "report" / "templates" / "style.css", **own}


def add_page(app: FastAPI, shown: Mapping[str, Path]) -> None:
    """Add a route for each file."""
    for path, file in shown.items():
        app.add_api_route(path, _answer(file), include_in_schema=False)


def _answer(file: Path) -> Callable[[], Awaitable[FileResponse]]:
    async def answer() -> FileResponse:
        return FileResponse(file, headers=HEADERS)

    return answer
