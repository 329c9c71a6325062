"""The application: calls of runs and the search in an index, as JSON over HTTP.

A request passes admission, its body is decoded on a thread, it waits for the computing thread, and its result becomes JSON.
Clients see no folders of the server: images of the index are named by their source's folder and the path below it.
"""

import asyncio
import contextlib
import functools
import itertools
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import anyio
from fastapi import FastAPI, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from prometheus_client import generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from eve_vl import __version__
from eve_vl.eve import Eve
from eve_vl.search.hits import Hit
from eve_vl.search.index import Index
from eve_vl.search.search_options import SearchOptions
from eve_vl.serve import DECODERS, MOST_RERANKED, Limits, RequestRefusedError, busy, endpoints
from eve_vl.serve.admission import AdmissionMiddleware, Counts, Reservation, Room, answer_of
from eve_vl.serve.batching import Compute, Job
from eve_vl.serve.endpoints import (
    Endpoint,
    Row,
    Search,
    as_json,
    bodies,
    encoded,
    generated_names,
    served_calls,
)
from eve_vl.serve.server import OWN_PAGES, PAGE_HEADERS
from eve_vl.synthetic.disclaimers import source_note
from eve_vl.utils.errors import BadSampleError, DamagedError, UserError, nearest

LOG = logging.getLogger(__name__)
OTHER_TABS = ("reconstruct", "experts")  # of the page, besides calls with a form
SMALL_BODY = 64 * 1024  # bytes; without images, parsed without a thread
THUMBNAIL, LARGEST = 160, 1024  # pixels
Side = Annotated[int, Query(ge=16, le=LARGEST)]
CACHED = {"cache-control": "private, max-age=300", **OWN_PAGES}
UNCACHED = {"cache-control": "no-cache", **OWN_PAGES}
LOCKED = 0.25  # seconds to wait for an index that another process writes, while the computing thread stands still
GONE = "the index was deleted or made again since the server opened it; restart the server"
BEARER = HTTPBearer(auto_error=False, description="The server's token.")
WORD = r"[^\s/:;,'\"()]+"
PATH = re.compile(
    rf"(?<![\w.~/])~?/(?:{WORD}(?: {WORD})*/)*(?={WORD})"
)  # a path without its last name
WELCOME = "EVE answers JSON requests: /openapi.json describes them, /v1/runs lists the runs. eve app serves a page here.\n"
ERROR = {"type": "object", "properties": {"error": {"type": "string"}}}
ERRORS: Any = {
    status: {
        "description": HTTPStatus(status).phrase,
        "content": {"application/json": {"schema": ERROR}},
    }
    for status in (400, 401, 404, 408, 413, 415, 500, 503)
} | {"default": {"description": "Any other error."}}  # or FastAPI would list 422


def application(
    runs: Sequence[Eve],
    index: Index | None = None,
    limits: Limits | None = None,
    *,
    token: str | None = None,
    page: Mapping[str, Path] | None = None,
) -> FastAPI:
    """Return the server of some runs, and of the index of one of them.

    token: required by every request except /healthz and the page; None: only requests to localhost are answered.
    page: files of the page by their URL paths (`server.page_files`).
    """
    server = Service(runs, index, limits or Limits())
    about: dict[str, Any] = {
        "title": "EVE",
        "version": __version__,
        "docs_url": None,
        "redoc_url": None,
    }
    guarded: Any = {"responses": ERRORS} | (
        {} if token is None else {"dependencies": [Security(BEARER)]}
    )
    app = FastAPI(**about, lifespan=lambda _: server.running())
    app.state.service = server
    app.add_middleware(
        AdmissionMiddleware, counts=server.counts, token=token, open_paths=page or ()
    )
    for error in (
        RequestRefusedError,
        HTTPException,
        RequestValidationError,
        UserError,
        ClientDisconnect,
        Exception,
    ):
        app.add_exception_handler(error, server.answer_to)
    app.add_api_route(
        "/healthz", server.health, summary="Whether the server computes and has its index."
    )
    app.add_api_route("/healthz", server.health, methods=["HEAD"], include_in_schema=False)
    about_metrics: Any = {
        "summary": "Counters of the server, for Prometheus.",
        "response_class": PlainTextResponse,
    }
    app.add_api_route("/metrics", server.metrics, **about_metrics, **guarded)
    app.add_api_route(
        "/v1/runs", server.list_runs, summary="The runs, their calls, and the index.", **guarded
    )
    served = {
        f"/v1/runs/{run}/{call}": each
        for run, calls in server.calls.items()
        for call, each in calls.items()
    }
    for path, call in (
        served | ({} if server.search is None else {"/v1/search": server.search})
    ).items():
        body = {
            "required": True,
            "content": {"application/json": {"schema": call.model.model_json_schema()}},
        }
        shown: dict[str, Any] = {
            "description": call.request.about(),
            "operation_id": path.strip("/").replace("/", "_"),
        }
        shown |= {
            "summary": call.request.about().split("\n")[0],
            "openapi_extra": {"requestBody": body},
        }
        app.add_api_route(
            path, functools.partial(server.answer, call), methods=["POST"], **shown, **guarded
        )
    app.add_api_route(
        "/v1/runs/{name}/{call}", server.no_such_call, methods=["POST"], include_in_schema=False
    )
    images = {
        "": "An image of the index as JPEG.",
        "/{digest}": "The same, if its content has this digest.",
    }
    for path, summary in images.items() if index is not None else ():
        app.add_api_route(
            f"/v1/images/{{number}}{path}",
            server.image,
            summary=summary,
            response_class=Response,
            **guarded,
        )
    if page is None:
        app.add_route("/", lambda _: PlainTextResponse(WELCOME), include_in_schema=False)
    for path, file in (page or {}).items():
        app.add_route(
            path,
            lambda _, file=file: FileResponse(file, headers=PAGE_HEADERS),
            include_in_schema=False,
        )
    return app


class Service:
    """State that the routes share: runs, the index, room, and the computing thread."""

    def __init__(self, runs: Sequence[Eve], index: Index | None, limits: Limits):
        self.limits, self.room = limits, Room(limits)
        self.counts = Counts(self.room)
        self.runs = dict(zip(distinct(eve.run.name for eve in runs), runs, strict=True))
        self.calls = {name: served_calls(eve, limits) for name, eve in self.runs.items()}
        data = {name: eve.run.config.data for name, eve in self.runs.items()}
        self.notes = {
            name: source_note((*each.train, *each.val)) for name, each in data.items()
        }  # once: it reads the disk
        self.rows = {name: endpoints.generated_rows(eve) for name, eve in self.runs.items()}
        self.index, self.search = index, None
        self.about_index = functools.lru_cache(maxsize=1)(self._about_index)
        self._roots: tuple[int | None, dict[str, str]] = (None, {})
        if index is not None:
            index.database.wait_for_lock(LOCKED)
            index.most_reranked = MOST_RERANKED
            sizes = index.encoder.run.config.input
            own: Any = {
                "sizes": sizes,
                "by_rows": True,
                "num_reranked": self._num_reranked,
                "limits": limits,
            }
            self.search = Endpoint(
                request=Search, call=functools.partial(self._search, index), **own
            )
        self.compute, self.is_gone = Compute(limits, self.counts.batch), False
        self.counts.queue.set_function(lambda: len(self.compute))
        self.decoders = anyio.CapacityLimiter(DECODERS)
        self.disk = anyio.CapacityLimiter(
            1
        )  # images and facts of the index: a disk that hangs stops nothing else

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the computing thread, and finish its queue at the end."""
        self.compute.start()
        yield
        self.compute.end()
        await asyncio.to_thread(self.compute.join)

    async def answer(self, served: Endpoint, request: Request) -> Response:
        """Answer a request for a call."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            given = kind[:80] or "missing"
            raise RequestRefusedError(
                415,
                f"the content-type is {given}, expected application/json and an object of arguments",
            )
        with Reservation(self.room) as place:
            body = await place.body(request)
            until = asyncio.get_running_loop().time() + self.limits.wait_seconds
            if len(body) > SMALL_BODY or b"[" in body or served.has_images(body):
                job, size = await self._in_thread(self.decoders, served.prepare, body, until=until)
            else:
                job, size = served.prepare(body)
            del body
            place.resize(size)
            found = await self._computed(job, request, until)
            del job
            written = await anyio.to_thread.run_sync(as_json, served, found)
            place.resize(len(written))
            return Response(written, media_type="application/json")

    async def _in_thread(
        self,
        limiter: anyio.CapacityLimiter,
        work: Callable[..., Any],
        *given: Any,
        until: float = 0,
    ) -> Any:
        """Return the result of work on a thread.

        until: of the event loop's time; 0: as long as any request may wait. Raises RequestRefusedError if no thread is free
        in time.
        """
        with anyio.CancelScope(
            deadline=until or asyncio.get_running_loop().time() + self.limits.wait_seconds
        ):
            return await anyio.to_thread.run_sync(work, *given, limiter=limiter)
        raise busy(f"the request has waited for {self.limits.wait_seconds:g} s", 5)

    async def _computed(self, job: Job, request: Request, until: float) -> Any:
        """Return a job's result.

        A job that has not started in time, or whose client has gone, is withdrawn; one that has started is waited for.
        """
        result = asyncio.wrap_future(self.compute.submit(job))
        gone, left = (
            asyncio.ensure_future(_gone(request)),
            until - asyncio.get_running_loop().time(),
        )
        try:
            done, _ = await asyncio.wait(
                [result, gone], timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            gone.cancel()
        if result not in done and self.compute.withdraw(job):
            result.cancel()
            raise (
                ClientDisconnect
                if gone in done
                else busy(f"the request has waited for {self.limits.wait_seconds:g} s", 5)
            )
        return await result

    async def health(self) -> JSONResponse:
        """Return whether the server computes and had its index at the last request."""
        if (
            self.is_gone
        ):  # no look at the disk: one that hangs must not look like a server that is down
            raise RequestRefusedError(503, GONE)
        return (
            JSONResponse({"status": "ok"})
            if self.compute.is_alive()
            else JSONResponse({"status": "failed"}, 503)
        )

    async def metrics(self) -> Response:
        """Return the counters."""
        return Response(
            generate_latest(self.counts.registry), media_type="text/plain; version=0.0.4"
        )

    async def list_runs(self) -> JSONResponse:
        """Return the runs, their calls and forms, and the index."""
        about, rows = None, {}
        if (index := self.index) is not None:
            about, shown = await self._in_thread(
                self.disk, lambda: self.about_index(index, index.version)
            )
            rows = {about["run"]: shown} if shown else {}
        return JSONResponse(
            {
                "runs": [self._about(name, rows.get(name, self.rows[name])) for name in self.runs],
                "index": about,
            }
        )

    def _about(self, name: str, rows: Sequence[Row]) -> dict[str, Any]:
        run = self.runs[name].run
        sizes, labels = run.config.input, list(run.task.sizes.labels)
        forms = {call: form for call, served in self.calls[name].items() if (form := served.form())}
        shown = {
            call: bodies(served, rows)
            for call, served in self.calls[name].items()
            if call in (*forms, *OTHER_TABS)
        }
        about = {
            "name": name,
            "task": run.config.task.name,
            "step": run.step,
            "calls": list(self.calls[name]),
            "forms": forms,
        }
        about |= {
            "image_size": sizes.image_size,
            "patch_size": sizes.patch_size,
            "text_length": sizes.text_length,
        }
        about |= {"labels": labels} if labels else {}
        about["examples"] = {call: found for call, found in shown.items() if found}
        about["generated"] = generated_names(run.config.data.train)
        return about | ({"note": self.notes[name]} if self.notes[name] else {})

    def _about_index(self, index: Index, _: int) -> tuple[dict[str, Any], list[Row]]:
        """Return the facts of a version of the index, and rows for examples."""
        counts, text_queries = index.counts(), bool(index.encoder.task.is_comparable)
        about: dict[str, Any] = {
            "images": counts["images"],
            "captions": counts["captions"],
            "text_queries": text_queries,
        }
        about["run"] = next((name for name, eve in self.runs.items() if eve is index.encoder), None)
        about |= {
            "folders": list(self._roots_of(index)),
            "captions_searchable": text_queries and counts["captions"] > 0,
        }
        return about | {
            "columns": index.columns(),
            "examples": index.examples(),
        }, endpoints.index_rows(index)

    def _search(
        self,
        index: Index,
        query: Any = "",
        image: Any = None,
        folder: str | None = None,
        **options: Any,
    ) -> Any:
        """Return the hits of one query, or of each of several."""
        started, roots = time.perf_counter(), self._roots_of(index)
        path = None if folder is None else folder_of(roots, folder)
        found = index.search_each(*in_rows(query, image), folder=path, **options)
        shown = [
            hits_as_values(index, roots, hits, is_captions=options["captions"]) for hits in found
        ]
        seconds = time.perf_counter() - started
        each = [
            {
                "hits": values,
                "nothing_fits": hits.nothing_fits,
                "note": hits.note,
                "seconds": seconds,
            }
            for values, hits in zip(shown, found, strict=True)
        ]
        return each if isinstance(query, list) or isinstance(image, list) else each[0]

    def _num_reranked(self, given: Mapping[str, Any]) -> int:
        """Return how many hits of a row are re-ranked, at most."""
        assert self.index is not None
        how = SearchOptions(**{name: given[name] for name in ("by", "captions", "rerank")})
        pairs = zip(
            *in_rows(given["query"], given["image"]), strict=False
        )  # lists of other lengths are refused later
        return max(
            (self.index.num_reranked(query, image, how) for query, image in pairs), default=0
        )

    def _roots_of(self, index: Index) -> dict[str, str]:
        """Return the folders of the sources by public name.

        Sources may change while the server runs.
        """
        version = index.version
        if self._roots[0] != version:
            roots = index.folders()
            names = distinct(Path(root).name or "images" for root in roots)
            self._roots = version, dict(zip(names, roots, strict=True))
        return self._roots[1]

    async def no_such_call(self, name: str, call: str) -> None:
        """Refuse an unknown run or call, and name the known ones."""
        if name not in self.runs:
            raise RequestRefusedError(404, f"no run {nearest(name, self.runs)}")
        raise RequestRefusedError(
            404, f"the run {name} has no call {nearest(call, self.calls[name])}"
        )

    async def image(
        self, number: int, digest: str | None = None, size: Side = THUMBNAIL
    ) -> Response:
        """Return an image of the index, its longer side at most `size` pixels.

        digest: of its content, because an update may give the number to another image.
        """
        index = self.index
        if index is None or not 0 <= number < 2**63:
            raise RequestRefusedError(404, f"no image {number}")

        def thumbnail() -> bytes:
            try:
                image = index.image(number)
                if digest not in (None, index.digests([number]).get(number)):
                    raise RequestRefusedError(
                        404, f"image {number} is another one by now; search again"
                    )
                return encoded(image.whole(size), "JPEG")
            except BadSampleError as error:  # which may name any file of a source
                LOG.warning("%s", error)
                raise RequestRefusedError(
                    404, f"image {number} cannot be shown; the server's log says why"
                ) from None

        with Reservation(self.room):
            data = await self._in_thread(self.disk, thumbnail)
        return Response(
            data, media_type="image/jpeg", headers=UNCACHED if digest is None else CACHED
        )

    def _cleaned(self, message: str) -> str:
        """Return a message without paths of the server."""
        folders = {eve.run.folder: name for name, eve in self.runs.items()}
        if self.index is not None:
            folders[self.index.database.folder] = "index"
        known = {root: name for name, root in self._roots[1].items()}
        known |= {
            str(path): name
            for folder, name in folders.items()
            for path in (folder, folder.absolute())
        }
        return without_paths(message, known)

    async def answer_to(self, _: Request, error: Exception) -> Response:
        """Return the answer to an error: one line without paths of the server.

        The log explains errors of the server.
        """
        match error:
            case RequestRefusedError():
                return answer_of(error)
            case DamagedError(is_locked=True):
                return answer_of(busy("the index is being written"))
            case DamagedError():
                LOG.error("%s", error)
                self.is_gone |= error.is_gone
                if error.is_gone:
                    return answer_of(RequestRefusedError(503, GONE))
            case UserError():
                return answer_of(RequestRefusedError(400, self._cleaned(str(error))))
            case RequestValidationError():
                first = error.errors()[0]
                return answer_of(RequestRefusedError(400, f"{first['loc'][-1]}: {first['msg']}"))
            case HTTPException():
                return answer_of(
                    RequestRefusedError(error.status_code, error.detail, error.headers)
                )
            case ClientDisconnect():
                return answer_of(RequestRefusedError(400, "the body is incomplete"))
        return answer_of(
            RequestRefusedError(500, "the server failed at this request; its log says why")
        )


async def _gone(request: Request) -> None:
    """Wait until the client disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def in_rows(*values: Any) -> list[list[Any]]:
    """Return arguments of a search as lists with an item for each row."""
    num = max((len(value) for value in values if isinstance(value, list)), default=1)
    return [value if isinstance(value, list) else [value] * num for value in values]


def distinct(names: Iterable[str]) -> list[str]:
    """Return names with repeated ones numbered: photos, photos-2."""
    found: list[str] = []
    for name in names:
        others = (f"{name}-{number}" for number in itertools.count(2))
        found.append(next(each for each in itertools.chain([name], others) if each not in found))
    return found


def without_paths(text: str, known: Mapping[str, str]) -> str:
    """Replace known paths in a message by names, and other paths by their last part.

    known: names by path, as absolute paths or as a person typed them. Paths of a single part are kept.
    """
    for path in sorted(known, key=len, reverse=True):
        if os.sep in path.strip(os.sep) or os.path.isabs(path):  # noqa: PTH117
            text = re.sub(
                rf"(?<![\w.~/-]){re.escape(path)}(?![\w.-])", lambda _, name=known[path]: name, text
            )
    return PATH.sub("", text)


def folder_of(roots: Mapping[str, str], given: str) -> str:
    """Return the path of a folder by its public name. Raises RequestRefusedError."""
    label, *parts = given.strip("/").split("/")
    if label not in roots:
        raise RequestRefusedError(400, f"folder: no folder {nearest(label, roots)}")
    if {"..", "."} & {*parts}:
        raise RequestRefusedError(
            400, f"folder: {given!r} has . or .. in it; name a folder of the index"
        )
    return os.path.join(roots[label], *parts)  # noqa: PTH118


def hits_as_values(
    index: Index, roots: Mapping[str, str], hits: list[Hit], *, is_captions: bool
) -> list[dict[str, Any]]:
    """Return hits as JSON values, with public names of images."""

    def public(name: str) -> str:
        for label, root in roots.items():
            if name.startswith(os.path.join(root, "")):  # noqa: PTH118
                return f"{label}/{name[len(root) :].lstrip(os.sep)}"
        return name.rpartition(os.sep)[2]

    digests = index.digests([hit.id for hit in hits])
    return [
        vars(hit)
        | {
            "why": hit.why,
            "name": hit.name if is_captions else public(hit.name),
            "images": [*map(public, hit.images)],
        }
        # with its content, because numbers of deleted images are used again
        | {
            "near": hit.near and public(hit.near),
            "image": f"/v1/images/{hit.id}/{digests.get(hit.id, 'gone')}",
        }
        for hit in hits
    ]
