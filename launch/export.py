"""Trained models as programs for others: a TensorFlow SavedModel, and jax.export for any platform.

mgen export --codec=CODEC --joint=JOINT --lm=SEMANTIC,COARSE,FINE --out=out/export
mgen export --codec=out/codec --out=out/export --formats=jax_export --platforms=cpu,tpu

mgen export --stems=out/stems --out=out/export --likelihood=gaussian --steps=50

Functions: encode and decode of the codec, embed_audio and embed_text of the joint embedding,
generate of the language models, from text where they read the embedding; or separate and generate
of a model over stems.
`mgen.export.artefact.load` reads the second format back.
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # launch/tokenize.py must not shadow the standard library's tokenize

from absl import flags

from mgen import cli, tracks

_CODEC = flags.DEFINE_string("codec", "", "Workdir of a trained codec.")
_JOINT = flags.DEFINE_string("joint", "", "Workdir of a joint embedding.")
_LM = flags.DEFINE_list("lm", [], "Workdirs of language models, in order.")
_STEMS = flags.DEFINE_list("stems", [], "In place of those: of a model over stems, or one each.")
_OUT = flags.DEFINE_string("out", None, "Folder; an export there is replaced.", required=True)
_SECONDS = flags.DEFINE_float(
    "seconds", 6.0, "Of generate, and of encode and decode where a codec needs it.", 0.1, 600.0
)
_FORMATS = flags.DEFINE_list("formats", "saved_model,jax_export", "What to write.")
_PLATFORMS = flags.DEFINE_list("platforms", "cpu,cuda,tpu", "Lower for these.")
_LIKELIHOOD = tracks.define_likelihood_flag()
_SAMPLING = tracks.define_sampling_flags()
flags.adopt_module_key_flags(tracks)


def main(argv: list[str]) -> None:
    del argv
    from mgen.errors import UserError
    from mgen.export import artefact, workdirs

    formats, platforms = tuple(_FORMATS.value), tuple(_PLATFORMS.value)
    job = artefact.Job(out=_OUT.value, formats=formats, platforms=platforms)
    if bool(_STEMS.value) == bool(_CODEC.value):
        raise UserError("expected either --codec (with --joint and --lm) or --stems")
    if _STEMS.value:
        found = workdirs.of_tracks(_STEMS.value, _LIKELIHOOD.value, _SAMPLING())
    else:
        found = workdirs.of_chain(_CODEC.value, _JOINT.value, _LM.value, _SECONDS.value)
    print(artefact.report(artefact.write(job, *found)))
    print(f"{_OUT.value}: {', '.join(job.formats)}")


if __name__ == "__main__":
    cli.run(main)
