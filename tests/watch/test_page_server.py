"""The server of the page: what it gives, to whom, and that it changes nothing."""

import functools
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import uvicorn
from starlette.applications import Starlette

from fedgraft.cli.main import main
from fedgraft.core.errors import UserError
from fedgraft.watch.app import application
from fedgraft.watch.found import open_source
from fedgraft.watch.guard import Access
from fedgraft.watch.serving import is_loopback, serve
from tests.watch.conftest import WrittenRun, write_comparison

_PATIENCE = 60.0


class Browser:
    """Asks an application without a network, and keeps its cookies; redirects are not followed."""

    def __init__(self, app: Starlette, address: str = "http://127.0.0.1") -> None:
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=address)

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        """The answer to a request."""
        return anyio.run(functools.partial(self._client.request, method, path, **more))

    def get(self, path: str, **more: Any) -> httpx.Response:
        """The answer to a request to read."""
        return self.request("GET", path, **more)


@pytest.fixture
def client(run: WrittenRun) -> Browser:
    """A browser on this machine that looks at a run of one round."""
    run.begin().round(0)
    return Browser(application(open_source(run.directory.path), tick=0.0))


def test_the_page_and_its_data_come_from_here_alone(client: Browser) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in page.headers["content-security-policy"]
    for word in ("http://", "https://", "<script>", "style=", "onclick"):
        assert word not in page.text
    for name in ("main.js", "page.css", "uPlot.iife.min.js", "Inter.woff2"):
        assert client.get(f"/{name}").status_code == 200
    view = client.get("/api/run").json()
    assert (view["format"], view["kind"], view["name"]) == (1, "run", "run")
    assert "nosniff" in client.get("/api/run").headers["x-content-type-options"]


def test_only_reading_is_possible(client: Browser, run: WrittenRun) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.directory.path.rglob("*")}
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert client.request(method, "/api/run").status_code == 405
    assert client.request("HEAD", "/api/run").status_code == 200
    client.get("/api/run")
    assert {path: path.stat().st_mtime_ns for path in run.directory.path.rglob("*")} == before


@pytest.mark.parametrize(
    "path", ["/../config.toml", "/config.toml", "/page/../../source.py", "/uPlot.LICENSE", "/%2e%2e%2fconfig.toml"]
)
def test_no_other_file_can_be_asked_for(client: Browser, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8420", "127.0.0.1.evil.example", "10.0.0.1", ""])
def test_a_name_that_a_stranger_points_here_gets_nothing(client: Browser, host: str) -> None:
    assert client.get("/api/run", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1:8420", "localhost", "LOCALHOST:1", "[::1]:8420"])
def test_this_machine_is_known_by_its_own_names(client: Browser, host: str) -> None:
    assert client.get("/api/run", headers={"host": host}).status_code == 200


def test_a_token_opens_the_page_once_and_a_cookie_after_that(run: WrittenRun) -> None:
    run.begin().round(0)
    app = application(open_source(run.directory.path), Access(frozenset({"server"}), "secret", "kept"))
    client = Browser(app, "http://server:8420")
    for path in ("/", "/api/run", "/events", "/?token=wrong", "/main.js"):
        assert client.get(path).status_code == 401
    assert client.get("/api/run", headers={"authorization": "Bearer secret"}).status_code == 200
    entered = client.get("/?token=secret")
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    assert {"HttpOnly", "SameSite=strict"} <= set(entered.headers["set-cookie"].split("; "))
    assert client.get("/api/run").status_code == 200
    assert client.get("/api/run", headers={"host": "evil.example"}).status_code == 421


def test_an_address_that_others_can_reach_is_told_from_loopback() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.168.0.7", "server")] == [False] * 4


def test_a_run_or_scope_can_be_chosen(tmp_path: Path) -> None:
    client = Browser(application(open_source(write_comparison(tmp_path))))
    sites = client.get("/api/run", params={"run": "promptfl-seed1", "scope": "base"}).json()["sites"]
    assert (sites["run"], sites["scope"]) == ("promptfl-seed1", "base")
    for path in ("/api/run", "/events"):
        assert client.get(path, params={"run": "absent"}).status_code == 404


@pytest.fixture
def live(run: WrittenRun) -> Iterator[tuple[WrittenRun, str]]:
    """A run of one round and the address of its page, which is really served."""
    run.begin().round(0)
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    app = application(open_source(run.directory.path), tick=0.02, ended=lambda: server.should_exit)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    bound.listen()
    thread.start()
    yield run, f"http://127.0.0.1:{bound.getsockname()[1]}"
    server.should_exit = True
    thread.join(_PATIENCE)
    assert not thread.is_alive(), "open streams end with the server"


def _events(response: httpx.Response) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def test_a_round_comes_by_itself_as_soon_as_it_is_on_disk(live: tuple[WrittenRun, str]) -> None:
    run, address = live
    with httpx.stream("GET", f"{address}/events", timeout=_PATIENCE) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = _events(response)
        name, view = next(events)
        assert (name, view["runs"][0]["round"]) == ("run", 0)
        run.round(1)
        rounds = (view["runs"][0]["round"] for name, view in events if name == "run")
        assert next(number for number in rounds if number) == 1


@pytest.mark.slow
def test_ctrl_c_ends_it_quietly_with_a_stream_open(run: WrittenRun) -> None:
    run.begin().round(0)
    words = ["watch", str(run.directory.path), "--port", "0", "--no-browser"]
    code = "import sys; from fedgraft.cli.main import main; sys.argv[0] = 'fedgraft'; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    address = process.stdout.readline().split(" at ")[1].split()[0]
    with httpx.stream("GET", f"{address}events", timeout=_PATIENCE) as response:
        next(_events(response))
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=_PATIENCE)
    assert (process.returncode, error) == (0, "")


def test_a_port_that_is_taken_is_refused_in_a_sentence(run: WrittenRun) -> None:
    run.begin()
    source = open_source(run.directory.path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot be served on 127\.0\.0\.1, port {port}: .*--port 0"):
            serve(source, "127.0.0.1", port, ready=lambda _: None)
    with pytest.raises(UserError, match=r"--host takes an address or a name of this machine, not 'no\.such\.host'"):
        serve(source, "no.such.host", 0, ready=lambda _: None)


def test_the_command_tells_a_mistake_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["fedgraft", "watch", str(tmp_path / "absent"), "--no-browser"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
