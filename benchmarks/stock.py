"""Stock Flower as most apps use it, for comparison: its default processes, over TLS with node keys, on loopback.

`typical` imports torch and transformers in its ClientApp and sends train and evaluate apart; `empty` imports nothing
and sends one message a round. Both carry as many parameters as fedgraft's context and compute nothing.
"""

import statistics
import subprocess
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import tomli_w

from benchmarks.proxy import Proxy
from fedgraft.core.files import free_port
from fedgraft.deployment.processes import Process, flower_environment
from fedgraft.deployment.registration import register_key
from fedgraft.deployment.running_server import answers
from fedgraft.runs.server_folder import ServerFolder
from fedgraft.runs.site_folder import SiteFolder

PARAMETERS = 2048
_CLIENT = """
{imports}
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    array = message.content["arrays"]["context"].numpy() + np.float32(1)
    arrays = ArrayRecord({{"context": Array(array)}})
    return Message(RecordDict({{"arrays": arrays, "metrics": MetricRecord({{"num-examples": 1}})}}), reply_to=message)

@app.evaluate()
def evaluate(message, context):
    return Message(RecordDict({{"metrics": MetricRecord({{"accuracy": 1.0}})}}), reply_to=message)
"""
_SERVER = """
import time
import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    config = context.run_config
    while len(list(grid.get_node_ids())) < config["sites"]:
        time.sleep(0.1)
    arrays = ArrayRecord({{"context": Array(np.zeros({parameters}, np.float32))}})
    with open(config["times"], "a") as times:
        for number in range(config["rounds"] + 1):
            print(time.monotonic(), file=times, flush=True)
            for kind in {kinds}:
                content = RecordDict({{"arrays": arrays}})
                nodes = list(grid.get_node_ids())
                messages = [Message(content, dst_node_id=node, message_type=kind) for node in nodes]
                replies = list(grid.send_and_receive(messages))
                assert len(replies) == config["sites"] and not any(reply.has_error() for reply in replies)
"""
_APP = """[project]
name = "stock-{name}"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "stock"
[tool.flwr.app.components]
serverapp = "stock.server_app:app"
clientapp = "stock.client_app:app"
[tool.flwr.app.config]
sites = 2
rounds = 3
times = ""
"""
_KINDS = {"typical": ["train", "evaluate"], "empty": ["train"]}
_IMPORTS = {"typical": "import torch\nimport transformers\nfrom transformers import CLIPModel", "empty": ""}


def stock_round_seconds(root: Path, app: str, sites: int, rounds: int) -> tuple[float, float]:
    """Median wall time of a round of an app, the first one left out, and mean bytes a site and round at its socket.

    Args:
        root: an empty folder.
        app: "typical" or "empty".
    """
    package = root / "app" / "stock"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "client_app.py").write_text(_CLIENT.format(imports=_IMPORTS[app]))
    (package / "server_app.py").write_text(_SERVER.format(parameters=PARAMETERS, kinds=_KINDS[app]))
    (root / "app" / "pyproject.toml").write_text(_APP.format(name=app))
    folder = ServerFolder.create(root / "server", ["127.0.0.1"], free_port())
    environment = {k: v for k, v in flower_environment(folder.path / "flwr").items() if "TASK_POLL" not in k}
    keys = [SiteFolder.create(root / f"site-{number}", f"site-{number}") for number in range(sites)]
    times = root / "times.txt"
    with ExitStack() as stack:
        server = Process("The SuperLink", _superlink(folder), environment, root / "superlink.log")
        stack.callback(server.stop)
        server.start()
        server.wait_until(lambda: answers(folder.superlink_port, folder.authority), 60)
        proxies = []
        for key in keys:
            register_key(folder, key.public_key)
            proxy = stack.enter_context(Proxy(folder.superlink_port))
            proxies.append(proxy)
            node = Process("A SuperNode", _supernode(key, proxy.port, folder), environment, root / "supernode.log")
            stack.callback(node.stop)
            node.start()
        settings = root / "settings.toml"
        settings.write_text(tomli_w.dumps({"sites": sites, "rounds": rounds, "times": str(times)}))
        command = ["flwr", "run", str(root / "app"), folder.write_connection(), "--stream"]
        began = {}
        with (root / "run.log").open("wb") as log:
            run = subprocess.Popen([*command, "--run-config", str(settings)], env=environment, stdout=log, stderr=log)
            stack.callback(run.kill)
            while run.poll() is None:
                count = len(times.read_text().splitlines()) if times.exists() else 0
                began.setdefault(count, sum(proxy.up + proxy.down for proxy in proxies))
                time.sleep(0.05)
    seen = [float(line) for line in times.read_text().splitlines()]
    if len(seen) != rounds + 1:
        raise SystemExit(f"stock Flower ended early; see {root / 'run.log'}: {(root / 'run.log').read_text()[-2000:]}")
    walls = [after - before for before, after in pairwise(seen)][1:]
    return statistics.median(walls), (began[rounds + 1] - began[2]) / (rounds - 1) / sites


def _superlink(folder: ServerFolder) -> list[str | Path]:
    return [
        "flower-superlink", "--host", "0.0.0.0", "--port", str(folder.superlink_port),
        "--ssl-ca-certfile", folder.authority,
        "--ssl-certfile", folder.path / "server.pem", "--ssl-keyfile", folder.path / "keys" / "server.key",
        "--enable-supernode-auth", "--database", folder.path / "superlink.db",
        "--disable-runtime-dependency-installation",
    ]  # fmt: skip


def _supernode(site: SiteFolder, port: int, folder: ServerFolder) -> list[str | Path]:
    return [
        "flower-supernode", "--superlink", f"127.0.0.1:{port}", "--root-certificates", folder.authority,
        "--auth-supernode-private-key", site.private_key, "--host", "127.0.0.1", "--port", str(free_port()),
    ]  # fmt: skip
