"""The server process: port, uvicorn's settings, a clean stop."""

import contextlib
import logging
import math
import socket
import sys
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn
from fastapi import FastAPI

from eve_vl.eve import Eve
from eve_vl.search.index import Index
from eve_vl.serve.application import application
from eve_vl.serve.limits import DECODERS, Limits
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError
from eve_vl.utils.memory import keep_memory

PORT = 8000  # the default port
NUM_PORTS = 100  # that are tried from there
MOST_CONNECTIONS = 900  # most systems allow a process 1,024 open files
# Each small operation of a batch releases Python's lock and takes it again. Threads that decode and
# answer would hand it back after 5 ms only, hundreds of times a batch (LOG.md).
SWITCH_INTERVAL = 1e-4  # seconds


class Server(uvicorn.Server):
    """Uvicorn that ends with status 0 after SIGTERM.

    Its own handler would raise the signal again.
    """

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Finish all requests that have begun; a second signal ends at once."""
        self.force_exit = self.should_exit
        self.should_exit = True


def serve(
    runs: Sequence[Eve],
    index: Index | None,
    limits: Limits,
    *,
    host: str,
    port: int | None,
    token: str | None,
    with_page: bool,
    opened: Callable[[str], object] = lambda address: None,
) -> None:
    """Serve runs and an index until a signal comes.

    opened: called with the address. Raises UserError if the port is not available.
    """
    app = application(runs, index, limits, token=token, with_page=with_page)
    with listening(host, port) as listener:
        name = f"[{host}]" if ":" in host else host
        sys.setswitchinterval(SWITCH_INTERVAL)
        # dozens of threads take turns, and each would keep the memory of its largest image
        keep_memory(arenas=1 + DECODERS)
        address = f"http://{name}:{listener.getsockname()[1]}"
        print_line(f"serving on {address} (Ctrl-C stops)")
        opened(address)
        Server(settings(app)).run(sockets=[listener])


def settings(app: FastAPI) -> uvicorn.Config:
    """Return uvicorn's settings."""
    limits = app.state.service.limits
    uvicorn_log = logging.getLogger("uvicorn.error")
    # it advises to install
    uvicorn_log.addFilter(lambda record: "WebSocket" not in record.getMessage())
    return uvicorn.Config(
        app,
        http="h11",  # it bounds the size of headers
        ws="none",
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=math.ceil(2 * limits.body_seconds + limits.wait_seconds),
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
    )


def listening(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens on a port. Raises UserError.

    port: None means PORT or, if another program uses it, the next free one.
    """
    if port is None:
        for candidate in range(PORT, PORT + NUM_PORTS):
            with contextlib.suppress(UserError):
                return listening(host, candidate)
        port = PORT
    if not 0 <= port < 2**16:
        raise UserError(f"--port {port} is no port, expected 0 to {2**16 - 1}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=MOST_CONNECTIONS)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"--host {host} --port {port}: cannot listen ({reason}); --port 0 takes a free port"
        ) from None
