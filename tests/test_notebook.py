"""The notebooks run from a clean kernel."""

import re
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

pytestmark = pytest.mark.filterwarnings("ignore")  # those of Jupyter's own packages


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a notebook in an empty folder: the text that it prints, and the kinds of what it shows."""
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))

    def run_in_kernel(notebook):
        manager = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
        manager.create_kernel_manager()
        manager.km.kernel_spec.argv[0] = sys.executable
        manager.execute()
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        text = "".join(output.get("text", "") for output in outputs)
        return text, {kind for output in outputs for kind in output.get("data", {})}

    return run_in_kernel


def read(name: str):
    return pytest.importorskip("nbformat").read(EXAMPLES / name, as_version=4)


def test_the_quickstart_from_a_clean_kernel(run, tmp_path):
    notebook = read("quickstart.ipynb")
    text, kinds = run(notebook)
    assert "joint" in text
    assert "epoch 60/60" in text
    assert {"image/png", "text/html"} <= kinds
    assert (tmp_path / "runs" / "quickstart" / "report.html").stat().st_size > 1e6


def test_a_language_model_is_read_from_a_clean_kernel(run, tmp_path, stories):
    notebook = read("read_smollm2.ipynb")
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    model, text = map(str, stories)
    cell.source = f'model_path, text_path = {model!r}, {text!r}\nwords, layer = [" the", " she", " and"], 2'
    printed, kinds = run(notebook)
    r2 = {name: float(value) for name, value in re.findall(r"^(\w+) +R² +(-?[\d.]+)", printed, re.M)}
    assert r2["surrogate"] > r2["affine"] > r2["joint"] > r2["identity"]
    assert r2["surrogate"] > 0.8
    assert {"image/png", "text/html"} <= kinds
    assert (tmp_path / "smollm2-reading" / "report.html").is_file()


@pytest.mark.parametrize(
    ("name", "words", "paths"),
    [
        ("read_smollm2.ipynb", "SmolLM2-135M-Instruct", ["smollm2-reading/report.html"]),
        ("quickstart.ipynb", "joint     R²", [f"{epoch}/60" for epoch in range(3, 61, 3)]),
    ],
)
def test_the_outputs_that_come_with_a_notebook_are_whole(name, words, paths):
    outputs = [output for cell in read(name).cells for output in cell.get("outputs", [])]
    assert {"stream", "execute_result"} <= {output.output_type for output in outputs}
    assert any("image/png" in output.get("data", {}) for output in outputs)
    text = "".join(output.get("text", "") for output in outputs)
    assert words in text
    for path in paths:
        text = text.replace(path, "")
    assert "/" not in text  # no path of a machine


def test_the_quickstart_says_how_it_is_opened_in_colab():
    assert "colab-badge.svg" in read("quickstart.ipynb").cells[0].source
