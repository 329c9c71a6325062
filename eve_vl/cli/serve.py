"""The verb that serves runs and an index to other programs: serve."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from eve_vl.errors import UserError
from eve_vl.serve.limits import Limits


@dataclass(frozen=True, kw_only=True)
class ServeArgs(Limits):
    """Flags of `eve serve`."""

    runs: Positional[tuple[Path, ...]] = ()
    """Run folders, or checkpoints of runs; none: the one that the index was made by."""
    index: Path | None = None
    """Index to search in."""
    host: str = "127.0.0.1"
    """Address to listen on; one that other machines can reach needs a token."""
    port: int = 8000
    """Port to listen on; 0: any that is free."""
    token: str | None = None
    """Sent by clients as `Authorization: Bearer TOKEN`; EVE_TOKEN in the environment does not show in lists of processes."""
    device: str = "auto"
    """Where to compute, as torch spells it: cpu, cuda, cuda:1, mps; auto: cuda where there is one."""


def run_serve(args: ServeArgs) -> None:
    """Serve the calls of runs and the search in an index as JSON over HTTP: eve serve RUN … --index INDEX."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; pip install 'eve-vl[serve]'") from None
    from eve_vl.serve.app import application
    from eve_vl.serve.server import is_loopback, serve

    token = args.token or os.environ.get("EVE_TOKEN") or None
    if token is None and not is_loopback(args.host):
        raise UserError(f"--host {args.host}: other machines can reach it; give a --token, or EVE_TOKEN in the environment")
    runs, index = load_served(args.runs, args.index, args.device)
    serve(application(runs, index, args, token=token), args.host, args.port)


def load_served(paths: tuple[Path, ...], folder: Path | None, device: str) -> tuple[list[Any], Any]:
    """Return runs and the index, if there is one, which belongs to one of them. Raises UserError."""
    from eve_vl.cli.search import load_encoder
    from eve_vl.eve import Eve
    from eve_vl.search.index import Index

    if folder is None:
        if not paths:
            raise UserError("name run folders to serve, or an --index")
        return [Eve.load(path, device) for path in paths], None
    runs = [Eve.load(path, device) for path in paths] or [load_encoder(folder, None, device)]
    for number, eve in enumerate(runs):
        try:
            return runs, Index.open(folder, eve)
        except UserError:
            if number == len(runs) - 1:
                raise
    raise AssertionError
