"""Data sets as memory-mapped arrays: original files → tensorflow-datasets, once → arrays on disk, once."""

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sqs_jax import files
from sqs_jax.cache import default_cache_dir
from sqs_jax.messages import InputError, first_line
from sqs_jax.train.images.image_sources import DIGITS, SOURCES
from sqs_jax.train.images.own_images import own_place, read_own
from sqs_jax.train.original_files import SPLITS, VERSION, Source, exclusive, prepare, tensorflow_datasets
from sqs_jax.train.presets import OWN, short_name
from sqs_jax.train.records import read_record


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images uint8 (n, *shape) with labels int32 (n,), for training and for the final test, and the classes' names."""

    name: str
    classes: tuple[str, ...]
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image: (height, width) or (height, width, 3)."""
        return self.train_images.shape[1:]


def load(name: str, data_dir: Path | None = None, cache_dir: Path | None = None, *, size: int = 0) -> Dataset:
    """The data set `name`, from the cache if it is there, else prepared from its original files.

    Args:
      name: `digits`, a name in `SOURCES`, `tfds:<name>`, or `images:<folder or .npz file>` of one's own.
      data_dir: folder with the original files, in it or in a subfolder of the data set's name; default
        `SQS_DATA_DIR`. What it lacks is downloaded. For `tfds:<name>`, the data_dir of tensorflow-datasets,
        by default its own.
      cache_dir: where prepared sets are kept; default `SQS_CACHE_DIR`, else `sqs_jax` in the user's cache.
      size: height and width of images from a folder of one's own, as in `ImageConfig`.

    Raises InputError for a file whose checksum is wrong, for one that is neither there nor can be downloaded,
    and for a `tfds:<name>` that is not such a set or needs TensorFlow. Safe to call from several
    processes at once, and after a call that was killed.
    """
    if name == "digits":
        return _digits(cache_dir)
    stock = name.removeprefix("tfds:") if name.startswith("tfds:") else None
    if not (stock or data_dir) and os.environ.get("SQS_DATA_DIR"):
        data_dir = Path(os.environ["SQS_DATA_DIR"])
    if data_dir and not data_dir.is_dir():
        raise InputError(f"`data_dir` is {data_dir}: no such folder")
    cache_dir = cache_dir or default_cache_dir()
    if name.startswith(OWN):
        key, read = own_place(name, size), lambda *_: read_own(name, size)
    elif stock:
        key, read = _stock_place(stock, data_dir), functools.partial(_stock, stock)
    else:
        key, read = Path(name, VERSION), functools.partial(_own, SOURCES[name])

    def made() -> tuple[Path, Any, Any]:
        splits, classes = read(data_dir, cache_dir)
        _check_labels(name, splits, classes)
        # What was downloaded just now has another place.
        return (_stock_place(stock, data_dir) if stock else key, splits, classes)

    folder = _kept(cache_dir, key, made)
    return _open(short_name(name) if name.startswith(OWN) else name, folder)


def own_facts(name: str, data: Dataset) -> dict[str, str]:
    """The file of a run that tells images of one's own from others at the same place; nothing of other data sets."""
    if not name.startswith(OWN):
        return {}
    arrays = (data.train_images, data.train_labels, data.test_images, data.test_labels)
    checksum = hashlib.sha256(b"".join(hashlib.sha256(np.asarray(array).tobytes()).digest() for array in arrays))
    facts = {"sha256": checksum.hexdigest(), "shape": list(data.shape), "classes": list(data.classes)}
    return {"images.json": json.dumps(facts, indent=2) + "\n"}


def split_validation(size: int, validation: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images for training and for validation, from one fixed shuffle of `size` images.

    The same images are held out for every seed, so that runs can be compared.
    """
    order = np.random.default_rng(0).permutation(size).astype(np.int32)
    return np.sort(order[validation:]), np.sort(order[:validation])


def _digits(cache_dir: Path | None) -> Dataset:
    """The digits as they are kept, since importing scikit-learn takes a second; made anew where they cannot be."""
    try:
        key = Path("digits", VERSION)
        return _open("digits", _kept(cache_dir or default_cache_dir(), key, lambda: (key, *_drawn_digits())))
    except (OSError, RuntimeError):  # a folder that cannot be written, or a user without a home
        splits, classes = _drawn_digits()
        return Dataset("digits", classes, *splits["train"], *splits["test"])


def _drawn_digits():
    """scikit-learn's embedded 8×8 digits: 1,437 for training and 360 for the test, drawn class by class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)  # pixels from 0 to 16
    images = np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    labels = labels.astype(np.int32)
    return {name: (images[part], labels[part]) for name, part in (("train", train), ("test", test))}, DIGITS


def _own(source: Source, data_dir: Path | None, cache_dir: Path):
    """A data set of `SOURCES`: the arrays of each split, and the names of the classes."""
    records = prepare(source, data_dir, cache_dir)
    return {split: _collect(source.name, records[split]) for split in SPLITS}, source.classes


def _stock_place(name: str, data_dir: Path | None) -> Path:
    """Where the arrays of a `tfds:<name>` are kept. Its key covers the folder and the version of the original."""
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets").resolve()
    folder = root / re.split("[/:]", name)[0]
    described = {str(path.relative_to(root)): path.read_text() for path in sorted(folder.glob("**/dataset_info.json"))}
    key = hashlib.sha256(json.dumps([name, str(root), described, VERSION]).encode()).hexdigest()
    return Path("tfds", f"{re.sub(r'[^A-Za-z0-9_]+', '-', name)}-{key[:16]}")


def _stock(name: str, data_dir: Path | None, cache_dir: Path):
    """Reads `tfds:<name>`, an image-classification set of tensorflow-datasets itself."""
    tfds = tensorflow_datasets()
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        raise InputError(f"`data` is 'tfds:{name}': {first_line(error)}") from None
    if not builder.is_prepared():
        if importlib.util.find_spec("tensorflow") is None:
            raise InputError(f"tfds:{name} is not prepared yet, and to prepare it needs TensorFlow: install tensorflow")
        try:
            builder.download_and_prepare(download_dir=cache_dir / "downloads" / f"tfds-{name}")
        except Exception as error:  # whatever a builder of others may raise
            raise InputError(f"tfds:{name} cannot be prepared: {first_line(error)}") from None
    features = builder.info.features
    if not (features and {"image", "label"} <= set(features) and set(SPLITS) <= set(builder.info.splits)):
        raise InputError(f"tfds:{name} does not have `image` and `label`, and the splits `train` and `test`")
    label = features["label"]
    splits = {split: _collect(f"tfds:{name}", builder.as_data_source(split)) for split in SPLITS}
    count = getattr(label, "num_classes", None) or 1 + int(max(labels.max() for _, labels in splits.values()))
    return splits, tuple(getattr(label, "names", None) or map(str, range(count)))


def _check_labels(name: str, splits, classes) -> None:
    for split, (_, labels) in splits.items():
        low, high = labels.min(), labels.max()
        if low < 0 or high >= len(classes):
            raise InputError(f"{name} has labels from {low} to {high} in {split}: 0 to {len(classes) - 1} are needed")


def _collect(name, records) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 and labels int32 of a data source, in its order."""
    size = len(records)
    if not size:
        raise InputError(f"{name} has an empty split")
    shape = np.shape(records[0]["image"])
    images, labels = np.empty((size, *shape), np.uint8), np.empty(size, np.int32)
    for start in range(0, size, 1000):  # in one read each: one by one takes many times as long
        indices = range(start, min(start + 1000, size))
        for i, record in zip(indices, records.__getitems__(indices), strict=True):
            image = np.asarray(record["image"])
            if image.dtype != np.uint8 or image.shape != shape:
                raise InputError(f"{name} has images {image.dtype}{image.shape}, not all uint8{shape}")
            images[i], labels[i] = image, record["label"]
    return images.squeeze(-1) if shape[-1] == 1 else images, labels


def _kept(cache_dir: Path, key: Path, made: Callable[[], tuple[Path, Any, Any]]) -> Path:
    """The folder of a set's arrays; where there is none, `made()` tells its place, its splits and its classes."""
    folder = cache_dir / "arrays" / key
    if not folder.is_dir():
        with exclusive(folder):
            if not folder.is_dir():
                files.clean(folder.parent, folder.name)
                place, splits, classes = made()
                folder = cache_dir / "arrays" / place
                _save(folder, splits, classes)
    return folder


def _save(folder: Path, splits, classes):
    with files.appearing(folder) as partial:
        for split, (images, labels) in splits.items():
            np.save(partial / f"{split}_images.npy", images)
            np.save(partial / f"{split}_labels.npy", labels)
        (partial / "classes.json").write_text(json.dumps(classes))


def _open(name, folder: Path) -> Dataset:
    try:
        arrays = {
            f"{split}_{kind}": np.load(folder / f"{split}_{kind}.npy", mmap_mode="r")
            for split in SPLITS
            for kind in ("images", "labels")
        }
        for split in SPLITS:
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
            if (images.dtype, labels.dtype, labels.shape) != (np.uint8, np.int32, images.shape[:1]):
                raise ValueError("its files do not fit each other")
    except Exception as error:  # whatever the reader of a damaged header may raise
        raise InputError(f"{folder} is damaged ({first_line(error)}): remove it, and it is made anew") from None
    return Dataset(name, tuple(read_record(folder / "classes.json", list[str])), **arrays)
