"""Where each data set of images comes from: its original files, their checksums, and how they are read."""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np

from sqs_jax.train.original_files import Examples, Original, Source

DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl",
    "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair",
    "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin",
    "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp",
    "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain",
    "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck",
    "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket",
    "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel",
    "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor",
    "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
)  # fmt: skip


def read_idx(path: Path) -> np.ndarray:
    """A gzipped idx file of uint8 (the format of MNIST): big-endian, 00 00 08 <axes>, then each axis as uint32."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an idx file of bytes")
    axes = content[3]
    shape = np.frombuffer(content, ">u4", count=axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _read_mnist(split, paths) -> Examples:
    prefix = {"train": "train", "test": "t10k"}[split]
    images = read_idx(paths[f"{prefix}-images-idx3-ubyte.gz"])
    labels = read_idx(paths[f"{prefix}-labels-idx1-ubyte.gz"])
    for image, label in zip(images, labels, strict=True):
        yield {"image": image, "label": int(label)}


def _read_cifar_binary(split, paths, *, members, label_bytes) -> Examples:
    """Records of `label_bytes` labels (the last is the class) and 3·32·32 bytes, channel first."""
    (path,) = paths.values()
    with tarfile.open(path) as archive:
        for member in archive:
            if Path(member.name).name not in members[split]:
                continue
            content = archive.extractfile(member)
            assert content is not None  # a regular file of an archive whose checksum was verified
            records = np.frombuffer(content.read(), np.uint8).reshape(-1, label_bytes + 3072)
            images = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            for image, label in zip(images, records[:, label_bytes - 1], strict=True):
                yield {"image": image, "label": int(label)}


def _read_cifar10(split, paths) -> Examples:
    members = {"train": {f"data_batch_{i}.bin" for i in range(1, 6)}, "test": {"test_batch.bin"}}
    return _read_cifar_binary(split, paths, members=members, label_bytes=1)


def _read_cifar100(split, paths) -> Examples:
    return _read_cifar_binary(split, paths, members={"train": {"train.bin"}, "test": {"test.bin"}}, label_bytes=2)


def _read_cifar10_jpeg(split, paths) -> Examples:
    """An archive of <root>/<split>/<class>/NNNN.jpg."""
    from PIL import Image

    (path,) = paths.values()
    with tarfile.open(path) as archive:
        for member in archive:
            parts = Path(member.name).parts
            if not (member.isfile() and parts[-1].endswith(".jpg") and parts[-3] == split):
                continue
            content = archive.extractfile(member)
            assert content is not None  # a regular file of an archive whose checksum was verified
            image = np.asarray(Image.open(io.BytesIO(content.read())).convert("RGB"))
            yield {"image": image, "label": CIFAR10.index(parts[-2])}


def _idx_originals(base, *rows):
    return tuple(Original(file, sha256, size, base + file) for file, sha256, size in rows)


_MNIST = _idx_originals(
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ("train-images-idx3-ubyte.gz", "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609", 9912422),
    ("train-labels-idx1-ubyte.gz", "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", 28881),
    ("t10k-images-idx3-ubyte.gz", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6", 1648877),
    ("t10k-labels-idx1-ubyte.gz", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", 4542),
)
_FASHION_MNIST = _idx_originals(
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ("train-images-idx3-ubyte.gz", "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84", 26421880),
    ("train-labels-idx1-ubyte.gz", "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845", 29515),
    ("t10k-images-idx3-ubyte.gz", "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073", 4422102),
    ("t10k-labels-idx1-ubyte.gz", "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5", 5148),
)
_CIFAR10 = Original(
    "cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    170052171,
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
)
_CIFAR100 = Original(
    "cifar-100-binary.tar.gz",
    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    168513733,
    "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
)
# CIFAR-10 saved as JPEG: lossy, so its figures are not those of CIFAR-10. It has no address of its own.
_CIFAR10_JPEG = Original(
    "CIFAR-10-images-jpeg.tar.xz", "efb4ef5ee124835c3b786f79b63871b7794fe630300c968555a37273963291f4", 18548368, None
)

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source("mnist", (28, 28), DIGITS, _MNIST, _read_mnist, ("mnist",)),
        Source("fashion_mnist", (28, 28), CLOTHES, _FASHION_MNIST, _read_mnist, ("fashion_mnist",)),
        Source("cifar10", (32, 32, 3), CIFAR10, (_CIFAR10,), _read_cifar10, ("cifar10",)),
        Source("cifar100", (32, 32, 3), CIFAR100, (_CIFAR100,), _read_cifar100, ("cifar100",)),
        Source("cifar10_jpeg", (32, 32, 3), CIFAR10, (_CIFAR10_JPEG,), _read_cifar10_jpeg, ("cifar10_jpeg", "cifar10")),
    )
}
