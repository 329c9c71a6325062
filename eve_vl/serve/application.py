"""The routes of the server and their description in OpenAPI."""

import functools
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, PlainTextResponse, Response

from eve_vl import __version__
from eve_vl.eve import Eve
from eve_vl.search.index import Index
from eve_vl.serve.admission import AdmissionMiddleware
from eve_vl.serve.endpoints import Endpoint
from eve_vl.serve.limits import Limits
from eve_vl.serve.page_files import PAGE_HEADERS, page_files
from eve_vl.serve.refusals import RequestRefusedError
from eve_vl.serve.service import Service
from eve_vl.utils.errors import UserError

WELCOME = (
    "EVE answers JSON requests: /openapi.json describes them, /v1/runs lists the runs. "
    "Without --no-page, eve serve also serves a page here.\n"
)
BEARER = HTTPBearer(auto_error=False, description="The server's token.")
ERROR = {"type": "object", "properties": {"error": {"type": "string"}}}
STATUSES = (400, 401, 404, 408, 413, 415, 500, 503)
HANDLED_ERRORS = (
    RequestRefusedError,
    HTTPException,
    RequestValidationError,
    UserError,
    ClientDisconnect,
    Exception,
)


def application(
    runs: Sequence[Eve],
    index: Index | None = None,
    limits: Limits | None = None,
    *,
    token: str | None = None,
    with_page: bool = False,
) -> FastAPI:
    """Return the server of some runs, and of the index of one of them.

    token: required by every request except /healthz and the page; None: only requests to localhost
    are answered. with_page: whether to serve the web page.
    """
    service = Service(runs, index, limits or Limits())
    app = FastAPI(
        title="EVE",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lambda _: service.running(),
    )
    app.state.service = service
    page = page_files() if with_page else {}
    app.add_middleware(
        AdmissionMiddleware,
        metrics=service.counters,
        body_seconds=service.limits.body_seconds,
        token=token,
        open_paths=page,
    )
    for error in HANDLED_ERRORS:
        app.add_exception_handler(error, service.answer_to)

    guarded: dict[str, Any] = {"responses": _responses()}
    if token is not None:
        guarded["dependencies"] = [Security(BEARER)]
    _add_facts(app, service, guarded)
    _add_calls(app, service, guarded)
    if service.index is not None:
        _add_images(app, service, guarded)
    if not with_page:
        app.add_route("/", lambda _: PlainTextResponse(WELCOME), include_in_schema=False)
    for path, file in page.items():
        app.add_route(
            path,
            lambda _, file=file: FileResponse(file, headers=PAGE_HEADERS),
            include_in_schema=False,
        )
    return app


def _responses() -> dict[int | str, dict[str, Any]]:
    """Return the description of all errors."""
    responses: dict[int | str, dict[str, Any]] = {}
    for status in STATUSES:
        responses[status] = {
            "description": HTTPStatus(status).phrase,
            "content": {"application/json": {"schema": ERROR}},
        }
    responses["default"] = {"description": "Any other error."}  # or FastAPI would list 422
    return responses


def _add_facts(app: FastAPI, service: Service, guarded: dict[str, Any]) -> None:
    health = "Whether the server computes and has its index."
    app.add_api_route("/healthz", service.health, summary=health)
    app.add_api_route("/healthz", service.health, methods=["HEAD"], include_in_schema=False)
    app.add_api_route(
        "/metrics",
        service.metrics,
        summary="Counters of the server, for Prometheus.",
        response_class=PlainTextResponse,
        **guarded,
    )
    app.add_api_route(
        "/v1/runs", service.list_runs, summary="The runs, their calls, and the index.", **guarded
    )


def _add_calls(app: FastAPI, service: Service, guarded: dict[str, Any]) -> None:
    """Add a route for each call of each run, and the search."""
    endpoint_of_path: dict[str, Endpoint] = {}
    for run_name, endpoints in service.endpoints.items():
        for call, endpoint in endpoints.items():
            endpoint_of_path[f"/v1/runs/{run_name}/{call}"] = endpoint
    if service.index is not None:
        endpoint_of_path["/v1/search"] = service.index.endpoint
    for path, endpoint in endpoint_of_path.items():
        schema = endpoint.model.model_json_schema()
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        about = endpoint.request.about()
        app.add_api_route(
            path,
            functools.partial(service.answer, endpoint),
            methods=["POST"],
            summary=about.split("\n")[0],
            description=about,
            operation_id=path.strip("/").replace("/", "_"),
            openapi_extra={"requestBody": body},
            **guarded,
        )
    app.add_api_route(
        "/v1/runs/{name}/{call}",
        service.refuse_unknown_call,
        methods=["POST"],
        include_in_schema=False,
    )


def _add_images(app: FastAPI, service: Service, guarded: dict[str, Any]) -> None:
    summaries = {
        "/v1/images/{number}": "An image of the index as JPEG.",
        "/v1/images/{number}/{digest}": "The same, if its content has this digest.",
    }
    for path, summary in summaries.items():
        app.add_api_route(path, service.image, summary=summary, response_class=Response, **guarded)
