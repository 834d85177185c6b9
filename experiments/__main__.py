"""`python -m experiments`: trains what is missing, reads the weights, and writes the page of verdicts."""

import dataclasses
import sys
import textwrap
from pathlib import Path
from typing import Literal

from experiments.gather import beyond_sections, paper_sections
from experiments.section import Section, write_page
from experiments.sweeps import Sweeps
from experiments.tables import MEASURED, Tables
from sqs_jax import display
from sqs_jax.command_line import fail, one_line_errors, read
from sqs_jax.options import option
from sqs_jax.train.interrupt import Stopped
from sqs_jax.train.run_folder import described, provenance

DOCS = Path(__file__).parent.parent / "docs"


@dataclasses.dataclass(frozen=True)
class Options:
    """The claims, experiments and predicted failures of arXiv 2509.01874, or what goes beyond, each with a verdict."""

    page: Literal["paper", "beyond"] = option(
        "paper",
        "What is asked: paper, what the paper claims; beyond, what the reading of weights depends on and which λ and c "
        "are best.",
        positional=True,
    )
    quick: bool = option(
        False,
        "Small networks on the embedded digits: a few minutes, and answers that are not those of the paper's setting.",
    )
    sweeps: Path = option(Path("sweeps/paper"), "Folder of the sweeps; what is trained there is not trained again.")
    tables: bool = option(
        False, "Train nothing: draw the page from the tables in experiments/measured, with --quick from <sweeps>/quick."
    )
    out: Path | None = option(
        None, "Folder for the page and its pictures; default docs/results and docs/images, for --quick <sweeps>/quick."
    )
    data_dir: Path | None = option(None, "Folder with the original files; default SQS_DATA_DIR.")


def main() -> None:
    """Runs the experiments of a page."""
    with one_line_errors(ValueError, interrupted="interrupted; the same command goes on"):
        options = read(Options, sys.argv[1:], prog="python -m experiments")
        try:
            with display.stage(f"experiments, {options.page}"):
                page = run(options)
            display.result(page)
        except Stopped as stop:
            fail(f"{stop}; the same command goes on", 128 + stop.number)


def run(options: Options) -> Path:
    """Trains, reads and writes; returns the page's path."""
    root = options.sweeps / "quick" if options.quick else options.sweeps
    if options.tables:
        if options.data_dir:
            raise ValueError(f"`data_dir` is {options.data_dir}: --tables reads no data; leave one of them out")
        tables = Tables(root if options.quick else MEASURED, options.quick)
    else:
        tables = Sweeps(root, options.quick, options.data_dir)
    page = _write(options, tables, list((paper_sections if options.page == "paper" else beyond_sections)(tables)))
    if isinstance(tables, Sweeps) and not (options.quick or options.out):
        tables.export(MEASURED)
    return page


def _write(options: Options, tables: Tables, sections: list[Section]) -> Path:
    out = options.out or (options.sweeps / "quick" if options.quick else DOCS / "results")
    at_home = out.resolve() == (DOCS / "results").resolve()
    pictures = DOCS / "images" / options.page if at_home else out / "pictures"
    count = sum(len(section.verdicts) for section in sections)
    asked = _QUICK if options.quick else _HEADS[options.page]
    paragraphs = (asked, _VERDICT.format(count=count, missed=round(count / 20)))
    head = "\n\n".join(textwrap.fill(paragraph, 120) for paragraph in paragraphs)
    machines = [f"Networks trained on: {name}." for name in tables.machines()]
    tail = "\n\n".join([*machines, f"Page written on: {described(provenance())}."])
    page = out / f"{options.page}.md"
    write_page(page, _TITLES[options.page], head, sections, tail, pictures)
    return page


_TITLES = {"paper": "The paper's claims, measured", "beyond": "Beyond the paper: what makes weights readable"}
_SETTING = """Networks have one GLU layer of 512 on an embedding of 512, batch 2048, 20 epochs, AdamW with a peak
learning rate of 0.001 and a cosine, weight decay 0.1; 5,000 training images are held out for validation."""
_VERDICT = """A verdict is *shown* where the whole 95 % interval of its figure meets the criterion, *refuted* where the
whole interval misses it, and *not decided* otherwise; that two figures differ can be shown, not refuted. Of the {count}
criteria of this page, about {missed} of the intervals are expected to miss the truth, and more where the best of many
settings was chosen on the same seeds. Intervals are over seeds, on one test set: they say what another initialisation
would give, nothing of other test images. They end where their quantity does, as accuracy does at 1."""
_HEADS = {
    "paper": f"""`python -m experiments` trains what is missing in `sweeps/paper`, reads the weights and writes this
page; with `--tables` it draws it from the tables in `experiments/measured`. {_SETTING} Seeds are 0 to 4, of the
sensitivity, extreme and CIFAR sweeps 0 to 2, and where a small λ is asked to diverge 0 to 5. Nothing was tuned for a
gate.""",
    "beyond": f"""`python -m experiments beyond` trains what is missing in `sweeps/paper`, reads the weights and writes
this page; with `--tables` it draws it from the tables in `experiments/measured`. MNIST where nothing else is said.
{_SETTING} Noise is 1.0 where nothing else is said. Seeds are 0 to 2, and 0 to 4 of the networks that the paper's claims
have too. Figures of fidelity are of the test images; overlap and |cos| are with the bilinear network of the same
initialisation, both read with joint gains, mean over classes.""",
}
_QUICK = """`--quick`: the same questions of networks of width 32 on scikit-learn's digits, 15 epochs. It shows that
everything runs; its verdicts say nothing of the paper's setting."""


if __name__ == "__main__":
    with display.command():
        main()
