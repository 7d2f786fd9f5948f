"""Measure what a codec's latents of stems are normalised by, before a diffusion model is trained on
them, and what the codec leaves of held-out stems: no model of the latents can do better.

  mgen measure_latents --codec=out/vae --dataset=out/data/corpus_scores/band --out=out/scale
  mgen train --config=stems/tiny_latent --config.latents.codec=out/vae \\
    --config.latents.scale=out/scale ...
"""

import itertools
import sys

if __name__ == "__main__":
    sys.path.pop(0)  # launch/tokenize.py must not shadow the standard library's tokenize

from absl import flags

from mgen import cli

_CODEC = flags.DEFINE_string("codec", None, "Workdir of a codec with latents.", required=True)
_DATASET = flags.DEFINE_string("dataset", None, "Prepared dataset.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder of the scale.", required=True)
_BATCHES = flags.DEFINE_integer("batches", 64, "Batches of eight crops.", 1)
_SECONDS = flags.DEFINE_float("seconds", 4.0, "Length of a crop.", 0.1)


def main(argv: list[str]) -> None:
    del argv
    from mgen import chain
    from mgen.inputs import pipeline
    from mgen.stems.latents import StemLatents, measure_scale, preflight

    codec, trained = chain.load_codec(_CODEC.value)
    config = pipeline.default_config(
        dataset=_DATASET.value,
        view="stems",
        sample_rate=codec.config.sample_rate,
        channels=codec.config.channels,
        seconds=_SECONDS.value,
    )
    train, held_out = (
        pipeline.make_iterator(config, split=split, seed=0, train=True)
        for split in (config.train_split, config.eval_split)
    )
    model = codec.model, codec.variables
    data = itertools.islice(train, _BATCHES.value)
    scale = measure_scale(*model, data, trained.fingerprint)
    batch = next(held_out)
    latents = StemLatents(*model, scale.mean, scale.std)
    found = preflight(latents, batch["stems"], batch["stem_mask"])
    scale.save(_OUT.value, **found)
    text = ", ".join(f"{name} {value:.3g}" for name, value in found.items())
    print(f"{_OUT.value}: {len(scale.mean)} channels of {_CODEC.value}; {text}")


if __name__ == "__main__":
    cli.run(main)
