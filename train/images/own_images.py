"""Images of one's own: a folder with a folder for each class, or an .npz file with `x` and `y`.

`images:PATH` names them. Both become the arrays of a `Dataset`, once; the cache knows them by their files.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from sqs_jax import display
from sqs_jax.messages import InputError, first_line, quoted
from sqs_jax.train.config import ImageConfig
from sqs_jax.train.original_files import SPLITS, VERSION
from sqs_jax.train.presets import OWN, preset

_TEST_SHARE = 5  # one image in so many is for the test
_KEPT_SIZE, _DEFAULT_SIZE = 64, 32
_PART = 256  # images that are read at a time
_FEW = 5000  # images of which more epochs are cheap

Splits = dict[str, tuple[np.ndarray, np.ndarray]]


def own_path(name: str) -> Path:
    """The folder or file of `images:PATH`. Raises InputError where there is none."""
    path = Path(name.removeprefix(OWN))
    if name == OWN:
        raise InputError(f"`data` is {quoted(name)}: a folder or an .npz file has to follow")
    if not path.is_dir() and not (path.is_file() and path.suffix == ".npz"):
        what = "is neither" if path.exists() else "is not there:"
        raise InputError(
            f"`data` is {quoted(name)}: {path} {what} a folder with a folder for each class, or an .npz file"
        )
    return path


def own_place(name: str, size: int) -> Path:
    """Where the arrays are kept in the cache: by the names, sizes and times of all files."""
    path = own_path(name)
    files = [path] if path.is_file() else [file for root in _roots(path) for file in _files(root)[0]]
    about = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(json.dumps([str(path.resolve()), size, about, VERSION]).encode()).hexdigest()
    return Path("images", key[:32])


def read_own(name: str, size: int) -> tuple[Splits, tuple[str, ...]]:
    """The arrays of each split and the names of the classes.

    Where the files themselves do not tell training from test, one image in five of each class is for the test, drawn
    once and for all. Raises InputError for a file that cannot be read, naming it, for classes of fewer than two images,
    labels with a gap, and arrays of another shape or dtype.
    """
    path = own_path(name)
    return _read_folder(path, size) if path.is_dir() else _read_npz(path, size)


def own_preset(name: str) -> ImageConfig:
    """The default configuration for these images: a tenth for validation, batches of which an epoch has four or more.

    Raises InputError as `read_own`, as far as no image has to be read for it.
    """
    count = _training_count(own_path(name))
    held = count // 10
    batch = min(128, (count - held) // 4)
    batch = max(1, batch // 8 * 8 if batch >= 8 else batch)
    epochs = 100 if count <= _FEW else 20
    return dataclasses.replace(preset(name), validation=held, batch_size=batch, epochs=epochs)


def _training_count(path: Path) -> int:
    if path.is_file():
        with _opened(path) as file:
            return int(np.sum(_training(path, file)))
    roots = _roots(path)
    if len(roots) > 1:
        return len(_files(roots[0])[0])
    _, labels, classes = _files(path)
    return int(np.sum(_drawn(np.array(labels), classes)))


# Folders.


def _roots(path: Path) -> list[Path]:
    """The folders that hold a folder for each class: the folder itself, or its `train` and `test`."""
    names = {folder.name for folder in _folders(path)}
    if names == set(SPLITS):
        return [path / split for split in SPLITS]
    if parts := sorted(names & {*SPLITS, "val", "valid", "validation"}):
        raise InputError(
            f"{path} has the folder {parts[0]!r} beside others: folders of classes are needed, or train and test alone "
            "(validation is cut from train, by --validation)"
        )
    return [path]


def _folders(path: Path) -> list[Path]:
    return sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))


def _files(path: Path) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """The images of a folder, their labels, and the names of the classes."""
    from PIL import Image

    known, folders = set(Image.registered_extensions()), _folders(path)
    if len(folders) < 2:
        count = "one folder" if folders else "no folders"
        raise InputError(f"{path} has {count}: two or more are needed, one for each class")
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        own = sorted(file for file in folder.rglob("*") if file.suffix.lower() in known and file.is_file())
        own = [file for file in own if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
        if not own:
            raise InputError(f"{folder} has no image")
        files += own
        labels += [label] * len(own)
    return files, labels, tuple(folder.name for folder in folders)


def _read_folder(path: Path, size: int) -> tuple[Splits, tuple[str, ...]]:
    found = [_files(root) for root in _roots(path)]
    parted = len(found) > 1
    if parted and found[0][2] != found[1][2]:
        other = sorted({*found[0][2]} ^ {*found[1][2]})[0]
        raise InputError(f"{path} has the class {quoted(other)} in one of train and test alone")
    files = [file for own, _, _ in found for file in own]
    images = _decoded(files, size)
    labels = np.concatenate([np.asarray(own, np.int32) for _, own, _ in found])
    classes = found[0][2]
    if parted:
        return _split(images, labels, np.arange(len(files)) < len(found[0][0])), classes
    return _split(images, labels, _drawn(labels, classes)), classes


def _decoded(files: Sequence[Path], size: int) -> np.ndarray:
    """Images uint8 (n, height, width), or with three channels where one of them has colours."""
    with display.stage("reading images", len(files), "images") as shown, ThreadPoolExecutor() as pool:
        shapes, colours = zip(*pool.map(_shape, files), strict=True)
        height, width = (size, size) if size else _common(set(shapes))
        images = np.empty((len(files), height, width, *([3] if any(colours) else [])), np.uint8)
        for start in range(0, len(files), _PART):  # in parts: what is decoded waits for nobody
            part = files[start : start + _PART]
            for i, image in enumerate(pool.map(lambda file: _image(file, images.shape[1:]), part), start):
                images[i] = image
            shown.advance(len(part))
    return images


def _common(shapes: set[tuple[int, int]]) -> tuple[int, int]:
    """The shape of all images, if it is one and small; else 32 × 32."""
    (shape, *others) = shapes
    return shape if not others and max(shape) <= _KEPT_SIZE else (_DEFAULT_SIZE, _DEFAULT_SIZE)


def _shape(file: Path) -> tuple[tuple[int, int], bool]:
    """Height and width of an image, as it is shown, and whether it has colours."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            turned = image.getexif().get(0x0112, 1) >= 5  # the orientation of a camera that was held upright
            width, height = image.size
            return ((width, height) if turned else (height, width)), not _is_grey(image)
    except Exception as error:  # whatever the reader of a damaged file may raise
        raise InputError(f"{file} is no image that can be read: {first_line(error)}") from None


def _is_grey(image: Any) -> bool:
    return image.mode in ("1", "L", "LA", "La") or image.mode.startswith(("I", "F"))


def _image(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """An image in a shape: turned as its camera says, its middle cut out in that proportion, transparency on white."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            image: Any = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16"):  # PIL would cut at 255
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            elif image.mode in ("I", "F"):
                raise ValueError(f"its mode is {image.mode}: 8 or 16 bits a channel are needed")
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            image = image.convert("RGB" if len(shape) == 3 else "L")
            height, width = shape[:2]
            if image.size != (width, height):
                image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
            return np.asarray(image)
    except Exception as error:  # whatever the reader of a damaged file may raise
        raise InputError(f"{file} is no image that can be read: {first_line(error)}") from None


# Arrays.


def _opened(path: Path) -> Any:
    try:
        file = np.load(path)
        missing = [name for name in ("x", "y") if name not in file.files]
    except Exception as error:  # whatever a damaged archive leads to
        raise InputError(f"{path} cannot be read: {first_line(error)}") from None
    if missing:
        file.close()
        raise InputError(f"{path} has no array `{missing[0]}`: `x`, images, and `y`, their labels, are needed")
    return file


def _array(path: Path, file: Any, name: str) -> np.ndarray:
    try:
        return file[name]
    except Exception as error:  # as above
        raise InputError(f"{path}: `{name}` cannot be read: {first_line(error)}") from None


def _read_npz(path: Path, size: int) -> tuple[Splits, tuple[str, ...]]:
    if size:
        raise InputError(f"`size` is {size}: images of an .npz file keep their own")
    with _opened(path) as file:
        y, training = _array(path, file, "y"), _training(path, file)
        x, classes = _array(path, file, "x"), _classes(path, file)
    if x.dtype != np.uint8 or not (x.ndim == 3 or (x.ndim == 4 and x.shape[3] in (1, 3))) or 0 in x.shape:
        shapes = "(n, height, width) or (n, height, width, 3)"
        hint = ", 255 times what lies in [0, 1]" if np.issubdtype(x.dtype, np.floating) else ""
        raise InputError(f"{path}: `x` is {x.dtype} {x.shape}: uint8 {shapes} is needed{hint}")
    if len(x) != len(y):
        raise InputError(f"{path}: `x` has {len(x)} images, and `y` {len(y)} labels")
    return _split(x[..., 0] if x.ndim == 4 and x.shape[3] == 1 else x, y.astype(np.int32), training), classes


def _classes(path: Path, file: Any) -> tuple[str, ...]:
    count = int(_array(path, file, "y").max()) + 1
    if "classes" not in file.files:
        return tuple(map(str, range(count)))
    names = _array(path, file, "classes")
    if names.shape != (count,) or names.dtype.kind != "U":
        raise InputError(
            f"{path}: `classes` is {names.dtype} {names.shape}: the {count} names of the labels are needed"
        )
    return tuple(names.tolist())


def _training(path: Path, file: Any) -> np.ndarray:
    """Which examples (n,) of an .npz file are for training; its labels and its split are checked."""
    y = _array(path, file, "y")
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer) or not len(y):
        raise InputError(f"{path}: `y` is {y.dtype} {y.shape}: whole numbers (n,) are needed")
    _check_labels(path, y)
    if "split" not in file.files:
        return _drawn(y, _classes(path, file))
    split = _array(path, file, "split")
    if split.shape != y.shape or split.dtype.kind != "U" or not {*np.unique(split)} <= set(SPLITS):
        raise InputError(f"{path}: `split` is {split.dtype} {split.shape}: {y.shape} of 'train' and 'test' is needed")
    return split == SPLITS[0]


def _check_labels(path: Path, labels: np.ndarray) -> None:
    found = np.unique(labels)
    if found[0] < 0:
        raise InputError(f"{path}: `y` has the label {found[0]}: 0 to classes - 1 are needed")
    missing = np.setdiff1d(np.arange(min(int(found[-1]), len(found)) + 1), found)
    if len(missing):
        raise InputError(f"{path}: `y` has labels up to {found[-1]}, but no {missing[0]}: 0 to classes - 1 are needed")
    if len(found) < 2:
        raise InputError(f"{path}: `y` has one label: two classes or more are needed")


# Splits.


def _drawn(labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Which examples (n,) are for training: of each class four in five, drawn once and for all."""
    counts = np.bincount(labels, minlength=len(classes))
    if single := [name for name, count in zip(classes, counts, strict=True) if count < 2]:
        names = ", ".join(map(quoted, single[:5]))
        raise InputError(f"one image is all there is of the class {names}: two are needed, one of them for the test")
    training = np.ones(len(labels), bool)
    random = np.random.default_rng(0)
    for label, count in enumerate(counts):
        training[random.permutation(np.flatnonzero(labels == label))[: max(1, count // _TEST_SHARE)]] = False
    return training


def _split(images: np.ndarray, labels: np.ndarray, training: np.ndarray) -> Splits:
    parts = dict(zip(SPLITS, (training, ~training), strict=True))
    if empty := [name for name, part in parts.items() if not part.any()]:
        raise InputError(f"no image is for {'training' if empty[0] == SPLITS[0] else 'the test'}")
    return {name: (images[part], labels[part]) for name, part in parts.items()}
