import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from matplotlib.figure import Figure

from sqs_jax import gated_linear
from sqs_jax.analysis import GLUWeights, eigenpairs, extremes, interaction_matrices, spectrum
from sqs_jax.analysis.report import plots

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def random_weights(inputs, d, h, outputs, seed=0):
    rng = np.random.default_rng(seed)
    embed = jnp.asarray(rng.normal(size=(inputs, d)) / np.sqrt(inputs), jnp.float32) if inputs else None
    w, v = rng.normal(size=(2, d, h)) / np.sqrt(d)
    out = rng.normal(size=(h, outputs)) / np.sqrt(h)
    return GLUWeights(*(jnp.asarray(array, jnp.float32) for array in (w, v, out)), embed)


@pytest.mark.parametrize("basis", ["input", "hidden"])
def test_the_form_is_the_bilinear_network(basis):
    weights = random_weights(9, 6, 5, 4)
    matrices = interaction_matrices(weights, basis=basis)
    x = jax.random.normal(jax.random.key(1), (7, 9))
    assert weights.embed is not None
    z = x @ weights.embed
    logits = gated_linear(z, weights.w, weights.v, gate="bilinear") @ weights.out
    point = x if basis == "input" else z
    np.testing.assert_allclose(jnp.einsum("ni,oij,nj->no", point, matrices, point), logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(matrices, matrices.transpose(0, 2, 1))


def test_planted_eigenvectors_are_found():
    rng = np.random.default_rng(3)
    d, values = 12, np.array([[5.0, -3.0, 2.0, -0.5], [1.0, -4.0, 0.7, 0.1]])
    vectors = np.stack([scipy.linalg.qr(rng.normal(size=(d, d)))[0][:, :4].T for _ in values])
    # One hidden unit for each planted pair: w_h = v_h = the eigenvector, read with the eigenvalue by its output alone.
    columns = jnp.asarray(vectors.reshape(8, d).T, jnp.float32)
    out = jnp.asarray(scipy.linalg.block_diag(values[:1].T, values[1:].T), jnp.float32)
    pairs = spectrum(GLUWeights(columns, columns, out))
    assert pairs.values.shape == (2, d)
    assert pairs.vectors.shape == (2, d, d)
    order = np.argsort(-np.abs(values), axis=1)
    np.testing.assert_allclose(pairs.values[:, :4], np.take_along_axis(values, order, axis=1), atol=1e-5)
    np.testing.assert_allclose(pairs.values[:, 4:], 0, atol=1e-5)
    for output in range(2):
        result, planted = pairs.vectors[output, :4], vectors[output, order[output]]
        np.testing.assert_allclose(np.abs(np.sum(result * planted, axis=1)), 1, atol=1e-5)


@pytest.mark.parametrize(
    "shape", [(30, 5, 7, 3), (None, 30, 7, 3), (None, 8, 20, 2), (6, 9, 20, 2), (30, 20, 3, 2), (1, 1, 1, 1)]
)
def test_spectrum_matches_scipy_in_float64(shape):
    weights = random_weights(*shape)
    pairs = spectrum(weights)
    w, v, out, embed = (None if array is None else np.asarray(array, np.float64) for array in weights[:4])
    w, v = (w, v) if embed is None else (embed @ w, embed @ v)
    matrices = np.einsum("ih,ho,jh->oij", w, out, v)
    for output, matrix in enumerate((matrices + matrices.transpose(0, 2, 1)) / 2):
        expected = scipy.linalg.eigh(matrix, eigvals_only=True)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(np.sort(pairs.values[output]), expected, atol=2e-6 * scale)
        vectors = np.asarray(pairs.vectors[output], np.float64)
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(vectors)), atol=1e-5)
        rebuilt = np.einsum("k,ki,kj->ij", pairs.values[output], vectors, vectors)
        np.testing.assert_allclose(rebuilt, matrix, atol=2e-6 * scale)


@pytest.mark.parametrize("shape", [(30, 5, 7, 3), (None, 30, 7, 3), (None, 8, 20, 2)])
@pytest.mark.parametrize("count", [1, 4, 7])
def test_the_largest_pairs_are_the_first_of_all(shape, count):
    weights = random_weights(*shape)
    everything, some = spectrum(weights), spectrum(weights, count=count)
    np.testing.assert_allclose(some.values, everything.values[:, :count], atol=1e-5)
    overlap = np.abs(np.sum(some.vectors * everything.vectors[:, :count], axis=2))
    isolated = np.abs(some.values) > 1e-3
    np.testing.assert_allclose(overlap[isolated], 1, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(some.vectors, axis=2), 1, atol=1e-5)


@pytest.mark.parametrize("count", [0, 31])
def test_a_count_out_of_range_is_named(count):
    with pytest.raises(ValueError, match=f"`count` is {count}: a number from 1 to 30"):
        spectrum(random_weights(30, 5, 7, 3), count=count)


def test_order_and_sign():
    pairs = eigenpairs(interaction_matrices(random_weights(None, 10, 10, 4)))
    assert np.all(np.diff(np.abs(pairs.values), axis=1) <= 0)
    largest = np.take_along_axis(pairs.vectors, np.abs(pairs.vectors).argmax(2)[:, :, None], axis=2)
    assert np.all(largest > 0)


def test_extremes_are_the_most_positive_and_the_most_negative():
    values, vectors = jnp.array([[5.0, -4.0, 3.0, 2.0, 1.0], [5.0, 4.0, 3.0, 0.0, -1.0]]), jnp.eye(5)
    result = extremes(eigenpairs(jnp.stack([vectors.T @ jnp.diag(row) @ vectors for row in values])), 2)
    np.testing.assert_allclose(result.values, [[5, 3, -4, np.nan], [5, 4, -1, np.nan]], atol=1e-6)
    np.testing.assert_allclose(result.vectors[0, 2], vectors[1], atol=1e-6)
    assert np.all(result.vectors[0, 3] == 0)
    narrow = extremes(eigenpairs(jnp.array([[[2.0]]])), 3)
    np.testing.assert_array_equal(narrow.values, [[2.0] + [np.nan] * 5])
    assert narrow.vectors.shape == (1, 6, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": jnp.ones((4, 5))}, "`w` and `v` have shapes"),
        ({"out": jnp.ones((4, 2))}, r"`out` has shape \(4, 2\): \(3, outputs\)"),
        ({"embed": jnp.ones((9, 5))}, r"`embed` has shape \(9, 5\): \(inputs, 4\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    weights = GLUWeights(jnp.ones((4, 3)), jnp.ones((4, 3)), jnp.ones((3, 2)))._replace(**change)
    with pytest.raises(ValueError, match=message):
        spectrum(weights)
    with pytest.raises(ValueError, match=message):
        interaction_matrices(weights)


def test_unknown_basis_and_matrices_of_another_shape():
    with pytest.raises(ValueError, match="`basis` is 'pixels'"):
        interaction_matrices(random_weights(None, 4, 4, 2), basis="pixels")
    with pytest.raises(ValueError, match="`matrices` has shape"):
        eigenpairs(jnp.ones((3, 4)))


def drawn(figure: Figure) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def test_gallery_shows_sign_by_colour_and_eigenvalues_as_text():
    image = np.zeros((1, 2, 4, 4))
    image[0, 0, :2], image[0, 0, 2:] = 1, -1
    figure = plots.gallery([[2.5, np.nan]], image, ["seven"], title="planted")
    pixels = drawn(figure)
    axis, empty, _bar = figure.axes
    assert axis.get_title() == "+2.50"
    assert axis.get_ylabel() == "seven"
    assert not empty.images
    box = axis.get_window_extent()
    column = pixels[:, int(box.x0 + box.width / 2), :3].astype(int)
    height = len(pixels)
    upper, lower = column[height - int(box.y1) + 5], column[height - int(box.y0) - 5]
    assert upper[0] > upper[2]  # red where the entry is positive
    assert lower[2] > lower[0]  # blue where it is negative


def test_gallery_of_colours_and_of_many_classes():
    rng = np.random.default_rng(0)
    figure = plots.gallery(rng.normal(size=(25, 2)), rng.normal(size=(25, 2, 4, 4, 3)), range(25), title="many")
    assert len(figure.axes) == 2 * plots.ROWS
    assert "first 20 of 25" in figure.get_supxlabel()
    drawn(figure)


@pytest.mark.parametrize(("low", "high"), [(0.583, 0.588), (0.5, 0.7), (0.5, 4.6), (0.4, 4.1), (0.01, 3), (1e-4, 9)])
def test_a_log_axis_has_three_plain_ticks_or_more(low, high):
    rows = [{"epoch": i, "train_loss": value, "validation_loss": value} for i, value in enumerate((high, low), 1)]
    (loss,) = plots.curves(rows, title="planted", noise_std=0.0).axes
    drawn(loss.figure)
    ends = loss.get_ylim()
    shown = [label.get_text() for label in loss.get_yticklabels() if ends[0] <= label.get_position()[1] <= ends[1]]
    assert 3 <= len(shown) <= 16
    assert [float(text) for text in shown] == sorted({float(text) for text in shown})  # 0.5, and not 5 × 10⁻¹
    assert not any(label.get_text() for label in loss.get_yticklabels(minor=True))


def test_curves_draw_what_the_rows_hold():
    rows = [{"epoch": i, "train_loss": 1 / i, "validation_loss": 2 / i, "validation_accuracy": 0.5} for i in (1, 2, 3)]
    loss, accuracy = plots.curves(rows, title="planted", noise_std=0.5).axes
    np.testing.assert_allclose(loss.lines[1].get_xydata(), [[1, 2], [2, 1], [3, 2 / 3]])
    assert len(accuracy.lines) == 1
    without = plots.curves([{"epoch": 1, "train_loss": 1.0}], title="one epoch, no validation", noise_std=0.0)
    assert [line.get_label() for line in (loss.lines[0], *without.axes[0].lines)] == ["train (with noise)", "train"]
    assert [len(axis.lines) for axis in without.axes] == [1]
    drawn(without)
