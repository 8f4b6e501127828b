"""Who may read the page: a browser on this machine, or whoever has the token; and what the page may load: only itself.

Any web site can make a browser ask 127.0.0.1, under a name of its own that it has pointed there (DNS rebinding). So a
request must call this server by a name that only this server has. Nothing here changes anything: other methods than GET
and HEAD are refused.
"""

import hmac
import ipaddress
from dataclasses import dataclass
from http.cookies import SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; font-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Access:
    """Who may read the page.

    Attributes:
        names: what a request may call this server, besides loopback; any address will do where there is a token.
        token: that a request must bring; empty for none.
        cookie: the name of the cookie that keeps the token.
    """

    names: frozenset[str] = frozenset()
    token: str = ""
    cookie: str = "fedgraft"

    def is_named(self, host: str) -> bool:
        """Whether a Host header names this server; a stranger can point a name of theirs here, but not an address."""
        name = _without_port(host)
        return name in _LOOPBACK or name in self.names or (bool(self.token) and _is_address(name))

    def is_token(self, given: str) -> bool:
        """Whether a text is the token, in constant time."""
        return hmac.compare_digest(given.encode(), self.token.encode())


class Guard:
    """Refuses what may not be read, and adds the headers that keep the page to itself."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        refused = self._refused(scope, Headers(scope=scope))
        await (refused or self._app)(scope, receive, send_guarded)

    def _refused(self, scope: Scope, headers: Headers) -> Response | None:
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("This page is read-only.", 405, {"Allow": "GET, HEAD"})
        if not self._access.is_named(headers.get("host", "")):
            return PlainTextResponse("This server has another name.", 421)
        if not self._access.token:
            return None
        brought = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if brought and self._access.is_token(brought):
            entered = RedirectResponse(scope["path"], 303)  # the token stays out of the history and of bookmarks
            entered.set_cookie(self._access.cookie, brought, httponly=True, samesite="strict")
            return entered
        cookies = SimpleCookie(headers.get("cookie", ""))
        kept = cookies[self._access.cookie].value if self._access.cookie in cookies else ""
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if self._access.is_token(kept) or self._access.is_token(bearer):
            return None
        return PlainTextResponse("This page needs the token that fedgraft watch has printed.", 401)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
