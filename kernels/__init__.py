"""Kernels: one file a backend, and here the choice between them.

    xla.py      every device, any order of differentiation
    tpu.py      TPU v5e, v5p, v6e: bfloat16, float32
    triton.py   NVIDIA, compute capability 8.0 to 9.0: bfloat16, float16, float32

`rules` holds what the two kernel backends share with autodiff, `timings` the measurements that decide, and
`python -m sqs_jax.kernels tune` measures the device that it runs on. Importing this package imports no Pallas.
"""

import contextlib
import contextvars
import dataclasses
import importlib
import itertools
import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from sqs_jax.kernels import timings

IMPLEMENTATIONS = ("xla", "pallas")
DTYPES = {"tpu": ("bfloat16", "float32"), "triton": ("bfloat16", "float16", "float32")}
LARGEST = 2**31 - 1  # elements of an array: a Triton kernel's offsets are int32

_config: Any = jax.config  # its settings are unknown to type checkers
_interpreted: contextvars.ContextVar[str | None] = contextvars.ContextVar("interpreted", default=None)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which kernel to run: the backend, its tile (m, k, n) or None for the backend's own, or in an interpreter."""

    backend: str
    tile: tuple[int, int, int] | None = None
    interpret: bool = False


def plan(
    op: str,
    implementation: str | None,
    x: jax.Array,
    shape: tuple[int, ...],
    gate,
    reason: str | None = None,
    *,
    residuals: str = "save",
    exact: bool = False,
) -> Plan | None:
    """The kernel to run, or None for XLA.

    Args:
      op: "gated_linear" with `shape` (m, k, n), or "gated" or "sqs" with (m, n), as `rows` tells them.
      implementation: the caller's: "xla", "pallas", or None for what was measured to be faster on this device:
        XLA where nothing was, and where the arrays may lie over several devices, which do not share a kernel by
        themselves.
      x: one of the operands: its dtype counts, and where it lies, if it is no tracer.
      gate: an `SQS` or an `Activation` of the table, under whose name measurements are filed.
      reason: why no kernel does what is asked, where the caller knows one.
      residuals: as in `sqs_jax.gated_linear`.
      exact: the highest precision is asked for, for which nothing was measured.

    Raises:
      ValueError: an unknown implementation.
      NotImplementedError: "pallas" where no kernel does what is asked, with the reason.
    """
    if implementation not in (None, *IMPLEMENTATIONS):
        known = ", ".join(map(repr, IMPLEMENTATIONS))
        raise ValueError(f"`implementation` is {implementation!r}: it must be None or one of {known}")
    if implementation == "xla":
        return None
    backend, kind = target(x)
    dtype = np.dtype(x.dtype).name
    reason = reason or _unsupported(backend, kind, dtype, shape)
    if reason:
        if implementation == "pallas":
            raise NotImplementedError(f'`implementation` is "pallas", but {reason}; "xla" does it')
        return None
    assert backend is not None  # else there was a reason
    measured = None if exact else timings.lookup(kind, op, dtype, shape, residuals, gate.name)
    if implementation is None and not (measured and measured.wins and is_whole(x)):
        return None
    return plan_for(backend, measured.tile if measured else None)


def plan_for(backend: str, tile: tuple[int, int, int] | None) -> Plan:
    """The plan of a kernel that is chosen already; interpreted inside `interpreted`."""
    return Plan(backend, tile, is_interpreted())


def load(backend: str) -> ModuleType:
    """The module of a kernel backend, "tpu" or "triton": here Pallas is imported."""
    return importlib.import_module(f"sqs_jax.kernels.{backend}")


def is_exact(precision) -> bool | None:
    """Whether products are to be of the highest precision; None where no kernel knows the one that is asked for."""
    asked = _config.jax_default_matmul_precision if precision is None else precision
    if asked in (None, "default", "fastest", "bfloat16", jax.lax.Precision.DEFAULT):
        return False
    return True if asked in ("highest", "float32", jax.lax.Precision.HIGHEST) else None


def rows(array) -> tuple[int, int]:
    """The shape (m, n) in which a kernel sees an array (..., n): its leading axes as one."""
    return math.prod(array.shape[:-1]), array.shape[-1] if array.ndim else 1


def target(array: jax.Array | None = None) -> tuple[str | None, str]:
    """The backend and the kind of the device that is compiled for: the array's, the mesh's in use, or the default."""
    if _interpreted.get():
        return _interpreted.get(), f"interpreted {_interpreted.get()}"
    device = device_of(array)
    if is_tpu(device):
        return "tpu", device.device_kind
    return "triton" if 8 <= (capability(device) or 0) < 10 else None, device.device_kind


def device_of(array: jax.Array | None = None) -> Any:
    """The device that is compiled for: the array's, the mesh's in use, or the default."""
    if array is not None and not isinstance(array, Tracer):
        return next(iter(array.devices()))
    if abstract := jax.sharding.get_abstract_mesh().abstract_device:
        # It tells a kind alone; where such a device is here, that tells its capability, too.
        return next((device for device in jax.devices() if device.device_kind == abstract.device_kind), abstract)
    device = _config.jax_default_device or jax.devices()[0]
    return jax.devices(device)[0] if isinstance(device, str) else device  # jax_default_device may name a platform


def is_tpu(device: Any) -> bool:
    """Whether a device is a TPU, or `interpreted` says so."""
    return _interpreted.get() == "tpu" or device.device_kind.startswith("TPU")


def capability(device: Any) -> float | None:
    """The compute capability of an NVIDIA GPU, such as 9.0; of one that is only described, 8.0; else None."""
    known: Any = getattr(device, "compute_capability", None)  # only NVIDIA's tell a number
    if str(known).replace(".", "").isdigit():
        return float(known)
    return 8.0 if "NVIDIA" in device.device_kind and known is None else None


def is_interpreted() -> bool:
    """Whether kernels run in the interpreter."""
    return _interpreted.get() is not None


@contextlib.contextmanager
def interpreted(backend: str) -> Iterator[None]:
    """Runs the kernels of `backend` ("tpu" or "triton") in Pallas' interpreter, on the CPU: slow, for tests.

    What is traced inside keeps the interpreter, and what was traced before has none: no part of a jit's cache key.
    """
    if backend not in DTYPES:
        raise ValueError(f"`backend` is {backend!r}: one of {', '.join(map(repr, DTYPES))} is needed")
    token = _interpreted.set(backend)
    try:
        yield
    finally:
        _interpreted.reset(token)


def _unsupported(backend, kind, dtype, shape) -> str | None:
    if backend is None:
        return f"{kind} is no TPU and no NVIDIA GPU of compute capability 8.0 to 9.0"
    if dtype not in DTYPES[backend]:
        return f"the kernels of {kind} take {', '.join(DTYPES[backend])}, not {dtype}"
    if min(shape) < 1:
        return f"an axis of {shape} is empty"
    largest = max(a * b for a, b in itertools.combinations(shape, 2))
    if backend == "triton" and largest > LARGEST:
        return f"an array of shape {shape} has more than {LARGEST} elements"
    return None


def is_whole(array: jax.Array) -> bool:
    """Whether the arrays are whole on one device, the inside of a `shard_map` included."""
    if not isinstance(array, Tracer):
        return len(array.devices()) == 1
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.axis_names:
        return mesh.size == 1 or set(mesh.manual_axes) == set(mesh.axis_names)
    return jax.device_count() == 1
