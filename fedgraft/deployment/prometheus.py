"""What `status` shows as Prometheus metrics, on loopback; needs the package prometheus-client (`fedgraft[metrics]`)."""

from collections.abc import Callable, Iterable, Mapping

from fedgraft.core.errors import UserError
from fedgraft.deployment.folder_status import FolderStatus
from fedgraft.deployment.server_status import server_status
from fedgraft.deployment.site_status import site_status
from fedgraft.runs.server_folder import ServerFolder
from fedgraft.runs.site_folder import SiteFolder

Labels = Mapping[str, str]
Figures = dict[tuple[str, str], list[tuple[Labels, float]]]
"""By a metric's name and its meaning: its value for each set of labels."""


def serve_metrics(folder: ServerFolder | SiteFolder, port: int) -> None:
    """Serve the metrics of a folder; see `serve_figures`."""
    serve_figures(_of_server(folder) if isinstance(folder, ServerFolder) else _of_site(folder), port)


def serve_figures(collect: Callable[[], Figures], port: int) -> None:
    """Serve figures at http://127.0.0.1:PORT/metrics, in a thread, until the process ends.

    Raises:
        UserError: prometheus-client is not installed, or the port is taken.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
        from prometheus_client.core import GaugeMetricFamily, Metric
        from prometheus_client.registry import Collector
    except ImportError as error:
        raise UserError("Metrics need the package prometheus-client: pip install 'fedgraft[metrics]'.") from error

    class FolderCollector(Collector):
        def collect(self) -> Iterable[Metric]:
            for (name, meaning), values in collect().items():
                labels = sorted({label for given, _ in values for label in given})
                metric = GaugeMetricFamily(f"fedgraft_{name}", meaning, labels=labels)
                for given, value in values:
                    metric.add_metric([given[label] for label in labels], value)
                yield metric

    registry = CollectorRegistry()
    registry.register(FolderCollector())
    try:
        start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as error:
        raise UserError(f"Metrics cannot be served on port {port}: {error.strerror}.") from error


def _of_server(folder: ServerFolder) -> Callable[[], Figures]:
    def collect() -> Figures:
        status = server_status(folder)
        figures = _of_folder(status.folder)
        if status.run is not None:
            figures["run_round", "rounds that are complete"] = [({}, status.run.round)]
            figures["run_rounds", "rounds of the run"] = [({}, status.run.rounds)]
            figures["run_running", "1 while the run is at work"] = [({}, status.run.state == "running")]
        sites = status.sites
        figures["site_state", "1 for the state that a site is in"] = [
            ({"site": site.name, "state": site.state}, 1.0) for site in sites
        ]
        figures["site_last_request_timestamp_seconds", "when a site was last heard"] = [
            ({"site": site.name}, site.seen) for site in sites if site.seen is not None
        ]
        figures["site_last_answer_timestamp_seconds", "when a site last answered"] = [
            ({"site": site.name}, site.answered) for site in sites if site.answered is not None
        ]
        figures["site_last_round", "the last round in which a site's answer counted"] = [
            ({"site": site.name}, site.last_round) for site in sites if site.last_round is not None
        ]
        return figures

    return collect


def _of_site(folder: SiteFolder) -> Callable[[], Figures]:
    def collect() -> Figures:
        status = site_status(folder)
        figures = _of_folder(status.folder)
        figures["connected", "1 if the SuperNode has reached the server"] = [({}, status.connected is not None)]
        figures["message_in_hand", "1 while a message waits for its answer"] = [({}, status.doing != "idle")]
        for name, meaning, value in (
            ("last_message", "when the newest message came", status.received),
            ("last_answer", "when the newest answer was sent", status.answered),
        ):
            figures[f"{name}_timestamp_seconds", meaning] = [] if value is None else [({}, value)]
        return figures

    return collect


def _of_folder(status: FolderStatus) -> Figures:
    return {
        ("problems", "things that need attention, as `status` lists them"): [({}, len(status.problems))],
        ("disk_free_bytes", "free space of the folder's disk"): [({}, status.disk_free_bytes)],
        ("certificate_days_left", "days until a certificate expires"): [
            ({"certificate": name}, days) for name, days in status.certificate_days.items()
        ],
        ("process_restarts", "how often a process was restarted"): [
            ({"process": process.name}, process.restarts) for process in status.processes
        ],
        ("process_running", "1 if a process is running"): [
            ({"process": process.name}, process.running) for process in status.processes
        ],
    }
