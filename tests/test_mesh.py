"""How a run lies on its devices: a rule for every parameter, the same numbers in any layout, and less memory."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from sqs_jax.analysis import load_weights
from sqs_jax.messages import InputError
from sqs_jax.sharding import along_batch
from sqs_jax.train import ImageConfig, train
from sqs_jax.train.cli.train import main
from sqs_jax.train.images import classifier
from sqs_jax.train.layout import Layout, make_mesh, parted
from sqs_jax.train.optimizer import make_optimizer
from sqs_jax.train.step import first_state
from sqs_jax.train.text import language_model
from tests.helpers import on_devices, quiet, text_config, wrong

TEXT = {"steps": 20, "evaluate_every": 4, "save_every": 5, "samples": 0}
IMAGES = ImageConfig(width=16, hidden=32, epochs=2, save_every=2, validation=0, bias=True, learnable=True, warmup=2)


@pytest.mark.parametrize("changes", [{}, {"tied": False, "learnable": True}])
def test_every_parameter_of_a_language_model_has_a_rule(changes):
    config = text_config(**TEXT, **changes)
    model = nnx.eval_shape(lambda: language_model.make_model(config, 320))
    state = jax.eval_shape(lambda: first_state(model, make_optimizer(config, 20)))
    placed = parted(state, make_mesh())
    assert placed.params["blocks"]["glu"]["w"].spec == PartitionSpec(None, "fsdp", "model")
    moments = [placed.opt_state[1][0].mu, placed.opt_state[1][0].nu]  # after the clipping
    assert moments == [placed.params] * 2


@pytest.mark.parametrize("changes", [{}, {"bias": False, "width": 0}, {"layers": 3}])
def test_every_parameter_of_a_classifier_has_a_rule(changes):
    config = dataclasses.replace(IMAGES, **changes)
    model = nnx.eval_shape(lambda: classifier.make_model(config, 64, 10))
    placed = parted(jax.eval_shape(lambda: first_state(model, make_optimizer(config, 20))), make_mesh())
    assert placed.params["layers"][0]["w"].spec == PartitionSpec("fsdp", "model")


def test_a_parameter_without_a_rule_is_an_error():
    for tree in ({"blocks": {"gain": jnp.ones((2, 3))}}, {"head": jnp.ones(3)}, {"ahead": jnp.ones((2, 3))}):
        with pytest.raises(KeyError, match="no rule says how"):
            parted(tree, make_mesh())


def test_outside_of_a_mesh_nothing_is_constrained():
    assert "sharding_constraint" not in str(jax.make_jaxpr(along_batch)(jnp.ones((8, 4))))


@pytest.mark.parametrize(
    ("flags", "message"), [(["--fsdp", "2"], "has to divide the"), (["--model", "0"], "`model` is 0")]
)
def test_a_layout_that_does_not_fit_is_one_line(flags, message, tmp_path, capsys):
    if "--fsdp" in flags and jax.device_count() % 2 == 0:
        pytest.skip("two devices are here")
    assert message in wrong(main, ["--run-dir", str(tmp_path / "run"), *flags], capsys)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError):
        make_mesh(Layout(jax.device_count() + 1))


# In a process with eight devices: text and images by each layout; what a device holds of a state; each last checkpoint
# laid out as any other layout has it.
_ON_EIGHT = """
import json, pathlib, sys
import jax, numpy as np
from sqs_jax.train import ImageConfig, TextConfig, train
from sqs_jax.train.checkpoint import Checkpoints
from sqs_jax.train.layout import Layout, make_mesh, parted
from sqs_jax.train.step import TrainState
from sqs_jax.train.task import make_task

folder = pathlib.Path(sys.argv[1])
configs = {"text": eval(sys.argv[2]), "images": eval(sys.argv[3])}
result = {}
for name, config in configs.items():
    states = {}
    for layout in (Layout(), Layout(fsdp=8), Layout(fsdp=2, model=2)):
        key = f"{name} {layout.fsdp} {layout.model}"
        run = folder / key
        train(config, run, layout=layout, report=lambda *_: None)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        empty = make_task(config, None, layout).begin(run, lambda: None)
        states[key] = empty
        held = {device: 0 for device in jax.devices()}
        for leaf in jax.tree.leaves(empty):
            for shard in leaf.addressable_shards:
                held[shard.device] += shard.data.nbytes
        result[key] = {
            "losses": [row["train_loss"] for row in rows],
            "test": json.loads((run / "summary.json").read_text())["test"]["loss"],
            "held": max(held.values()),
            "whole": sum(leaf.nbytes for leaf in jax.tree.leaves(empty)),
        }
    saved = Checkpoints(folder / f"{name} 2 2" / "checkpoints", has_validation=False)
    restored = {key: saved.restore_last(empty)[0] for key, empty in states.items()}
    first, *others = restored.values()
    result[name] = all(
        a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b))
        for other in others
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True)
    ) and all(
        a.sharding == b.sharding
        for key in states
        for a, b in zip(jax.tree.leaves(states[key].params), jax.tree.leaves(restored[key].params), strict=True)
    )
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def on_eight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eight")
    text = text_config(folder, **TEXT)
    command = [sys.executable, "-c", _ON_EIGHT, str(folder), repr(text), repr(IMAGES)]
    done = subprocess.run(command, env=on_devices(8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


LAYOUTS = ("1 1", "8 1", "2 2")


@pytest.mark.parametrize("name", ["text", "images"])
def test_losses_are_those_of_one_device(name, on_eight, tmp_path):
    folder, result = on_eight
    config = IMAGES if name == "images" else text_config(folder, **TEXT)
    summary = train(config, tmp_path / "run", report=quiet)
    losses = [json.loads(line)["train_loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for layout in LAYOUTS:
        row = result[f"{name} {layout}"]
        np.testing.assert_allclose(row["losses"], losses, atol=5e-6, rtol=0, err_msg=layout)
        assert row["test"] == pytest.approx(summary["test"]["loss"], abs=5e-6), layout


def test_a_device_holds_its_part_of_the_state(on_eight):
    _, result = on_eight
    held = {layout: result[f"text {layout}"]["held"] / result[f"text {layout}"]["whole"] for layout in LAYOUTS}
    assert held["1 1"] == 1
    assert held["8 1"] < 1 / 6
    assert held["2 2"] < 1 / 3.5


def test_a_checkpoint_is_read_by_any_layout_to_the_bit(on_eight):
    _, result = on_eight
    assert result["text"]
    assert result["images"]


def test_a_run_that_lay_in_parts_is_read_and_goes_on_on_one_device(on_eight, capsys):
    folder, result = on_eight
    assert load_weights(folder / "images 2 2").w.shape == (16, 32)
    run = folder / "text 2 2"
    assert json.loads((run / "summary.json").read_text())["device"]["count"] == 8
    main(["sample", str(run), "--tokens", "3"])
    assert capsys.readouterr().out
    main(["--run-dir", str(run), "--resume", "--steps", "24", "--no-report"])
    losses = [json.loads(line)["train_loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert losses[:-1] == result["text 2 2"]["losses"]
    assert len(losses) == 6


_READ = """
import json, pathlib, sys
import jax
from sqs_jax.analysis import load_weights
from sqs_jax.analysis.report import write_report
from sqs_jax.train import checkpoint
from sqs_jax.train.checkpoint import restore_params
from sqs_jax.train.cli.train import main

checkpoint.free_memory = lambda: 1000  # so little that networks have to be spread
text, images = map(pathlib.Path, sys.argv[1:])
for run in (text, images):
    write_report(run)
main(["sample", str(text), "--tokens", "8", "--temperature", "0", "--quiet"])
leaves = jax.tree.leaves(restore_params(text / "checkpoints"))
held = sum(leaf.addressable_shards[0].data.size for leaf in leaves) / sum(leaf.size for leaf in leaves)
figures = [json.loads((run / "summary.json").read_text())["analysis"] for run in (text, images)]
print()
print(json.dumps([figures, held, float(abs(load_weights(images).w).sum())]))
"""


def test_reports_samples_and_weights_are_the_same_on_any_number_of_devices(on_eight, tmp_path):
    folder, _ = on_eight
    found = []
    for count in (1, 4):
        runs = [tmp_path / f"{name}{count}" for name in ("text", "images")]
        for run, name in zip(runs, ("text 8 1", "images 2 2"), strict=True):
            shutil.copytree(folder / name, run)
        command = [sys.executable, "-c", _READ, *map(str, runs)]
        done = subprocess.run(command, env=on_devices(count), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        sample, _, result = done.stdout.strip().rpartition("\n")
        found.append((sample, json.loads(result)))
    (sample, ((text, images), held, weights)), (other_sample, ((other_text, other_images), other_held, other)) = found
    assert sample == other_sample
    assert weights == pytest.approx(other, rel=1e-6)
    assert held == 1
    assert other_held < 0.3  # a part on each device
    pairs = [(images["fidelity"], other_images["fidelity"])]
    pairs += [(a["gains"], b["gains"]) for a, b in zip(text["layers"], other_text["layers"], strict=True)]
    for own, its in pairs:
        assert {name: row["r2"] for name, row in own.items()} == pytest.approx(
            {name: row["r2"] for name, row in its.items()}, abs=1e-3
        )
