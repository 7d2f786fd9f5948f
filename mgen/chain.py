"""Stages joined: trained models as `launch/` loads them, a language model and the codec whose
tokens it speaks.

With `mgen.tokenize` and `mgen.features` the modules that know more than one family. `launch/` and
the notebooks call them.
"""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from mgen.audio import io
from mgen.codec.sample import FrozenCodec
from mgen.errors import UserError
from mgen.inputs import attributes
from mgen.inputs.vocabulary import Vocabulary
from mgen.joint.config import VOCABULARY
from mgen.joint.sample import FrozenJoint
from mgen.lm.model import LMConfig
from mgen.lm.sample import FrozenLM, SamplingConfig
from mgen.semantic.config import SemanticConfig
from mgen.semantic.sample import FrozenSemantic
from mgen.train.checkpoint import Trained, load_trained
from mgen.typing import Array, ndarray


def load_codec(workdir: str | Path) -> tuple[FrozenCodec, Trained]:
    """The codec trained in `workdir`; `UserError` where there is none."""
    trained = load_trained(workdir, "codec")
    return FrozenCodec.from_trained(trained.config, trained.params, trained.variables), trained


def load_semantic(workdir: str | Path) -> tuple[FrozenSemantic, Trained]:
    """The semantic encoder trained in `workdir`; `UserError` where there is none."""
    trained = load_trained(workdir, "semantic")
    config = SemanticConfig.from_config(trained.config.model)
    return FrozenSemantic.from_trained(config, trained.params, trained.variables), trained


def load_joint(workdir: str | Path) -> tuple[FrozenJoint, Trained]:
    """The joint embedding trained in `workdir`; `UserError` where there is none."""
    trained = load_trained(workdir, "joint")
    return FrozenJoint.from_trained(trained.config, trained.params, trained.variables), trained


def vocabulary_of(trained: Trained) -> Vocabulary:
    """The vocabulary that a model was trained with, from its workdir."""
    return Vocabulary(trained.workdir / VOCABULARY)


@dataclasses.dataclass(frozen=True)
class Chain:
    """A trained language model with its codec.

    Attributes:
      about: fingerprints of both, for the JSON beside a clip.
    """

    lm: FrozenLM
    codec: FrozenCodec
    about: dict[str, str]

    def generate(
        self,
        seconds: float,
        seeds: ndarray,
        sampling: SamplingConfig,
        condition: str = "",
        prompt: str | Path = "",
    ) -> tuple[ndarray, ndarray]:
        """Codes int32 [B, F, K] and audio float32 [B, T, C], one clip a seed.

        Args:
          seconds: length of a clip, the prompt included.
          condition: see `mgen.inputs.attributes.parse`.
          prompt: audio file that every clip goes on from; any sample rate and channel count.

        Raises `UserError` for a condition or a prompt that does not fit.
        """
        frames = max(1, round(seconds * self.codec.config.frame_rate))
        fields = None
        if self.lm.config.attribute_sizes:
            fields = jnp.tile(attributes.parse(condition), (len(seeds), 1))
        elif condition:
            raise UserError(f"--condition={condition}: this model was trained without conditions")
        codes = self.lm.generate(
            frames=frames,
            seeds=jnp.asarray(seeds),
            prompt=self._prompt_codes(prompt, seconds, len(seeds)) if prompt else None,
            attributes=fields,
            sampling=sampling,
        )
        return np.asarray(codes), self.codec.decode_long(np.asarray(codes))

    def _prompt_codes(self, prompt: str | Path, seconds: float, batch: int) -> Array:
        config = self.codec.config
        length = io.info(prompt).duration
        if length >= seconds:
            raise UserError(
                f"{prompt}: {length:.1f} s long, expected less than the {seconds:.1f} s of the clip"
            )
        audio = io.read(prompt, sample_rate=config.sample_rate, channels=config.channels)
        codes = self.codec.encode_long(audio[None])[:, : int(length * config.frame_rate)]
        return jnp.tile(codes, (batch, 1, 1))


def load(lm_workdir: str | Path, codec_workdir: str | Path) -> Chain:
    """Both from their workdirs; `UserError` where the tokens were made by another codec."""
    trained = load_trained(lm_workdir, "lm")
    codec, codec_trained = load_codec(codec_workdir)
    parent = trained.manifest["parents"].get("codec")
    if parent != codec_trained.fingerprint:
        raise UserError(
            f"{lm_workdir}: was trained on tokens of codec {str(parent)[:12]}, "
            f"{codec_workdir} is codec {codec_trained.fingerprint[:12]}"
        )
    shape = trained.config.codec
    config = LMConfig.from_config(
        trained.config.model, num_codebooks=shape.codebooks, codebook_size=shape.codebook_size
    )
    lm = FrozenLM.from_trained(config, trained.params)
    about = {"lm": trained.fingerprint, "codec": codec_trained.fingerprint}
    return Chain(lm, codec, about)
