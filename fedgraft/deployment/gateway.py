"""The one exposed port of a server: TLS with a client certificate, and of the SuperLink only its fleet interface.

`python -m fedgraft.deployment.gateway DIR` serves a server's folder. `fedgraft server admit` issues the certificates;
one on the revocation list is refused within a second, and connections that are open when the list changes are closed.
"""

import asyncio
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from fedgraft.core.logs import log_lines_to_stderr
from fedgraft.deployment.contacts import Contacts
from fedgraft.flower.guarded import FLEET, GATEWAY_HEADER, secret_text
from fedgraft.runs.server_folder import ServerFolder

_LARGEST_BYTES = 256 * 1024 * 1024
_SECONDS = 120.0


Heard = Callable[[tuple[str, int], str], None]


def gateway_app(superlink: httpx.AsyncClient, secret: str, heard: Heard = lambda client, method: None) -> Starlette:
    """An ASGI application that passes fleet requests on and answers all others with 404.

    Args:
        superlink: a client whose base URL is the SuperLink's.
        secret: by which the SuperLink knows the gateway.
        heard: called with the address that a request comes from, and its method.
    """

    async def passed_on(request: Request) -> Response:
        if request.client is not None:
            heard((request.client.host, request.client.port), request.path_params["method"])
        if "content-length" not in request.headers:
            return PlainTextResponse("The message does not say its length.", 411)
        if int(request.headers["content-length"]) > _LARGEST_BYTES:
            return PlainTextResponse("The message is too large.", 413)
        headers = {name: value for name, value in request.headers.items() if name not in ("host", GATEWAY_HEADER)}
        sent = superlink.build_request(
            "POST", request.url.path, content=request.stream(), headers={**headers, GATEWAY_HEADER: secret}
        )
        try:
            answer = await superlink.send(sent)
        except httpx.HTTPError:
            return PlainTextResponse("The SuperLink does not answer.", 502)
        kept = {name: answer.headers[name] for name in ("content-type", "retry-after") if name in answer.headers}
        return Response(answer.content, answer.status_code, kept)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await superlink.aclose()

    return Starlette(routes=[Route(FLEET + "{method}", passed_on, methods=["POST"])], lifespan=lifespan)


class Gateway(uvicorn.Server):
    """The gateway of a server's folder, which reads the revocation list again whenever it changes."""

    def __init__(self, folder: ServerFolder) -> None:
        self._contacts = Contacts(folder.path)
        names: dict[tuple[str, int], str] = {}

        def heard(client: tuple[str, int], method: str) -> None:
            if client in names:
                self._contacts.heard(names[client], method)

        trusted = ssl.create_default_context(cafile=str(folder.authority))
        client = httpx.AsyncClient(
            base_url=f"https://127.0.0.1:{folder.superlink_port}", verify=trusted, timeout=_SECONDS
        )
        config = uvicorn.Config(
            gateway_app(client, secret_text(folder.gateway_secret), heard),
            http=_naming(names),
            host="0.0.0.0",
            port=folder.port,
            ssl_certfile=str(folder.certificate),
            ssl_keyfile=str(folder.private_key),
            ssl_ca_certs=str(folder.authority),
            ssl_cert_reqs=ssl.CERT_REQUIRED,
            timeout_keep_alive=5,
            log_config=None,
            log_level="warning",
            access_log=False,
        )
        config.load()
        assert config.ssl is not None
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
        config.ssl.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        super().__init__(config)
        self._list, self._read = folder.revocation_list, 0.0
        self._folder, self._certificate = folder, folder.certificate.stat().st_mtime
        self._read_list()

    def _read_certificate(self) -> None:
        """Show a new certificate of the server to whoever connects from now on."""
        changed = self._folder.certificate.stat().st_mtime
        if changed != self._certificate:
            assert self.config.ssl is not None
            self.config.ssl.load_cert_chain(self._folder.certificate, self._folder.private_key)
            self._certificate = changed

    def _read_list(self) -> None:
        changed = self._list.stat().st_mtime
        if changed != self._read:
            assert self.config.ssl is not None
            self.config.ssl.load_verify_locations(cafile=str(self._list))
            self._read = changed
            for connection in list(self.server_state.connections):
                connection.shutdown()  # after the answer to its present request; a site connects again

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if counter % 10 == 0:
            self._read_list()
            self._read_certificate()
            self._contacts.write()
        return await super().on_tick(counter)


def _naming(names: dict[tuple[str, int], str]) -> type[asyncio.Protocol]:
    """uvicorn's protocol, which keeps in `names` whose certificate each open connection has shown."""

    class Naming(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            subject = (transport.get_extra_info("peercert") or {}).get("subject", ())
            self._address = tuple(transport.get_extra_info("peername")[:2])
            names[self._address] = next((value for part in subject for key, value in part if key == "commonName"), "")

        def connection_lost(self, exc: Exception | None) -> None:
            names.pop(self._address, None)
            super().connection_lost(exc)

    return Naming


def main() -> None:
    """The process."""
    log_lines_to_stderr("gateway")
    asyncio.run(Gateway(ServerFolder.open(Path(sys.argv[1]))).serve())


if __name__ == "__main__":
    main()
