"""A page of a fleet's status on loopback, that looks again every few seconds; without scripts and outside resources."""

import threading
from collections.abc import Iterable
from datetime import datetime
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from fedgraft.core.errors import UserError
from fedgraft.core.plain_text import plain
from fedgraft.core.wording import plural
from fedgraft.fleet.fleet_folder import FleetFolder
from fedgraft.fleet.status import FleetStatus, fleet_status

_REFRESH_SECONDS = 5
_SHOWN_DEVICES = 500
_STYLE = (
    "body{font:15px/1.4 system-ui,sans-serif;margin:1.5rem;color-scheme:light dark}"
    "table{border-collapse:collapse;margin:.5rem 0 1.5rem}th,td{padding:.2rem .8rem .2rem 0;text-align:left}"
    "th{border-bottom:1px solid}.failed{color:#c33;font-weight:bold}@media(max-width:40rem){body{font-size:13px}}"
)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def serve_page(folder: FleetFolder, port: int) -> int:
    """Serve the page at http://127.0.0.1:PORT/ in a thread, and return the port; raises UserError if it is taken."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/" or self.headers.get("Host", "").rpartition(":")[0] not in ("127.0.0.1", "localhost"):
                self.send_error(404)
                return
            content = status_page(fleet_status(folder)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Security-Policy", _POLICY)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise UserError(f"The page cannot be served on port {port}: {error.strerror}.") from error
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_address[1])


def status_page(status: FleetStatus) -> str:
    """The page; every text that a device or a bundle gave is plain and escaped."""
    devices = sorted(status.devices, key=lambda each: (each.health == "ok", each.id))
    parts = [
        f"<h1>Fleet {escape(status.fleet[:12])}</h1>",
        *(f"<p class=failed>{escape(problem)}</p>" for problem in status.problems),
    ]
    for channel in status.channels:
        parts.append(f"<h2>Channel {escape(channel.name)}</h2>")
        rows = [
            (
                line.version,
                line.state,
                f"{line.percent:g} %",
                line.devices,
                f"{line.failed} of {line.tried}",
                line.reason,
            )
            for line in channel.rollouts
        ]
        parts.append(_table(("version", "state", "for", "devices", "failed", "reason"), rows))
    parts.append("<h2>What devices report</h2>")
    told = [
        (
            line.version, line.group, line.devices, line.predictions, f"{line.unknown:.1f} %",
            "" if line.drift is None else f"{line.drift:+.3f}",
            ", ".join(f"{plain(label, 40)} {count}" for label, count in list(line.classes.items())[:5]),
        )
        for line in status.telemetry
    ]  # fmt: skip
    parts.append(_table(("version", "group", "devices", "predictions", "unknown", "drift", "classes"), told))
    parts.append(f"<h2>{plural(len(devices), 'device')}</h2>")
    lines = [
        (line.id, line.group, line.channel, line.version, line.health, _clock(line.last_seen), line.problem)
        for line in devices[:_SHOWN_DEVICES]
    ]
    parts.append(_table(("id", "group", "channel", "version", "health", "last seen", "remark"), lines))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="refresh" content="{_REFRESH_SECONDS}"><title>Fleet</title><style>{_STYLE}</style>'
        f"<body>{''.join(parts)}</body></html>"
    )


def _table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    body = "".join(f"<tr>{''.join(_cell(each) for each in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: object) -> str:
    shown = "" if value is None or value == "" else plain(str(value))
    return f"<td{' class=failed' if value in ('failed', 'halted') else ''}>{escape(shown)}</td>"


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
