"""Images of one's own: folders and .npz files as users have them, prepared once, trained, read, and what is wrong."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from sqs_jax import display
from sqs_jax.analysis.cli import main as analysis_main
from sqs_jax.messages import InputError
from sqs_jax.train.cli.train import main
from sqs_jax.train.images import own_images
from sqs_jax.train.images.dataset import load
from sqs_jax.train.images.own_images import own_preset
from tests.helpers import wrong

CLASSES = ("cat", "dog", "eel")


def painted(rng, label, shape):
    """An image of a class: a bright third, and noise."""
    width = shape[1]
    image = rng.integers(0, 60, shape)
    image[:, label * width // 3 : (label + 1) * width // 3] += 180
    return image.astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """210 JPEGs of several sizes in three classes, and what is found beside them."""
    root, rng = tmp_path_factory.mktemp("own") / "pets", np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for i in range(70):
            shape = (int(rng.integers(24, 60)), int(rng.integers(24, 60)), 3)
            Image.fromarray(painted(rng, label, shape)).save(root / name / f"{i:03}.jpg", quality=95)
    (root / "cat" / "notes.txt").write_text("no image")
    (root / ".hidden").mkdir()
    (root / "cat" / "._000.jpg").write_bytes(b"what another system leaves")
    (root / "cat" / ".thumbnails").mkdir()
    shutil.copy(root / "cat" / "000.jpg", root / "cat" / ".thumbnails" / "000.jpg")
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SQS_CACHE_DIR", str(tmp_path / "cache"))


def arrays(n=60, shape=(9, 8), dtype=np.uint8):
    rng = np.random.default_rng(1)
    y = np.arange(n) % 3
    return {"x": np.stack([painted(rng, label, shape) for label in y]).astype(dtype), "y": y}


def test_a_folder_is_trained_and_read(folder, tmp_path, cache, capsys):
    run = tmp_path / "run"
    with display.command():
        main([f"images:{folder}", "--epochs", "12", "--hidden", "16", "--run-dir", str(run)])
    out = capsys.readouterr().out
    assert "152 images of 32 × 32 × 3 to train on, 16 for validation, 42 for the test; 3 classes" in out
    summary = json.loads((run / "summary.json").read_text())
    assert summary["test"]["accuracy"] > 0.9
    assert json.loads((run / "images.json").read_text())["classes"] == list(CLASSES)
    assert "pets" in (run / "report.html").read_text().partition("</title>")[0]
    analysis_main(["report", str(run)])


def test_images_are_those_of_the_files(folder, tmp_path, cache):
    data = load(f"images:{folder}", size=24)
    assert (data.name, data.classes, data.shape) == ("pets", CLASSES, (24, 24, 3))
    assert (len(data.train_labels), len(data.test_labels)) == (168, 42)
    assert np.bincount(data.test_labels).tolist() == [14, 14, 14]
    for images, own in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        columns = images.astype(float).mean((1, 3))
        brightest = columns.reshape(len(columns), 3, 8).mean(2).argmax(1)
        np.testing.assert_array_equal(brightest, own)
    # None is in both parts, and another reading gives the same.
    whole = {image.tobytes() for image in np.concatenate([data.train_images, data.test_images])}
    assert len(whole) == 210
    shutil.rmtree(tmp_path / "cache")
    np.testing.assert_array_equal(load(f"images:{folder}", size=24).train_images, data.train_images)


def test_an_image_is_prepared_as_it_is_shown(tmp_path, cache):
    """Small images of one size keep it to the byte; cameras' orientation, palettes, 16 bits and transparency count."""
    rng = np.random.default_rng(2)
    grey = rng.integers(0, 256, (6, 5)).astype(np.uint8)
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(grey).save(tmp_path / "set" / name / f"{i}.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "set" / "a" / "deep.png")
    turned, exif = Image.fromarray(np.rot90(grey)), Image.Exif()
    exif[0x0112] = 6  # turned by 90° clockwise to be seen
    turned.save(tmp_path / "set" / "a" / "turned.png", exif=exif)
    data = load(f"images:{tmp_path / 'set'}")
    assert data.shape == (6, 5)
    for image in (*data.train_images, *data.test_images):
        np.testing.assert_array_equal(image, grey)
    clear = np.zeros((6, 5, 4), np.uint8)
    Image.fromarray(clear, "RGBA").save(tmp_path / "set" / "b" / "clear.png")
    images = load(f"images:{tmp_path / 'set'}")
    assert images.shape == (6, 5, 3)
    both = np.concatenate([images.train_images, images.test_images])
    assert [image.min() for image in both].count(255) == 1  # what is transparent is white


def test_folders_of_train_and_test_are_taken_as_they_are(folder, tmp_path, cache):
    for part, count in (("train", 9), ("test", 4)):
        for name in CLASSES:
            (tmp_path / "parted" / part / name).mkdir(parents=True)
            for file in sorted((folder / name).glob("[!.]*.jpg"))[:count]:
                shutil.copy(file, tmp_path / "parted" / part / name)
    data = load(f"images:{tmp_path / 'parted'}", size=16)
    assert np.bincount(data.train_labels).tolist() == [9, 9, 9]
    assert np.bincount(data.test_labels).tolist() == [4, 4, 4]
    config = own_preset(f"images:{tmp_path / 'parted'}")
    assert (config.validation, config.batch_size) == (2, 6)


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 1), (9, 8, 3)])
def test_an_npz_file_is_taken_as_it_is(shape, tmp_path, cache, capsys):
    given = arrays(shape=shape) | {"classes": np.array(CLASSES), "split": np.array(["train"] * 45 + ["test"] * 15)}
    np.savez(tmp_path / "set.npz", **given)
    data = load(f"images:{tmp_path / 'set.npz'}")
    assert data.classes == CLASSES
    np.testing.assert_array_equal(data.train_images, given["x"][:45].reshape(data.train_images.shape))
    np.testing.assert_array_equal(data.test_labels, given["y"][45:])
    main([f"images:{tmp_path / 'set.npz'}", "--epochs", "2", "--no-report", "--run-dir", str(tmp_path / "run")])
    assert (tmp_path / "run" / "summary.json").exists()


def test_it_is_prepared_once_and_anew_for_other_files(tmp_path, cache, monkeypatch):
    path = tmp_path / "set.npz"
    np.savez(path, **arrays())
    first = load(f"images:{path}")
    reader = own_images._read_npz
    monkeypatch.setattr(own_images, "_read_npz", None)  # whoever calls it fails
    np.testing.assert_array_equal(load(f"images:{path}").train_images, first.train_images)
    monkeypatch.setattr(own_images, "_read_npz", reader)
    np.savez(path, **arrays(n=90))
    assert len(load(f"images:{path}").train_labels) == 72


def test_a_linked_class_is_followed(folder, tmp_path, cache):
    root = tmp_path / "linked"
    root.mkdir()
    for name in CLASSES:
        shutil.copytree(folder / name, tmp_path / "elsewhere" / name)
        (root / name).symlink_to(tmp_path / "elsewhere" / name)
    first = load(f"images:{root}", size=8)
    (tmp_path / "elsewhere" / "cat" / "069.jpg").unlink()
    assert len(load(f"images:{root}", size=8).test_labels) == len(first.test_labels) - 1


def test_a_sweep_and_its_networks_remember_their_images(tmp_path, cache, capsys):
    path, folder = tmp_path / "set.npz", tmp_path / "sweep"
    np.savez(path, **arrays())
    main(["sweep", f"images:{path}", "--seeds", "1", "--epochs", "1", "--no-report", "--sweep-dir", str(folder)])
    member = folder / "members" / "sqs-seed0"
    main(["--run-dir", str(member), "--resume", "--epochs", "2", "--no-report"])
    np.savez(path, **(arrays() | {"x": arrays()["x"][::-1]}))
    assert "begun with other data" in wrong(main, ["sweep", "--sweep-dir", folder, "--resume"], capsys)
    assert "begun with other data" in wrong(analysis_main, ["report", member], capsys)


def test_a_run_is_found_again_by_its_images(tmp_path, cache, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("set.npz", **arrays())
    main(["images:set.npz", "--epochs", "1", "--no-report"])
    capsys.readouterr()
    main(["images:set.npz", "--resume", "--epochs", "2", "--no-report"])
    assert "`epochs` 1 → 2" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["set.npz-sqs-seed0"]


def test_a_run_is_not_resumed_with_other_images(tmp_path, cache, capsys):
    path = tmp_path / "set.npz"
    np.savez(path, **arrays())
    flags = [f"images:{path}", "--epochs", "2", "--no-report", "--run-dir", str(tmp_path / "run")]
    main(flags)
    (tmp_path / "run" / "summary.json").unlink()
    np.savez(path, **(arrays() | {"x": arrays()["x"][::-1]}))
    assert "begun with other data" in wrong(main, ["--run-dir", str(tmp_path / "run"), "--resume"], capsys)


def changed(name, value):
    return lambda given: given | {name: value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("y", arrays()["y"] * 2), "`y` has labels up to 4, but no 1: 0 to classes - 1 are needed"),
        (changed("y", arrays()["y"] + 1), "`y` has labels up to 3, but no 0"),
        (changed("y", arrays()["y"] - 1), "`y` has the label -1"),
        (changed("y", arrays()["y"] * 0), "two classes or more"),
        (changed("y", arrays()["y"][:-1]), "60 images, and `y` 59 labels"),
        (changed("y", arrays()["y"] / 1), "`y` is float64 (60,): whole numbers"),
        (changed("y", np.array([0, *[1] * 59])), "one image is all there is of the class '0'"),
        (changed("x", arrays()["x"] / 255), "`x` is float64 (60, 9, 8): uint8"),
        (changed("x", arrays()["x"][:, 0]), "`x` is uint8 (60, 8): uint8 (n, height, width)"),
        (changed("split", np.array(["train"] * 60)), "no image is for the test"),
        (changed("split", np.array(["valid"] * 60)), "of 'train' and 'test' is needed"),
        (changed("classes", np.array(["a", "b"])), "the 3 names of the labels are needed"),
        (lambda given: {"x": given["x"]}, "has no array `y`"),
    ],
)
def test_a_wrong_npz_is_one_line(change, message, tmp_path, cache, capsys):
    np.savez(tmp_path / "set.npz", **change(arrays()))
    run = tmp_path / "run"
    assert message in wrong(main, [f"images:{tmp_path / 'set.npz'}", "--run-dir", run], capsys)
    assert not run.exists()
    assert not list((tmp_path / "cache").rglob("*.npy"))


def broken(root):
    (root / "dog" / "007.jpg").write_bytes((root / "dog" / "007.jpg").read_bytes()[:400])
    return "dog/007.jpg is no image that can be read"


def alone(root):
    for path in [*(root / "cat").glob("[!.]*.jpg"), *(root / "eel").glob("*.jpg")]:
        if path.name != "000.jpg":
            path.unlink()
    return "one image is all there is of the class 'cat', 'eel': two are needed"


def empty(root):
    (root / "fox").mkdir()
    return "fox has no image"


def one_class(root):
    for name in ("dog", "eel"):
        shutil.rmtree(root / name)
    return "has one folder: two or more are needed, one for each class"


def split_by_another_name(root):
    (root / "val").mkdir()
    return "has the folder 'val' beside others"


@pytest.mark.parametrize("change", [broken, alone, empty, one_class, split_by_another_name])
def test_a_wrong_folder_is_one_line(change, folder, tmp_path, cache, capsys):
    root = shutil.copytree(folder, tmp_path / "pets")
    message = change(root)
    assert message in wrong(main, [f"images:{root}", "--run-dir", tmp_path / "run"], capsys)
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "cache").rglob("*.npy"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["images:nowhere"], "nowhere is not there"),
        (["images:"], "`data` is 'images:'"),
        (["images:pyproject.toml"], "pyproject.toml is neither a folder"),
        (["digits", "--size", "8"], "`size` is 8: it goes with images of your own"),
    ],
)
def test_a_wrong_name_is_one_line(arguments, message, tmp_path, cache, capsys):
    assert message in wrong(main, [*arguments, "--run-dir", tmp_path / "run"], capsys)


def test_an_npz_keeps_its_size(tmp_path, cache):
    np.savez(tmp_path / "set.npz", **arrays())
    with pytest.raises(InputError, match="`size` is 4: images of an"):
        load(f"images:{tmp_path / 'set.npz'}", size=4)


def test_a_sweep_takes_them(tmp_path, cache, capsys):
    np.savez(tmp_path / "set.npz", **arrays())
    flags = ["--gate", "sqs,relu", "--epochs", "1", "--hidden", "8", "--no-report"]
    main(["sweep", f"images:{tmp_path / 'set.npz'}", *flags, "--sweep-dir", str(tmp_path / "sweep")])
    assert len((tmp_path / "sweep" / "results.csv").read_text().splitlines()) == 3
