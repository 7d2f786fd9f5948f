"""The contract between a family and the loop."""

import abc
from collections.abc import Iterator
from typing import Any, ClassVar

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax

from mgen.errors import UserError
from mgen.train import optim
from mgen.train.state import TrainState, ema_init, ema_update
from mgen.typing import Array, Batch, Key, Metrics, Params


class Task(abc.ABC):
    """A model with its losses and its optimiser.

    A family's `task.py` names its subclass `Task`; `launch/train.py` builds it as `Task(config)`
    from the whole config. The default `init` and `train_step` serve any single-optimiser model: a
    subclass gives `init_variables`, `loss` and `batch_spec`. A GAN overrides `init` and
    `train_step`. All methods that take a state are pure and jitted by the loop.
    """

    family: ClassVar[str]

    def __init__(self, config: ml_collections.ConfigDict):
        self.config = config
        self.optimizer = optim.make_optimizer(config.optim, config.train.steps)

    @abc.abstractmethod
    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Names, shapes and dtypes of what a step reads from a batch."""

    @abc.abstractmethod
    def init_variables(self, key: Key) -> dict[str, Params]:
        """Linen variables: {"params": ..., other collections}."""

    @abc.abstractmethod
    def loss(
        self, params: Params, variables: Params, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, tuple[Metrics, Params]]:
        """Scalar loss, (metrics, updated variables). Metrics are float32 scalars, means over the
        batch."""

    def manifest(self) -> dict[str, Any]:
        """Fields of `manifest.json` that a consumer checks: sample_rate, frame_rate, codebooks,
        ..."""
        return {}

    def files(self) -> dict[str, str]:
        """Name -> path of files that inference needs beside the weights (a vocabulary); the loop
        copies them into the workdir."""
        return {}

    def requires(self) -> dict[str, Any]:
        """Manifest fields that a token dataset must have to train this task; {} for audio."""
        return {}

    def parents(self) -> dict[str, str]:
        """Name -> fingerprint of the trained models that this one is built on; {} for none."""
        return {}

    def autoencoder(self) -> nn.Module:
        """Optional, of a codec with latents: the module whose methods `encode` and `decode` go from
        audio [B, T, C] to them and back."""
        raise UserError(f"a model of family {self.family!r} has no latents")

    def int8_values(self, params: Params) -> Params:
        """Optional: parameters with the values that they have where weights are kept as int8."""
        raise UserError(f"--int8: a model of family {self.family!r} has no int8 weights")

    def summaries(self, state: TrainState, batch: Batch, key: Key) -> dict[str, Any]:
        """Optional, on the host: {"audio/<name>": (float [B, T, C], sample_rate), "image/<name>":
        float [H, W, 3]}."""
        del state, batch, key
        return {}

    def baseline(self, train_data: Iterator[Batch], held_out: Iterator[Batch]) -> Metrics:
        """Optional, on the host, for `launch/evaluate.py` to print beside the scores: what a
        trivial model scores, what a sample costs."""
        del train_data, held_out
        return {}

    def warnings(self, metrics: dict[str, float]) -> list[str]:
        """Optional, on logged metrics: what is going wrong and what to change, a line each."""
        del metrics
        return []

    def generator_params(self, state: TrainState) -> Params:
        """The parameters that inference needs."""
        return state.inference_params

    def init(self, key: Key) -> TrainState:
        variables = flax.core.unfreeze(self.init_variables(key))
        params = optim.kept(self.config.optim, variables.pop("params"))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=self.optimizer.init(params),
            variables=variables,
            ema=ema_init(params) if self.config.optim.ema else None,
        )

    def warm_start(self, state: TrainState) -> TrainState:
        """Optional, on the host, for a run from scratch: the initial state with what files named in
        the config hold (codebooks, released weights). Raises `UserError` where they do not fit."""
        return state

    def sample(self, state: TrainState, batch: Batch, key: Key) -> Any:
        """What inference makes of a batch, as one program, for `launch/preflight.py` to compile:
        here what evaluation does."""
        return self.eval_step(state, batch, key)

    @property
    def sample_steps(self) -> int:
        """How often the loops of `sample` that have no length of their own run."""
        return 1

    def train_step(self, state: TrainState, batch: Batch, key: Key) -> tuple[TrainState, Metrics]:
        grads, metrics, variables = self.gradients(state.params, state.variables, batch, key)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics["grad_norm"] = optax.global_norm(grads)
        state = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            variables=variables,
            ema=ema_update(state.ema, params, self.config.optim.ema, state.step),
        )
        return state, metrics

    def eval_step(self, state: TrainState, batch: Batch, key: Key) -> Metrics:
        loss, (metrics, _) = self.loss(
            state.inference_params, state.variables, batch, key, train=False
        )
        return {"loss": loss, **metrics}

    def gradients(
        self, params: Params, variables: Params, batch: Batch, key: Key
    ) -> tuple[Params, Metrics, Params]:
        """Mean gradients and metrics over `optim.accumulate` micro-batches; variables pass from one
        to the next."""
        count = self.config.optim.accumulate

        def micro_step(variables: Params, slice_and_key: tuple[Batch, Key]) -> tuple[Params, Any]:
            grads, metrics, variables = self.micro_gradients(params, variables, *slice_and_key)
            return variables, (grads, metrics)

        if count == 1:
            return self.micro_gradients(params, variables, batch, key)
        size = jax.tree.leaves(batch)[0].shape[0]
        if count < 1 or size % count:
            raise UserError(f"config.optim.accumulate={count}: does not divide a batch of {size}")
        # Strided, so that each micro-batch is spread over the same devices as the batch.
        split = jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), batch
        )

        def accumulate(carry: Any, item: Any) -> tuple[Any, None]:
            variables, total = carry
            variables, out = micro_step(variables, item)
            return (variables, jax.tree.map(jnp.add, total, out)), None

        keys = jax.random.split(key, count)
        first = jax.tree.map(lambda x: x[0], (split, keys))
        rest = jax.tree.map(lambda x: x[1:], (split, keys))
        (variables, total), _ = jax.lax.scan(accumulate, micro_step(variables, first), rest)
        grads, metrics = jax.tree.map(lambda x: x / count, total)
        return grads, metrics, variables

    def micro_gradients(
        self, params: Params, variables: Params, batch: Batch, key: Key
    ) -> tuple[Params, Metrics, Params]:
        """Gradients and metrics of one micro-batch; a GAN, whose parts follow different losses,
        overrides this."""
        grad_fn = jax.value_and_grad(self.loss, has_aux=True)
        (loss, (metrics, variables)), grads = grad_fn(params, variables, batch, key, train=True)
        return grads, {"loss": loss, **metrics}, variables
