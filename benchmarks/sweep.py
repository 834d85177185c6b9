"""What training several networks at once gains on this device: milliseconds of a step, for each network.

    python -m benchmarks.sweep [--widths 64 512] [--at-once 5] [--epochs 3]

MNIST, batch 2048, noise 0.5, embedding and GLU of one width. One network after the other, beside groups trained by one
program: of different seeds; the same with the noise shared; and of one seed, whose batches and noise are the same. The
first epoch, which compiles, is not counted. Writes benchmarks/results/sweep-<platform>.json. By the
figures of a CPU a sweep trains networks there one after the other, unless they have their noise in common.
"""

import dataclasses
import json
import statistics

from benchmarks.common import RESULTS, parsed
from sqs_jax.train import PRESETS
from sqs_jax.train.images.image_task import load_images, place_images
from sqs_jax.train.layout import make_mesh, replicated
from sqs_jax.train.run_folder import provenance
from sqs_jax.train.sweep.together import epoch_seconds


def main(widths: tuple[int, ...] = (64, 512), at_once: int = 5, epochs: int = 3) -> None:
    """Measures, prints a table and writes the result.

    Args:
        widths: Of embedding and GLU layer.
        at_once: Networks in a group.
        epochs: That are counted, of each group.
    """
    base = dataclasses.replace(PRESETS["mnist"], validation=0, noise_std=0.5)
    images = place_images(base, load_images(base, None), replicated(make_mesh()))
    medians: dict[str, dict[str, float]] = {}
    for width in widths:
        config = dataclasses.replace(base, width=width, hidden=width)
        seeds = [dataclasses.replace(config, seed=seed) for seed in range(at_once)]
        rates = [dataclasses.replace(config, lr=config.lr * (i + 1) / at_once) for i in range(at_once)]
        runs = {
            "one after the other": epoch_seconds(seeds[:1], images),
            "seeds": epoch_seconds(seeds, images),
            "seeds, shared noise": epoch_seconds(seeds, images, noise_seed=0),
            "one seed": epoch_seconds(rates, images),
        }
        counts = {name: 1 if name == "one after the other" else at_once for name in runs}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(epochs + 1):  # in turns, so that all have the same weather
            for name, run in runs.items():
                seconds[name].append(1e3 * next(run) / counts[name] / images.steps)
        medians[str(width)] = {name: statistics.median(values[1:]) for name, values in seconds.items()}
        print(f"width {width}: " + ", ".join(f"{name} {value:.1f} ms" for name, value in medians[str(width)].items()))
    _write(medians, f"python -m benchmarks.sweep --widths {' '.join(map(str, widths))} --at-once {at_once}")


def _write(medians, command: str) -> None:
    RESULTS.mkdir(exist_ok=True)
    result = {"command": command, "milliseconds_a_step_and_network_by_width": medians}
    result |= provenance()
    path = RESULTS / f"sweep-{result['device']['platform']}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    parsed(main)
