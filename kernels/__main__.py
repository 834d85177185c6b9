"""The command line: `python -m sqs_jax.kernels tune`."""

import argparse
import sys
from typing import Any, NoReturn

from sqs_jax import GATES, compile_cache, display, kernels
from sqs_jax.messages import one_line


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and exits with 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} ({self.prog} --help lists the flags)\n")


def main(arguments: list[str] | None = None) -> None:
    """Measures the device and writes the user's table; exits with 2 where there is nothing to measure."""
    parser = Parser(
        prog="python -m sqs_jax.kernels",
        description="Kernels of gated linear units. `tune` measures XLA and every kernel and tile on this device, "
        "prints a table, and writes it to your cache folder, where `implementation=None` finds it.",
    )
    tune = parser.add_subparsers(required=True, metavar="tune").add_parser(
        "tune", help="measure this device, and use what is faster from then on"
    )
    grid_flags(tune)
    tune.add_argument(compile_cache.FLAG, action="store_true", help=compile_cache.HELP)
    tune.add_argument("--gate", choices=tuple(GATES), default="sqs", help="default: sqs")
    options = parser.parse_args(arguments)
    try:
        _tune(options)
    except (NotImplementedError, ValueError) as error:
        sys.exit(_complain(one_line(error)))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(_complain(f"{error.filename}: {error.strerror}"))


def _tune(options) -> None:
    backend, kind = kernels.target()
    if backend is None:
        raise NotImplementedError(f"{kind} is no TPU and no NVIDIA GPU of compute capability 8.0 to 9.0: it runs XLA")
    import jax

    from sqs_jax.kernels import measure, timings

    path = timings.user_path(kind)
    display.result(f"{kind}, {options.dtype}, {options.gate}: milliseconds of XLA and of the best kernel")
    display.result(
        f"{'operation':<13}{'shape':<20}{'residuals':<11}{'pass':<10}{'XLA':>9}{'kernel':>9}{'gain':>7}  tile"
    )
    grid = measure.grid(options.rows, options.inputs)
    if options.gate != "sqs":
        grid = [(op, shape) for op, shape in grid if op != "sqs"]
    with display.stage("measuring", len(grid), "shapes") as shown:
        for op, shape in grid:
            for row in measure.measure(op, shape, options.dtype, GATES[options.gate], repeats=options.repeats):
                _show(row, op, shape)
                # Written row by row: what was measured is kept when the rest is stopped.
                path = timings.write(kind, [row], {"jax": jax.__version__})
            shown.advance()
    display.result(path)


def _show(row: Any, op: str, shape: tuple[int, ...]) -> None:
    from sqs_jax.kernels import measure

    for name in measure.PASSES:
        xla, ours = row.xla_ms[name], row.pallas_ms[name]
        sizes, tile = "x".join(map(str, shape)), "x".join(map(str, row.tile or ()))
        what, times = f"{op:<13}{sizes:<20}{row.residuals:<11}{name:<10}", f"{xla:>9.3f}{ours:>9.3f}"
        display.result(f"{what}{times}{xla / ours:>7.2f}  {tile}")


def grid_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what shapes are measured, in what dtype, and how often."""
    parser.add_argument("--rows", type=_sizes, default=[2048, 8192], help="rows of x (default: 2048,8192)")
    parser.add_argument(
        "--inputs",
        type=_sizes,
        default=[256, 512, 1024, 4096],
        help="widths d of x; h is 4 d (default: 256,512,1024,4096)",
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument(
        "--repeats", type=_positive, default=20, help="timings of which the median counts (default: 20)"
    )


def _sizes(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number ≥ 1 is needed")
    return int(text)


def _complain(message: str) -> int:
    display.end()
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    with display.command():
        main()
