"""Trained models as programs for others: a TensorFlow SavedModel, and jax.export for any platform.

mgen export --codec=CODEC --joint=JOINT --lm=SEMANTIC,COARSE,FINE --out=out/export
mgen export --codec=out/codec --out=out/export --formats=jax_export --platforms=cpu,tpu

Functions: encode and decode of the codec, embed_audio and embed_text of the joint embedding,
generate of the language models, from text where they read the embedding.
`mgen.export.artefact.load` reads the second format back.
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # launch/tokenize.py must not shadow the standard library's tokenize

from absl import flags

from mgen import cli

_CODEC = flags.DEFINE_string("codec", None, "Workdir of a trained codec.", required=True)
_JOINT = flags.DEFINE_string("joint", "", "Workdir of a joint embedding.")
_LM = flags.DEFINE_list("lm", [], "Workdirs of language models, in order.")
_OUT = flags.DEFINE_string("out", None, "Folder; an export there is replaced.", required=True)
_SECONDS = flags.DEFINE_float(
    "seconds", 6.0, "Of generate, and of encode and decode where a codec needs it.", 0.1, 600.0
)
_FORMATS = flags.DEFINE_list("formats", "saved_model,jax_export", "What to write.")
_PLATFORMS = flags.DEFINE_list("platforms", "cpu,cuda,tpu", "Lower for these.")


def main(argv: list[str]) -> None:
    del argv
    from mgen import chain
    from mgen.export import artefact, signatures
    from mgen.inputs import attributes
    from mgen.joint.config import VOCABULARY
    from mgen.lm.filters import SamplingConfig

    formats, platforms = tuple(_FORMATS.value), tuple(_PLATFORMS.value)
    job = artefact.Job(out=_OUT.value, formats=formats, platforms=platforms)
    codec, trained = chain.load_codec(_CODEC.value)
    functions = signatures.of_codec(codec, trained.fingerprint, _SECONDS.value)
    files, joint = {}, None
    if _JOINT.value:
        frozen, trained = chain.load_joint(_JOINT.value)
        joint = frozen, signatures.joint_model(frozen, trained.fingerprint)
        functions += signatures.of_joint(*joint)
        if (trained.workdir / VOCABULARY).is_file():
            files[VOCABULARY] = trained.workdir / VOCABULARY
    if _LM.value:
        made = chain.load(_LM.value, _CODEC.value, _JOINT.value)
        names = [made.about[f"lm_{i}"] for i in range(len(made.stages))]
        how = _SECONDS.value, [SamplingConfig()] * len(names), attributes.NAMES
        functions.append(signatures.of_chain(made.stages, names, *how, joint))
    print(artefact.report(artefact.write(job, functions, files)))
    print(f"{_OUT.value}: {', '.join(job.formats)}")


if __name__ == "__main__":
    cli.run(main)
