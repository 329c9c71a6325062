"""Verbs that serve runs and an index: serve (JSON over HTTP) and app (with the web page)."""

import os
import sys
import threading
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from eve_vl.cli.common import load_encoder
from eve_vl.serve.limits import Limits
from eve_vl.utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ServeArgs(Limits):
    """Flags of `eve serve`."""

    runs: Positional[tuple[Path, ...]] = ()
    """Run folders or checkpoints; default: the run that built the index."""
    index: Path | None = None
    """Index to search in."""
    host: str = "127.0.0.1"
    """Address to listen on; an address that other machines can reach needs a token."""
    port: int = 8000
    """Port to listen on; 0: a free port."""
    token: str | None = None
    """Clients send it as `Authorization: Bearer TOKEN`; EVE_TOKEN in the environment is not visible in `ps`."""
    device: str = "auto"
    """Device: cpu, cuda, cuda:1, mps, …; auto: cuda if available."""


@dataclass(frozen=True, kw_only=True)
class AppArgs(ServeArgs):
    """Flags of `eve app`."""

    browser: bool = True
    """Open the page in the browser."""


def run_serve(args: ServeArgs) -> None:
    """Serve the calls of runs and the search in an index as JSON over HTTP: eve serve RUN … --index INDEX."""
    _serve(args)


def run_app(args: AppArgs) -> None:
    """Search images and try runs on a page in the browser: eve app RUN … --index INDEX."""
    _serve(args, has_page=True, opens=args.browser)


def _serve(args: ServeArgs, *, has_page: bool = False, opens: bool = False) -> None:
    """Serve until a signal comes. has_page: serve the page too. opens: open it in a browser. Raises UserError."""
    token = check_server(args)
    from eve_vl.serve.app import application
    from eve_vl.serve.server import page_files, serve

    runs, index = load_served(args.runs, args.index, args.device)
    app = application(runs, index, args, token=token, page=page_files() if has_page else None)
    serve(app, args.host, args.port, opened=open_browser if opens else lambda _: None)


def check_server(args: ServeArgs) -> str | None:
    """Return the token. Raises UserError, before long work, if a library, the token or the port is missing."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; pip install 'eve-vl[serve]'") from None
    from eve_vl.serve.admission import is_loopback
    from eve_vl.serve.server import listening

    token = os.environ.get("EVE_TOKEN") if args.token is None else args.token
    if token == "":
        name = "EVE_TOKEN" if args.token is None else "--token"
        raise UserError(f"{name}: is empty, which would let everybody in; give a token, or leave it out on this machine only")
    if token is None and not is_loopback(args.host):
        raise UserError(f"--host {args.host}: other machines can reach it; give a --token, or EVE_TOKEN in the environment")
    if token is not None and not (token.isascii() and token.isprintable() and token == token.strip()):
        raise UserError("--token: a header cannot carry it; use ASCII letters without spaces at the ends")
    listening(args.host, args.port).close()
    return token


def open_browser(address: str) -> None:
    """Open a page in the browser if there is a screen, without waiting for it."""
    if sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()


def load_served(paths: tuple[Path, ...], folder: Path | None, device: str) -> tuple[list[Any], Any]:
    """Return the runs, and the index if one is named, which belongs to one of them. Raises UserError."""
    from eve_vl.eve import Eve
    from eve_vl.search.database import DATABASE, Database
    from eve_vl.search.index import Index
    from eve_vl.utils.safe_io import expand_user

    for path in paths:
        if (expand_user(path) / DATABASE).is_file():
            raise UserError(f"{path}: is an index, not a run folder; name it with --index")
    if folder is None:
        if not paths:
            raise UserError("name run folders to serve, or an --index")
        return [Eve.load(path, device) for path in paths], None
    store = Database.open(expand_user(folder))  # before runs are loaded, which is slow
    fix = f"name it: eve serve RUN --index {folder}"
    runs = [Eve.load(path, device) for path in paths] or [load_encoder(folder, None, device, fix=fix)]
    own = [eve for eve in runs if store.is_of(eve.run)]
    store.check((own or runs)[0].run)
    return runs, Index(store, own[0])
