"""Sample music from trained language models: a WAV, its codes, a picture and a JSON for each clip.

mgen generate --lm=out/lm --codec=out/codec --out=out/clips --n=3 --duration=6
mgen generate --lm=SEMANTIC,COARSE,FINE --codec=CODEC --joint=JOINT --prompt="a slow waltz" ...
mgen generate ... --melody=tune.wav --negative="drums"
mgen generate --lm=SEMANTIC,SOUNDSTORM ... --audio_prompt=clip.wav --start=2 --end=4
mgen generate --lm=STEMGEN ... --context_stems=drums.wav,piano.wav --target_stem=bass
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # launch/tokenize.py must not shadow the standard library's tokenize

from absl import flags

from mgen import cli, wish

_LM = flags.DEFINE_list("lm", None, "Workdirs of language models, in order.", required=True)
_MODELS = [
    flags.DEFINE_string("codec", None, "Workdir of their codec.", required=True),
    flags.DEFINE_string("joint", "", "Workdir of a joint embedding, for text and style."),
    flags.DEFINE_string("text_encoder", "", "Folder of a T5 release, for MusicGen's text."),
    flags.DEFINE_string("semantic", "", "Workdir of an encoder, for audio prompts."),
    flags.DEFINE_string("style_model", "", "Workdir of an encoder, for MusicGen-Style."),
    flags.DEFINE_string("melody_model", "", "Workdir of a melody embedding, for melodies."),
    flags.DEFINE_bool("int8", False, "Weights of the language models as int8."),
]
for _name in ("semantic", "style", "melody"):
    _MODELS.append(flags.DEFINE_string(f"{_name}_codebook", "", "Its codebook."))
_OUT = flags.DEFINE_string("out", None, "Folder for the clips.", required=True)
_N = flags.DEFINE_integer("n", 1, "Number of clips.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the first clip; the others count up.")
_WISH = wish.define_flags()
_BEST = flags.DEFINE_integer("best_of", 1, "Of so many, keep what fits the prompt best.", 1)
_LOUDNESS = flags.DEFINE_float("loudness", -18.0, "LUFS of the clips, within full scale.")
_SAMPLING = wish.define_sampling_flags()
flags.adopt_module_key_flags(wish)


def main(argv: list[str]) -> None:
    del argv
    from mgen import chain, clips

    clips.make_folder(_OUT.value)
    sampling = _SAMPLING(len(_LM.value))
    model = chain.load(_LM.value, **{flag.name: flag.value for flag in _MODELS})
    seeds = list(range(_SEED.value, _SEED.value + _N.value))
    asked = _WISH()
    with clips.stopwatch() as watch:
        made = model.best(asked, seeds, sampling, _BEST.value)
    seconds = made[2].shape[0] * made[2].shape[1] / model.sample_rate
    about = cli.flag_values(main) | {"models": model.about, "speed": watch.speed(seconds)}
    context = model.encoders.context(asked) if asked.context_stems else None
    paths = clips.write_batch(_OUT.value, made, model.sample_rate, about, _LOUDNESS.value, context)
    print(*paths, watch.describe(seconds), sep="\n")


if __name__ == "__main__":
    cli.run(main)
