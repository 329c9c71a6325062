"""The server process: port, uvicorn's settings, a clean stop, files of the page."""

import contextlib
import logging
import math
import socket
import sys
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from eve_vl.serve import DECODERS
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError
from eve_vl.utils.runtime import keep_memory

PORT, NUM_PORTS = 8000, 100  # the default port, and how many are tried from there
MOST_CONNECTIONS = 900  # most systems allow a process 1,024 open files
# Each small operation of a batch releases Python's lock and takes it again. Threads that decode and answer would hand it back
# after 5 ms only, hundreds of times a batch (LOG.md).
SWITCH_INTERVAL = 1e-4  # seconds
OWN_PAGES: Mapping[str, str] = {
    "cross-origin-resource-policy": "same-origin"
}  # other sites cannot show or measure images
PAGE_HEADERS: Mapping[str, str] = {
    **OWN_PAGES,
    # the page loads these files and the server's answers only; no code or style in a text is run
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Server(uvicorn.Server):
    """Uvicorn that ends with status 0 after SIGTERM.

    Its own handler would raise the signal again.
    """

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Finish all requests that have begun; a second signal ends at once."""
        self.force_exit, self.should_exit = self.should_exit, True


def serve(
    app: FastAPI, host: str, port: int | None, *, opened: Callable[[str], object] = lambda _: None
) -> None:
    """Serve until a signal comes.

    opened: called with the address. Raises UserError if the port is not available.
    """
    with listening(host, port) as listener:
        name = f"[{host}]" if ":" in host else host
        sys.setswitchinterval(SWITCH_INTERVAL)
        keep_memory(
            arenas=1 + DECODERS
        )  # dozens of threads take turns, and each would keep the memory of its largest image
        address = f"http://{name}:{listener.getsockname()[1]}"
        print_line(f"serving on {address} (Ctrl-C stops)")
        opened(address)
        Server(settings(app)).run(sockets=[listener])


def settings(app: FastAPI) -> uvicorn.Config:
    """Return uvicorn's settings."""
    limits = app.state.service.limits
    seconds = math.ceil(limits.body_seconds + limits.wait_seconds)
    quiet: Any = {
        "log_config": None,
        "log_level": "warning",
        "access_log": False,
        "server_header": False,
    }
    logging.getLogger("uvicorn.error").addFilter(
        lambda record: "WebSocket" not in record.getMessage()
    )  # it advises to install
    bounds: Any = {"limit_concurrency": MOST_CONNECTIONS, "timeout_graceful_shutdown": seconds}
    return uvicorn.Config(
        app, http="h11", ws="none", **bounds, **quiet
    )  # h11 bounds the size of headers


def listening(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens on a port. Raises UserError.

    port: None means PORT or, if another program uses it, the next free one.
    """
    if port is None:
        for tried in range(PORT, PORT + NUM_PORTS):
            with contextlib.suppress(UserError):
                return listening(host, tried)
        port = PORT
    if not 0 <= port < 2**16:
        raise UserError(f"--port {port}: is no port, expected 0 to {2**16 - 1}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=MOST_CONNECTIONS)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"--host {host} --port {port}: cannot listen ({reason}); --port 0 takes a free port"
        ) from None


def page_files() -> dict[str, Path]:
    """Return the files of the page by their URL paths."""
    package = Path(str(files("eve_vl")))
    own = {f"/{path.name}": path for path in sorted((package / "serve" / "page").iterdir())}
    return {
        "/": own.pop("/index.html"),
        "/report.css": package / "report" / "templates" / "style.css",
        **own,
    }
