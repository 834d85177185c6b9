"""Uses the installed package as a stranger would: `bare` without extras, `train` with them."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

import sqs_jax

assert "site-packages" in sqs_jax.__file__, sqs_jax.__file__
assert (Path(sqs_jax.__file__).parent / "py.typed").is_file()
assert list((Path(sqs_jax.__file__).parent / "kernels" / "tuning").glob("*.json"))
model = sqs_jax.GLUClassifier(4, 2, width=8, hidden=8, rngs=nnx.Rngs(0))
assert jax.grad(lambda x: model(x).sum())(jnp.ones((3, 4))).shape == (3, 4)

from sqs_jax.analysis import GLUWeights, spectrum  # noqa: E402

glu = model.layers[0]
assert spectrum(GLUWeights(glu.w[...], glu.v[...], model.head[...], model.embed[...])).vectors.shape == (2, 4, 4)

if sys.argv[1] == "train":
    # Every module of the wheel: a folder that `packages` lacks is seen.
    modules = [module.name for module in pkgutil.walk_packages(sqs_jax.__path__, "sqs_jax.")]
    assert {"sqs_jax.train.text.token_stream", "sqs_jax.pretrained.families", "sqs_jax.analysis.report.page"} <= set(
        modules
    )
    for name in modules:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    files = {path.name for path in (Path(sqs_jax.__file__).parent / "analysis" / "report").iterdir()}
    assert {"page.html", "page.css", "page.js", "language.js", "model.js", "sweep.js"} <= files
    run = [str(Path(sys.executable).parent / "sqs"), "--epochs", "2", "--run-dir", "runs/installed"]
    subprocess.run(run, check=True)
    subprocess.run([sys.executable, "-m", "sqs_jax.train", "--resume", "--run-dir", "runs/installed"], check=True)
    assert Path("runs/installed/report.html").stat().st_size > 10_000
    subprocess.run([sys.executable, "-m", "sqs_jax.analysis", "report", "runs/installed"], check=True)
