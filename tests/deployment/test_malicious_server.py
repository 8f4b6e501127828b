"""What the operator of a malicious server gains at a site: a server that hands out an app of its own."""

import json
import subprocess
from pathlib import Path

import pytest

from fedgraft.core.files import free_port
from fedgraft.deployment.local import started
from fedgraft.deployment.processes import guarded
from fedgraft.deployment.running_server import RunningServer, _operator
from fedgraft.deployment.running_site import RunningSite
from fedgraft.flower.guarded import APP_SHA256, WRITABLE, install_app
from fedgraft.runs.flower_app_folder import write_app
from fedgraft.runs.server_folder import ServerFolder
from fedgraft.runs.site_folder import SiteFolder

_SERVER = """
import json, time
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.2)
    asked = [Message(RecordDict(), dst_node_id=node, message_type="query") for node in nodes]
    replies = list(grid.send_and_receive(asked))
    Path({answers!r}).write_text(json.dumps([reply.has_error() for reply in replies]))
"""
_CLIENT = """
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

Path({mark!r}).write_text("it was run")
app = ClientApp()

@app.query()
def steal(message, context):
    return Message(RecordDict(), reply_to=message)
"""


@pytest.mark.slow
def test_a_site_does_not_run_the_app_of_a_malicious_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark, answers, app = tmp_path / "was-run", tmp_path / "answers", write_app(tmp_path / "app")
    (app / "graft" / "server_app.py").write_text(_SERVER.format(answers=str(answers)))
    (app / "graft" / "client_app.py").write_text(_CLIENT.format(mark=str(mark)))
    folder = ServerFolder.create(tmp_path / "server", ["127.0.0.1"], free_port())
    site_folder = SiteFolder.create(tmp_path / "site", "careful", tmp_path)

    def site(folder_of_site: SiteFolder) -> RunningSite:
        return RunningSite(folder_of_site, f"127.0.0.1:{folder.port}", folder.authority)

    _let_the_server_run(app, tmp_path, monkeypatch)
    with started(folder, [site_folder], site):
        command = [*guarded("flwr"), "run", str(app), folder.write_connection(), "--stream"]
        done = subprocess.run(command, env=_operator(folder), capture_output=True, text=True, stdin=subprocess.DEVNULL)
        log = (site_folder.logs / "superexec.log").read_text()
    assert not mark.exists()
    assert answers.read_text() == "[true]", done.stdout + done.stderr
    assert "is not the app of the installed fedgraft" in log


def _let_the_server_run(app: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of somebody who took the checks of its own apps away, and the bounds of what they may write."""
    begin = RunningServer.__init__

    def initialize(self: RunningServer, folder: ServerFolder) -> None:
        begin(self, folder)
        own = {APP_SHA256: install_app(app, folder.path / "flwr"), WRITABLE: json.dumps([str(place)])}
        self._superexec._environment = {**self._superexec._environment, **own}

    monkeypatch.setattr(RunningServer, "__init__", initialize)
