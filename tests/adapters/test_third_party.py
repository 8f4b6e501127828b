"""A method from another package: the example of docs/methods.md, installed beside fedgraft, with no change here."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
PROBE = """
import json, torch
from fedgraft.methods.adapter import Vocabulary
from fedgraft.backbones import load_backbone
from fedgraft.methods import load_method, method_names
method = load_method("mine")
vocabulary = Vocabulary(load_backbone("mini"), ("g", "seven", "red star"), ("a {}",))
adapter = method.adapter(vocabulary, method.parse_options({"n_ctx": 3}), torch.Generator().manual_seed(0))
adapter.loss(vocabulary.zero_shot, torch.arange(3), (0, 1, 2)).backward()
print(json.dumps([method_names(), list(adapter.shared()), list(adapter.personal())]))
"""


def test_the_documented_example_is_found_by_its_entry_point_and_works(tmp_path: Path) -> None:
    example = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)[0]
    (tmp_path / "mine_package.py").write_text(example)
    info = tmp_path / "mine_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fedgraft.methods]\nmine = mine_package:METHOD\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=True)
    names, shared, personal = json.loads(done.stdout)
    assert "mine" in names
    assert names == sorted(names)
    assert (shared, personal) == (["context"], ["offset"])
