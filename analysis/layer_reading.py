"""One layer's GLU of a language model, read: gains or a surrogate, its fidelity, and the eigenvectors of words."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from sqs_jax.analysis.calibration import Method, bilinear_layer, calibrate_all
from sqs_jax.analysis.eigen import Eigenpairs, top_eigenpairs
from sqs_jax.analysis.fidelity import r_squared
from sqs_jax.analysis.interaction import GLUWeights, interaction_matrices
from sqs_jax.analysis.language import (
    along,
    first_columns,
    glu_gate,
    liked_tokens,
    mlp_weights,
    predicted,
    stream_directions,
    token_directions,
)
from sqs_jax.analysis.reading_kinds import Order, Reading
from sqs_jax.analysis.similarity import subspace_overlap
from sqs_jax.analysis.spectrum_summary import effective_rank
from sqs_jax.analysis.streams import Form, LayerStream, is_sink, sink_limit
from sqs_jax.analysis.surrogate import fit_surrogate, form_cosines
from sqs_jax.pretrained.model import LanguageModel

GAIN_SAMPLES = 20_000  # a gain is a few numbers a unit: more samples change it little
_MOST_JOINT = 4096  # hidden units beyond which gains are found unit by unit: joint ones need 8h² bytes several times
_RANKED = 4  # words whose whole spectrum is taken
_STEPS = 250
_WIDTH = 320  # narrower models cost less for each token: they get more tokens and steps
_ALIVE = 1e-6  # over the largest variance of x̂, that of a direction that counts


class FittedLayer(NamedTuple):
    """What was fitted of one layer, arrays that are kept in a file."""

    limit: float
    """‖y‖² beyond which a place is a sink."""
    sinks: int
    """How many there were among the places that it was fitted on."""
    mean: Float[np.ndarray, " d"]
    """Mean of x̂ over those that are none."""
    layers: dict[str, GLUWeights]
    """By reading: the bilinear layer that stands for the GLU, the stream's coordinates as outputs."""
    form_cosine: float | None
    """Of the surrogate's forms and the affine ones, in the metric of the data: the mean over the coordinates."""


class HeldOut(NamedTuple):
    """One layer on held-out text, at the n places that are no sinks."""

    layer: int
    places: Int[np.ndarray, " n"]
    """Which places of the text they are,"""
    sinks: int
    """and how many are left out."""
    x: Float[np.ndarray, "n d"]
    y: Float[np.ndarray, "n d"]
    given: dict[str, Float[np.ndarray, "n d"]]
    """What each reading gives in the place of y."""


class WordPairs(NamedTuple):
    """The eigenpairs of a layer for words, and what they show; m words of k pairs each."""

    values: Float[np.ndarray, "m k"]
    vectors: Float[np.ndarray, "m k d"]
    """Readout directions: the response to x̂ is (x̂ - mean)·v, and the form adds λ times its square."""
    residuals: Float[np.ndarray, "m k"]
    r2: Float[np.ndarray, " m"]
    """R² of the reading along each word's direction, on held-out text."""
    linear_share: Float[np.ndarray, " m"]
    """Share of what the GLU adds along the direction that the linear part alone explains,"""
    share: Float[np.ndarray, " m"]
    """and that it explains together with the k pairs."""
    likes: np.ndarray
    """Tokens at both ends of each vector, (m, k, 2, count)."""
    linear_likes: np.ndarray
    """Tokens that the linear part is most for and against, (m, 2, count)."""
    places: np.ndarray
    """Places of the held-out text with the largest squared responses, (m, k, count); no place twice for a word."""
    effective_rank: float
    """Participation rank of the forms, the mean over a few words."""


def default_tokens(model: LanguageModel, readings: Sequence[str]) -> int:
    """How many tokens readings are fitted on unless something else is asked for."""
    base = 40_000 if "surrogate" in readings else 20_000
    return base * max(1, min(3, _WIDTH // model.architecture.width))


def default_steps(model: LanguageModel) -> int:
    """Steps of a surrogate's fit."""
    return _STEPS * max(1, min(5, _WIDTH // model.architecture.width))


def fit_layer(
    model: LanguageModel, seen: LayerStream, readings: Sequence[Reading], *, steps: int, seed: int = 0
) -> FittedLayer:
    """Fits the readings of one layer on what its GLU reads and gives; sinks are left out.

    "identity" is the gate as it is, with the offset that the data has; "joint" and "affine" are `calibrate`'s "joint"
    and "joint_affine" ("output_affine" beyond 4,096 hidden units), of at most 20,000 places; "surrogate" is
    `fit_surrogate`.
    """
    weights, gate = mlp_weights(model, seen.layer), glu_gate(model, seen.layer)
    limit = sink_limit(seen.y)
    sink = is_sink(seen.y, limit)
    x = seen.x[~sink]
    few = x[np.linspace(0, len(x) - 1, min(len(x), GAIN_SAMPLES)).astype(int)]
    # A surrogate starts from the affine reading.
    methods: dict[str, Method] = {"affine" if name == "surrogate" else name: _method(name, model) for name in readings}
    gains = calibrate_all(weights, few, gate, methods=tuple(methods.values()), precision="float32", r2=False)
    layers = {name: bilinear_layer(weights, gains[method]) for name, method in methods.items()}
    cosine = None
    if "surrogate" in readings:
        result = fit_surrogate(weights, x, gate, start=layers["affine"], steps=steps, seed=seed)
        layers["surrogate"], cosine = result.weights, float(np.nanmean(result.form_cosine))
    return FittedLayer(limit, int(sink.sum()), x.mean(0), {name: layers[name] for name in readings}, cosine)


def _method(reading: Reading, model: LanguageModel) -> Method:
    if reading in ("affine", "surrogate"):
        return "joint_affine" if model.architecture.hidden <= _MOST_JOINT else "output_affine"
    return "joint" if reading == "joint" else "identity"


def layer_form(fitted: FittedLayer, reading: str) -> Form:
    """What stands in the GLU's place."""
    return Form(fitted.layers[reading], fitted.limit)


def held_out(fitted: FittedLayer, unseen: LayerStream) -> HeldOut:
    """A layer on held-out text, and what its readings give there."""
    sink = is_sink(unseen.y, fitted.limit)
    x, y = unseen.x[~sink], unseen.y[~sink]
    given = {name: predicted(layer, x) for name, layer in fitted.layers.items()}
    return HeldOut(unseen.layer, np.flatnonzero(~sink), int(sink.sum()), x, y, given)


def centred(layer: GLUWeights, mean: np.ndarray) -> GLUWeights:
    """The same bilinear layer as a function of c = x̂ - mean: the quadratic part stays, the linear part changes."""
    at = jnp.asarray(mean)
    zeros = jnp.zeros(layer.w.shape[1], layer.w.dtype)
    w_bias = at @ layer.w + (zeros if layer.w_bias is None else layer.w_bias)
    v_bias = at @ layer.v + (zeros if layer.v_bias is None else layer.v_bias)
    moved = jnp.zeros(layer.out.shape[1]) if layer.skip is None else at @ layer.skip
    return layer._replace(
        w_bias=w_bias, v_bias=v_bias, out_bias=moved if layer.out_bias is None else layer.out_bias + moved
    )


@jax.jit
def linear_directions(layer: GLUWeights) -> jax.Array:
    """The linear part (d, outputs) of a bilinear layer: Σ_h P[h, o]·(c_h w_h + b_h v_h), and its skip."""
    with jax.default_matmul_precision("highest"):
        assert layer.w_bias is not None
        assert layer.v_bias is not None  # `centred` gives both
        linear = layer.w @ (layer.v_bias[:, None] * layer.out) + layer.v @ (layer.w_bias[:, None] * layer.out)
        return linear if layer.skip is None else linear + layer.skip


def read_words(
    model: LanguageModel,
    fitted: FittedLayer,
    reading: Reading,
    unseen: HeldOut,
    words: Sequence[int],
    *,
    k: int = 4,
    order: Order = "size",
    contexts: int = 3,
) -> WordPairs:
    """The eigenpairs of one layer's form for each word, and what they show.

    Args:
      model, fitted: the layer, and what was fitted of it; reading: which of it is read.
      unseen: the layer on held-out text, from `held_out`.
      words: token ids.
      k: pairs a word.
      order: "size" for the pairs with the largest |λ| of A; "data" for those of Σ^½ A Σ^½, Σ = Cov(x̂), whose λ is what
        the pair adds at a response of variance 1.
      contexts: places a vector.
    """
    directions = stream_directions(model, unseen.layer, token_directions(model, words))
    layer = centred(along(fitted.layers[reading], directions), fitted.mean)
    onto = np.asarray(directions)
    c, y = unseen.x - fitted.mean, unseen.y @ onto
    linear = np.asarray(linear_directions(layer))
    bare = layer._replace(w_bias=None, v_bias=None, skip=None, out_bias=None)
    pairs, vectors, patterns = _pairs(bare, c, k, order)
    values, along_line = np.asarray(pairs.values), c @ linear
    response = np.einsum("nd,mkd->nmk", c, vectors, optimize=True)
    explained = along_line + np.einsum("nmk,mk->nm", response**2, values, optimize=True)
    likes = liked_tokens(np.concatenate([patterns.reshape(-1, len(linear)), linear.T]), model)
    count = patterns.shape[0] * patterns.shape[1]
    return WordPairs(
        values=values,
        vectors=vectors,
        residuals=np.asarray(pairs.residuals),
        r2=_shares(y, unseen.given[reading] @ onto),
        linear_share=_shares(y, along_line),
        share=_shares(y, explained),
        likes=likes[:count].reshape(*patterns.shape[:2], *likes.shape[1:]),
        linear_likes=likes[count:],
        places=unseen.places[distinct_places(response, contexts)],
        effective_rank=_effective_rank(bare),
    )


def _pairs(layer: GLUWeights, c: np.ndarray, k: int, order: Order) -> tuple[Eigenpairs, np.ndarray, np.ndarray]:
    """The pairs of a layer without linear part, the readout directions (m, k, d), and what c has in their responses."""
    if order == "size":
        pairs = top_eigenpairs(layer, k)
        return pairs, np.asarray(pairs.vectors), np.asarray(pairs.vectors)
    half, inverse = _roots(c)
    pairs = top_eigenpairs(layer._replace(w=half @ layer.w, v=half @ layer.v), k)
    readouts, patterns = (np.asarray(pairs.vectors) @ np.asarray(matrix) for matrix in (inverse, half))
    return pairs, readouts, patterns


def distinct_places(response: Float[np.ndarray, "n m k"], count: int) -> np.ndarray:
    """The rows with the largest squared responses of each vector (m, k, count), none twice for one of the m words.

    Vectors take turns in their order: each takes the best that those before it have left.
    """
    n, m, k = response.shape
    count = min(count, n // k)
    reach = min(n, count * k)
    best = np.asarray(first_columns(np.square(response.reshape(n, m * k).T), reach)).reshape(m, k, reach)
    places = np.zeros((m, k, count), int)
    for word in range(m):
        used: set[int] = set()
        for rank in range(k):
            free = [int(place) for place in best[word, rank] if int(place) not in used][:count]
            places[word, rank] = free
            used |= set(free)
    return places


def _shares(y: np.ndarray, explained: np.ndarray) -> np.ndarray:
    """R² (m,) of each column, up to a constant."""
    wide = y.astype(np.float64)
    left = wide - explained
    return r_squared(wide, left - left.mean(0), axis=0)


def _roots(c: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Σ^½ and Σ^-½ of the covariance of centred c (n, d); directions that hardly vary count in neither."""
    values, vectors = np.linalg.eigh((c.T @ c / len(c)).astype(np.float64))
    alive = values > _ALIVE * values[-1]
    values, vectors = values[alive], vectors[:, alive]
    half, inverse = ((vectors * scale) @ vectors.T for scale in (values**0.5, values**-0.5))
    return jnp.asarray(half, jnp.float32), jnp.asarray(inverse, jnp.float32)


def _effective_rank(layer: GLUWeights) -> float:
    few = layer._replace(out=layer.out[:, :_RANKED])
    values = np.linalg.eigvalsh(np.asarray(interaction_matrices(few)))
    return float(np.mean(np.asarray(effective_rank(jnp.asarray(values)))))


def agreement(a: GLUWeights, b: GLUWeights, directions: Any, k: int = 5) -> dict[str, Float[np.ndarray, " m"]]:
    """How alike two readings of one layer are along each of the directions (d, m).

    "form_cosine": ⟨A, B⟩ / ‖A‖‖B‖ of the quadratic parts; "overlap": of the spans of the k pairs with the largest |λ|.
    """
    parts = [along(part, directions)._replace(w_bias=None, v_bias=None, skip=None, out_bias=None) for part in (a, b)]
    identity = jnp.eye(len(a.w), dtype=a.w.dtype)
    spans = [np.asarray(top_eigenpairs(part, k).vectors) for part in parts]
    overlap = np.array([subspace_overlap(*pair) for pair in zip(*spans, strict=True)])
    return {"form_cosine": np.asarray(form_cosines(*parts, identity)), "overlap": overlap}
