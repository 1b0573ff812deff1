"""The server's addresses: the report of a job as it grows, and the panel."""

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

from fastviz.images import ImageError
from fastviz.jobs.report.page import asset, rendered
from fastviz.jobs.serve.desk import Desk
from fastviz.jobs.serve.guard import Guard
from fastviz.jobs.serve.known import Known, small
from fastviz.jobs.serve.live import Live
from fastviz.jobs.serve.looks import SLOW, Look, Looks
from fastviz.jobs.serve.networks import Network
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
    live: Live | None = None,
    networks: Sequence[Network] = (),
    known: Known | None = None,
    name: str = "",
    without: str = "",
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        token: see :class:`fastviz.jobs.serve.guard.Guard`.
        live: the job whose report it shows; None is the panel alone.
        networks: those that the panel offers.
        known: see :class:`fastviz.jobs.serve.looks.Looks`.
        name: see the guard.
        without: why there are no networks, in one sentence.

    Returns:
        The application behind its guard.
    """
    known = Known({}, live) if known is None else known
    desk = Desk()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        desk.close()

    # its own pages of documentation would load scripts from elsewhere
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    _answer_errors(app)
    _add_report(app, live)
    _add_panel(app, desk, Looks(networks, known), known, live, without)
    app.add_middleware(Guard, token=token, name=name)
    return app


def _answer_errors(app: FastAPI) -> None:
    """What is refused is one sentence, under ``error``."""
    statuses = {TooLarge: 413, LookupError: 404, ImageError: 422, ValueError: 409}
    for kind, status in statuses.items():

        async def told(request: Request, error: Exception, status: int = status) -> Response:
            return JSONResponse({"error": " ".join(str(error).split())}, status)

        app.add_exception_handler(kind, told)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": "There is nothing at this address."}, error.status_code)

    app.add_exception_handler(HTTPException, http)


def _add_report(app: FastAPI, live: Live | None) -> None:
    @app.get("/report_files/{name}")
    def files(name: str) -> Response:
        if name in _ASSETS:
            return Response(asset(name), media_type=_ASSETS[name])
        kind, _, number = name.removesuffix(".jpg").partition("-")
        if live is None or kind not in ("photos", "maps") or not (number.isascii() and number.isdecimal()):
            raise LookupError("There is no such file.")
        # the address names the version and the number of lines: another picture has another address
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


def _add_panel(app: FastAPI, desk: Desk, looks: Looks, known: Known, live: Live | None, without: str) -> None:
    photographs = Photographs()

    @app.get("/panel")
    def panel() -> Response:
        known.refresh()
        told = {
            "networks": [network.words() for network in looks.networks],
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
            look = Look.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(map(str, first["loc"])) or "settings"
            return JSONResponse({"error": f"{place}: {first['msg']}"}, 422)
        _check(look, looks.networks)
        name, photograph = photographs.get(look.photo)
        events = desk.events(look.page, lambda order: looks.see(look, name, photograph, order))
        return StreamingResponse(_lines(events), media_type="application/x-ndjson")


def _check(look: Look, networks: Sequence[Network]) -> None:
    """Refuse what no network has, before anything runs."""
    if look.network >= len(networks):
        raise LookupError("There is no such network.")
    if look.layer not in networks[look.network].layers:
        raise LookupError(f"{networks[look.network].name} has no layer with maps called {look.layer!r}.")
    for method in look.methods:
        if method not in EXPLAINERS:
            raise LookupError(f"There is no method called {method!r}.")


async def _lines(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    async for event in events:
        yield json.dumps(event).encode() + b"\n"
