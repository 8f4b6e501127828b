"""The page's application: `/` the page, `/api/run` what it shows as JSON, `/events` the same as it changes.

The disk is looked at only while somebody watches, by one thread at a time, however many watch.
"""

import time
from collections.abc import AsyncIterator, Callable
from importlib.resources import files

import anyio
from anyio import to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from fedgraft.core.errors import UserError
from fedgraft.core.plain_text import plain
from fedgraft.watch.guard import Access, Guard
from fedgraft.watch.source import Source

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "woff2": "font/woff2",
    "svg": "image/svg+xml",
}
_KEEP_ALIVE_SECONDS = 15.0
_RETRY = b"retry: 2000\n\n"
Event = tuple[str, bytes]


class Feed:
    """A source, looked at when somebody asks, but not more often than it pays.

    Args:
        tick: seconds between two looks.
    """

    def __init__(self, source: Source, tick: float = 1.0) -> None:
        self.source, self.tick = source, tick
        self._lock, self._looked = anyio.Lock(), 0.0
        self._problem = ""

    async def view(self, run: str | None, scope: str | None) -> bytes:
        """What the page shows at present."""
        await self._refresh()
        return await to_thread.run_sync(self.source.view, run, scope)

    async def events(self, run: str | None, scope: str | None, ended: Callable[[], bool]) -> AsyncIterator[Event]:
        """What the page shows, whenever it has changed, until the server ends; an event without a name keeps alive."""
        shown, load, problem, sent = -1, -1, "", time.monotonic()
        while not ended():
            await self._refresh()
            event: Event | None = None
            if self._problem != problem:
                problem = self._problem
                yield "problem", problem.encode()
            if self.source.revision != shown:
                shown, load = self.source.revision, self.source.load_revision
                event = "run", await to_thread.run_sync(self.source.view, run, scope)
            elif self.source.load_revision != load:
                load = self.source.load_revision
                event = "load", self.source.load()
            elif time.monotonic() - sent > _KEEP_ALIVE_SECONDS:
                event = "", b""
            if event is not None:
                sent = time.monotonic()
                yield event
            await anyio.sleep(self.tick)

    async def _refresh(self) -> None:
        async with self._lock:
            if time.monotonic() - self._looked < self.tick / 2:
                return
            try:
                await to_thread.run_sync(self.source.refresh)
                self._problem = ""
            except (UserError, OSError) as error:
                self._problem = plain(str(error))
            self._looked = time.monotonic()


def application(
    source: Source, access: Access | None = None, tick: float = 1.0, ended: Callable[[], bool] = lambda: False
) -> Starlette:
    """The application that shows a source.

    Args:
        tick: seconds between two looks at the disk.
        ended: whether the server is ending, and its streams with it.
    """
    feed, shipped = Feed(source, tick), _shipped()

    async def page(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in shipped:
            return JSONResponse({"error": "There is no such page."}, 404)
        return Response(shipped[name], media_type=_TYPES[name.rpartition(".")[2]])

    async def api_run(request: Request) -> Response:
        run, scope = request.query_params.get("run"), request.query_params.get("scope")
        if not source.knows(run):
            return _no_run()
        return Response(await feed.view(run, scope), media_type="application/json")

    async def events(request: Request) -> Response:
        run, scope = request.query_params.get("run"), request.query_params.get("scope")
        if not source.knows(run):
            return _no_run()
        stream = _encoded(feed.events(run, scope, ended))
        return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    routes = [Route("/", page), Route("/api/run", api_run), Route("/events", events), Route("/{name}", page)]
    middleware = [
        Middleware(Guard, access=access or Access()),
        Middleware(GZipMiddleware, minimum_size=2000, compresslevel=3),
    ]
    return Starlette(routes=routes, middleware=middleware)


def _no_run() -> Response:
    return JSONResponse({"error": "There is no run of this name."}, 404)


async def _encoded(events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
    """Server-sent events; JSON is one line, so each is one line of data."""
    yield _RETRY
    async for name, data in events:
        yield f"event: {name}\ndata: ".encode() + data + b"\n\n" if name else b": still here\n\n"


def _shipped() -> dict[str, bytes]:
    """The page's files by name; nothing else of the disk can be asked for."""
    page = files("fedgraft.watch") / "page"
    return {entry.name: entry.read_bytes() for entry in page.iterdir() if entry.name.rpartition(".")[2] in _TYPES}
