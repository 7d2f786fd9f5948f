"""Take a mix apart: a WAV for each stem, a picture of all, a JSON to make them again.

mgen separate --workdir=out/stems --mix=song.wav --out=out/song --exact_sum
mgen separate --workdir=out/bass,out/drums,out/guitar,out/piano --mix=song.mp3 --out=out/song
mgen separate ... --likelihood=gaussian --sampler=heun --steps=50
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # launch/tokenize.py must not shadow the standard library's tokenize

from absl import flags

from mgen import cli, tracks

_WORKDIR = flags.DEFINE_list("workdir", None, "Of the model, or of one a stem.", required=True)
_MIX = flags.DEFINE_string("mix", None, "Audio file.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder for the stems.", required=True)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise.")
_EXACT_SUM = flags.DEFINE_bool("exact_sum", False, "Share out what the stems lack of the mix.")
_LIKELIHOOD = tracks.define_likelihood_flag()
_DERIVED = flags.DEFINE_string("derived", "", "Stem that is the rest of the mix, or 'average'.")
_SAMPLING = tracks.define_sampling_flags()
flags.adopt_module_key_flags(tracks)


def main(argv: list[str]) -> None:
    del argv
    from mgen import clips
    from mgen.audio import io

    model, models = tracks.load(_WORKDIR.value)
    with clips.stopwatch() as watch:
        paths = tracks.separate(
            model,
            _MIX.value,
            _OUT.value,
            seed=_SEED.value,
            kind=_LIKELIHOOD.value,
            derived=_DERIVED.value,
            changes=_SAMPLING(),
            exact_sum=_EXACT_SUM.value,
        )
    tracks.write_about(_OUT.value, cli.flag_values(main) | {"models": models})
    print(*paths, sep="\n")
    print(watch.describe(io.info(_MIX.value).duration))


if __name__ == "__main__":
    cli.run(main)
