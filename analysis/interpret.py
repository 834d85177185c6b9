"""What an eigenvector shows: likeness to its class, smoothness, selectivity, adversarial masks, Fréchet distances."""

from collections.abc import Callable

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int
from scipy.stats import rankdata

Vectors = Float[ArrayLike, "outputs k d"]
Samples = Float[ArrayLike, "n d"]
Labels = Int[ArrayLike, " n"]


def template_correlations(vectors: Vectors, x: Samples, labels: Labels) -> Float[np.ndarray, "outputs k"]:
    """|Pearson correlation| of eigenvectors (outputs, k, d) with their class's mean minus the grand mean: (outputs, k).

    x (n, d), labels (n,) int, the classes being the outputs; NaN for a class that has no samples.
    """
    x, labels, vectors = np.asarray(x), np.asarray(labels), np.asarray(vectors)
    correlations = np.full(vectors.shape[:2], np.nan)
    for o in np.intersect1d(labels, np.arange(len(vectors))):
        template = x[labels == o].mean(0) - x.mean(0)
        for i, vector in enumerate(vectors[o]):
            if template.std() > 0 and vector.std() > 0:
                correlations[o, i] = abs(np.corrcoef(vector, template)[0, 1])
    return correlations


def smoothness(
    images: Float[ArrayLike, "*images height width"], *, shuffles: int = 8, seed: int = 0
) -> Float[np.ndarray, "*images"]:
    """Total variation of images (…, height, width) over that of their shuffled pixels: (…,).

    The sum of absolute differences of neighbours, anisotropic; the mean of `shuffles` shuffles. About 1 for noise,
    towards 0 for large smooth shapes; NaN for a constant image. Channels of colour images go one by one.
    """
    images = np.asarray(images)
    flat = images.reshape(*images.shape[:-2], -1)
    rng = np.random.default_rng(seed)
    shuffled = [_variation(rng.permuted(flat, axis=-1).reshape(images.shape)) for _ in range(shuffles)]
    reference = np.mean(shuffled, axis=0)
    return _variation(images) / np.where(reference > 0, reference, np.nan)


def _variation(images):
    return np.abs(np.diff(images, axis=-1)).sum((-1, -2)) + np.abs(np.diff(images, axis=-2)).sum((-1, -2))


def selectivity(vectors: Vectors, x: Samples, labels: Labels) -> Float[np.ndarray, "outputs k"]:
    """AUC of (x·v)² as a detector of the eigenvector's own class, for vectors (outputs, k, d): (outputs, k).

    The chance that a sample of the class has a larger response than one of another; ½ for none. NaN for a class
    that has no samples, or all.
    """
    x, labels, vectors = np.asarray(x), np.asarray(labels), np.asarray(vectors)
    areas = np.full(vectors.shape[:2], np.nan)
    for o in range(len(vectors)):
        in_class = labels == o
        inside, outside = in_class.sum(), (~in_class).sum()
        if inside and outside:
            ranks = rankdata((x @ vectors[o].T) ** 2, axis=0)
            areas[o] = (ranks[in_class].sum(0) - inside * (inside + 1) / 2) / (inside * outside)
    return areas


def most_activating(vectors: Vectors, x: Samples, count: int) -> Int[np.ndarray, "outputs k count"]:
    """Indices (outputs, k, count) of the samples x (n, d) with the largest (x·v)², the largest first."""
    x, vectors = np.asarray(x), np.asarray(vectors)
    indices = [np.argsort(-((x @ rows.T) ** 2), axis=0, kind="stable")[:count].T for rows in vectors]
    return np.stack(indices)


def adversarial_masks(vectors: Float[ArrayLike, "outputs d"]) -> Float[np.ndarray, "outputs d"]:
    """Unit masks (outputs, d) from the leading eigenvector of each output (outputs, d), by weights alone.

    The columns of the pseudoinverse. Where the vectors are independent, mask o moves the response x·v of output o only.

    Source: Pearce et al. 2024 (arXiv 2410.08417), section 4.
    """
    masks = np.linalg.pinv(np.asarray(vectors, np.float64)).T
    return masks / np.maximum(np.linalg.norm(masks, axis=1, keepdims=True), 1e-300)


def mask_success(predict: Callable[[np.ndarray], np.ndarray], masks, x, labels, norms) -> np.ndarray:
    """Share of the samples of other classes that are taken for class o when norm·mask_o is added: (outputs, norms).

    `predict` maps x (n, d) to classes (n,). x and masks may also be what is linear in a network makes of them: of x
    with its constants, of the masks without. A mask has no sign of its own: of both, the one that succeeds more at the
    largest norm on the first half of the samples is taken, and measured on the second half. NaN where a half has no
    sample of another class.
    """
    x, labels = np.asarray(x), np.asarray(labels)
    half = len(x) // 2
    success = np.full((len(masks), len(norms)), np.nan)

    def rate(part, others, shift, o):
        return np.mean(predict(x[part] + shift)[others[part]] == o)

    for o, mask in enumerate(np.asarray(masks, x.dtype)):
        others = labels != o
        if not (others[:half].any() and others[half:].any()):
            continue
        first, second, largest = slice(half), slice(half, None), max(norms) * mask
        sign = 1 if rate(first, others, largest, o) >= rate(first, others, -largest, o) else -1
        success[o] = [rate(second, others, x.dtype.type(sign * norm) * mask, o) for norm in norms]
    return success


def frechet_distance(a: Float[ArrayLike, "n f"], b: Float[ArrayLike, "m f"]) -> float:
    """Fréchet distance of two samples of features (n, f), taken for Gaussians: ‖μ_a - μ_b‖² + tr(A + B - 2(A B)^½).

    Raises ValueError for fewer than 2 samples.

    Source: Dowson and Landau 1982.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if min(len(a), len(b)) < 2:
        raise ValueError(f"`a` and `b` have {len(a)} and {len(b)} samples: 2 or more of each are needed")
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    values, columns = np.linalg.eigh(np.atleast_2d(cov_a))
    root = columns * np.sqrt(np.maximum(values, 0)) @ columns.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ np.atleast_2d(cov_b) @ root), 0)).sum()
    return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(np.atleast_2d(cov_a + cov_b)) - 2 * cross)


def train_features(x, labels, *, width: int = 64, seed: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """Features (n, width) of a small classifier of the same data, trained here: the hidden layer of scikit-learn's.

    A network for photographs would say little of digits. 10 passes of Adam; equal inputs give equal features.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    classifier = MLPClassifier(
        (width,),
        max_iter=10,
        batch_size=min(200, len(x)),  # pyright: ignore[reportArgumentType] - its default is a word
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 10 passes are meant
        classifier.fit(x, labels)
    weight, bias = classifier.coefs_[0], classifier.intercepts_[0]
    return lambda batch: np.maximum(batch @ weight + bias, 0)


def reconstruction_distances(
    vectors, features, train_x, train_labels, x, labels, *, seed: int = 0
) -> dict[str, np.ndarray]:
    """Fréchet distance between the images of a class and their projections on k directions: {name: (outputs,)}.

    "eigenvectors": the class's own (outputs, k, d); "pca": the leading k of its training images, uncentred, the best
    for squared error; "random": orthonormal ones. `features` maps images to features. NaN for a class that has fewer
    than 2 images, or fewer than k for training.
    """
    from sklearn.utils.extmath import randomized_svd

    rng = np.random.default_rng(seed)
    outputs, k, d = vectors.shape
    distances = {name: np.full(outputs, np.nan) for name in ("eigenvectors", "pca", "random")}
    for o in range(outputs):
        images, train = x[labels == o], train_x[train_labels == o]
        if len(images) < 2 or len(train) < k:
            continue
        class_features = features(images)
        pca = randomized_svd(train, k, random_state=seed)[2]
        random = np.linalg.qr(rng.normal(size=(d, k)))[0].T
        for name, rows in (("eigenvectors", vectors[o]), ("pca", pca), ("random", random)):
            distances[name][o] = frechet_distance(class_features, features(images @ rows.T @ rows))
    return distances
