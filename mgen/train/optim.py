"""Optimisers and schedules from a config: optax, by the names that papers use."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from mgen.typing import Params


def default_config(**overrides: Any) -> ml_collections.ConfigDict:
    """The optimiser fields of every config.

    `warmup` and `decay_steps` count updates; decay_steps = 0 stands for the steps of the run.
    `clip` is the global gradient norm, 0 for none. `ema` is the decay of the parameter average, 0
    for none. `accumulate` splits a batch into that many micro-batches.
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
    return optax.chain(clip, bodies[config.name]())
