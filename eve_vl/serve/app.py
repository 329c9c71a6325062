"""The application: JSON over HTTP for every call of some runs and for the search in an index.

A request goes through the gate, its body is read and then decoded on a thread of its own, waits for the thread that computes,
and its result becomes JSON. Only what is in the route table has a name here; calls come from the runs.
"""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

from fastapi import FastAPI, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from prometheus_client import generate_latest
from pydantic import Field
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from eve_vl import __version__
from eve_vl.eve import Eve
from eve_vl.predict.inputs import Images, Strings
from eve_vl.search.index import Index
from eve_vl.serve.admission import AdmissionMiddleware, RequestTracker, answer_of
from eve_vl.serve.batching import Compute, Job
from eve_vl.serve.codecs import encoded
from eve_vl.serve.endpoints import Endpoint, served_calls
from eve_vl.serve.limits import DECODERS, MOST_RERANKED, Limits, RequestRefusedError, busy
from eve_vl.serve.public_paths import PublicIndex, distinct, without_paths
from eve_vl.serve.schema import arguments
from eve_vl.serve.static import OWN_PAGES, add_page
from eve_vl.synthetic.phantoms import source_note
from eve_vl.utils.errors import BadSampleError, DamagedError, UserError, nearest

LOG = logging.getLogger(__name__)
MOST_HITS = 1000
MOST_IMAGES = 64  # that wait at a time
THUMBNAIL, LARGEST = 160, 1024  # pixels
Side = Annotated[int, Query(ge=16, le=LARGEST)]
CACHED = {"cache-control": "private, max-age=300", **OWN_PAGES}
UNCACHED = {"cache-control": "no-cache", **OWN_PAGES}
LOCKED = 0.25  # seconds to wait for an index that is being written: meanwhile nothing is computed, for nobody
NO_INDEX = "this server has no index to search in; start it with --index INDEX"
BEARER = HTTPBearer(auto_error=False, description="The server's token, which the gate asks for.")
ERRORS: Any = {
    status: {
        "description": text,
        "content": {"application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}},
    }
    for status, text in {
        400: "What was sent is wrong; the error says what was expected.",
        401: "The token is missing or another one.",
        404: "There is no such run, call or image.",
        408: "The body did not come in time.",
        413: "The body is too large.",
        415: "The body is no JSON.",
        500: "The server is at fault; its log says how.",
        503: "There is no room or no turn; come again after Retry-After.",
        "default": "Something else is wrong.",  # or FastAPI would promise 422
    }.items()
}
SEARCH_TYPES = {
    "query": Strings,
    "image": Images | None,
    "folder": str | None,
    "top": Annotated[int, Field(ge=1, le=MOST_HITS)],
    "rerank": Optional[Annotated[int, Field(ge=0, le=MOST_RERANKED)]],  # noqa: UP045 (types with notes know no |)
}


def application(
    runs: Sequence[Eve],
    index: Index | None = None,
    limits: Limits | None = None,
    *,
    token: str | None = None,
    page: Mapping[str, Path] | None = None,
) -> FastAPI:
    """Return the server of some runs and of an index, whose encoder is one of them.

    token: what every request must bring but those for /healthz and the page; None: only requests to localhost are answered.
    page: files to show to people, by their paths (`web.page_files`).
    """
    server = Service(runs, index, limits or Limits())
    about: dict[str, Any] = {"title": "EVE", "version": __version__, "docs_url": None, "redoc_url": None}
    guarded: Any = {"responses": ERRORS} | ({} if token is None else {"dependencies": [Security(BEARER)]})
    app = FastAPI(**about, lifespan=lambda _: server.running())
    app.state.service = server
    app.add_middleware(AdmissionMiddleware, traffic=server.traffic, token=token, open_paths=page or ())
    for error in (RequestRefusedError, HTTPException, RequestValidationError, UserError, ClientDisconnect, Exception):
        app.add_exception_handler(error, server.answer_to)
    app.add_api_route("/healthz", server.health, summary="Whether the server takes requests.")
    app.add_api_route("/healthz", server.health, methods=["HEAD"], include_in_schema=False)
    app.add_api_route("/metrics", server.metrics, summary="Numbers of the server, as Prometheus reads them.", **guarded)
    app.add_api_route("/v1/runs", server.list_runs, summary="The runs, their calls, and the index.", **guarded)
    for name, calls in server.calls.items():
        for call, served in calls.items():
            add_call(app, f"/v1/runs/{name}/{call}", served, server.endpoint(served), f"{call} of the run {name}.", guarded)
    app.add_api_route("/v1/runs/{name}/{call}", server.no_such_call, methods=["POST"], include_in_schema=False)
    if server.search is not None:
        add_call(app, "/v1/search", server.search, server.endpoint(server.search), "Search in the index.", guarded)
    else:
        app.add_api_route("/v1/search", server.no_index, methods=["POST"], include_in_schema=False)
    for path, summary in (
        ("", "An image of the index as JPEG."),
        ("/{digest}", "The same, if it is the one with this content."),
    ):
        app.add_api_route(f"/v1/images/{{number}}{path}", server.image, summary=summary, response_class=Response, **guarded)
    add_page(app, page or {})
    return app


def add_call(app: FastAPI, path: str, served: Endpoint, endpoint: Callable[..., Any], summary: str, guarded: Any) -> None:
    """Add a call's route, which OpenAPI shows with the call's arguments and what its docstring says."""
    body = {"required": True, "content": {"application/json": {"schema": served.model.model_json_schema()}}}
    more: dict[str, Any] = {"summary": summary, "description": served.text, "operation_id": path.strip("/").replace("/", "_")}
    app.add_api_route(path, endpoint, methods=["POST"], openapi_extra={"requestBody": body}, **more, **guarded)


class Service:
    """What the routes share: runs, the index, the thread that computes, and those that decode."""

    def __init__(self, runs: Sequence[Eve], index: Index | None, limits: Limits):
        limits.check()
        self.limits, self.traffic = limits, RequestTracker(limits)
        self.runs = dict(zip(distinct(eve.run.name for eve in runs), runs, strict=True))
        self.calls = {name: served_calls(eve, limits) for name, eve in self.runs.items()}
        data = {name: eve.run.config.data for name, eve in self.runs.items()}
        self.notes = {name: source_note((*each.train, *each.val)) for name, each in data.items()}  # once: it asks the disk
        self.index, self.found = index, None if index is None else PublicIndex(index)
        self.search = None if index is None else self._search(index)
        self.about_index = functools.lru_cache(maxsize=1)(self._about_index)
        if index is not None:
            index.database.wait_for_lock(LOCKED)
            index.most_reranked = MOST_RERANKED
        self.compute = Compute(limits, self.traffic.counts.batch)
        self.traffic.counts.queue.set_function(lambda: len(self.compute))
        self.decoders = Compute(limits, name="decode", threads=DECODERS)
        self.writer = Compute(limits, name="write")  # not behind all that waits to be decoded
        self.teller = Compute(limits, name="tell")  # of the index, once for all who wait to hear of it
        self.painter = Compute(limits, name="paint")  # an image of the index may hang, with the disk or network it is on

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Compute meanwhile, and finish what is in the queue."""
        everything = self.compute, self.decoders, self.writer, self.teller, self.painter
        for each in everything:
            each.start()
        try:
            yield
        except asyncio.CancelledError:  # a second signal; what computes goes with the process
            return
        for each in everything:
            each.end()
        await asyncio.to_thread(self.compute.join)

    def _search(self, index: Index) -> Endpoint:
        found = self.found
        assert found is not None

        def search(query: Any, image: Any, folder: str | None, **options: Any) -> Any:
            started, path = time.perf_counter(), None if folder is None else found.folder(folder)
            queries, images = in_rows(query, image)
            shown = [
                found.hits(hits, options["captions"]) for hits in index.search_each(queries, images, folder=path, **options)
            ]
            each = [{"hits": hits, "seconds": time.perf_counter() - started} for hits in shown]
            return each if isinstance(query, list) or isinstance(image, list) else each[0]

        def num_reranked(given: Mapping[str, Any]) -> int:
            rerank, how = given["rerank"], (given["without"], given["captions"])
            pairs = zip(*in_rows(given["query"], given["image"]), strict=False)  # lists of other lengths are refused later
            return max((index.num_reranked(rerank, query, image, *how) for query, image in pairs), default=0)

        search.__doc__ = index.search.__doc__
        given = arguments(index.search, self.limits, SEARCH_TYPES)
        assert given is not None
        more: dict[str, Any] = {"image_size": index.encoder.run.config.input.image_size, "num_reranked": num_reranked}
        return Endpoint("search", search, given, self.limits, by_rows=True, show=lambda found: found, **more)

    def endpoint(self, served: Endpoint) -> Callable[[Request], Any]:
        """Return what answers requests for a call."""

        async def answer(request: Request) -> Response:
            return await self.answer(served, request)

        return answer

    async def answer(self, served: Endpoint, request: Request) -> Response:
        """Answer a request for a call."""
        hold, loop = request.scope["hold"], asyncio.get_running_loop()
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            given = kind[:80] or "missing"
            raise RequestRefusedError(415, f"the content-type is {given}, expected application/json and an object of arguments")
        body = await hold.body(request.stream(), request.headers.get("content-length"))
        hold.accept()
        until = loop.time() + self.limits.wait_seconds
        decoding = Job(compute=lambda bodies: [served.prepare(*bodies)], given=body)
        del body
        job, size = await self._result(self.decoders, decoding, request, until)
        del decoding
        hold.resize(size)
        found = await self._result(self.compute, job, request, until)
        writing = Job(compute=lambda results: [_written(served, *results)], given=found)
        written = await asyncio.wrap_future(self.writer.submit(writing))
        del job, found, writing
        hold.resize(len(written))
        return Response(written, media_type="application/json")

    async def _result(self, compute: Compute, job: Job, request: Request, until: float) -> Any:
        """Return a job's result, unless its turn does not come until then, by the loop's clock, or its client goes before. What
        has begun is waited for, but for images."""
        result = asyncio.wrap_future(compute.submit(job))
        gone, left = asyncio.ensure_future(_gone(request)), until - asyncio.get_running_loop().time()
        try:
            done, _ = await asyncio.wait([result, gone], timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # the server ends
            result.cancel()
            raise
        finally:
            gone.cancel()
        if result not in done and (compute.withdraw(job) or compute is self.painter):
            result.cancel()  # or a failure that comes later would be logged as one that nobody took
            raise ClientDisconnect if gone in done else busy(f"the request has waited for {self.limits.wait_seconds:g} s", 5)
        return await result

    async def health(self) -> JSONResponse:
        """Say whether new requests are taken, and computed."""
        if self.traffic.is_stopping:
            return JSONResponse({"status": "stopping"}, 503)
        return JSONResponse({"status": "ok"}) if self.compute.is_alive() else JSONResponse({"status": "failed"}, 503)

    async def metrics(self) -> Response:
        """Return the server's numbers."""
        return Response(generate_latest(self.traffic.counts.registry), media_type="text/plain; version=0.0.4")

    async def list_runs(self, request: Request) -> JSONResponse:
        """Return what there is to call."""
        about = None
        if (index := self.index) is not None:
            until = asyncio.get_running_loop().time() + self.limits.wait_seconds
            telling = Job(compute=lambda given: [self.about_index(index.version)] * len(given), given=None, key="index")
            about = await self._result(self.teller, telling, request, until)
        return JSONResponse({"runs": [self._about(name) for name in self.runs], "index": about})

    def _about(self, name: str) -> dict[str, Any]:
        run = self.runs[name].run
        sizes, labels = run.config.input, list(run.task.sizes.labels)
        about = {"name": name, "task": run.config.task.name, "step": run.step, "calls": list(self.calls[name])}
        about |= {"image_size": sizes.image_size, "patch_size": sizes.patch_size, "text_length": sizes.text_length}
        about |= {"labels": labels} if labels else {}
        return about | ({"note": self.notes[name]} if self.notes[name] else {})

    def _about_index(self, _: int) -> dict[str, Any]:
        """Return what a version of the index holds. All of it is looked through, while nobody can search."""
        index, found = self.index, self.found
        assert index is not None
        assert found is not None
        counts, text_queries = index.counts(), bool(index.encoder.task.is_comparable)
        return {
            "images": counts["images"],
            "captions": counts["captions"],
            "run": next((name for name, eve in self.runs.items() if eve is index.encoder), None),
            "text_queries": text_queries,
            "folders": list(found.roots),
            "captions_searchable": text_queries and counts["captions"] > 0,
            "columns": index.columns(),
            "examples": index.examples(),
        }

    async def no_such_call(self, name: str, call: str) -> None:
        """Say which calls there are."""
        if name not in self.runs:
            raise RequestRefusedError(404, f"no run {nearest(name, self.runs)}")
        raise RequestRefusedError(404, f"the run {name} has no call {nearest(call, self.calls[name])}")

    async def no_index(self) -> None:
        """Say how to get one."""
        raise RequestRefusedError(404, NO_INDEX)

    async def image(self, request: Request, number: int, digest: str | None = None, size: Side = THUMBNAIL) -> Response:
        """Return an image of the index, its longer side at most `size` pixels. digest: of its content; after an update another
        image may have the number."""
        index = self.index
        if index is None or not 0 <= number < 2**63:
            raise RequestRefusedError(404, NO_INDEX if index is None else f"no image {number}")

        if len(self.painter) >= MOST_IMAGES:
            raise busy(f"{len(self.painter)} images are waited for already")

        def drawn(_: Any) -> list[bytes]:
            try:
                image = index.image(number)
                if digest not in (None, index.digests([number]).get(number)):
                    raise RequestRefusedError(404, f"image {number} is another one by now; search again")
                return [encoded(image.at_most(size), "JPEG")]
            except BadSampleError as error:  # which may name any file of a source
                LOG.warning("%s", error)
                raise RequestRefusedError(404, f"image {number} cannot be shown; the server's log says why") from None

        until = asyncio.get_running_loop().time() + self.limits.wait_seconds
        data = await self._result(self.painter, Job(compute=drawn, given=None), request, until)
        request.scope["hold"].resize(len(data))
        return Response(data, media_type="image/jpeg", headers=UNCACHED if digest is None else CACHED)

    def cleaned(self, message: str) -> str:
        """Return a message without the server's paths."""
        folders = {eve.run.folder: name for name, eve in self.runs.items()}
        known = {}
        if self.index is not None and self.found is not None:
            folders[self.index.database.folder] = "index"
            known = {root: name for name, root in self.found.known.items()}
        known |= {str(path): name for folder, name in folders.items() for path in (folder, folder.absolute())}
        return without_paths(message, known)

    async def answer_to(self, _: Request, error: Exception) -> Response:
        """Return what to say about an error: one line, without the server's paths. The log says what is the server's fault."""
        match error:
            case RequestRefusedError():
                return answer_of(error)
            case DamagedError(is_locked=True):
                return answer_of(busy("the index is being written"))
            case DamagedError():
                LOG.error("%s", error)
            case UserError():
                return answer_of(RequestRefusedError(400, self.cleaned(str(error))))
            case RequestValidationError():
                first = error.errors()[0]
                return answer_of(RequestRefusedError(400, f"{first['loc'][-1]}: {first['msg']}"))
            case HTTPException():
                return answer_of(RequestRefusedError(error.status_code, error.detail, error.headers or {}))
            case ClientDisconnect():
                return answer_of(RequestRefusedError(400, "the body ends too early"))
        return answer_of(RequestRefusedError(500, "the server failed at this request; its log says why"))


async def _gone(request: Request) -> None:
    """Wait until the client hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def in_rows(*values: Any) -> list[list[Any]]:
    """Return arguments of a search as lists of its rows; what is no list is that of each row."""
    num = max((len(value) for value in values if isinstance(value, list)), default=1)
    return [value if isinstance(value, list) else [value] * num for value in values]


def _written(served: Endpoint, result: Any) -> bytes:
    """Return an answer's body."""
    shown = served.show(result)
    return to_json(shown if served.name == "search" else {"result": shown}, inf_nan_mode="null")  # numbers that JSON lacks
