"""Flax (nnx) modules: the gated linear unit, and the classifier of the paper."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer

from sqs_jax.activation import SQS, sqs
from sqs_jax.gates import Gate, get_gate
from sqs_jax.glu import Residuals, gated_linear
from sqs_jax.sharding import BATCH, PARTS, UNITS, along_batch, mesh_for, sharded_gated_linear

_init = nnx.initializers.lecun_normal()


class GLU(nnx.Module):
    """Gated linear unit GLU(x) = (x W + b_w) ⊙ σ(x V + b_v), as `sqs_jax.gated_linear`.

    Args:
      d: width of the input.
      h: width of the output.
      gate: σ, a name in `sqs_jax.GATES` or any elementwise callable.
      bias: adds b_w and b_v, initialised to 0.
      learnable: makes c and λ of an SQS gate parameters, one each: c = softplus(`c_raw`), λ = softplus(`lam_raw`),
        so that they stay positive.
      dtype: of the computation, to which x is cast; None for that of the parameters, float32.
      implementation, residuals: as in `gated_linear`.
      rngs: of the initial weights, LeCun normal.

    Raises ValueError for widths below 1, for `learnable` with a gate other than SQS, or with a c or λ of 0,
    which softplus cannot reach.
    """

    def __init__(
        self,
        d: int,
        h: int,
        *,
        gate: str | Gate = "sqs",
        bias: bool = False,
        learnable: bool = False,
        dtype=None,
        implementation: str | None = None,
        residuals: Residuals = "save",
        rngs: nnx.Rngs,
    ):
        check_positive(d=d, h=h)
        self.gate = get_gate(gate)
        self.dtype = dtype
        self.implementation = implementation
        self.residuals: Residuals = residuals
        self.w = nnx.Param(_init(rngs.params(), (d, h), jnp.float32))
        self.v = nnx.Param(_init(rngs.params(), (d, h), jnp.float32))
        self.w_bias = nnx.Param(jnp.zeros(h, jnp.float32)) if bias else None
        self.v_bias = nnx.Param(jnp.zeros(h, jnp.float32)) if bias else None
        if learnable:
            if not isinstance(self.gate, SQS):
                raise ValueError(f"`learnable` needs the gate 'sqs', not {gate!r}: no other has parameters")
            check_above_zero(c=self.gate.c, lam=self.gate.lam)
            self.c_raw = nnx.Param(inverse_softplus(self.gate.c))
            self.lam_raw = nnx.Param(inverse_softplus(self.gate.lam))
        self.learnable = learnable

    def __call__(self, x: jax.Array) -> jax.Array:
        dtype = self.dtype or self.w.dtype
        return _shared(x, self.w.shape)(
            cast(x, dtype),
            cast(self.w, dtype),
            cast(self.v, dtype),
            gate=self.sigma,
            w_bias=None if self.w_bias is None else cast(self.w_bias, dtype),
            v_bias=None if self.v_bias is None else cast(self.v_bias, dtype),
            implementation=self.implementation,
            residuals=self.residuals,
        )

    @property
    def sigma(self) -> Gate:
        """The gate as an elementwise function, with the learnt c and λ where they are learnt.

        Outside of jit and grad these are numbers, and gates of equal ones are equal: nothing is compiled again.
        """
        if not (self.learnable and isinstance(self.gate, SQS)):
            return self.gate
        c, lam, p = jax.nn.softplus(self.c_raw[...]), jax.nn.softplus(self.lam_raw[...]), self.gate.p
        if isinstance(c, Tracer) or isinstance(lam, Tracer) or not (jnp.isfinite(c) and jnp.isfinite(lam)):
            return functools.partial(sqs, c=c, lam=lam, p=p)
        return SQS(float(c), float(lam), p)


def _shared(x: jax.Array, shape: tuple[int, ...]):
    """`gated_linear`, in a mesh that shares x `sharded_gated_linear`: a kernel does not part its work by itself."""
    mesh = mesh_for(x)
    if mesh is None:
        return gated_linear
    fsdp, model = (
        axis if size % mesh.shape[axis] == 0 else None for axis, size in zip((PARTS, UNITS), shape, strict=True)
    )
    fsdp = None if mesh.shape[PARTS] == 1 else fsdp
    return functools.partial(sharded_gated_linear, mesh=mesh, data=BATCH, fsdp=fsdp, model=model)


class GLUClassifier(nnx.Module):
    """The paper's classifier: logits = GLU(… GLU(x E)) P, from an embedding E, GLU layers and a head P.

    Args:
      inputs: number of input features.
      outputs: number of classes.
      width: width of the embedding E (inputs, width), or None for no embedding.
      hidden: width h of each GLU layer.
      layers: number of GLU layers, ≥ 1.
      residual: adds its input to the output of each GLU layer; all widths must then be equal.
      bias: adds biases to the GLU layers and the head.
      gate, learnable, dtype, implementation, residuals, rngs: as in `GLU`.

    Called with x (..., inputs), it returns float32 logits (..., outputs). Raises ValueError for widths below 1
    and for a residual stream whose width changes.

    Source: arXiv 2509.01874, section 4.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int | None = 512,
        hidden: int = 512,
        layers: int = 1,
        gate: str | Gate = "sqs",
        residual: bool = False,
        bias: bool = False,
        learnable: bool = False,
        dtype=None,
        implementation: str | None = None,
        residuals: Residuals = "save",
        rngs: nnx.Rngs,
    ):
        check_positive(inputs=inputs, outputs=outputs, hidden=hidden, layers=layers)
        stream = inputs if width is None else width
        check_positive(width=stream)
        if residual and stream != hidden:
            raise ValueError(f"`residual` needs `hidden` equal to the layer's input: {hidden} is not {stream}")
        self.residual = residual
        self.dtype = dtype
        self.embed = None if width is None else nnx.Param(_init(rngs.params(), (inputs, width), jnp.float32))
        self.layers = nnx.List(
            GLU(
                stream if layer == 0 else hidden,
                hidden,
                gate=gate,
                bias=bias,
                learnable=learnable,
                dtype=dtype,
                implementation=implementation,
                residuals=residuals,
                rngs=rngs,
            )
            for layer in range(layers)
        )
        self.head = nnx.Param(_init(rngs.params(), (hidden, outputs), jnp.float32))
        self.head_bias = nnx.Param(jnp.zeros(outputs, jnp.float32)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.hidden(x, len(self.layers))
        # The sums of a product in 16 bits are at least float32: rounded to 16 bits, many logits would be equal.
        wide = jnp.promote_types(h.dtype, jnp.float32)
        logits = jnp.matmul(h, cast(self.head, h.dtype), preferred_element_type=wide).astype(jnp.float32)
        if self.head_bias is not None:
            logits += jnp.expand_dims(self.head_bias[...], tuple(range(logits.ndim - 1)))
        return logits

    def hidden(self, x: jax.Array, layer: int) -> jax.Array:
        """The input (..., d) of GLU layer `layer`: the embedded x for 0, the output of the last for `len(layers)`."""
        dtype = self.dtype or self.head.dtype
        h = cast(x, dtype)
        if self.embed is not None:
            h = h @ cast(self.embed, dtype)
        h = along_batch(h)
        for glu in self.layers[:layer]:
            h = along_batch(h + glu(h) if self.residual else glu(h))
        return h


def check_positive(**sizes):
    """Raises ValueError for the first size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"`{name}` is {size}: a whole number ≥ 1 is needed")


def cast(array, dtype) -> jax.Array:
    """An array, or what a parameter holds, in `dtype` unless that is None."""
    plain = array[...] if isinstance(array, nnx.Variable) else array
    return plain if dtype is None else plain.astype(dtype)


def check_above_zero(**values):
    """Raises ValueError for the first number that is to be learnt through softplus and is not above 0."""
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"`{name}` is {value}: a learnable one must start above 0")


def inverse_softplus(value) -> jax.Array:
    """The number whose softplus this is, for one > 0."""
    return jnp.asarray(value + math.log(-math.expm1(-value)), jnp.float32)
