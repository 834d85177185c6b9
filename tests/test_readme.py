"""What the README says is true: its Python runs, its files exist."""

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_of_the_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 7
    names = {}
    for block in blocks:
        if "equinox" in block:
            pytest.importorskip("equinox")
        exec(compile(block, "README.md", "exec"), names)
    np.testing.assert_allclose(
        names["Block"](names["w"], names["v"])(names["x"]), names["gated_linear"](names["x"], names["w"], names["v"])
    )
    assert names["spectrum"](names["weights"]).values.shape == (10, 16)
    assert [len(row) for row in names["new"]] == [5, 5]
    assert names["logits"].shape == (1, 8, 300)
    assert names["gains"].gain.shape == (32,)


def test_the_files_that_it_names_exist():
    linked = [target for target in re.findall(r"\]\(([^)]+)\)", README) if not target.startswith("http")]
    assert linked
    for target in linked:
        assert (ROOT / target).exists(), target
    folders = re.findall(r"^    (\w+)/ ", README, re.MULTILINE)
    assert {"sqs_jax", "kernels", "train", "analysis", "tests", "benchmarks", "docs", "examples"} <= set(folders)
    assert all((ROOT / folder).is_dir() for folder in folders)
