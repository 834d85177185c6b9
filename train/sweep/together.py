"""Many networks trained by one compiled program, which takes what differs between them as arguments."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from sqs_jax import display
from sqs_jax.train.config import ImageConfig
from sqs_jax.train.device_memory import shapes_of
from sqs_jax.train.images.classifier import Metrics, epoch_function, evaluation_function, make_model
from sqs_jax.train.images.image_task import Images
from sqs_jax.train.layout import make_mesh, replicated
from sqs_jax.train.metrics import divergence, metrics_row
from sqs_jax.train.optimizer import learning_rate, make_optimizer
from sqs_jax.train.step import TrainState, all_finite, first_state


class Member(NamedTuple):
    """A trained network of a group."""

    config: ImageConfig
    state: TrainState
    history: list[dict[str, Any]]
    """A row an epoch, as `metrics.jsonl` has them."""
    test: dict[str, float] | None
    """Loss and accuracy on the test set; None where training diverged."""
    diverged: int
    """The step after which a loss or a parameter was not finite; 0 where all are."""


def program_of(config: ImageConfig) -> ImageConfig:
    """The configuration, neutral in the program's arguments: equal for networks that can share a program."""
    neutral = ImageConfig(noise_prob=0.5)
    return dataclasses.replace(config, **{name: getattr(neutral, name) for name in _given(config)})


def _given(config: ImageConfig) -> list[str]:
    """The fields that a program takes as arguments."""
    names = ["seed", "lr", "weight_decay"]
    if config.gate == "sqs" and not config.learnable:
        names += ["c", "lam"]
    if config.noise_std and config.noise_prob:
        names += ["noise_std"] + (["noise_prob"] if config.noise_prob < 1 else [])
    return names


def train_together(
    configs: Sequence[ImageConfig],
    images: Images,
    *,
    noise_seed: int | None = None,
    stopping: Callable[[], Any] = lambda: False,
) -> list[Member]:
    """Trains networks of one program at once. Each ends with the numbers that it has alone, up to rounding.

    Args:
      configs: of the networks, `program_of` all of them the same.
      images: what they are trained on.
      noise_seed: what all of them draw the noise of a step from; None for the seed of each.
      stopping: asked after each epoch whether to stop there.

    Returns the networks in their order; none where `stopping()` said so.
    """
    values, programs = _prepared(configs, images, noise_seed)
    state = programs.begin(values["seed"])
    losses, validation, finite = [], [], []
    with display.stage(_group(configs), configs[0].epochs, "epochs") as shown:
        for _ in range(configs[0].epochs):
            state, step_losses = programs.epoch(values, state, images.images, images.labels, images.training)
            losses.append(np.asarray(step_losses, np.float64))
            finite.append(np.asarray(programs.finite((state.params, state.opt_state))))
            if len(images.validation):
                metrics = programs.evaluation(values, state.params, images.images, images.labels, images.validation)
                validation.append(_columns(metrics))
            shown.advance(text=f"loss {np.mean(losses[-1]):.4f}")
            if stopping():
                return []
    tests = _columns(programs.evaluation(values, state.params, *images.test))
    return [
        _member(config, i, images.steps, _pick(state, i), losses, finite, validation, tests)
        for i, config in enumerate(configs)
    ]


def _group(configs: Sequence[ImageConfig]) -> str:
    gates = ", ".join(dict.fromkeys(config.gate for config in configs))
    return f"{gates}: {len(configs)} network" + "s" * (len(configs) > 1)


def epoch_seconds(configs: Sequence[ImageConfig], images: Images, *, noise_seed: int | None = None) -> Iterator[float]:
    """The seconds of each epoch of a group, for measurements. The first epoch compiles."""
    values, programs = _prepared(configs, images, noise_seed)
    state = programs.begin(values["seed"])
    while True:
        start = time.perf_counter()
        state, losses = programs.epoch(values, state, images.images, images.labels, images.training)
        np.asarray(losses)
        yield time.perf_counter() - start


def memory_of(configs: Sequence[ImageConfig], images: Images, *, noise_seed: int | None = None) -> int:
    """Bytes on each device that these networks take while they are trained at once, as the compiler counts them.

    `train_together` of the same networks reuses the compiled program.
    """
    values, programs = _prepared(configs, images, noise_seed)
    state = _shapes(values, programs)
    compiled = programs.epoch.lower(values, state, images.images, images.labels, images.training).compile()
    counted: Any = compiled.memory_analysis()
    states = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return counted.temp_size_in_bytes + states // (jax.device_count() if programs.size > 1 else 1)


def compile_programs(configs: Sequence[ImageConfig], images: Images, *, noise_seed: int | None = None) -> None:
    """Compiles all that `train_together` of the same networks calls."""
    values, programs = _prepared(configs, images, noise_seed)
    state = _shapes(values, programs)
    programs.epoch.lower(values, state, images.images, images.labels, images.training).compile()
    programs.finite.lower((state.params, state.opt_state)).compile()
    held_out = [(images.images, images.labels, images.validation)] if len(images.validation) else []
    for data in (*held_out, images.test):
        programs.evaluation.lower(values, state.params, *data).compile()


def _shapes(values: dict[str, np.ndarray], programs: "_Programs") -> TrainState:
    """The shapes of a group's state, and how it lies on the devices."""
    placed: Any = programs.begin.lower(values["seed"]).compile().output_shardings
    return shapes_of(jax.eval_shape(programs.begin, values["seed"]), placed)


def _prepared(configs, images, noise_seed) -> tuple[dict[str, np.ndarray], "_Programs"]:
    # Every device has as many; those that fill it up are left out at the end.
    size = len(configs) + -len(configs) % jax.device_count()
    values = _values([*configs, *[configs[-1]] * (size - len(configs))], noise_seed)
    batched = frozenset(name for name, value in values.items() if np.ndim(value))
    return values, _programs(program_of(configs[0]), images.inputs, images.outputs, images.steps, size, batched)


def _values(configs, noise_seed) -> dict[str, np.ndarray]:
    """The arguments of the program: one number where all networks agree, else one for each."""
    columns = {name: [getattr(config, name) for config in configs] for name in _given(configs[0])}
    columns["noise_seed"] = columns["seed"] if noise_seed is None else [noise_seed] * len(configs)
    # A group has at least one axis of members: that of the learning rates.
    batched = {name for name, column in columns.items() if name == "lr" or len(set(column)) > 1}
    dtypes = {name: np.int32 if name.endswith("seed") else np.float32 for name in columns}
    return {
        name: np.asarray(column if name in batched else column[0], dtypes[name]) for name, column in columns.items()
    }


def _columns(metrics: Metrics) -> dict[str, np.ndarray]:
    return {name: np.asarray(part) for name, part in metrics._asdict().items()}


def _member(config, i, steps, state, losses, finite, validation, tests) -> Member:
    rate = learning_rate(config, steps * config.epochs)
    history: list[dict[str, Any]] = []
    for epoch, group_losses in enumerate(losses):
        end = steps * (epoch + 1)
        row = metrics_row(epoch + 1, end, rate(end - 1), group_losses[i])
        if validation:
            row |= {f"validation_{name}": float(part[i]) for name, part in validation[epoch].items()}
        validation_loss = row.get("validation_loss", 0.0)
        if diverged := divergence(
            group_losses[i], end, parameters_finite=finite[epoch][i], validation_loss=validation_loss
        ):
            return Member(config, state, history, None, diverged.step)
        history.append(row)
    test = {name: float(part[i]) for name, part in tests.items()}
    if not np.isfinite(test["loss"]):
        return Member(config, state, history, None, steps * config.epochs)
    return Member(config, state, history, test, 0)


class _Programs(NamedTuple):
    """What is compiled for a group; its arrays have an axis of members."""

    size: int
    begin: Any
    epoch: Any
    evaluation: Any
    finite: Any


_AXES = TrainState(params=0, opt_state=0, step=None)  # pyright: ignore[reportArgumentType] - axes, not arrays


@functools.lru_cache(maxsize=9)  # a group needs up to three, and two groups are compiled while one is trained
def _programs(
    base: ImageConfig, inputs: int, outputs: int, steps: int, size: int, batched: frozenset[str]
) -> _Programs:
    """The programs for `size` networks of a configuration. Arguments in `batched` have a value for each network."""

    def build(values):
        config = dataclasses.replace(base, **{name: values[name] for name in _given(base)})
        # A kernel would be run for one network after another; the products of all are one call by XLA.
        model = make_model(config, inputs, outputs, implementation=None if size == 1 else "xla")
        return config, model, make_optimizer(config, steps * base.epochs)

    def epoch(values, state, images, labels, indices):
        return epoch_function(*build(values), values["noise_seed"])(state, images, labels, indices)

    def evaluation(values, params, *data):
        return evaluation_function(build(values)[1])(params, *data)

    values = {name: 0 if name in batched else None for name in (*_given(base), "noise_seed")}
    data = (None, None, None)
    return _Programs(
        size,
        _beginning(_start_of(base), inputs, outputs, size),
        _for_each(epoch, size, (values, _AXES, *data), (_AXES, 0), donate=1),
        _for_each(evaluation, size, (values, 0, *data), 0),
        _for_each(all_finite, size, ((0, 0),), 0),
    )


def _start_of(config: ImageConfig) -> ImageConfig:
    """The configuration with only those fields that the initial state depends on."""
    names = ["width", "hidden", "layers", "residual", "bias", "learnable", "clip"]
    names += ["gate", "c", "lam", "p"] if config.learnable else []
    return ImageConfig(**{name: getattr(config, name) for name in names})


@functools.lru_cache(maxsize=9)
def _beginning(base: ImageConfig, inputs: int, outputs: int, size: int) -> Callable[..., TrainState]:
    """The program that makes `size` initial states from their seeds. Every gate shares it."""

    def begin(seed):
        config = dataclasses.replace(base, seed=seed)
        return first_state(make_model(config, inputs, outputs), make_optimizer(config, config.epochs))

    begin_all = _for_each(begin, size, (0,), _AXES)
    return _placed(lambda seed: begin_all(jnp.broadcast_to(seed, size)))


def _for_each(function, size: int, in_axes, out_axes, donate=()):
    """The compiled function of one network for a group of them, the group split over the devices."""
    mesh = make_mesh()
    if size == 1:
        return _placed(_for_one(function, in_axes, out_axes), donate)
    function = jax.vmap(function, in_axes, out_axes)
    if mesh.size > 1:
        in_specs, out_specs = (
            jax.tree.map(
                lambda axis: PartitionSpec() if axis is None else PartitionSpec("data"), axes, is_leaf=_is_none
            )
            for axes in (in_axes, out_axes)
        )
        function = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return _placed(function, donate)


def _for_one(function, in_axes, out_axes):
    """The function for a group of one, without a batch: as fast as the network alone, and with its kernels."""

    def call(*arguments):
        single = _with_axes(lambda leaf: leaf[0], in_axes, arguments)
        return _with_axes(lambda leaf: leaf[None], out_axes, function(*single))

    return call


def _with_axes(change, axes, tree):
    """A tree with every leaf changed that has an axis of members."""
    return jax.tree.map(
        lambda axis, part: part if axis is None else jax.tree.map(change, part), axes, tree, is_leaf=_is_none
    )


def _placed(function, donate=()):
    """The compiled function. On one device its results get the sharding of the images."""
    # A state that lies otherwise at first than after an epoch has the epoch compiled twice.
    mesh = make_mesh()
    if mesh.size > 1:
        return jax.jit(function, donate_argnums=donate)
    return jax.jit(function, donate_argnums=donate, out_shardings=replicated(mesh))


def _is_none(value) -> bool:
    return value is None


def _pick(state: TrainState, i: int) -> TrainState:
    """The state of one network of a group."""
    params, opt_state = jax.tree.map(lambda leaf: leaf[i], (state.params, state.opt_state))
    return TrainState(params, opt_state, state.step)
