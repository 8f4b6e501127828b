"""What an author would lose: several comparisons read together, and no more said than the seeds can show."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgraft.core.errors import UserError
from fedgraft.reports import table_text, write_reports
from fedgraft.reports.conclusions import conclusions
from fedgraft.reports.study import Study, read_study
from fedgraft.reports.study_tables import clear_best, ranks_table, study_tables

Values = dict[str, list[float]]


def write_comparison(directory: Path, novel: Values, data: str = "digits", **more: Any) -> Path:
    """A comparison whose methods have these values on novel classes, and 1 point more on base classes."""
    directory.mkdir(parents=True, exist_ok=True)
    methods = []
    for name, values in novel.items():
        metrics = {}
        for key, shift in (("local", 2.0), ("base", 1.0), ("novel", 0.0), ("hm", 0.5)):
            shifted = [value + shift for value in values]
            metrics[key] = {"mean": float(np.mean(shifted)), "std": float(np.std(shifted)), "values": shifted}
        trained = 0 if name == "zeroshot" else 99
        cost = {"uplink_bytes_per_site_round": 4 * trained, "trainable_parameters": trained, "wall_seconds": 5.0}
        methods.append({"method": name, "metrics": metrics, **cost, "shared_parameters": trained})
    seeds = list(range(len(next(iter(novel.values())))))
    content = {"data": data, "protocol": "base-to-novel", "sites": 3, "rounds": 5, "seeds": seeds, "methods": methods}
    (directory / "comparison.json").write_text(json.dumps(content | more))
    return directory


def study(tmp_path: Path, novel: Values, **more: Any) -> Study:
    return read_study([write_comparison(tmp_path / "one", novel)], **more)


def test_the_best_is_bold_only_where_it_can_be_told_apart(tmp_path: Path) -> None:
    apart = study(tmp_path, {"zeroshot": [60.0, 61, 62], "fedpgp": [64.0, 65, 66.5]})
    assert clear_best(apart, apart.headline) == "fedpgp"
    mixed = study(tmp_path, {"zeroshot": [60.0, 61, 62], "fedpgp": [59.0, 70, 70]})
    assert clear_best(mixed, mixed.headline) is None, "it is higher on average, but not with every seed"
    equal = study(tmp_path, {"zeroshot": [60.0], "fedpgp": [60.001]})
    assert clear_best(equal, equal.headline) is None, "the printed values are equal"
    single = study(tmp_path, {"zeroshot": [60.0], "fedpgp": [61.0]})
    assert clear_best(single, single.headline) == "fedpgp"


def test_seeds_are_paired(tmp_path: Path) -> None:
    """Seeds differ by ten points, methods by one."""
    found = study(tmp_path, {"zeroshot": [50.0, 60, 70], "fedpgp": [51.0, 61, 71.2]})
    assert clear_best(found, found.headline) == "fedpgp"


def test_what_is_said_is_what_the_seeds_can_show(tmp_path: Path) -> None:
    told = " ".join(conclusions(study(tmp_path, {"zeroshot": [60.0, 61, 62], "fedpgp": [64.0, 65, 66.5]})))
    assert "3 seeds cannot show significance below p = 0.25" in told
    assert "6 could (p = 0.031)" in told
    assert "higher: fedpgp (+4.2, +4.0 to +4.5)" in told
    one = conclusions(study(tmp_path, {"zeroshot": [60.0], "fedpgp": [64.0]}))
    assert one == ["One seed shows no significance: run the comparison with --seeds 0,1,2 or more."]
    assert conclusions(study(tmp_path, {"fedpgp": [64.0, 65]})) == [], "there is nothing to compare it with"
    directory = write_comparison(tmp_path / "old", {"zeroshot": [1.0, 2], "fedpgp": [3.0, 4]})
    content = json.loads((directory / "comparison.json").read_text())
    for method in content["methods"]:
        for statistics in method["metrics"].values():
            del statistics["values"]
    (directory / "comparison.json").write_text(json.dumps(content))
    assert "not recorded one by one" in conclusions(read_study([directory]))[0]
    assert "differences" not in [table.name for table in study_tables(read_study([directory]))]


def test_data_sets_are_read_together(tmp_path: Path) -> None:
    first = write_comparison(tmp_path / "a", {"zeroshot": [60.0, 61], "fedpgp": [64.0, 65], "local": [1.0, 2]})
    second = write_comparison(tmp_path / "b", {"fedpgp": [74.0, 75], "zeroshot": [70.0, 71]}, "shapes")
    found = read_study([first, second], against="fedpgp")
    assert (found.methods, found.apart, found.reference) == (("zeroshot", "fedpgp"), ("local",), "fedpgp")
    assert found.mean("fedpgp", "novel") == pytest.approx(69.5)
    told = " ".join(conclusions(found))
    assert "4 pairs of seed and data set" in told
    assert "2 data sets are too few" in told
    out = tmp_path / "both"
    paths = write_reports([first, second], ["html", "csv", "latex"], out, "fedpgp")
    page = (out / "report.html").read_text()
    assert "Left out, because not all comparisons have them: local." in page
    assert "Methods on 2 data sets" in page
    assert {path.name for path in paths} > {"report.html", "results.csv", "data-novel.csv", "differences.csv"}
    seeds = list(csv.DictReader((out / "tables" / "seeds.csv").open()))
    assert [row["novel"] for row in seeds if row["Method"] == "fedpgp"] == ["64", "65", "74", "75"]
    same = read_study([first, write_comparison(tmp_path / "c", {"zeroshot": [60.0, 61], "fedpgp": [64.0, 65]})])
    assert [data.name for data in same.sets] == ["digits (a)", "digits (c)"]
    assert any("are of the same data" in sentence for sentence in conclusions(same))


def test_ten_data_sets_are_ranked(tmp_path: Path) -> None:
    novel = {"zeroshot": [50.0, 51], "local": [40.0, 41], "fedpgp": [60.0, 61]}
    sets = [write_comparison(tmp_path / f"{number}", novel, f"set-{number}") for number in range(10)]
    ranks = ranks_table(read_study(sets))
    assert ranks is not None
    assert [row[1].value for row in ranks.rows if not isinstance(row[1], str)] == [2.0, 3.0, 1.0]
    assert ranks_table(read_study(sets[:9])) is None


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    first = write_comparison(tmp_path / "a", {"zeroshot": [60.0], "fedpgp": [64.0]})
    other = write_comparison(tmp_path / "b", {"local": [60.0]}, "shapes")
    with pytest.raises(UserError, match="no method in common"):
        read_study([first, other])
    with pytest.raises(UserError, match="There is no method of these comparisons 'fedpg'"):
        read_study([first], against="fedpg")
    third = write_comparison(tmp_path / "c", {"zeroshot": [60.0]}, protocol="multi-dataset")
    with pytest.raises(UserError, match="under one protocol"):
        read_study([first, third])
    with pytest.raises(UserError, match="give --out"):
        write_reports([first, third])
    with pytest.raises(UserError, match="There is no format 'pfd'"):
        write_reports([first], ["pfd"])
    with pytest.raises(UserError, match="There is no format 'png'"):
        table_text([first], "png")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--out takes a directory"):
        write_reports([first], out=tmp_path / "file")
    with pytest.raises(UserError, match="does not exist"):
        write_reports([first, tmp_path / "absent"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
