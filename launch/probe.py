"""What trained encoders hear in held-out pieces: retrieval, zero-shot classes, tokens, probes.

mgen probe --dataset=out/data --joint=out/joint
mgen probe --dataset=out/data --semantic=out/semantic --codebook=out/semantic_codebook --out=out/r

Retrieval and zero-shot accuracy stand beside chance; semantic tokens and features beside k-means
and linear probes on raw log-mel.
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # launch/tokenize.py must not shadow the standard library's tokenize

from absl import flags

from mgen import cli

_DATASET = flags.DEFINE_string("dataset", None, "Prepared dataset of scores.", required=True)
_JOINT = flags.DEFINE_string("joint", "", "Workdir of a joint or melody embedding.")
_SEMANTIC = flags.DEFINE_string("semantic", "", "Workdir of a semantic encoder.")
_CODEBOOK = flags.DEFINE_string("codebook", "", "Its codebook, from fit_codebook.")
_SPLIT = flags.DEFINE_string("split", "test", "Held-out split.")
_OUT = flags.DEFINE_string("out", "", "Folder for report.json.")
_OPTIONS = [
    flags.DEFINE_integer("clips", 120, "Held-out clips.", lower_bound=2),
    flags.DEFINE_integer("train_clips", 300, "Clips that probes are trained on.", lower_bound=2),
    flags.DEFINE_float("seconds", 8.0, "Length of a clip.", lower_bound=1.0),
    flags.DEFINE_integer("seed", 0, "Seed of the performances."),
]


def main(argv: list[str]) -> None:
    del argv
    from mgen import chain, clips, kmeans, probe, report
    from mgen.errors import UserError
    from mgen.inputs.records import open_records

    if not (_JOINT.value or _SEMANTIC.value):
        raise UserError("nothing to probe; expected --joint, --semantic or both")
    if _SEMANTIC.value and not _CODEBOOK.value:
        raise UserError("--semantic: expected its --codebook too")
    options = probe.Options(**{flag.name: flag.value for flag in _OPTIONS})
    held_out = open_records(_DATASET.value, _SPLIT.value)
    rows = {}
    if _JOINT.value:
        model, trained = chain.load_joint(_JOINT.value)
        vocabulary = chain.vocabulary_of(trained) if model.config.text else None
        rows |= probe.joint_report(model, vocabulary, held_out, options)
    if _SEMANTIC.value:
        encoder, _ = chain.load_semantic(_SEMANTIC.value)
        codebook = kmeans.Codebook.load(_CODEBOOK.value)
        train = open_records(_DATASET.value, "train")
        rows |= probe.semantic_report(encoder, codebook, train, held_out, options)
    report.compare(clips.make_folder(_OUT.value) if _OUT.value else None, rows)


if __name__ == "__main__":
    cli.run(main)
