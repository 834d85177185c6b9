"""Causal attention: by the kernel of the device, whose memory grows with the length, or by XLA, with its square."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Float

from sqs_jax import kernels
from sqs_jax.sharding import BATCH, UNITS, devices_along, mesh_for

Attention = Literal["auto", "xla"]
_BLOCKS = (512, 256, 128)  # of positions in the kernel for TPUs: the largest that divides the length


def attention_on(device: Any, dtype: Any, length: int, head_width: int) -> str:
    """Which attention a device computes: "cudnn", "splash" or "xla".

    Args:
      device: a `jax.Device`, or what a mesh tells of one.
      dtype: of queries, keys and values.
      length: positions of a sequence.
      head_width: width n of a head.

    cuDNN's takes bfloat16 and float16 and heads of up to 128, a multiple of 8, on NVIDIA GPUs of compute capability 8.0
    or more; splash, the kernel that comes with JAX, takes bfloat16, and a length that is a multiple of 128, on TPUs.
    """
    if kernels.is_tpu(device):
        return "splash" if dtype == jnp.bfloat16 and length % _BLOCKS[-1] == 0 else "xla"
    narrow = dtype in (jnp.bfloat16, jnp.float16)
    fits = narrow and head_width <= 128 and head_width % 8 == 0
    return "cudnn" if fits and (kernels.capability(device) or 0) >= 8 else "xla"


def causal_attention(
    q: Float[jax.Array, "batch length heads n"],
    k: Float[jax.Array, "batch length heads n"],
    v: Float[jax.Array, "batch length heads n"],
    kind: Attention = "auto",
) -> Float[jax.Array, "batch length heads n"]:
    """softmax(q kᵀ/√n) v of each head, each position seeing itself and those before; softmax in float32.

    `kind` "auto" takes what `attention_on` names for the device. cuDNN's and splash have a first derivative in reverse
    mode alone; "xla" has all. Where arrays lie over several devices in a mesh that is not ours, XLA does it.
    """
    name, mesh = "xla", mesh_for(q)
    if kind == "auto" and (mesh is not None or kernels.is_whole(q)):
        name = attention_on(kernels.device_of(q), q.dtype, q.shape[1], q.shape[3])
    if name == "xla":
        return _by_xla(q, k, v)
    computed = _by_splash if name == "splash" else _by_cudnn
    if mesh is None:
        return computed(q, k, v)
    heads = UNITS if q.shape[2] % devices_along(mesh, (UNITS,)) == 0 else None
    spec = PartitionSpec(BATCH, None, heads, None)
    return jax.shard_map(computed, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)(q, k, v)


@jax.checkpoint
def _by_xla(q, k, v):
    # The scores, (batch, heads, length, length), are most of what a block would keep: to make them again costs one
    # product, which takes less time than to write and read them.
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def _by_cudnn(q, k, v):
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def _by_splash(q, k, v):
    _, length, heads, n = q.shape
    scaled = (q * np.asarray(n**-0.5, q.dtype), k, v)
    kernel: Any = _splash(length, heads, kernels.is_interpreted())
    read = jax.vmap(kernel)(*(x.swapaxes(1, 2) for x in scaled))
    return read.swapaxes(1, 2)


@functools.cache
def _splash(length: int, heads: int, interpret: bool):
    """The kernel for one sequence: (heads, length, n) each."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    size = next(size for size in _BLOCKS if length % size == 0)
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    mask = splash.MultiHeadMask([splash.CausalMask((length, length))] * heads)
    with jax.ensure_compile_time_eval():  # it is kept: its arrays may belong to no trace
        return splash.make_splash_mha(
            mask,
            block_sizes=splash.BlockSizes(**dict.fromkeys(names, size)),
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
