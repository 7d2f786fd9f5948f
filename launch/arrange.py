"""Make stems that go with others: a WAV for each, their mix, a picture, a JSON to make them again.

mgen arrange --workdir=out/stems --given=bass.wav,drums.wav --generate=piano,guitar --out=out/song
mgen arrange --workdir=out/stems --generate=bass,drums,guitar,piano --duration=30 --out=out/song
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # launch/tokenize.py must not shadow the standard library's tokenize

from absl import flags

from mgen import cli, tracks

_WORKDIR = flags.DEFINE_string("workdir", None, "Of the model.", required=True)
_GIVEN = flags.DEFINE_list("given", [], "Audio files that are called as their stems: bass.wav.")
_GENERATE = flags.DEFINE_list("generate", None, "Stems to make, such as piano.", required=True)
_DURATION = flags.DEFINE_float("duration", None, "Seconds; as long as what is given.", 0.001)
_CHORDS = flags.DEFINE_string("chords", "", "Of a model over latents: '0:C; 2:A:min; 4:G'.")
_OUT = flags.DEFINE_string("out", None, "Folder for the stems.", required=True)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise.")
_SAMPLING = tracks.define_sampling_flags()
flags.adopt_module_key_flags(tracks)


def main(argv: list[str]) -> None:
    del argv
    from mgen import clips
    from mgen.audio import io

    model, models = tracks.load([_WORKDIR.value])
    with clips.stopwatch() as watch:
        paths = tracks.arrange(
            tracks.drawing(model),
            _GIVEN.value,
            _GENERATE.value,
            _OUT.value,
            seed=_SEED.value,
            duration=_DURATION.value,
            chords=_CHORDS.value,
            changes=_SAMPLING(),
        )
    tracks.write_about(_OUT.value, cli.flag_values(main) | {"models": models})
    print(*paths, sep="\n")
    print(watch.describe(io.info(paths[-1]).duration))


if __name__ == "__main__":
    cli.run(main)
