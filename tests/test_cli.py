"""The command line as people use it: what it understands, and one line with exit code 2 for what it does not."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sqs_jax.train import PRESETS, ImageConfig, InputError, device_memory
from sqs_jax.train.cli.train import Settings, main, parse
from sqs_jax.train.images.dataset import load


def test_defaults_are_those_of_the_data_set():
    assert parse([])[0] == ImageConfig()
    config, run_dir, places = parse(["mnist", "--gate", "relu", "--noise-std", "0.5", "--seed", "3", "--residual"])
    changed = {"gate": "relu", "noise_std": 0.5, "seed": 3, "residual": True}
    assert config == dataclasses.replace(PRESETS["mnist"], **changed)
    assert run_dir == Path("runs/mnist-relu-seed3")
    assert not places.resume
    assert parse(["--lam", "1", "tfds:kmnist"])[0].data == "tfds:kmnist"


def test_a_file_of_text_is_a_run_on_text(tmp_path):
    for words in ([], ["stories"], ["text"]):
        config, run_dir, _ = parse([*words, "--text", "a/book.txt", "--seed", "2"])
        assert (config.data, run_dir) == ("text", Path("runs/book-sqs-seed2"))
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"data": "stories", "width": 16}))
    config, _, _ = parse(["--config", str(path), "--text", "book.txt"])
    assert (config.data, config.width) == ("text", 16)


def test_help_shows_the_defaults_of_a_configuration(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"data": "stories", "context": 77}))
    with pytest.raises(SystemExit):
        main(["--config", str(path), "--help"])
    assert "(default: 77)" in capsys.readouterr().out


def test_a_configuration_gives_the_defaults_and_flags_win(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"data": "mnist", "lr": 0.5, "bias": True}))
    config, _, _ = parse(["--config", str(path), "--epochs", "3", "--no-bias"])
    assert config == dataclasses.replace(PRESETS["mnist"], lr=0.5, epochs=3)


def test_every_flag_of_the_help_is_there(capsys):
    with pytest.raises(SystemExit) as end:
        main(["fashion_mnist", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    fields = [
        field.name for kind in (ImageConfig, Settings) for field in dataclasses.fields(kind) if field.name != "data"
    ]
    assert {"lam", "noise_prob", "resume"} <= set(fields)
    for field in fields:
        assert f"--{field.replace('_', '-')}" in text
    assert "python -m train mnist" in text
    assert "default: 2048" in text  # the preset of the data set that was named


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("mnits", "`data` is 'mnits': did you mean 'mnist'"),
        ("--gate silo", "`gate` is 'silo': did you mean 'silu'"),
        ("--gaet sqs", "did you mean --gate"),
        ("--noise-std -1", "`noise_std` is -1.0: a number from 0 to 3.4e+38 is needed"),
        ("--noise-prob 2", "`noise_prob` is 2.0"),
        ("--epochs many", "--epochs"),
        ("--batch-size 5000", "`batch_size` is 5000: at most the 1237 training images"),
        ("--validation 1437", "`validation` is 1437: fewer than the 1437"),
        ("--warmup 100000", "`warmup` is 100000"),
        ("--p 0.5", "`p` is 0.5"),
        ("--config nowhere.json", "cannot read nowhere.json"),
        ("--resume --run-dir nowhere", "nowhere is not the folder of a run"),
        ("--resume --config x.json", "--config and --resume exclude each other"),
        ("--residual --width 0 --hidden 32", "`residual` without an embedding needs `hidden` = 64"),
        ("--resume", "runs/digits-sqs-seed0 is not the folder of a run"),
        ("mnist --data-dir nowhere", "`data_dir` is nowhere: no such folder"),
        ("--run-dir file/below", "file"),
        ("--run-dir full", "full exists already: go on with it by --resume"),
        ("--run-dir file", "file exists already"),
        ("--width 100000000000", "`width` is 100000000000: a whole number from 0 to 262144"),
        ("--width 200000 --hidden 200000", "with their gradient and AdamW's two moments, take 1,192.3 GiB"),
        ("--batch-size 99999999999", "`batch_size` is 99999999999: a whole number from 1 to"),
        ("--layers 1000000", "`layers` is 1000000: a whole number from 1 to 256"),
        ("--epochs 2147483647", "the run has 19327352823 steps: fewer than 2147483648"),
        ("--lr 1e39", "`lr` is 1e+39: a number above 0 to 3.4e+38"),
        ("--seed 1e5", "--seed"),
        ("stories --hidden 10000000000", "`hidden` is 10000000000"),
        ("stories --steps 99999999999999999999", "`steps` is 99999999999999999999"),
        ("stories --context 100000 --warmup 0", "a step of training takes, beside weights and data,"),
        ("stories --dtype float16 --steps 3", "cannot be compiled for this device, cpu"),
        ("sweep --seeds 1000000000", "`seeds` is 1000000000: a number from 1 to 10000"),
        ("sweep --layers 1000000", "`layers` is 1000000"),
        ("sweep --seed 1,2,1", "`seed` has 1 twice"),
        ("sweep stories", "a sweep is on images"),
        ("swep mnist", "the command is 'swep': did you mean sweep?"),
        ("tfds:../../../X", "`data` is 'tfds:../../../X'"),
        ("--text=", "`text` is '': the path of a file is needed"),
        ("sample nowhere", "nowhere is not the folder of a run"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SQS_CACHE_DIR", str(tmp_path / "cache"))
    Path("full").mkdir()
    Path("full/precious").write_text("mine")
    Path("file").write_text("mine")
    with pytest.raises(SystemExit) as end:
        main(flags.split())
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert [path.name for path in Path("full").iterdir()] == ["precious"]
    assert Path("file").read_text() == "mine"
    assert not list(Path().glob("**/config.json"))
    assert not list(Path().glob("**/.*.partial"))


def test_resuming_with_another_setting_is_refused(tmp_path, capsys):
    run_dir = str(tmp_path / "run")
    main(["--epochs", "1", "--run-dir", run_dir, "--no-report"])
    assert "summary.json" in capsys.readouterr().out
    assert not (tmp_path / "run" / "report.html").exists()
    with pytest.raises(SystemExit) as end:
        main(["--resume", "--run-dir", run_dir, "--lr", "1"])
    assert end.value.code == 2
    assert "`lr` is 1.0, but the run" in capsys.readouterr().err
    main(["--resume", "--run-dir", run_dir, "--no-report"])
    assert "test loss" in capsys.readouterr().out


def test_a_set_larger_than_the_memory_is_refused_with_both_sizes(tmp_path, monkeypatch, capsys):
    digits = load("digits")
    monkeypatch.setattr(device_memory, "free_memory", lambda: 2**10)
    assert (digits.train_images.nbytes + digits.test_images.nbytes) / 2**20 > 0.1
    with pytest.raises(SystemExit) as end:
        main(["--run-dir", str(tmp_path / "run")])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "digits takes 0.1 MiB" in error
    assert "0.0 MiB free" in error
    assert not (tmp_path / "run").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a writer that failed may still hold its file


@pytest.mark.parametrize(("width", "file"), [("128", "checkpoints"), ("8", "report.html")])
def test_a_full_disk_is_told_and_the_run_goes_on_later(width, file, small_disk, capfd):
    flags = [
        "--epochs",
        "2",
        "--validation",
        "0",
        "--width",
        width,
        "--hidden",
        width,
        "--run-dir",
        str(small_disk / "run"),
    ]
    filler = small_disk / "filler"
    filler.write_bytes(bytes(1))
    if file == "report.html":  # which plotly alone makes larger than this
        subprocess.run(["mount", "-o", "remount,size=3m", str(small_disk)], check=True)
    with pytest.raises(SystemExit) as end:
        main(flags)
    assert end.value.code == 2
    error = capfd.readouterr().err
    assert "No space left on device" in error
    assert error.count("\n") == 1
    assert file in error
    assert not list(small_disk.glob("run/.*.partial"))
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    main([*flags, "--resume"])
    assert (small_disk / "run" / "report.html").exists()


def test_a_read_only_folder_is_told(small_disk, capsys):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for flags in (["--run-dir", str(small_disk / "run")], ["--run-dir", str(small_disk / "deeper" / "run")]):
        with pytest.raises(SystemExit) as end:
            main(["--epochs", "1", "--no-report", *flags])
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert "Read-only file system" in error
        assert error.count("\n") == 1


def test_a_full_disk_while_a_set_is_prepared_is_told(original_files, small_disk, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("SQS_CACHE_DIR", str(small_disk))
    with pytest.raises(SystemExit) as end:
        main(["mnist", "--data-dir", str(original_files), "--run-dir", str(tmp_path / "run")])
    assert end.value.code == 2
    error = capfd.readouterr().err
    assert "No space left on device" in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_may_become_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["--epochs", "1", "--run-dir", ".", "--no-report"])
    assert (tmp_path / "summary.json").exists()


def test_the_module_runs_and_a_mistake_has_no_traceback():
    done = subprocess.run([sys.executable, "-m", "train", "--gate", "sqz"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: `gate` is 'sqz': did you mean 'sqs'?")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_mistyped_flag_is_one_line_in_any_encoding(encoding):
    environment = dict(os.environ) | {"PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "train", "--gaet", "sqs"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unrecognized: --gaet; did you mean --gate?")
    assert done.stderr.count("\n") == 1


def test_help_is_shown_in_any_encoding():
    environment = dict(os.environ) | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-m", "train", "--help"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0
    assert "--noise-std" in done.stdout


def test_importing_the_package_imports_nothing_heavy():
    code = "import jax, flax, sys; before = set(sys.modules); import sqs_jax; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    packages = {name.split(".")[0] for name in done.stdout.split()}
    assert "sqs_jax" in packages
    assert packages <= {"sqs_jax", "jax", "jaxlib", "jaxtyping", "numpy"}
    assert "jax.experimental.pallas" not in done.stdout


@pytest.mark.parametrize("text", ["\x1b[2J\r\nx" + "y" * 10**5, "\udcff", "a\0b"])
@pytest.mark.parametrize("flags", [["--gate"], ["--run-dir"], ["--config"], ["--text"], ["--dtype"], []])
def test_hostile_words_give_one_short_harmless_line(flags, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main([*flags, text])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error[:-1].isprintable()
    assert len(error) < 1300
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    ["[" * 200_000, '{"seed": ' + "1" * 5000 + "}", '{"data": "a\\u0000b"}', '{"text": "\\ud800"}', '{"lr": NaN}'],
)
def test_hostile_configurations_give_one_line(content, tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(SystemExit) as end:
        main(["--config", str(path)])
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_default_warm_up_fits_the_steps_and_one_that_is_asked_for_is_checked_at_once():
    assert parse(["stories", "--steps", "15"])[0].warmup == 1
    assert parse(["stories", "--steps", "20"])[0].warmup == 2
    assert parse(["stories", "--steps", "21"])[0].warmup == PRESETS["stories"].warmup == 20
    with pytest.raises(InputError, match="`warmup` is 19: fewer than the run's 15 steps"):
        parse(["stories", "--steps", "15", "--warmup", "19"])


def test_free_memory_is_told_without_what_only_unix_has(monkeypatch):
    monkeypatch.delattr(os, "sysconf")
    assert device_memory.free_memory() > 2**20
