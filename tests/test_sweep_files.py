"""Sweeps from files, beside flags, and the reports of their networks on demand."""

import json

import pytest

from sqs_jax.analysis.cli import main as analysis_main
from sqs_jax.train.cli.train import main
from sqs_jax.train.sweep.run_sweep import read_grid
from tests.helpers import wrong

YAML = """
data: digits
gate: [sqs, relu]
lam: [0.1, 0.5]   # for sqs alone
hidden: 8
width: 8
epochs: 1
seeds: 2
share-noise: true
report: false
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "sweep.yaml").write_text(YAML)
    main(["sweep", "--file", str(folder / "sweep.yaml"), "--seeds", "1", "--sweep-dir", str(folder / "sweep")])
    return folder


def test_a_file_is_as_good_as_flags_and_flags_count_more(swept):
    grid = read_grid(swept / "sweep")
    assert grid.axes == {"gate": ("sqs", "relu"), "lam": (0.1, 0.5)}
    assert (grid.base.data, grid.base.hidden, grid.base.epochs, grid.share_noise) == ("digits", 8, 1, True)
    names = {path.name for path in (swept / "sweep" / "members").iterdir()}
    assert names == {"sqs-lam0.1-seed0", "sqs-lam0.5-seed0", "relu-seed0"}
    assert not (swept / "sweep" / "report.html").exists()


def test_json_is_read_too(tmp_path, capsys):
    (tmp_path / "sweep.json").write_text(
        json.dumps({"gate": "relu", "learnable": False, "hidden": [4, 8], "epochs": 1})
    )
    main(["sweep", "--file", str(tmp_path / "sweep.json"), "--seeds", "1", "--no-report", "--sweep-dir",
          str(tmp_path / "sweep")])  # fmt: skip
    assert read_grid(tmp_path / "sweep").axes == {"hidden": (4, 8)}


def test_the_reports_of_all_networks_are_written_on_demand(swept):
    path = swept / "sweep"
    analysis_main(["report", str(path), "--members"])
    for member in (path / "members").iterdir():
        assert (member / "report.html").stat().st_size > 1e6
    page = (path / "report.html").read_text()
    assert '"members/sqs-lam0.1-seed0/report.html"' in page
    times = {member: (member / "report.html").stat().st_mtime_ns for member in (path / "members").iterdir()}
    analysis_main(["report", str(path), "--members"])  # what is there is not written again
    assert times == {member: (member / "report.html").stat().st_mtime_ns for member in (path / "members").iterdir()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("gate: [sqs, relu", "is no YAML or JSON"),
        ("- sqs", "holds ['sqs']: flags and their values are needed"),
        ("gaet: sqs", "has 'gaet': did you mean 'gate'?"),
        ("file: other.yaml", "has 'file'"),
        ("seeds: many", "`seeds` is 'many': a whole number is needed"),
        ("hidden: [4, wide]", "sweep.yaml: `hidden` has 'wide': a whole number is needed"),
        ("data-dir:", "`data_dir` is None: a number, a text, true or false is needed"),
        ("lam: {low: 1}", "`lam` is {'low': 1}: a number, a text"),
        ("gate: [sqs, sqs]", "`gate` has 'sqs' twice"),
    ],
)
def test_a_wrong_file_is_one_line(content, message, tmp_path, capsys):
    (tmp_path / "sweep.yaml").write_text(content)
    line = ["sweep", "--file", tmp_path / "sweep.yaml", "--sweep-dir", tmp_path / "sweep"]
    assert message in wrong(main, line, capsys)
    assert not (tmp_path / "sweep").exists()


def test_files_that_are_not_there_and_members_of_no_sweep(swept, tmp_path, capsys):
    assert "nowhere.yaml: No such file" in wrong(main, ["sweep", "--file", tmp_path / "nowhere.yaml"], capsys)
    member = swept / "sweep" / "members" / "relu-seed0"
    assert "it has no members" in wrong(analysis_main, ["report", member, "--members"], capsys)
