"""How models over stems do on held-out pieces: SI-SDRi of every way to take a mix apart, distances
of imputed and generated mixes, clips and pictures.

mgen score_stems --joint=out/msdm --separator=out/separator --dataset=out/data --out=out/scores
mgen score_stems --independent=out/bass,out/drums,out/guitar,out/piano ... --steps=50
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # launch/tokenize.py must not shadow the standard library's tokenize

from absl import flags

from mgen import cli, tracks

_JOINT = flags.DEFINE_string("joint", None, "Workdir of a diffusion model.", required=True)
_INDEPENDENT = flags.DEFINE_list("independent", [], "Workdirs of models of one stem each.")
_SEPARATOR = flags.DEFINE_string("separator", "", "Workdir of a separator.")
_DATASET = flags.DEFINE_string("dataset", None, "Prepared dataset.", required=True)
_SPLIT = flags.DEFINE_string("split", "test", "Held-out split.")
_OUT = flags.DEFINE_string("out", None, "Folder for report.json and clips.", required=True)
_OPTIONS = [
    flags.DEFINE_integer("clips", 24, "Of them, each of another piece.", lower_bound=2),
    flags.DEFINE_float("seconds", 5.12, "Length of a clip.", 0.1, 600.0),
    flags.DEFINE_integer("batch", 8, "Clips at once.", lower_bound=1),
    flags.DEFINE_integer("seed", 0, "Seed of the first clip."),
]
_SAMPLING = tracks.define_sampling_flags()
flags.adopt_module_key_flags(tracks)


def main(argv: list[str]) -> None:
    del argv
    from mgen import clips, stem_scores

    out = clips.make_folder(_OUT.value)
    stem_scores.measure(
        stem_scores.load(_JOINT.value, _INDEPENDENT.value, _SEPARATOR.value),
        _DATASET.value,
        _SPLIT.value,
        out,
        stem_scores.Options(**{flag.name: flag.value for flag in _OPTIONS}),
        _SAMPLING(),
    )


if __name__ == "__main__":
    cli.run(main)
