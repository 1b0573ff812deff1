"""The server's routes: the live report of a job, and the panel."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Path, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from fastviz._util.errors import one_line
from fastviz.images import ImageError
from fastviz.jobs.report.page import asset, rendered
from fastviz.jobs.serve.device_queue import DeviceQueue
from fastviz.jobs.serve.guard import Guard
from fastviz.jobs.serve.known_photographs import KnownPhotographs, small
from fastviz.jobs.serve.live_report import LiveReport
from fastviz.jobs.serve.networks import ServedNetwork
from fastviz.jobs.serve.panel import SLOW, Panel, PanelRequest
from fastviz.jobs.serve.uploads import LIMIT_BYTES, Photographs, TooLarge, body_of
from fastviz.methods.registry import EXPLAINERS

__all__ = ["application"]

_ASSETS = {
    "report.js": "text/javascript",
    "report.css": "text/css",
    "panel.js": "text/javascript",
    "panel.css": "text/css",
}
_SETTINGS_BYTES = 1 << 16

Number = Annotated[int, Path(ge=0, le=10**9)]


def application(
    token: str,
    *,
    live: LiveReport | None = None,
    networks: Sequence[ServedNetwork] = (),
    known: KnownPhotographs | None = None,
    name: str = "",
    without: str = "",
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        token: see :class:`fastviz.jobs.serve.guard.Guard`.
        live: the report of the job; None serves only the panel.
        networks: the networks that the panel offers.
        known: see :class:`fastviz.jobs.serve.panel.Panel`.
        name: see :class:`fastviz.jobs.serve.guard.Guard`.
        without: why there are no networks, in one sentence.

    Returns:
        The application, protected by the guard.
    """
    known = KnownPhotographs({}, live) if known is None else known
    queue = DeviceQueue()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        queue.close()

    # FastAPI's documentation pages would load scripts from other hosts.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    _answer_errors(app)
    _add_report(app, live)
    _add_panel(app, queue, Panel(networks, known), known, live, without)
    app.add_middleware(Guard, token=token, name=name)
    return app


def _answer_errors(app: FastAPI) -> None:
    """Answer errors with a JSON object whose ``error`` is one sentence."""
    statuses = {TooLarge: 413, LookupError: 404, ImageError: 422, ValueError: 409}
    for kind, status in statuses.items():

        async def told(request: Request, error: Exception, status: int = status) -> Response:
            return JSONResponse({"error": one_line(error)}, status)

        app.add_exception_handler(kind, told)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": "There is nothing at this address."}, error.status_code)

    app.add_exception_handler(HTTPException, http)


def _add_report(app: FastAPI, live: LiveReport | None) -> None:
    @app.get("/report_files/{name}")
    def files(name: str) -> Response:
        if name in _ASSETS:
            return Response(asset(name), media_type=_ASSETS[name])
        kind, _, number = name.removesuffix(".jpg").partition("-")
        if live is None or kind not in ("photos", "maps") or not (number.isascii() and number.isdecimal()):
            raise LookupError("There is no such file.")
        # The page's URL contains the version and the number of lines, so the answer may be cached.
        return Response(
            live.sheet(kind, int(number[:12])),
            media_type="image/jpeg",
            headers={"cache-control": "private, max-age=600"},
        )

    @app.get("/")
    def report() -> Response:
        if live is None:
            return RedirectResponse("panel", 303)
        told = live.page()
        title = f"What {told.pop('model')} looks at"
        page = rendered("report.html", title=title, sources="'self'", **told)
        return Response(page, media_type="text/html; charset=utf-8")

    @app.get("/lines")
    def lines(version: str = "", start: int = 0) -> dict[str, Any]:
        if live is None:
            raise LookupError("There is no job.")
        return live.lines(version, max(0, start))


def _add_panel(
    app: FastAPI, queue: DeviceQueue, panel: Panel, known: KnownPhotographs, live: LiveReport | None, without: str
) -> None:
    photographs = Photographs()

    @app.get("/panel")
    def panel_page() -> Response:
        known.refresh()
        told = {
            "networks": [network.words() for network in panel.networks],
            "methods": [{"name": name, "words": name.replace("_", " "), "slow": name in SLOW} for name in EXPLAINERS],
            "known": known.names,
            "limit": LIMIT_BYTES,
        }
        page = rendered("panel.html", page=told, has_report=live is not None, without=without)
        return Response(page, media_type="text/html; charset=utf-8")

    @app.post("/photo")
    async def photo(request: Request) -> dict[str, str]:
        content = await body_of(request, LIMIT_BYTES)
        return {"photo": await run_in_threadpool(photographs.keep, content, "photograph"), "name": "photograph"}

    @app.post("/photo/{of}/{number}")
    def photo_of(of: Literal["line", "known"], number: Number) -> dict[str, str]:
        if of == "line" and live is None:
            raise LookupError("There is no job.")
        name, content = live.photograph(number) if of == "line" and live is not None else known.content(number)
        return {"photo": photographs.keep(content, name), "name": name}

    @app.get("/photo/{key}.jpg")
    def kept(key: str) -> Response:
        return Response(small(*photographs.get(key)), media_type="image/jpeg")

    @app.get("/known/{number}.jpg")
    def one_known(number: Number) -> Response:
        return Response(small(*known.content(number), square=96), media_type="image/jpeg")

    @app.post("/see")
    async def see(request: Request) -> Response:
        content = await body_of(request, _SETTINGS_BYTES)
        try:
            wanted = PanelRequest.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(map(str, first["loc"])) or "settings"
            return JSONResponse({"error": f"{place}: {first['msg']}"}, 422)
        _check(wanted, panel.networks)
        name, photograph = photographs.get(wanted.photo)
        events = queue.events(wanted.page, lambda task: panel.see(wanted, name, photograph, task))
        return StreamingResponse(_lines(events), media_type="application/x-ndjson")


def _check(wanted: PanelRequest, networks: Sequence[ServedNetwork]) -> None:
    """Raise for a network, layer or method that does not exist, before anything runs."""
    if wanted.network >= len(networks):
        raise LookupError("There is no such network.")
    if wanted.layer not in networks[wanted.network].layers:
        raise LookupError(f"{networks[wanted.network].name} has no layer with maps called {wanted.layer!r}.")
    for method in wanted.methods:
        if method not in EXPLAINERS:
            raise LookupError(f"There is no method called {method!r}.")


async def _lines(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    async for event in events:
        yield json.dumps(event).encode() + b"\n"
