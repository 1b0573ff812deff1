"""Who may speak with the server: whoever knows the token, from a page of its own, under a name that is its own."""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlencode, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guard"]

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
}
"""Sent with every answer. There are no CORS headers: no other page may read what this server says."""

_YEAR = 365 * 24 * 3600


class Guard:
    """An ASGI application that lets requests through to ``app`` only if all of this holds.

    - The ``Host`` header is an address, ``localhost``, or the ``name`` given: a page of another name that a name server
      points at this machine (DNS rebinding) is refused.
    - The request is not made by a page of another origin, as ``Sec-Fetch-Site`` and ``Origin`` tell.
    - It brings the token: in the cookie, in ``Authorization: Bearer``, or, once, in the address. That answers with the
      cookie, which scripts cannot read, and the address without it. Tokens are compared in constant time.

    Args:
        app: the application behind it.
        token: what a request must know.
        name: a further name that the server may be called by.
    """

    def __init__(self, app: ASGIApp, token: str, name: str = "") -> None:
        self._app, self._token, self._name = app, token.encode(), name.lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let it through."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        answer = self._answer(Request(scope))
        await (self._app if answer is None else answer)(scope, receive, sending)

    def _answer(self, request: Request) -> Response | None:
        """What to answer in place of the application; None lets the request through."""
        host = request.headers.get("host", "")
        if not self._is_own(host):
            return _refused(request, 421, "This server is called by its address or as localhost, not by another name.")
        token = request.query_params.get("token")
        if token is not None and request.method == "GET" and self._fits(token):
            return self._welcome(request)
        if self._is_foreign(request, host):
            return _refused(request, 403, "Pages of other servers may not ask this one.")
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not (self._fits(request.cookies.get(_cookie(request), "")) or self._fits(bearer)):
            return _refused(request, 401, "Open the address that fastviz serve has printed: it has the token.")
        return None

    def _fits(self, token: str) -> bool:
        return hmac.compare_digest(token.encode("utf-8", "surrogateescape"), self._token)

    def _welcome(self, request: Request) -> Response:
        rest = urlencode([(name, value) for name, value in request.query_params.multi_items() if name != "token"])
        # one slash: two would be the address of another server
        answer = RedirectResponse("/" + request.url.path.lstrip("/\\") + (f"?{rest}" if rest else ""), 303)
        answer.set_cookie(_cookie(request), self._token.decode(), max_age=_YEAR, httponly=True, samesite="lax")
        return answer

    def _is_own(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return bool(name) and name in ("localhost", self._name)
        return True

    def _is_foreign(self, request: Request, host: str) -> bool:
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return True
        site = request.headers.get("sec-fetch-site", "none")
        opened = request.method == "GET" and request.headers.get("sec-fetch-mode") == "navigate"
        return site not in ("none", "same-origin") and not opened


def _cookie(request: Request) -> str:
    """The cookie's name: browsers give those of all ports of a machine to each."""
    server = request.scope.get("server")
    return f"fastviz-{server[1] if server else 0}"


def _refused(request: Request, status: int, words: str) -> Response:
    if "text/html" in request.headers.get("accept", ""):
        return PlainTextResponse(words + "\n", status)
    return JSONResponse({"error": words}, status)
