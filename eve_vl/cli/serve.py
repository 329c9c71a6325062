"""The verb serve: runs and an index on a web page and over HTTP."""

import os
import sys
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from eve_vl.cli.flags import DeviceArgs
from eve_vl.cli.indexed_run import load_encoder
from eve_vl.serve.limits import Limits
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import expand_user

if TYPE_CHECKING:
    from eve_vl.eve import Eve
    from eve_vl.search.index import Index


class ServeArgs(DeviceArgs, Limits):
    """Flags of `eve serve`."""

    runs: Positional[tuple[Path, ...]] = ()
    """Run folders or checkpoints; default: the run that built the index."""
    index: Path | None = None
    """Index to search in."""
    host: str = "127.0.0.1"
    """Address to listen on; an address that other machines can reach needs a token."""
    port: int | None = None
    """Port to listen on, 0: any free one; default: 8000, or the next free port."""
    token: str | None = None
    """Clients send it as `Authorization: Bearer TOKEN`; EVE_TOKEN in the environment is not visible
    in `ps`."""
    page: bool = True
    """Serve a web page next to the JSON."""
    browser: bool = True
    """Open the page in the browser, if there is a screen."""


def run_serve(args: ServeArgs) -> None:
    """Search images and try runs on a page, or over HTTP: eve serve RUN … --index INDEX."""
    token = check_server(args)
    from eve_vl.serve.server import serve

    runs, index = _load_served(args.runs, args.index, args.device)
    opened: Callable[[str], object] = lambda address: None  # noqa: E731
    if args.page and args.browser:
        opened = open_browser
    serve(
        runs,
        index,
        args,
        host=args.host,
        port=args.port,
        token=token,
        with_page=args.page,
        opened=opened,
    )


def check_server(args: ServeArgs) -> str | None:
    """Return the token.

    Raises UserError, before long work, if a library, the index, the token or the port is missing.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; pip install 'eve-vl[serve]'") from None
    if args.index is not None:
        from eve_vl.search.database import Database

        Database.open(expand_user(args.index), verified=False)
    from eve_vl.serve.server import listening

    token = _token(args)
    listening(args.host, args.port).close()
    return token


def _token(args: ServeArgs) -> str | None:
    """Return the token, which an address that other machines reach needs. Raises UserError."""
    from eve_vl.serve.admission import is_loopback

    flag = "--token"
    token = args.token
    if token is None:
        flag = "EVE_TOKEN"
        token = os.environ.get("EVE_TOKEN")
    if token == "":
        raise UserError(
            f"{flag}: is empty, which would let everybody in; "
            "give a token, or leave it out on this machine only"
        )
    if token is None:
        if not is_loopback(args.host):
            raise UserError(
                f"--host {args.host}: other machines can reach it; "
                "give a --token, or EVE_TOKEN in the environment"
            )
        return None
    if not token.isascii() or not token.isprintable() or token != token.strip():
        raise UserError(
            "--token: a header cannot carry it; use ASCII letters without spaces at the ends"
        )
    return token


def open_browser(address: str) -> None:
    """Open a page in the browser if there is a screen, without waiting for it."""
    if sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()


def _load_served(
    paths: tuple[Path, ...], folder: Path | None, device: str
) -> tuple[list["Eve"], "Index | None"]:
    """Return the runs, and the index of one of them if one is named. Raises UserError."""
    from eve_vl.eve import Eve
    from eve_vl.search.database import Database
    from eve_vl.search.index import Index
    from eve_vl.search.index_files import DATABASE

    for path in paths:
        if (expand_user(path) / DATABASE).is_file():
            raise UserError(f"{path}: is an index, not a run folder; name it with --index")
    if folder is None:
        if not paths:
            raise UserError("name run folders to serve, or an --index")
        return [Eve.load(path, device) for path in paths], None

    database = Database.open(expand_user(folder))  # before runs are loaded, which is slow
    runs = [Eve.load(path, device) for path in paths]
    if not runs:
        runs = [load_encoder(folder, None, device)]
    runs_of_index = [eve for eve in runs if database.is_of(eve.run)]
    if not runs_of_index:
        database.require_run(runs[0].run)
    return runs, Index(database, runs_of_index[0])
