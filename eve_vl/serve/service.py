"""The service behind the routes: runs, the index, the queue and the computing thread.

A request passes admission, its body is decoded on a thread, it waits for the computing thread, and
its result becomes JSON. Clients see no folders of the server: images of the index are named by
their source's folder and the path below it.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any

import anyio
from fastapi import Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from eve_vl.eve import Eve
from eve_vl.search.index import Index
from eve_vl.serve.computing_thread import ComputingThread, QueuedCall
from eve_vl.serve.endpoints import Endpoint, endpoints_of
from eve_vl.serve.examples import ExampleRow, example_bodies, generated_rows, generated_specs
from eve_vl.serve.limits import DECODERS, Limits
from eve_vl.serve.metrics import Metrics
from eve_vl.serve.page_files import SAME_ORIGIN
from eve_vl.serve.public_names import distinct, without_paths
from eve_vl.serve.refusals import RequestRefusedError, busy
from eve_vl.serve.request_body import read_body
from eve_vl.serve.reservations import Reservations
from eve_vl.serve.served_index import ServedIndex
from eve_vl.synthetic.disclaimers import source_note
from eve_vl.utils.errors import DamagedError, UserError, nearest

LOG = logging.getLogger(__name__)
TABS_WITHOUT_FORM = ("reconstruct", "experts")  # of the page
SMALL_BODY = 64 * 1024  # bytes; without images, parsed without a thread
THUMBNAIL_SIDE = 160  # pixels
LARGEST_SIDE = 1024
Side = Annotated[int, Query(ge=16, le=LARGEST_SIDE)]
CACHED = {"cache-control": "private, max-age=300", **SAME_ORIGIN}
UNCACHED = {"cache-control": "no-cache", **SAME_ORIGIN}
GONE = "the index was deleted or made again since the server opened it; restart the server"
FAILED = "the server failed at this request; its log says why"


class Service:
    """What the routes share."""

    def __init__(self, runs: Sequence[Eve], index: Index | None, limits: Limits):
        self.limits = limits
        self.reservations = Reservations(limits)
        self.counters = Metrics(self.reservations)
        names = distinct(eve.run.name for eve in runs)
        self.runs = dict(zip(names, runs, strict=True))
        self.endpoints = {name: endpoints_of(eve, limits) for name, eve in self.runs.items()}
        # read once, because notes read the disk
        self.notes: dict[str, str] = {}
        self.rows: dict[str, list[ExampleRow]] = {}
        for name, eve in self.runs.items():
            data = eve.run.config.data
            self.notes[name] = source_note((*data.train, *data.val))
            self.rows[name] = generated_rows(eve)

        self.index: ServedIndex | None = None
        if index is not None:
            run_names = [name for name, eve in self.runs.items() if eve is index.encoder]
            self.index = ServedIndex(index, run_names[0] if run_names else None, limits)
        self.index_is_gone = False

        self.compute = ComputingThread(limits.batch, self.counters.count_batch)
        self.counters.queue.set_function(lambda: len(self.compute))
        self.decoders = anyio.CapacityLimiter(DECODERS)
        # images and facts of the index: a disk that hangs stops nothing else
        self.disk = anyio.CapacityLimiter(1)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the computing thread, and finish its queue at the end."""
        self.compute.start()
        yield
        self.compute.end()
        await asyncio.to_thread(self.compute.join)

    # Calls

    async def answer(self, endpoint: Endpoint, request: Request) -> Response:
        """Answer a request for a call."""
        _require_json(request)
        with self.reservations.reserve() as reservation:
            body = await read_body(request, reservation)
            deadline = asyncio.get_running_loop().time() + self.limits.wait_seconds
            if len(body) > SMALL_BODY or b"[" in body or endpoint.has_images(body):
                call = await self._in_thread(self.decoders, deadline, endpoint.prepare, body)
            else:
                call = endpoint.prepare(body)
            del body  # it would stay in memory while the call waits
            reservation.resize(call.num_bytes)
            result = await self._computed(call, request, deadline)
            del call
            text = await anyio.to_thread.run_sync(endpoint.as_json, result)
            reservation.resize(len(text))
            return Response(text, media_type="application/json")

    async def _in_thread(
        self,
        limiter: anyio.CapacityLimiter,
        deadline: float | None,
        work: Callable[..., Any],
        *arguments: Any,
    ) -> Any:
        """Return the result of work on a thread.

        deadline: of the event loop's time; None: as long as any request may wait. Raises
        RequestRefusedError if no thread is free in time.
        """
        if deadline is None:
            deadline = asyncio.get_running_loop().time() + self.limits.wait_seconds
        with anyio.CancelScope(deadline=deadline):
            return await anyio.to_thread.run_sync(work, *arguments, limiter=limiter)
        raise self._waited_too_long()

    async def _computed(self, call: QueuedCall, request: Request, deadline: float) -> Any:
        """Return a call's result.

        A call that has not started in time, or whose client has gone, is withdrawn; one that has
        started is waited for.
        """
        result = asyncio.wrap_future(self.compute.submit(call))
        disconnect = asyncio.ensure_future(_disconnect(request))
        seconds = max(deadline - asyncio.get_running_loop().time(), 0)
        try:
            done, _ = await asyncio.wait(
                [result, disconnect], timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            disconnect.cancel()
        if result not in done and self.compute.withdraw(call):
            result.cancel()
            raise ClientDisconnect if disconnect in done else self._waited_too_long()
        return await result

    def _waited_too_long(self) -> RequestRefusedError:
        return busy(f"the request has waited for {self.limits.wait_seconds:g} s", seconds=5)

    async def refuse_unknown_call(self, name: str, call: str) -> None:
        """Refuse an unknown run or call, and name the known ones."""
        if name not in self.runs:
            raise RequestRefusedError(404, f"no run {nearest(name, self.runs)}")
        message = f"the run {name} has no call {nearest(call, self.endpoints[name])}"
        raise RequestRefusedError(404, message)

    # Facts

    async def health(self) -> JSONResponse:
        """Return whether the server computes and had its index at the last request."""
        # no look at the disk: one that hangs must not look like a server that is down
        if self.index_is_gone:
            raise RequestRefusedError(503, GONE)
        if not self.compute.is_alive():
            return JSONResponse({"status": "failed"}, 503)
        return JSONResponse({"status": "ok"})

    async def metrics(self) -> Response:
        """Return the counters."""
        return Response(self.counters.text(), media_type="text/plain; version=0.0.4")

    async def list_runs(self) -> JSONResponse:
        """Return the runs, their calls and forms, and the index."""
        rows = self.rows
        index_facts = None
        if self.index is not None:
            index_facts, index_rows = await self._in_thread(self.disk, None, self.index.facts)
            if index_rows:
                rows = {**rows, self.index.run_name: index_rows}
        runs = [self._run_facts(name, rows[name]) for name in self.runs]
        return JSONResponse({"runs": runs, "index": index_facts})

    def _run_facts(self, name: str, rows: Sequence[ExampleRow]) -> dict[str, Any]:
        """Return what the page needs to know about a run. rows: of its examples."""
        run = self.runs[name].run
        sizes = run.config.input
        forms = {}
        examples = {}
        for call, endpoint in self.endpoints[name].items():
            form = endpoint.form()
            if form is not None:
                forms[call] = form
            if form is not None or call in TABS_WITHOUT_FORM:
                bodies = example_bodies(endpoint, rows)
                if bodies:
                    examples[call] = bodies
        facts = {
            "name": name,
            "task": run.config.task.name,
            "step": run.step,
            "calls": list(self.endpoints[name]),
            "forms": forms,
            "image_size": sizes.image_size,
            "patch_size": sizes.patch_size,
            "text_length": sizes.text_length,
        }
        labels = list(run.task.sizes.labels)
        if labels:
            facts["labels"] = labels
        facts["examples"] = examples
        facts["generated"] = generated_specs(run.config.data.train)
        if self.notes[name]:
            facts["note"] = self.notes[name]
        return facts

    async def image(
        self, number: int, digest: str | None = None, size: Side = THUMBNAIL_SIDE
    ) -> Response:
        """Return an image of the index, its longer side at most `size` pixels.

        digest: of its content, because an update may give the number to another image.
        """
        if self.index is None or not 0 <= number < 2**63:
            raise RequestRefusedError(404, f"no image {number}")
        with self.reservations.reserve():
            thumbnail = self.index.thumbnail
            data = await self._in_thread(self.disk, None, thumbnail, number, digest, size)
        headers = UNCACHED if digest is None else CACHED
        return Response(data, media_type="image/jpeg", headers=headers)

    # Errors

    async def answer_to(self, _: Request, error: Exception) -> Response:
        """Return the answer to an error: one line without paths of the server.

        The log explains errors of the server.
        """
        return self._refusal(error).response()

    def _refusal(self, error: Exception) -> RequestRefusedError:
        match error:
            case RequestRefusedError():
                return error
            case DamagedError(is_locked=True):
                return busy("the index is being written")
            case DamagedError():
                LOG.error("%s", error)
                if error.is_gone:
                    self.index_is_gone = True
                    return RequestRefusedError(503, GONE)
            case UserError():
                return RequestRefusedError(400, self._without_paths(str(error)))
            case RequestValidationError():
                first = error.errors()[0]
                return RequestRefusedError(400, f"{first['loc'][-1]}: {first['msg']}")
            case HTTPException():
                return RequestRefusedError(error.status_code, error.detail, error.headers)
            case ClientDisconnect():
                return RequestRefusedError(400, "the body is incomplete")
        return RequestRefusedError(500, FAILED)

    def _without_paths(self, message: str) -> str:
        """Return a message without paths of the server."""
        names = {}
        folders = {name: eve.run.folder for name, eve in self.runs.items()}
        if self.index is not None:
            for label, folder in self.index.labels.items():
                names[folder] = label
            folders["index"] = self.index.index.database.folder
        for name, folder in folders.items():
            names[str(folder)] = name
            names[str(folder.absolute())] = name
        return without_paths(message, names)


def _require_json(request: Request) -> None:
    """Refuse bodies of another type."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestRefusedError(
            415,
            f"the content-type is {kind[:80] or 'missing'}, "
            "expected application/json and an object of arguments",
        )


async def _disconnect(request: Request) -> None:
    """Wait until the client disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
