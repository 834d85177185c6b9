import dataclasses
import json

import numpy as np
import pytest

from sqs_jax.train import PRESETS, ImageConfig, InputError, TextConfig, preset, train
from sqs_jax.train.cli.train import parse
from sqs_jax.train.config_check import check
from sqs_jax.train.config_file import from_json, to_json


@pytest.mark.parametrize("name", [*(name for name in PRESETS if name != "text"), "tfds:kmnist"])  # it needs a file
def test_presets_are_valid_and_survive_json(name, tmp_path):
    config = preset(name)
    check(config)
    assert config.data == name
    path = tmp_path / "config.json"
    path.write_text(to_json(config))
    assert from_json(path) == config


def test_a_partial_file_keeps_the_preset(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"data": "mnist", "lr": 1, "gate": "relu"}')
    assert from_json(path) == dataclasses.replace(PRESETS["mnist"], lr=1, gate="relu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "mnits"}, "`data` is 'mnits': did you mean 'mnist'"),
        ({"data": "tfds:"}, "`data` is 'tfds:'"),
        ({"gate": "gleu"}, "`gate` is 'gleu': did you mean 'gelu'"),
        ({"c": -1}, "`c` is -1"),
        ({"lam": float("nan")}, "`lam` is nan"),
        ({"p": 0.9}, "`p` is 0.9"),
        ({"noise_std": -0.5}, "`noise_std` is -0.5"),
        ({"noise_prob": 1.5}, "`noise_prob` is 1.5: a number from 0 to 1"),
        ({"epochs": 0}, "`epochs` is 0"),
        ({"batch_size": -4}, "`batch_size` is -4"),
        ({"width": -1}, "`width` is -1"),
        ({"lr": 0.0}, "`lr` is 0.0"),
        ({"lr": float("inf")}, "`lr` is inf"),
        ({"weight_decay": -0.1}, "`weight_decay` is -0.1"),
        ({"seed": -1}, "`seed` is -1"),
        ({"validation": -1}, "`validation` is -1"),
        ({"dtype": "float8"}, "`dtype` is 'float8': one of float32"),
        ({"save_every": 0}, "`save_every` is 0"),
        ({"gate": "relu", "learnable": True}, "`learnable` needs `gate` sqs"),
        ({"residual": True, "width": 8, "hidden": 4}, "`residual` needs `width` = `hidden`"),
    ],
)
def test_fields_out_of_range_are_named(change, message):
    with pytest.raises(InputError) as error:
        check(dataclasses.replace(ImageConfig(), **change))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged: Input data was truncated"),
        ("[]", "is damaged: Expected `object`, got `array`"),
        ('{"epoch": 3}', "unknown field 'epoch': did you mean 'epochs'"),
        ('{"epochs": "3"}', "`epochs` is '3': a whole number is needed"),
        ('{"epochs": true}', "`epochs` is True"),
        ('{"dtype": "float8"}', "one of float32, bfloat16, float16"),
    ],
)
def test_bad_files_are_told(content, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(InputError) as error:
        from_json(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_every_field_is_written():
    assert set(json.loads(to_json(ImageConfig()))) == {field.name for field in dataclasses.fields(ImageConfig)}


TEXT = TextConfig(vocab=300, context=32, width=16, layers=2, heads=2, steps=25, batch_size=4, warmup=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab": 2**24 + 1}, "`vocab` is 16777217: a whole number from 257 to 16777216"),
        ({"vocab": 256}, "`vocab` is 256"),
        ({"heads": 3}, "`heads` is 3"),
        ({"context": 1}, "`context` is 1"),
        ({"context": 32.5}, "`context` is 32.5: a whole number from 2 to"),
        ({"data": "text"}, "--text FILE is needed"),
        ({"accumulate": 3}, "`accumulate` is 3: it must divide `batch_size`, 4"),
        ({"steps": 0, "epochs": 0}, "`epochs` is 0"),
        ({"test": 0}, "`test` is 0"),
        ({"remat": "all"}, "`remat` is 'all'"),
        ({"text": "x.txt"}, "a file goes with the data 'text'"),
        ({"data": "mnist"}, "`data` is 'mnist': a TextConfig is not for it"),
        ({"warmup": 25}, "`warmup` is 25: fewer than the run's 25 steps"),
    ],
)
def test_a_configuration_of_text_out_of_range_is_named(change, message, tmp_path):
    with pytest.raises(InputError, match=message):
        train(dataclasses.replace(TEXT, **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_flags_of_text_and_of_images():
    config, run_dir, _ = parse(["--text", "book.txt", "--layers", "6"])
    assert config == dataclasses.replace(PRESETS["text"], text=config.text, layers=6)
    assert config.text.startswith("/")
    assert run_dir.name == "book-sqs-seed0"
    assert parse(["stories", "--heads", "2"])[0] == dataclasses.replace(PRESETS["stories"], heads=2)
    assert parse(["--run-dir", "stories", "--residual", "--layers", "2"])[0].data == "digits"
    with pytest.raises(InputError, match="--heads"):
        parse(["mnist", "--heads", "2"])
    with pytest.raises(InputError, match="--residual"):
        parse(["stories", "--residual"])


def test_numpys_numbers_are_numbers():
    config = dataclasses.replace(PRESETS["mnist"], c=np.float32(0.25), lam=np.float64(0.5))
    check(config)
    assert json.loads(to_json(config))["c"] == 0.25
    for name, value in (("seed", True), ("lr", "3"), ("bias", 1), ("c", None)):
        with pytest.raises(InputError, match=f"`{name}` is"):
            check(dataclasses.replace(PRESETS["mnist"], **{name: value}))
