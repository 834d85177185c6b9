"""The gated linear unit on arrays that lie over several devices, and the mesh that a module finds itself in."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Float

from sqs_jax.gates import Gate
from sqs_jax.glu import Residuals, gated_linear

BATCH = ("data", "fsdp")
"""The axes of a mesh over which modules part the first axis of what they compute."""
UNITS = "model"
"""The axis over which they part the units of a layer."""


def devices_along(mesh: Mesh | AbstractMesh, axes: tuple[str, ...] = BATCH) -> int:
    """The number of devices along some axes of a mesh."""
    return math.prod(mesh.shape[axis] for axis in axes)


def mesh_for(x: jax.Array) -> AbstractMesh | None:
    """The mesh in use, where it can share a batch x (n, ..., d): it has our axes, and those of `BATCH` divide n."""
    mesh = jax.sharding.get_abstract_mesh()
    is_ours = {*BATCH, UNITS} <= set(mesh.axis_names) and not mesh.manual_axes and mesh.size > 1
    if not is_ours or x.ndim < 2 or x.shape[0] % devices_along(mesh):
        return None
    return mesh


def along_batch(x: jax.Array) -> jax.Array:
    """x (n, ..., d) with its first axis over those of `BATCH`, where the mesh in use has them; else x.

    Without it the compiler may choose to compute everything on every device.
    """
    if mesh_for(x) is None:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)))


def sharded_gated_linear(
    x: Float[ArrayLike, "n *rows d"],
    w: Float[ArrayLike, "d h"],
    v: Float[ArrayLike, "d h"],
    *,
    mesh: Mesh | AbstractMesh,
    data: str | tuple[str, ...] | None = "data",
    model: str | None = "model",
    gate: str | Gate = "sqs",
    w_bias: Float[ArrayLike, " h"] | None = None,
    v_bias: Float[ArrayLike, " h"] | None = None,
    implementation: str | None = None,
    residuals: Residuals = "save",
    precision: jax.lax.PrecisionLike = None,
) -> Float[jax.Array, "n *rows h"]:
    """`gated_linear` with the first axis of x over one axis of a mesh and the units of w and v over another.

    Each device runs a kernel on its own rows and units. The forward pass needs no communication. The backward pass
    sums the gradient of x over `model`, and those of the weights and biases over `data`.

    Args:
      x: inputs (n, ..., d), n divisible by the devices along `data`.
      w, v: weights (d, h), h divisible by the devices along `model`.
      mesh: of the devices, its axes of type Auto.
      data, model: names of its axes, of `data` one or several; None where the rows, or the units, are not shared.
      others: as in `gated_linear`.

    Returns:
      Array (n, ..., h), its first axis over `data` and its last over `model`.

    Raises ValueError for an axis that the mesh lacks and for sizes that do not divide; else as `gated_linear`.
    """
    x, w, v = jnp.asarray(x), jnp.asarray(w), jnp.asarray(v)
    if x.ndim < 2:
        raise ValueError(f"`x` has shape {x.shape}: (n, ..., d) is needed")
    _check_mesh(mesh, data=(data, x.shape[0]), model=(model, w.shape[-1]))
    settings = {"gate": gate, "implementation": implementation, "residuals": residuals, "precision": precision}
    given = {name: bias for name, bias in (("w_bias", w_bias), ("v_bias", v_bias)) if bias is not None}

    units = PartitionSpec(None, model)
    rest = (None,) * (x.ndim - 2)
    return jax.shard_map(
        lambda x, w, v, biases: gated_linear(x, w, v, **biases, **settings),
        mesh=mesh,
        in_specs=(PartitionSpec(data, *rest, None), units, units, dict.fromkeys(given, PartitionSpec(model))),
        out_specs=PartitionSpec(data, *rest, model),
        check_vma=False,  # Pallas' interpreter for GPU kernels does not know of it; the sums are the same
    )(x, w, v, given)


def _check_mesh(mesh: Mesh | AbstractMesh, **shared: tuple[str | tuple[str, ...] | None, int]) -> None:
    """Raises ValueError for a mesh with explicit axes, and an axis that it lacks or that does not divide a size."""
    if AxisType.Explicit in mesh.axis_types:
        raise ValueError("`mesh` has explicit axes: axis_types=(AxisType.Auto, ...) is needed")
    for name, (axis, size) in shared.items():
        axes = (axis,) if isinstance(axis, str) else axis or ()
        if not set(axes) <= set(mesh.axis_names):
            raise ValueError(f"`{name}` is {axis!r}: one of the mesh's axes {mesh.axis_names} or None is needed")
        devices = devices_along(mesh, axes)
        if size % devices:
            raise ValueError(f"{size} do not divide over the {devices} devices of the mesh's axis {axis!r}")
