"""Optimisers and schedules from a config: optax, by the names that papers use."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from mgen.typing import Array, Float, Key, Params


def default_config(**overrides: Any) -> ml_collections.ConfigDict:
    """The optimiser fields of every config.

    `warmup` and `decay_steps` count updates; decay_steps = 0 stands for the steps of the run.
    `clip` is the global gradient norm, 0 for none. `ema` is the decay of the parameter average, 0
    for none. `accumulate` splits a batch into that many micro-batches. `params` is the type in
    which parameters are kept: of "bfloat16" each update is rounded up or down at random, see
    `stochastic_rounding`.
    """
    config = ml_collections.ConfigDict(
        dict(
            name="adamw",
            learning_rate=3e-4,
            b1=0.9,
            b2=0.99,
            eps=1e-8,
            weight_decay=0.0,
            schedule="constant",
            warmup=0,
            decay_steps=0,
            end_factor=0.0,
            gamma=0.999996,
            clip=0.0,
            ema=0.0,
            accumulate=1,
            params="float32",
        )
    )
    config.update(overrides)
    return config


def make_schedule(config: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate by update: constant, cosine, linear, exponential (gamma a step) or rsqrt; after
    linear warm-up."""
    peak, warmup = config.learning_rate, config.warmup
    span = max((config.decay_steps or steps) - warmup, 1)
    bodies = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, span, alpha=config.end_factor),
        "linear": lambda: optax.linear_schedule(peak, peak * config.end_factor, span),
        "exponential": lambda: optax.exponential_decay(peak, 1, config.gamma),
        "rsqrt": lambda: (
            lambda count: (
                # join_schedules also asks for counts before the warm-up's end.
                peak * jnp.sqrt(max(warmup, 1) / (jnp.maximum(count, 0) + max(warmup, 1)))
            )
        ),
    }
    if config.schedule not in bodies:
        raise ValueError(f"optim.schedule is {config.schedule!r}, expected one of {sorted(bodies)}")
    body = bodies[config.schedule]()
    if not warmup:
        return body
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), body], [warmup])


def make_optimizer(config: ml_collections.ConfigDict, steps: int) -> optax.GradientTransformation:
    """Clipping, then the named update. Weight decay leaves vectors and scalars (norms, biases)
    alone."""
    schedule = make_schedule(config, steps)

    def matrices(params: Params) -> Params:
        return jax.tree.map(lambda p: p.ndim > 1, params)

    bodies = {
        "adam": lambda: optax.adam(schedule, config.b1, config.b2, config.eps),
        "adamw": lambda: optax.adamw(
            schedule,
            config.b1,
            config.b2,
            config.eps,
            weight_decay=config.weight_decay,
            mask=matrices,
        ),
        "sgd": lambda: optax.sgd(schedule, momentum=config.b1),
        "adafactor": lambda: optax.adafactor(schedule),
    }
    if config.name not in bodies:
        raise ValueError(f"optim.name is {config.name!r}, expected one of {sorted(bodies)}")
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    optimizer = optax.chain(clip, bodies[config.name]())
    return stochastic_rounding(optimizer) if kept_as(config) == jnp.bfloat16 else optimizer


def kept(config: ml_collections.ConfigDict, params: Params) -> Params:
    """Parameters in the type in which they are kept."""
    return jax.tree.map(lambda x: x.astype(kept_as(config)), params)


def kept_as(config: ml_collections.ConfigDict) -> jnp.dtype:
    """The type of the parameters, "float32" or "bfloat16"."""
    name = config.get("params", "float32")  # not in configs of before
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"optim.params is {name!r}, expected 'float32' or 'bfloat16'")
    return jnp.dtype(name)


class RoundingState(NamedTuple):
    """Updates done, and the state of the optimiser that is wrapped, in float32."""

    done: Array
    inner: Any


def stochastic_rounding(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on bfloat16 parameters: it sees and moves them in float32, and each lands on one of
    its two neighbours in bfloat16, by chance, so that the mean is where `inner` put it.

    Rounded to the nearest, an update below 1 / 256 of a parameter is lost (Zamirai et al. 2020,
    "Revisiting BFloat16 Training"; Gupta et al. 2015). No float32 copy of the parameters is kept: 2
    bytes each in place of 4, and of what FSDP gathers.
    """

    def init(params: Params) -> RoundingState:
        return RoundingState(jnp.zeros((), jnp.int32), inner.init(_float32(params)))

    def update(
        grads: Params, state: RoundingState, params: Params | None = None
    ) -> tuple[Params, RoundingState]:
        assert params is not None
        before = _float32(params)
        moves, inner_state = inner.update(_float32(grads), state.inner, before)
        leaves, structure = jax.tree.flatten(jax.tree.map(jnp.add, before, moves))
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), state.done), len(leaves))
        rounded = jax.tree.unflatten(structure, map(round_randomly, keys, leaves))
        # `optax.apply_updates` adds in float32: the sum is the rounded value again.
        updates = jax.tree.map(jnp.subtract, _float32(rounded), before)
        return updates, RoundingState(state.done + 1, inner_state)

    return optax.GradientTransformation(init, update)


def round_randomly(key: Key, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """float32 to bfloat16, up with the probability that makes the mean x."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    # bfloat16 is the upper half of float32: what is added to the lower one carries over as often
    # as it is large.
    dither = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    upper = ((bits + dither) >> 16).astype(jnp.uint16)
    rounded = jax.lax.bitcast_convert_type(upper, jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def _float32(tree: Params) -> Params:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)
