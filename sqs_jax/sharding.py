"""The gated linear unit on arrays that lie over several devices, and the mesh that a module finds itself in."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Float

from sqs_jax.gates import Gate
from sqs_jax.glu import Residuals, gated_linear
from sqs_jax.kernels import is_interpreted

BATCH = ("data", "fsdp")
"""The axes of a mesh over which modules part the first axis of what they compute."""
UNITS = "model"
"""The axis over which they part the units of a layer."""
PARTS = "fsdp"
"""The axis of `BATCH` over which parameters are parted."""


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
    fsdp: str | None = None,
    gate: str | Gate = "sqs",
    w_bias: Float[ArrayLike, " h"] | None = None,
    v_bias: Float[ArrayLike, " h"] | None = None,
    implementation: str | None = None,
    residuals: Residuals = "save",
    precision: jax.lax.PrecisionLike = None,
) -> Float[jax.Array, "n *rows h"]:
    """`gated_linear` with the first axis of x over one axis of a mesh and the units of w and v over another.

    Each device runs a kernel on its own rows and units. The forward pass needs no communication. The backward pass
    sums the gradient of x over `model`, and those of the weights and biases over `data`. With `fsdp` w and v lie in
    parts: they are gathered in the forward and again in the backward pass, and their gradients are summed into parts.

    Args:
      x: inputs (n, ..., d), n divisible by the devices along `data`.
      w, v: weights (d, h), h divisible by the devices along `model`.
      mesh: of the devices, its axes of type Auto.
      data, model: names of its axes, of `data` one or several; None where the rows, or the units, are not shared.
      fsdp: that axis of `data` over which the first axis of w and v is parted; None where it is not.
      others: as in `gated_linear`.

    Returns:
      Array (n, ..., h), its first axis over `data` and its last over `model`.

    Raises ValueError for an axis that the mesh lacks and for sizes that do not divide; else as `gated_linear`.
    """
    x, w, v = jnp.asarray(x), jnp.asarray(w), jnp.asarray(v)
    if x.ndim < 2:
        raise ValueError(f"`x` has shape {x.shape}: (n, ..., d) is needed")
    _check_mesh(mesh, data=(data, x.shape[0]), model=(model, w.shape[-1]), fsdp=(fsdp, w.shape[0]))
    settings = {"gate": gate, "implementation": implementation, "residuals": residuals, "precision": precision}
    given = {name: bias for name, bias in (("w_bias", w_bias), ("v_bias", v_bias)) if bias is not None}

    units, rest = PartitionSpec(fsdp, model), (None,) * (x.ndim - 2)
    return jax.shard_map(
        _on_a_device(fsdp, settings),
        mesh=mesh,
        in_specs=(PartitionSpec(data, *rest, None), units, units, dict.fromkeys(given, PartitionSpec(model))),
        out_specs=PartitionSpec(data, *rest, model),
        check_vma=False,  # Pallas' interpreter for GPU kernels does not know of it; the sums are the same
    )(x, w, v, given)


def _on_a_device(fsdp: str | None, settings: dict[str, Any]):
    """What each device computes, (x, w, v, biases) → h, from its parts of the weights along `fsdp`."""

    def product(x, w, v, biases):
        if fsdp is not None:
            w, v = (jax.lax.all_gather(part, fsdp, tiled=True) for part in (w, v))
        return gated_linear(x, w, v, **biases, **settings)

    # Pallas' interpreter for TPUs has effects, which checkpoint refuses.
    if fsdp is None or is_interpreted():
        return product
    # All but the gathered weights is kept for the backward pass: of every layer they would be the whole network.
    return jax.checkpoint(product, policy=_not_gathered)


def _not_gathered(primitive, *_, **__) -> bool:
    """What a backward pass keeps, as a policy of `jax.checkpoint`."""
    return primitive is not jax.lax.all_gather_p


def _check_mesh(mesh: Mesh | AbstractMesh, **shared: tuple[str | tuple[str, ...] | None, int]) -> None:
    """Raises ValueError for a mesh with explicit axes, and an axis that it lacks or that does not divide a size."""
    if AxisType.Explicit in mesh.axis_types:
        raise ValueError("`mesh` has explicit axes: axis_types=(AxisType.Auto, ...) is needed")
    for name, (axis, size) in shared.items():
        axes = _axes(axis)
        if not set(axes) <= set(mesh.axis_names):
            raise ValueError(f"`{name}` is {axis!r}: one of the mesh's axes {mesh.axis_names} or None is needed")
        devices = devices_along(mesh, axes)
        if size % devices:
            raise ValueError(f"{size} do not divide over the {devices} devices of the mesh's axis {axis!r}")
    data, fsdp = shared["data"][0], shared["fsdp"][0]
    if not {*_axes(fsdp)} <= {*_axes(data)}:
        raise ValueError(f"`fsdp` is {fsdp!r}: one of the axes of `data`, {data!r}, or None is needed")


def _axes(named: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (named,) if isinstance(named, str) else named or ()
