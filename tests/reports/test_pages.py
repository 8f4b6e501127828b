"""What a reader of report.html would lose: a page that opens anywhere, says everything, and trusts no name."""

import json
import re
from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest

from fedgraft.core.errors import UserError
from fedgraft.reports import write_report
from fedgraft.reports.reading import read_run

HOSTILE = '<script>alert("$x$")</script>'
SCOPES = {
    "base-to-novel": ("local", "base", "novel", "base_all"),
    "leave-one-domain-out": ("target",),
    "dirichlet": ("personal",),
}
PROTOCOL_OF = {"base-to-novel": "local", "leave-one-domain-out": "domain:", "dirichlet": "accuracy"}
METRICS: dict[str, dict[str, Any]] = {
    "base-to-novel": {
        "local": 81.2,
        "base": 64.75,
        "novel": 60.1,
        "hm": 67.5,
        "hm2": 62.3,
        "cm": 71.8,
        "base_all": 66.5,
    },
    "leave-one-domain-out": {"per_domain": {"photo": 91.5, HOSTILE: 55.5}, "mean": 73.5},
    "dirichlet": {"accuracy": 77.7, "worst_site": 51.25, "std": 8.5},
}


def write_run(directory: Path, protocol: str, sites: int = 3, classes: int = 4) -> Path:
    """A run directory as the server leaves it, with the scopes and folds of its protocol."""
    names = [HOSTILE, *map(str, range(1, sites))]
    rows: list[dict[str, Any]] = []
    for fold in METRICS[protocol].get("per_domain", [None]):
        for at in range(4):
            for step, scope in enumerate(SCOPES[protocol]):
                accuracies = {name: 40.0 + (7 * at + 5 * step + index) % 50 for index, name in enumerate(names)}
                mean = sum(accuracies.values()) / sites
                rows.append({"round": at, "fold": fold, "scope": scope, "accuracy": mean, "sites": accuracies})
            if at:
                rows.append(
                    {"round": at, "fold": fold, "scope": "train", "loss": 1 / at, "num_examples": 9, "sites": [1]}
                )
    for at in (1, 2):
        rows.append({"round": at, "fold": None, "scope": "left_out", "site": 4, "reason": "a norm of 1e9 & more"})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "config.toml").write_text(f"method = 'fedpgp'\nprotocol = '{protocol}'\n# {HOSTILE}\n")
    summary = {"method": "fedpgp", "data": "digits", "protocol": protocol, "backbone": "mini", "fingerprint": "ab" * 32}
    summary |= {"sites": sites, "rounds": 3, "seed": 7, "versions": {"torch": "2.8.0+cpu"}, "left_out": 2}
    summary |= {"metrics": METRICS[protocol], "metrics_last5": METRICS[protocol], "wall_seconds": 192.0}
    summary |= {"uplink_bytes_per_site_round": 12288, "downlink_bytes_per_site_round": 3_400_000}
    summary |= {"trainable_parameters": 123_456, "shared_parameters": 4_096}
    (directory / "summary.json").write_text(json.dumps(summary))
    counts = [[9 if row == column else (row + column) % 3 for column in range(classes)] for row in range(classes)]
    matrix = {"classes": [HOSTILE, *(f"class {index}" for index in range(1, classes))], "counts": counts}
    (directory / "confusion.json").write_text(json.dumps({"scopes": {SCOPES[protocol][0]: matrix}}))
    return directory


def write_comparison(directory: Path, keys: tuple[str, ...] = ("local", "novel")) -> Path:
    """A comparison directory of two methods and three seeds, one run of which has its report beside it."""
    methods = [
        {
            "method": name,
            "metrics": {key: {"mean": value, "std": 0.5, "values": [value] * 3} for key in keys},
            **{
                "uplink_bytes_per_site_round": 0,
                "trainable_parameters": 99,
                "shared_parameters": 9,
                "wall_seconds": 5000,
            },
        }
        for name, value in (("zeroshot", 50.0), (HOSTILE, 61.25))
    ]
    protocol = next(name for name, known in PROTOCOL_OF.items() if keys[0].startswith(known))
    content = {"data": "digits", "protocol": protocol, "sites": 3, "rounds": 5, "seeds": [0, 1, 2], "methods": methods}
    (directory / "comparison.json").write_text(json.dumps(content | {"runs": ["zeroshot-seed0", "gone-seed1"]}))
    (directory / "zeroshot-seed0").mkdir()
    (directory / "zeroshot-seed0" / "report.html").touch()
    return directory


def assert_safe_and_self_contained(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"https?:|<link|@import|\bsrc=", page)
    for target in re.findall(r'href="([^"]*)"', page) + re.findall(r"url\(([^)]*)\)", page):
        assert target.startswith("data:") or target.endswith("/report.html") or f'id="{target.lstrip("#")}"' in page
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("protocol", SCOPES)
def test_a_run_is_told_completely_safely_and_the_same_each_time(tmp_path: Path, protocol: str) -> None:
    path = write_report(write_run(tmp_path, protocol))
    page = path.read_text()
    assert path == tmp_path / "report.html"
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    told = [
        "Result",
        "Round by round",
        "Site by site",
        "Confusion",
        "Cost",
        "Sites left out",
        "Configuration",
        "Versions",
    ]
    assert headings == told
    for value in METRICS[protocol].get("per_domain", METRICS[protocol]).values():
        assert f"{value:.2f}" in page
    for text in ("12.3 kB", "3.4 MB", "123,456", "4,096", "3 min 12 s", "2.8.0+cpu", "seed 7", "ab" * 32):
        assert text in page
    assert "a norm of 1e9 &amp; more" in page
    assert "<td>1-2</td>" in page, "rounds with the same reason are told together"
    assert f"protocol = &#x27;{protocol}&#x27;" in page
    assert_safe_and_self_contained(page)
    assert write_report(tmp_path).read_text() == page
    assert [file.name for file in tmp_path.iterdir() if "report" in file.name or file.suffix == ".tmp"] == [
        "report.html"
    ]


def test_many_sites_and_classes_stay_legible(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path, "base-to-novel", sites=100, classes=120)).read_text()
    assert "sites, sorted by accuracy" in page
    assert "most confused pairs" in page
    assert not re.search(r"<text[^>]*>class 5</text>", page), "120 labels along an axis cannot be read"
    assert len(page) < 1_000_000


def test_what_a_run_lacks_is_not_invented(tmp_path: Path) -> None:
    write_run(tmp_path, "dirichlet")
    (tmp_path / "confusion.json").unlink()
    rows = [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if "left_out" not in line]
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows))
    summary = json.loads((tmp_path / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"metrics_last5": None, "wall_seconds": None}))
    page = write_report(tmp_path).read_text()
    assert "<h2>Confusion" not in page
    assert "every answer was used" in page
    assert "n/a" in page


@pytest.mark.parametrize("keys", [("local", "novel"), ("domain:photo", "mean"), ("accuracy", "worst_site", "std")])
def test_a_comparison_sets_methods_side_by_side(tmp_path: Path, keys: tuple[str, ...]) -> None:
    page = write_report(write_comparison(tmp_path, keys)).read_text()
    assert "<strong>61.25 ± 0.50</strong>" in page, "the best mean stands out"
    assert "1 h 23 min" in page
    assert ("Local against novel" in page) == ("local" in keys)
    assert "3 seeds cannot show significance below p = 0.25" in page
    assert 'href="zeroshot-seed0/report.html"' in page
    assert "gone-seed1/report.html" not in page, "a link leads to a report that exists"
    assert_safe_and_self_contained(page)
    assert write_report(tmp_path).read_text() == page


def test_the_comparison_figure_can_be_saved_as_png(tmp_path: Path) -> None:
    from fedgraft.reports.comparison_plots import comparison_figure

    figure = comparison_figure(json.loads((write_comparison(tmp_path) / "comparison.json").read_text()))
    assert isinstance(figure, matplotlib.figure.Figure)
    figure.savefig(tmp_path / "comparison.png", dpi=50)
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("count", [3, 30])
def test_methods_that_differ_at_their_ends_alone_stay_apart_in_the_figures(tmp_path: Path, count: int) -> None:
    from fedgraft.reports.comparison_plots import comparison_figure

    comparison = json.loads((write_comparison(tmp_path) / "comparison.json").read_text())
    labels = [f"promptfl(ctx_init=a photo of a)+anchored(drift=0.0{number})" for number in range(count)]
    comparison["methods"] = [comparison["methods"][0] | {"method": label} for label in labels]
    shown = [label.get_text().replace("\n", "") for label in comparison_figure(comparison).axes[0].get_yticklabels()]
    for label, text in zip(labels, shown, strict=True):
        assert text.replace(" ", "").endswith(label.replace(" ", ""))


def test_a_directory_that_is_neither_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither summary\.json nor comparison\.json"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        write_report(tmp_path / "absent")
    (tmp_path / "config.toml").touch()
    with pytest.raises(UserError, match="has not finished"):
        write_report(tmp_path)


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.toml"])
def test_a_missing_file_of_a_run_is_named(tmp_path: Path, name: str) -> None:
    (write_run(tmp_path, "dirichlet") / name).unlink()
    with pytest.raises(UserError, match=name):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_broken_line_of_metrics_is_named(tmp_path: Path) -> None:
    with (write_run(tmp_path, "dirichlet") / "metrics.jsonl").open("a") as file:
        file.write('{"round": 4, "sco')
    with pytest.raises(UserError, match=r"Line \d+ of .*metrics\.jsonl is not JSON"):
        write_report(tmp_path)


def test_a_run_of_a_protocol_that_is_not_installed_is_refused_in_a_sentence(tmp_path: Path) -> None:
    write_run(tmp_path, "dirichlet")
    summary = json.loads((tmp_path / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"protocol": "dirichlett"}))
    with pytest.raises(UserError, match="There is no protocol 'dirichlett'"):
        write_report(tmp_path)


# --- several scopes of a fold with a name -------------------------------------------------------------------------


def _write_folds(directory: Path, scopes: tuple[str, ...]) -> Path:
    """A run that left two domains out and measured so many scopes of each: 10 for the first scope, 20 for the next."""
    write_run(directory, "leave-one-domain-out")
    rows = [
        {"round": at, "fold": fold, "scope": scope, "accuracy": 10.0 * number + at, "sites": {"0": 10.0 * number + at}}
        for fold in ("photo", "sketch")
        for at in (0, 1)
        for number, scope in enumerate(scopes, 1)
    ]
    rows += [{"round": 1, "fold": fold, "scope": "train", "loss": 0.5, "sites": [0]} for fold in ("photo", "sketch")]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def test_scopes_of_one_fold_are_series_of_their_own(tmp_path: Path) -> None:
    run = read_run(_write_folds(tmp_path, ("target", "near")))
    assert {name: [row.mean for row in rows] for name, rows in run.accuracy.items()} == {
        "photo: target": [10.0, 11.0],
        "photo: near": [20.0, 21.0],
        "sketch: target": [10.0, 11.0],
        "sketch: near": [20.0, 21.0],
    }
    assert set(run.loss) == {"photo", "sketch"}
    assert "sketch: near" in write_report(tmp_path).read_text()


def test_the_only_scope_of_a_fold_has_the_folds_name(tmp_path: Path) -> None:
    run = read_run(_write_folds(tmp_path, ("target",)))
    assert {name: [row.mean for row in rows] for name, rows in run.accuracy.items()} == {
        "photo": [10.0, 11.0],
        "sketch": [10.0, 11.0],
    }
