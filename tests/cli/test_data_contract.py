"""What a script around the commands would lose: the keys of their JSON, from a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def _printed(*words: object) -> Any:
    command = [sys.executable, "-m", "fedgraft", *map(str, words), "--json"]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True, timeout=300).stdout)


@pytest.mark.slow
def test_data_check_has_the_keys_that_its_page_names(tmp_path: Path, write_image: Any) -> None:
    names = ["pink primrose", "colt's foot", "Чашка {}"]
    split: dict[str, list[tuple[str, int, str]]] = {"train": [], "val": [], "test": []}
    for number, (part, label) in enumerate([("train", 0), ("train", 1), ("train", 2), ("test", 0), ("test", 2)]):
        written = f"{number}.jpg"
        write_image(tmp_path / "oxford_flowers" / "jpg" / written, colour=(50 * number, 0, 0))
        split[part].append((written, label, names[label]))
    (tmp_path / "oxford_flowers" / "split_zhou_OxfordFlowers.json").write_text(json.dumps(split))
    found = _printed("data", "check", f"coop:{tmp_path / 'oxford_flowers'}")
    assert found["classes"] == names, "in the order of the labels"
    assert found["counts"] == [2, 1, 2]
    assert found["splits"] == {"train": 3, "test": 2}, "without the absent one"
    assert found["templates"] == ["a photo of a {}, a type of flower."]
    assert found["prompts"][2] == "a photo of a Чашка {}, a type of flower."
    assert (found["domains"], found["sites"], found["skipped"], found["duplicates"]) == ({}, {}, [], 0)


@pytest.mark.slow
def test_recipes_are_a_list_of_objects_with_name_paper_and_published() -> None:
    listed = _printed("recipes")
    assert isinstance(listed, list)
    assert len({recipe["name"] for recipe in listed}) == len(listed) > 10
    for recipe in listed:
        assert isinstance(recipe["paper"], str)
        assert recipe["paper"]
        for row in recipe["published"]:
            assert row["metrics"]
            assert row.keys() >= {"method", "dataset", "source", "copied_from", "checked"}
