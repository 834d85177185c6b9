import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sqs_jax.train import InputError, preset
from sqs_jax.train.config_file import from_json
from sqs_jax.train.images import dataset as data
from sqs_jax.train.images.image_sources import SOURCES, read_idx
from sqs_jax.train.original_files import Original, Source

NOWHERE = "http://127.0.0.1:9/"  # the discard port: nothing answers


def idx_bytes(array):
    head = b"\x00\x00\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(head + array.astype(np.uint8).tobytes(), mtime=0)


def write_generated(folder: Path, seed=0, train=50, test=20):
    """Four files in MNIST's format; returns their arrays by name."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for prefix, count in (("train", train), ("t10k", test)):
        arrays[f"{prefix}-images-idx3-ubyte.gz"] = rng.integers(0, 256, (count, 5, 4)).astype(np.uint8)
        arrays[f"{prefix}-labels-idx1-ubyte.gz"] = rng.integers(0, 3, count).astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        (folder / name).write_bytes(idx_bytes(array))
    return arrays


def generated_source(folder: Path, name="generated", url=NOWHERE):
    originals = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        originals.append(Original(path.name, hashlib.sha256(content).hexdigest(), len(content), url + path.name))
    return Source(name, (5, 4), ("a", "b", "c"), tuple(originals), SOURCES["mnist"].read, (name,))


@pytest.fixture
def generated(tmp_path, monkeypatch):
    """A registered set of ours, its original files in tmp_path/data/generated, and an empty cache."""
    arrays = write_generated(tmp_path / "data" / "generated")
    monkeypatch.setitem(SOURCES, "generated", generated_source(tmp_path / "data" / "generated"))
    monkeypatch.setenv("SQS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("SQS_DATA_DIR", raising=False)
    return arrays


def assert_is(dataset, arrays):
    np.testing.assert_array_equal(dataset.train_images, arrays["train-images-idx3-ubyte.gz"])
    np.testing.assert_array_equal(dataset.test_images, arrays["t10k-images-idx3-ubyte.gz"])
    np.testing.assert_array_equal(dataset.train_labels, arrays["train-labels-idx1-ubyte.gz"])
    np.testing.assert_array_equal(dataset.test_labels, arrays["t10k-labels-idx1-ubyte.gz"])


def test_local_files_are_prepared_once_and_mapped(generated, tmp_path, monkeypatch):
    first = data.load("generated", tmp_path / "data")
    assert_is(first, generated)
    assert first.classes == ("a", "b", "c")
    assert isinstance(first.train_images, np.memmap)
    assert first.train_images.dtype == np.uint8
    assert first.train_labels.dtype == np.int32
    assert "tensorflow" not in sys.modules
    monkeypatch.setattr(data, "_own", lambda *_: 1 / 0)  # a second start must not prepare again
    assert_is(data.load("generated"), generated)


@pytest.mark.parametrize("folder", ["data/generated", "data"])
def test_files_are_found_in_the_folder_and_in_its_subfolder(generated, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SQS_DATA_DIR", str(tmp_path / folder))
    assert_is(data.load("generated"), generated)


def test_a_truncated_file_is_named_with_both_checksums(generated, tmp_path):
    path = tmp_path / "data" / "generated" / "train-images-idx3-ubyte.gz"
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes()[:-7])
    result = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(InputError) as error:
        data.load("generated", tmp_path / "data")
    for part in (str(path), expected, result):
        assert part in str(error.value)
    assert not list((tmp_path / "cache").glob("arrays/generated/1*[0-9]"))


def test_no_file_and_no_network_says_what_to_put_where(generated, tmp_path):
    (tmp_path / "data" / "generated" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError) as error:
        data.load("generated", tmp_path / "data")
    message = str(error.value)
    assert "cannot be reached" in message
    assert "put t10k-labels-idx1-ubyte.gz into DIR/generated/ and pass --data-dir DIR" in message
    assert "\n" not in message
    with pytest.raises(InputError, match="no such folder"):
        data.load("generated", tmp_path / "typo")


@pytest.fixture
def server(tmp_path):
    """A real HTTP server for the files below tmp_path/served; yields its address."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_missing_files_are_downloaded_and_two_sets_with_equal_names_kept_apart(
    generated, server, tmp_path, monkeypatch
):
    for seed, name in enumerate(("one", "two")):
        arrays = write_generated(tmp_path / "served" / name, seed=seed)
        source = generated_source(tmp_path / "served" / name, name=name, url=f"{server}{name}/")
        monkeypatch.setitem(SOURCES, name, source)
        assert_is(data.load(name), arrays)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_wrong_download_is_refused(generated, server, tmp_path, monkeypatch):
    write_generated(tmp_path / "served" / "one")
    source = generated_source(tmp_path / "served" / "one", name="one", url=f"{server}one/")
    monkeypatch.setitem(SOURCES, "one", source)
    write_generated(tmp_path / "served" / "one", seed=9)
    with pytest.raises(InputError, match=r"one: .*checksum.*Expected.*Got.*; put .* into DIR/one/"):
        data.load("one")
    with pytest.raises(InputError, match="one: "):  # and not taken for good the next time
        data.load("one")


def test_cifar_binaries(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 3, 32, 32)).astype(np.uint8)
    fine, coarse = np.array([0, 5, 9, 1, 2, 3], np.uint8), np.arange(6, dtype=np.uint8)

    def archive(path, members):
        with tarfile.open(path, "w:gz") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(f"cifar/{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))

    def records(*columns):
        return np.concatenate([*(c[:, None] for c in columns), images.reshape(6, -1)], axis=1)

    ten, hundred = records(fine), records(coarse, fine)
    archive(
        tmp_path / "10",
        {f"data_batch_{i}.bin": ten[i : i + 1].tobytes() for i in range(1, 6)} | {"test_batch.bin": ten[:1].tobytes()},
    )
    archive(
        tmp_path / "100",
        {"train.bin": hundred[1:].tobytes(), "test.bin": hundred[:1].tobytes(), "fine_label_names.txt": b"x"},
    )
    for name, file in (("cifar10", "10"), ("cifar100", "100")):
        for split, expected in (("train", range(1, 6)), ("test", [0])):
            examples = list(SOURCES[name].read(split, {"archive": tmp_path / file}))
            assert [example["label"] for example in examples] == [fine[i] for i in expected]
            for example, i in zip(examples, expected, strict=True):
                np.testing.assert_array_equal(example["image"], images[i].transpose(1, 2, 0))


def test_cifar_jpegs(tmp_path):
    path = tmp_path / "images.tar.xz"
    with tarfile.open(path, "w:xz") as tar:
        for split, name, color in (
            ("train", "frog", (200, 30, 30)),
            ("train", "cat", (0, 90, 250)),
            ("test", "ship", (9, 9, 9)),
        ):
            buffer = io.BytesIO()
            Image.new("RGB", (32, 32), color).save(buffer, "jpeg")
            info = tarfile.TarInfo(f"images/{split}/{name}/0001.jpg")
            info.size = len(buffer.getvalue())
            buffer.seek(0)
            tar.addfile(info, buffer)
    train = list(SOURCES["cifar10_jpeg"].read("train", {"archive": path}))
    assert [example["label"] for example in train] == [6, 3]
    np.testing.assert_allclose(train[0]["image"].astype(int) - [200, 30, 30], 0, atol=3)
    assert [example["label"] for example in SOURCES["cifar10_jpeg"].read("test", {"archive": path})] == [8]


def test_not_an_idx_file(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"\x00\x00\x0d\x01" + bytes(8)))
    with pytest.raises(ValueError, match="is not an idx file"):
        read_idx(path)


def planted_set(folder, seed=0, *, version="1.0.0", label=lambda i: i % 2, classes=("no", "yes")):
    """Prepares a small set of tensorflow-datasets in a folder, and returns its images by split."""
    tfds = pytest.importorskip("tensorflow_datasets")
    rng = np.random.default_rng(seed)
    arrays = {
        split: rng.integers(0, 256, (count, 6, 6, 1)).astype(np.uint8) for split, count in (("train", 30), ("test", 9))
    }

    class PlantedSquares(tfds.core.GeneratorBasedBuilder, skip_registration=seed > 0):
        name = "planted_squares" if seed == 0 else "planted_others"  # those that are registered have a class
        VERSION = tfds.core.Version(version)

        def _info(self):
            kind = tfds.features.ClassLabel(names=classes) if classes else np.int64
            features = {"image": tfds.features.Tensor(shape=(6, 6, 1), dtype=np.uint8), "label": kind}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(images) for split, images in arrays.items()}

        def _generate_examples(self, images):
            for i, image in enumerate(images):
                yield i, {"image": image, "label": label(i)}

    PlantedSquares(data_dir=folder, file_format="array_record").download_and_prepare()
    return {split: images[..., 0] for split, images in arrays.items()}


def test_any_image_classification_set_of_tfds(tmp_path, monkeypatch):
    monkeypatch.setenv("SQS_CACHE_DIR", str(tmp_path / "cache"))
    arrays = planted_set(tmp_path)
    dataset = data.load("tfds:planted_squares", tmp_path)
    assert dataset.classes == ("no", "yes")
    np.testing.assert_array_equal(dataset.test_images, arrays["test"])
    np.testing.assert_array_equal(dataset.train_labels, np.arange(30) % 2)


def test_a_set_of_one_name_is_another_in_another_folder_and_version(tmp_path, monkeypatch):
    monkeypatch.setenv("SQS_CACHE_DIR", str(tmp_path / "cache"))
    first = planted_set(tmp_path / "a", seed=1)
    second = planted_set(tmp_path / "b", seed=2)
    for _ in range(2):
        pinned = data.load("tfds:planted_others:1.0.0", tmp_path / "a")
        for folder, arrays in (("a", first), ("b", second)):
            result = data.load("tfds:planted_others", tmp_path / folder)
            np.testing.assert_array_equal(result.train_images, arrays["train"])
        np.testing.assert_array_equal(pinned.train_images, first["train"])
    newer = planted_set(tmp_path / "a", seed=3, version="1.1.0")
    np.testing.assert_array_equal(data.load("tfds:planted_others", tmp_path / "a").train_images, newer["train"])


def test_labels_out_of_range_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("SQS_CACHE_DIR", str(tmp_path / "cache"))
    planted_set(tmp_path, seed=4, label=lambda i: -1 if i == 5 else i % 2, classes=())
    with pytest.raises(InputError, match=r"tfds:planted_others has labels from -1 to 1 in train: 0 to 1 are needed"):
        data.load("tfds:planted_others", tmp_path)


@pytest.mark.parametrize("name", ["tfds:../../X", "tfds:a/../../b", "tfds:a/..", "tfds:/etc", "tfds:a\0b", "tfds:"])
def test_no_name_leads_out_of_the_cache(name, tmp_path):
    with pytest.raises(InputError, match="`data` is"):
        preset(name)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"data": name}))
    with pytest.raises(InputError):
        from_json(path)


def test_a_damaged_cache_is_told(generated, tmp_path):
    data.load("generated", tmp_path / "data")
    (array,) = (tmp_path / "cache").glob("arrays/**/train_images.npy")
    array.write_bytes(array.read_bytes()[:100])
    with pytest.raises(InputError, match=r"is damaged .* remove it, and it is made anew"):
        data.load("generated", tmp_path / "data")


def test_tfds_says_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setenv("SQS_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="tfds:no_such_set"):
        data.load("tfds:no_such_set", tmp_path)
    if data.importlib.util.find_spec("tensorflow") is None:
        with pytest.raises(InputError, match="needs TensorFlow: install tensorflow"):
            data.load("tfds:kmnist", tmp_path)


def test_validation_is_cut_from_training_and_the_same_for_every_run():
    training, validation = data.split_validation(1000, 150)
    assert len(validation) == 150
    np.testing.assert_array_equal(np.sort(np.concatenate([training, validation])), np.arange(1000))
    np.testing.assert_array_equal(validation, data.split_validation(1000, 150)[1])
    assert not np.array_equal(validation, np.arange(150))
    everything, none = data.split_validation(1000, 0)
    assert len(none) == 0
    np.testing.assert_array_equal(everything, np.arange(1000))


def test_digits_are_kept_and_made_anew_where_they_cannot_be(tmp_path):
    first, again = (data.load("digits", cache_dir=tmp_path) for _ in range(2))
    assert isinstance(again.train_images, np.memmap)
    (tmp_path / "file").touch()
    without = data.load("digits", cache_dir=tmp_path / "file")
    assert not isinstance(without.train_images, np.memmap)
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        arrays = [getattr(each, name) for each in (first, again, without)]
        assert all(array.dtype == arrays[0].dtype and np.array_equal(array, arrays[0]) for array in arrays)


def test_digits():
    digits = data.load("digits")
    assert digits.train_images.shape == (1437, 8, 8)
    assert digits.test_images.max() == 255
    np.testing.assert_allclose(np.bincount(digits.test_labels), 36, atol=1)
    train = {image.tobytes() for image in digits.train_images}
    assert not any(image.tobytes() in train for image in digits.test_images)


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("real")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_real_files(name, original_files, real_cache):
    dataset = data.load(name, original_files, real_cache)
    folder = original_files / name
    np.testing.assert_array_equal(dataset.train_images, read_idx(folder / "train-images-idx3-ubyte.gz"))
    np.testing.assert_array_equal(dataset.test_labels, read_idx(folder / "t10k-labels-idx1-ubyte.gz"))
    assert np.bincount(dataset.test_labels).tolist() == ([1000] * 10 if name == "fashion_mnist" else
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009])  # fmt: skip


def test_the_real_jpegs(original_files, real_cache):
    dataset = data.load("cifar10_jpeg", original_files, real_cache)
    assert dataset.train_images.shape == (50000, 32, 32, 3)
    assert np.bincount(dataset.train_labels).tolist() == [5000] * 10
    assert np.bincount(dataset.test_labels).tolist() == [1000] * 10


_PREPARE = (
    "import sys, pathlib\nfrom sqs_jax.train.images.dataset import load\nload('mnist', pathlib.Path(sys.argv[1]))"
)


def preparing(original_files, cache):
    command = [sys.executable, "-c", _PREPARE, str(original_files)]
    return subprocess.Popen(
        command, env=dict(os.environ) | {"SQS_CACHE_DIR": str(cache)}, stdout=subprocess.PIPE, text=True
    )


def test_two_processes_and_a_killed_one_leave_a_good_cache(original_files, tmp_path):
    victim = preparing(original_files, tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("tfds/mnist/*incomplete*/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    assert not (tmp_path / "arrays" / "mnist" / "1.0.0").exists()

    pair = [preparing(original_files, tmp_path) for _ in range(2)]
    spoken = [process.communicate()[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    assert sorted(len(text.splitlines()) for text in spoken) == [0, 1]  # one prepared, the other waited
    expected = read_idx(original_files / "mnist" / "train-images-idx3-ubyte.gz")
    np.testing.assert_array_equal(data.load("mnist", cache_dir=tmp_path).train_images, expected)
