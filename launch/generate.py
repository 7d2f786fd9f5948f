"""Sample music from a trained language model: a WAV, its codes, a picture and a JSON for each clip.

mgen generate --lm=out/lm --codec=out/codec --out=out/clips --n=3 --seconds=6 --seed=1
mgen generate --lm=out/lm --codec=out/codec --out=out/clips --condition=metre=3/4,mode=minor
mgen generate --lm=out/lm --codec=out/codec --out=out/clips --prompt=start.wav --seconds=10
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # launch/tokenize.py must not shadow the standard library's tokenize

import numpy as np
from absl import flags

from mgen import cli

_LM = flags.DEFINE_string("lm", None, "Workdir of a trained language model.", required=True)
_CODEC = flags.DEFINE_string(
    "codec", None, "Workdir of the codec it was trained on.", required=True
)
_OUT = flags.DEFINE_string("out", None, "Folder for the clips.", required=True)
_N = flags.DEFINE_integer("n", 1, "Number of clips.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 6.0, "Length of a clip, the prompt included.", 0.1, 600.0)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the first clip; the others count up.")
_CONDITION = flags.DEFINE_string("condition", "", "Such as metre=3/4,mode=minor.")
_PROMPT = flags.DEFINE_string("prompt", "", "Audio file to continue.")
_LOUDNESS = flags.DEFINE_float("loudness", -18.0, "LUFS of the clips, within full scale.")
_SAMPLING = [
    flags.DEFINE_float("temperature", 1.0, "0 takes the likeliest token.", 0.0),
    flags.DEFINE_integer("top_k", 250, "Draw from the k likeliest tokens; 0: all.", 0),
    flags.DEFINE_float("top_p", 1.0, "Draw from the likeliest tokens of this mass.", 0.0, 1.0),
    flags.DEFINE_float("guidance", 3.0, "Scale of classifier-free guidance; 1: off."),
]


def main(argv: list[str]) -> None:
    del argv
    from mgen import chain, clips
    from mgen.lm.sample import SamplingConfig

    clips.make_folder(_OUT.value)
    sampling = SamplingConfig(**{flag.name: flag.value for flag in _SAMPLING})
    model = chain.load(_LM.value, _CODEC.value)
    seeds = np.arange(_SEED.value, _SEED.value + _N.value)
    with clips.stopwatch() as watch:
        made = model.generate(_SECONDS.value, seeds, sampling, _CONDITION.value, _PROMPT.value)
    rate = model.codec.config.sample_rate
    seconds = made[1].shape[0] * made[1].shape[1] / rate
    about = cli.flag_values(main) | {"n": 1, "models": model.about, "speed": watch.speed(seconds)}
    for seed, codes, audio in zip(seeds, *made):
        clip = about | {"seed": int(seed)}
        print(clips.write(_OUT.value, f"seed{seed}", audio, rate, codes, clip, _LOUDNESS.value))
    print(watch.describe(seconds))


if __name__ == "__main__":
    cli.run(main)
