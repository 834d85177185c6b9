"""The report of whatever a folder holds: a run on images, a run on text, an adoption, or a sweep."""

from pathlib import Path
from typing import Any

from sqs_jax import display
from sqs_jax.analysis.calibration import Method
from sqs_jax.messages import InputError
from sqs_jax.start import extra


@extra()
def write_report(
    path: str | Path,
    *,
    data_dir: Path | None = None,
    method: Method | None = None,
    against: tuple[Path, ...] = (),
    outputs: tuple[int, ...] = (),
    members: bool = False,
) -> Path:
    """Reads the weights of a finished run, or the table of a sweep, and writes `report.html` into its folder.

    Args:
      path: the folder of a run, an adoption or a sweep.
      data_dir: where the original files of its data lie, as for `train`.
      method: of a run: the gains that its spectrum is read with, as in `calibrate`; by default "joint".
      against: of a run: folders of other runs of the same kind, to be shown beside it; on images two or more.
      outputs: of a run on images: numbers of the classes to read, from 0; by default all, of more than 64 the first 64.
      members: of a sweep: whether the report of every finished network is written first, as far as there is none.

    Returns the page's path.

    Raises InputError, a ValueError, where that is no such folder, it is not finished, its data cannot be had, or an
    argument is not for it.
    """
    from sqs_jax.train.config import AdoptConfig, TextConfig
    from sqs_jax.train.run_folder import RunFolder, SweepFolder, read_config

    path = Path(path)
    if SweepFolder(path).grid.is_file():
        if method or against or outputs:
            raise InputError("a sweep is shown by its table alone: no --method, no --against, no --outputs")
        return _sweep_report(SweepFolder(path), data_dir, members)
    if members:
        raise InputError(f"{path} is no sweep: it has no members")
    config = read_config(RunFolder(path))
    if isinstance(config, AdoptConfig):
        if method or against or outputs:
            raise InputError("an adoption has its readings: no --method, no --against, no --outputs")
        from sqs_jax.analysis.report.adoption_page import write_adoption_report

        return write_adoption_report(path)
    method = method or "joint"
    if isinstance(config, TextConfig):
        if outputs:
            raise InputError("--outputs belongs to a run on images, or to --weights: tokens are looked up on the page")
        from sqs_jax.analysis.report.language_page import write_language_report

        return write_language_report(path, data_dir=data_dir, method=method, against=against)
    return _image_report(path, config, data_dir, method, against, outputs)


def _sweep_report(folder: Any, data_dir: Path | None, members: bool) -> Path:
    from sqs_jax.analysis.report.sweep_page import write_sweep_report

    for run in _unread(folder) if members else ():
        with display.stage(f"reading {run.path.name}", plain=True):
            write_report(run.path, data_dir=data_dir)
    return write_sweep_report(folder.path)


def _unread(folder: Any) -> list[Any]:
    """The finished networks of a sweep that have no report."""
    names = sorted(path.name for path in folder.members.glob("*") if not path.name.startswith("."))
    runs = [folder.member(name) for name in names]
    return [run for run in runs if run.summary.is_file() and not run.report.exists()]


def _image_report(path: Path, config: Any, data_dir: Path | None, method: Method, against, outputs) -> Path:
    from sqs_jax.analysis.report.image_page import write_image_report
    from sqs_jax.analysis.runs.compare import compare_runs
    from sqs_jax.analysis.runs.load import open_run
    from sqs_jax.train.run_folder import RunFolder

    comparison = None
    if against:
        comparison = compare_runs([path], list(against), method=method, k=None, data_dir=data_dir)
    run = open_run(RunFolder(path), config, data_dir)
    return write_image_report(run, method=method, comparison=comparison, outputs=outputs)
