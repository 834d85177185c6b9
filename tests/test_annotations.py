"""The shapes in annotations, checked at run time: in a process of its own, where they come before our own checks."""

import subprocess
import sys

CALLS = """
import jax, jax.numpy as jnp, numpy as np
from jaxtyping import TypeCheckError, install_import_hook

with install_import_hook(["sqs_jax.glu", "sqs_jax.sharding", "sqs_jax.analysis"], "beartype.beartype"):
    import sqs_jax
    from sqs_jax import analysis
    from sqs_jax.analysis import similarity, interpret
    from sqs_jax.analysis.gains import gaussian_gains

rng = np.random.default_rng(0)
def array(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

x, w, v = array(2, 5, 6), array(6, 4), array(6, 4)
assert sqs_jax.gated_linear(x, w, v, w_bias=array(4), v_bias=np.zeros(4, np.float32)).shape == (2, 5, 4)
assert sqs_jax.gated(x, x).shape == x.shape
mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
assert sqs_jax.sharded_gated_linear(x, w, v, mesh=mesh).shape == (2, 5, 4)

weights = analysis.GLUWeights(w, v, array(4, 3), array(7, 6), array(4), array(4), array(3), array(6, 3))
inputs, labels = np.asarray(array(40, 7)), rng.integers(0, 3, 40)
assert analysis.interaction_matrices(weights, gain=array(4)).shape == (3, 8, 8)
pairs = analysis.spectrum(weights, gain=array(4))
analysis.top_eigenpairs(weights, 2)
analysis.eigenpairs(analysis.interaction_matrices(weights))
analysis.extremes(pairs, 2)
analysis.effective_rank(pairs.values), analysis.eigengaps(pairs.values)
gains = analysis.calibrate(weights, inputs, "sqs")
gaussian_gains("sqs", np.zeros(4), np.ones(4), np.zeros(4), np.zeros(4))
analysis.calibrated(weights, gains)
analysis.fidelity(weights, inputs, "sqs", calibration=gains, labels=labels)
analysis.truncation(weights, inputs, "sqs", pairs=pairs, calibration_x=inputs, ks=(1, 3))
analysis.ablation(weights, inputs, "sqs", pairs=pairs, labels=labels)
rows = np.linalg.qr(rng.normal(size=(8, 3)))[0].T
similarity.rank_cosines(rows, rows), similarity.matched_cosines(rows, rows), similarity.subspace_overlap(rows, rows)
similarity.principal_angles(rows, rows), similarity.form_cosine(np.eye(3), np.eye(3), np.eye(3))
vectors = rng.normal(size=(3, 2, 7))
interpret.template_correlations(vectors, inputs, labels), interpret.selectivity(vectors, inputs, labels)
interpret.most_activating(vectors, inputs, 4), interpret.adversarial_masks(vectors[:, 0])
interpret.smoothness(rng.normal(size=(3, 5, 5))), interpret.frechet_distance(inputs, inputs)

for wrong in (
    lambda: sqs_jax.gated_linear(x, w, array(6, 5)),
    lambda: sqs_jax.gated_linear(x, w, v, w_bias=array(3)),
    lambda: sqs_jax.gated(x, w),
    lambda: analysis.effective_rank(jnp.ones(3, int)),
    lambda: analysis.fidelity(weights, inputs, "sqs", calibration=gains, labels=np.zeros((40, 1), int)),
    lambda: similarity.rank_cosines(rows, rows[:2]),
    lambda: interpret.selectivity(vectors, inputs[:, :5], labels),
):
    try:
        wrong()
    except TypeCheckError:
        continue
    raise SystemExit("a wrong shape passed")
print("checked")
"""


def test_public_functions_take_and_give_the_shapes_that_they_say():
    done = subprocess.run([sys.executable, "-c", CALLS], capture_output=True, text=True)
    assert done.stdout.endswith("checked\n"), done.stderr[-2000:]
