"""Access control: requests need the token, must come from the server's own pages, and must use the server's name."""

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
"""Sent with every response. There are no CORS headers, so pages of other sites cannot read the responses."""

_YEAR = 365 * 24 * 3600


class Guard:
    """An ASGI application that passes a request to ``app`` only if all of these conditions hold.

    - The ``Host`` header is an IP address, ``localhost``, or ``name``. This prevents DNS rebinding, in which another
      host name is made to point at this machine.
    - The request does not come from a page of another origin, according to ``Sec-Fetch-Site`` and ``Origin``.
    - It has the token: in the cookie, in ``Authorization: Bearer``, or, the first time, in the URL. In the last case
      the response sets the cookie, which scripts cannot read, and redirects to the URL without the token. Tokens are
      compared in constant time.

    Args:
        app: the protected application.
        token: the token that requests need.
        name: a further host name of the server.
    """

    def __init__(self, app: ASGIApp, token: str, name: str = "") -> None:
        self._app, self._token, self._name = app, token.encode(), name.lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it to the application."""
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
        """The response to a request that must not reach the application; None lets the request through."""
        host = request.headers.get("host", "")
        if not self._is_own(host):
            return _refused(request, 421, "Use this server's IP address or localhost, not another host name.")
        token = request.query_params.get("token")
        if token is not None and request.method == "GET" and self._fits(token):
            return self._welcome(request)
        if self._is_foreign(request, host):
            return _refused(request, 403, "Requests from pages of other sites are refused.")
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not (self._fits(request.cookies.get(_cookie(request), "")) or self._fits(bearer)):
            return _refused(request, 401, "Open the address that fastviz serve printed: it has the token.")
        return None

    def _fits(self, token: str) -> bool:
        return hmac.compare_digest(token.encode("utf-8", "surrogateescape"), self._token)

    def _welcome(self, request: Request) -> Response:
        rest = urlencode([(name, value) for name, value in request.query_params.multi_items() if name != "token"])
        # A single slash: two would start the address of another server.
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
    """The cookie's name. It contains the port, because browsers share cookies between the ports of a host."""
    server = request.scope.get("server")
    return f"fastviz-{server[1] if server else 0}"


def _refused(request: Request, status: int, words: str) -> Response:
    if "text/html" in request.headers.get("accept", ""):
        return PlainTextResponse(words + "\n", status)
    return JSONResponse({"error": words}, status)
