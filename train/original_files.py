"""Original files: found and checked, or downloaded, then prepared once by tensorflow-datasets."""

import contextlib
import dataclasses
import errno
import hashlib
import importlib
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sqs_jax import display, files
from sqs_jax.messages import InputError

# Part of the cache's path: a change of what is stored there raises it.
VERSION = "1.0.0"
SPLITS = ("train", "test")

Examples = Iterator[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Original:
    """One original file: its name, SHA-256 and size in bytes where they are known, and its URL, if it has one."""

    file: str
    sha256: str | None
    size: int | None
    url: str | None


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set: its original files, and `read(split, paths)`, the records of "train" or "test"."""

    name: str
    shape: tuple[int, ...] | None
    """Of an image; None for text, whose records hold a "text" instead of "image" and "label"."""
    classes: tuple[str, ...]
    originals: tuple[Original, ...]
    read: Callable[[str, dict[str, Path]], Examples]
    folders: tuple[str, ...]
    """Folders below `--data-dir` where the files may lie; else directly in it."""

    def features(self, kinds: Any) -> dict[str, Any]:
        """What a record holds, in the `features` of tensorflow-datasets."""
        if self.shape is None:
            return {"text": kinds.Text()}
        # Raw bytes: as PNG, or as a list of integers, an image takes many times as long to write and to read.
        return {"image": kinds.Tensor(shape=self.shape, dtype=np.uint8, encoding="bytes"), "label": np.int64}


def prepare(source: Source, data_dir: Path | None, cache_dir: Path) -> dict[str, Any]:
    """The records of a data set by split, prepared with tensorflow-datasets. TensorFlow is not needed.

    One process does it at a time. Raises InputError for a file whose checksum is wrong, or that is neither there nor
    can be downloaded.
    """
    with exclusive(cache_dir / "tfds" / source.name):
        return _prepare(source, data_dir, cache_dir)


def _prepare(source: Source, data_dir: Path | None, cache_dir: Path) -> dict[str, Any]:
    from tensorflow_datasets.core.download import download_manager, util

    tfds = tensorflow_datasets()
    for killed in cache_dir.glob(f"tfds/{source.name}/*.incomplete*"):
        if not killed.is_symlink():
            shutil.rmtree(killed)
    if not any(cache_dir.glob(f"tfds/{source.name}/{VERSION}")):
        display.line(f"preparing {source.name}, once, in {cache_dir}")
    local = find_originals(source, data_dir)
    missing = [original for original in source.originals if original.file not in local]
    _check_reachable(source, missing, data_dir)

    builder_class = _builder(tfds, source, local, missing)
    if not missing:
        tfds.disable_progress_bar()
    builder = builder_class(data_dir=cache_dir / "tfds", file_format="array_record")
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    # A folder of its own for each set: tensorflow-datasets takes a file of the same name for the same file.
    downloads = cache_dir / "downloads" / source.name
    try:
        with display.stage(f"preparing {source.name}"), contextlib.redirect_stdout(None):  # it speaks of "Unknown size"
            builder.download_and_prepare(download_dir=downloads, download_config=config)
    except RuntimeError as error:
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(cache_dir)) from None
    except (util.DownloadError, download_manager.NonMatchingChecksumError) as error:
        what = " ".join(str(error).partition("To debug")[0].split())
        raise InputError(f"{source.name}: {what}; {_what_to_do(source, missing)}") from None
    return {split: builder.as_data_source(split) for split in SPLITS}


def _builder(tfds: Any, source: Source, local: dict[str, Path], missing: list[Original]) -> Any:
    """The class that prepares a source: from the original files at hand, and those that are downloaded."""
    features = tfds.features.FeaturesDict(source.features(tfds.features))

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # pyright: ignore
        name = source.name
        VERSION = tfds.core.Version(VERSION)
        url_infos = {  # noqa: RUF012 - as the base class has it
            original.url: tfds.download.checksums.UrlInfo(original.size, original.sha256, original.file)
            for original in source.originals
            if original.sha256
        }

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            downloaded = dl_manager.download({original.file: original.url for original in missing})
            paths = local | {file: Path(path) for file, path in downloaded.items()}
            return {split: self._generate_examples(split, paths) for split in SPLITS}

        def _generate_examples(self, split, paths):
            yield from enumerate(source.read(split, paths))

    return Builder


def tensorflow_datasets() -> Any:
    """The module, imported only when a set is prepared."""
    return importlib.import_module("tensorflow_datasets")


def find_originals(source: Source, data_dir: Path | None) -> dict[str, Path]:
    """The original files that lie in `data_dir`, their checksums verified."""
    paths = {}
    for original in source.originals:
        for folder in [data_dir / name for name in (*source.folders, ".")] if data_dir else []:
            path = folder / original.file
            if path.is_file():
                if original.sha256:
                    _verify(path, original)
                paths[original.file] = path
                break
    return paths


def _verify(path: Path, original: Original):
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    if checksum != original.sha256:
        raise InputError(f"{path} is truncated or not the original: sha256 {checksum}, expected {original.sha256}")


def _check_reachable(source: Source, missing, data_dir):
    """Raises InputError at once where a download cannot work; the library would retry for minutes."""
    searched = f" in {data_dir}" if data_dir else ""
    for original in missing:
        if original.url is None:
            raise InputError(f"{source.name}: no {original.file}{searched}; {_what_to_do(source, missing)}")
        try:
            with urllib.request.urlopen(urllib.request.Request(original.url, method="HEAD"), timeout=20):
                pass
        except urllib.error.HTTPError:
            pass  # the host answers: what it says to the real request counts
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise InputError(
                f"{source.name}: no {original.file}{searched}, and {original.url} cannot be reached ({reason}); "
                + _what_to_do(source, missing)
            ) from None


def _what_to_do(source: Source, missing) -> str:
    files = ", ".join(original.file for original in missing)
    return f"put {files} into DIR/{source.folders[0]}/ and pass --data-dir DIR (or set SQS_DATA_DIR=DIR)"


def exclusive(folder: Path):
    """Holds the lock of a cache folder."""
    return files.locked(folder.parent / f"{folder.name}.lock")
