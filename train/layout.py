"""How a run lies on its devices: a mesh of three axes, and the axes along which each parameter is parted."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from sqs_jax.messages import InputError
from sqs_jax.options import ONE_OR_MORE, check_options, option
from sqs_jax.sharding import BATCH, devices_along

_AXES = ("data", "fsdp", "model")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How many devices share what; all that are left over share batches alone. It is no part of a run's configuration.

    A run may go on with another layout, and on another number of devices.
    """

    fsdp: int = option(
        1, "Devices over which parameters and optimizer are parted; they share batches, too.", ONE_OR_MORE
    )
    model: int = option(1, "Devices over which the units of each layer are parted.", ONE_OR_MORE)


REPLICATED = Layout()
"""Every parameter on every device."""

# The axes of each dimension of a parameter, by the end of its path. Blocks have their layers as first dimension.
_RULES = {
    r"embedding": ("model", "fsdp"),
    r"unembedding": ("fsdp", "model"),
    r"norm": (None,),
    r"blocks/(attention_norm|glu_norm)": (None, None),
    r"blocks/qkv": (None, "fsdp", "model"),
    r"blocks/project": (None, "model", "fsdp"),
    r"blocks/glu/[wv]": (None, "fsdp", "model"),
    r"blocks/glu/(c_raw|lam_raw)": (None,),
    r"blocks/down": (None, "model", "fsdp"),
    r"embed": ("fsdp", "model"),
    r"layers/\d+/[wv]": ("fsdp", "model"),
    r"layers/\d+/[wv]_bias": ("model",),
    r"head": ("model", "fsdp"),
    r"head_bias": (None,),
}


def make_mesh(layout: Layout = REPLICATED, devices: Sequence[Any] | None = None) -> Mesh:
    """All devices, or these, along `data`, `fsdp` and `model`. Raises InputError where the layout does not divide them.

    On a slice of TPUs neighbours along an axis are neighbours in the network, where that can be; an axis may also take
    a part of one of the slice's own, as 16 of 8 × 8.
    """
    check_options(layout)
    devices = jax.devices() if devices is None else devices
    count, parted = len(devices), layout.fsdp * layout.model
    if count % parted:
        raise InputError(
            f"`fsdp` is {layout.fsdp} and `model` {layout.model}: their product has to divide the {count} devices"
        )
    shape = (count // parted, layout.fsdp, layout.model)
    placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, _AXES, axis_types=(AxisType.Auto,) * 3)


def check_devices(batch_size: int, mesh: Mesh, name: str = "batch_size") -> None:
    """Raises InputError for a batch that the devices cannot share evenly."""
    devices = devices_along(mesh)
    if batch_size % devices:
        raise InputError(f"`{name}` is {batch_size}: a multiple of the {devices} devices is needed")


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of data sets and figures: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def along_batch(mesh: Mesh, before: int = 0) -> NamedSharding:
    """The sharding of a batch: over all devices but those of `model`, after this many axes that are not shared."""
    return NamedSharding(mesh, PartitionSpec(*[None] * before, BATCH))


def placed(array: np.ndarray, sharding: Sharding) -> jax.Array:
    """An array that every process has, on the devices: nothing is sent, and nothing compared."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def parted(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every array of a state, or of its shapes: parameters by `_RULES`, their moments alike.

    A dimension that an axis does not divide is not parted. Raises KeyError for an array without a rule.
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _sharding(path, leaf.shape, mesh), tree)


def _sharding(path: Any, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if not shape:  # c and λ of a layer, the count of steps
        return replicated(mesh)
    axes = next((axes for rule, axes in _RULES.items() if re.search(f"(^|/){rule}$", name)), None)
    if axes is None or len(axes) != len(shape):
        raise KeyError(f"no rule says how {name}, of shape {shape}, lies on the devices")
    fitting = [axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(axes, shape, strict=True)]
    return NamedSharding(mesh, PartitionSpec(*fitting))
