"""Grids: every combination once, values of the kind of their field, and bad input told before anything is trained."""

import dataclasses

import pytest

from sqs_jax.train import PRESETS
from sqs_jax.train.cli.sweep import _VARIED, Options, _grid
from sqs_jax.train.cli.train import main
from sqs_jax.train.sweep.grid import members, parse_values

BASE = PRESETS["digits"]


def test_a_grid_is_every_combination_once():
    result = members(BASE, {"gate": ("sqs", "silu"), "lam": (0.1, 0.5), "seed": (0, 1)})
    assert list(result) == [
        "sqs-lam0.1-seed0",
        "sqs-lam0.1-seed1",
        "sqs-lam0.5-seed0",
        "sqs-lam0.5-seed1",
        "silu-seed0",
        "silu-seed1",
    ]
    assert result["sqs-lam0.1-seed1"] == dataclasses.replace(BASE, lam=0.1, seed=1)
    assert result["silu-seed0"] == dataclasses.replace(BASE, gate="silu")
    assert list(members(BASE, {})) == ["sqs-seed0"]
    learnt = members(BASE, {"gate": ("sqs", "relu"), "learnable": (True, False), "noise_std": (0.0, 0.25)})
    assert list(learnt) == [
        "sqs-learnabletrue-noise_std0-seed0",
        "sqs-learnabletrue-noise_std0.25-seed0",
        "sqs-learnablefalse-noise_std0-seed0",
        "sqs-learnablefalse-noise_std0.25-seed0",
        "relu-noise_std0-seed0",
        "relu-noise_std0.25-seed0",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gate", "sqs,swish"], "`gate` is 'swish'"),
        (["--lam", "0.1,-1"], "`lam` is -1.0"),
        (["--lam", "0.1,,1"], "`lam` is '0.1,,1': one value or more"),
        (["--lam", ""], "`lam` is '': one value or more"),
        (["--seeds", "0"], "`seeds` is 0: a number from 1 to 10000"),
        (["--seeds", "2", "--seed", "1"], "--seeds and --seed exclude each other"),
        (["--seed", "1,1"], "`seed` has 1 twice"),
        (["--seed", "1.5"], "`seed` has '1.5': a whole number"),
        (["--lr", "1e-3,fast"], "`lr` has 'fast': a number is needed"),
        (["--residual", "yes"], "`residual` has 'yes': true or false"),
        (["--gate", "silu,gelu", "--lam", "0.1,0.5"], "`lam` has values, but no `gate` of the grid is sqs"),
        (["--batch-size", "128,5000"], "`batch_size` is 5000: at most the 1237 training images"),
        (["--at-once", "-1"], "`at_once` is -1"),
        (["--memory", "nan"], "`memory` is nan"),
        (["--lamb", "1"], "unrecognized: --lamb"),
        (["--resume"], "--resume needs the folder of a sweep"),
        (["--resume", "--sweep-dir", "nowhere"], "is not the folder of a sweep"),
    ],
)
def test_bad_input_is_told_before_anything_is_trained(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["sweep", *([] if "--resume" in words else ["digits"]), *words])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())


def test_the_order_of_the_axes_is_that_of_folders_that_were_begun():
    names = ["seed", "gate", "lam", "c", "p", "learnable", "layers", "width", "hidden", "residual", "bias", "lr"]
    names += [
        "weight_decay",
        "noise_std",
        "noise_prob",
        "warmup",
        "clip",
        "epochs",
        "batch_size",
        "validation",
        "dtype",
    ]
    assert [field.name for field in _VARIED] == names
    options = Options(width="8,16", layers="1,2", lr="0.1,0.2")
    assert list(_grid(options)[1]) == ["layers", "width", "lr"]


def test_a_sweep_is_on_images(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words, message in ((["stories"], "a sweep is on images"), (["mnsit"], "did you mean 'mnist'")):
        with pytest.raises(SystemExit) as end:
            main(["sweep", *words])
        assert end.value.code == 2
        assert message in capsys.readouterr().err


def test_values_are_of_the_kind_of_their_field():
    assert parse_values("lam", "0.1, 1") == (0.1, 1.0)
    assert parse_values("seed", "3") == (3,)
    assert parse_values("bias", "true,False") == (True, False)
    assert parse_values("gate", "sqs,relu") == ("sqs", "relu")
