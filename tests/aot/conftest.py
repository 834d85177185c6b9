"""Compilers for accelerators that are not there: `make test-aot` installs them, and sets what they read."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

TPUS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
GPUS = {"sm_80": "sm_80_a100", "sm_89": "sm_89", "sm_90": "sm_90_h100"}
_TARGETS = Path(__file__).parent / "targets"


class Target:
    """Devices that are only described: `compile` is what their real compiler makes of a function."""

    def __init__(self, devices, backend: str):
        self.devices, self.backend = devices, backend

    def mesh(self, shape=(1,), names=("x",)) -> Mesh:
        return Mesh(np.array(self.devices[: int(np.prod(shape))]).reshape(shape), names)

    def compile(self, function, *arrays, dtype="bfloat16"):
        """Compiles for one device, from shapes."""
        mesh = self.mesh()
        sharding = NamedSharding(mesh, PartitionSpec())
        structs = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape in arrays]
        with jax.set_mesh(mesh):
            return jax.jit(function, out_shardings=sharding).lower(*structs).compile()


def _topology(**settings):
    from jax.experimental import topologies

    return topologies.get_topology_desc(**settings).devices


def tpu_target(name: str) -> Target:
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: make test-aot")
    return Target(_topology(platform="tpu", topology_name=TPUS[name]), "tpu")


def gpu_target(name: str) -> Target:
    if importlib.util.find_spec("jax_plugins.xla_cuda13") is None:
        pytest.skip("the CUDA compilers are not installed: make test-aot")
    config = (_TARGETS / f"{GPUS[name]}.pbtxt").read_text()
    return Target(_topology(platform="cuda", topology_name=name, target_config=config, topology="1x1x1"), "triton")


@pytest.fixture(scope="session", params=TPUS)
def tpu(request) -> Target:
    return tpu_target(request.param)


@pytest.fixture(scope="session", params=GPUS)
def gpu(request) -> Target:
    return gpu_target(request.param)


@pytest.fixture(scope="session")
def v5e() -> Target:
    return tpu_target("v5e")


@pytest.fixture(scope="session")
def sm_89() -> Target:
    return gpu_target("sm_89")


@pytest.fixture(scope="session", params=[*TPUS, *GPUS])
def target(request) -> Target:
    """Each of all."""
    return tpu_target(request.param) if request.param in TPUS else gpu_target(request.param)
