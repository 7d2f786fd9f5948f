"""Does a chain follow its prompts? Clips from the descriptions of held-out pieces, compared with
their own description and with the others' in the joint embedding.

mgen score --lm=SEMANTIC,COARSE,FINE --codec=CODEC --joint=JOINT --dataset=out/data --out=out/score
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # launch/tokenize.py must not shadow the standard library's tokenize

import json

from absl import flags

from mgen import cli

_LM = flags.DEFINE_list("lm", None, "Workdirs of language models, in order.", required=True)
_CODEC = flags.DEFINE_string("codec", None, "Workdir of their codec.", required=True)
_JOINT = flags.DEFINE_string("joint", None, "Workdir of the joint embedding.", required=True)
_DATASET = flags.DEFINE_string("dataset", None, "Prepared dataset.", required=True)
_SPLIT = flags.DEFINE_string("split", "test", "Held-out split.")
_OUT = flags.DEFINE_string("out", None, "Folder for report.json.", required=True)
_OPTIONS = [
    flags.DEFINE_integer("n", 96, "Clips.", lower_bound=2),
    flags.DEFINE_float("seconds", 6.0, "Length of a clip.", 0.1, 600.0),
    flags.DEFINE_integer("batch", 8, "Clips at once.", lower_bound=1),
    flags.DEFINE_integer("seed", 0, "Seed of the first clip."),
]
_INT8 = flags.DEFINE_bool("int8", False, "Weights of the language models as int8.")
_GUIDANCE = flags.DEFINE_float("guidance", 3.0, "Scale of classifier-free guidance; 1: off.")


def main(argv: list[str]) -> None:
    del argv
    from mgen import chain, clips, consistency, manifest, wish
    from mgen.inputs.records import open_records
    from mgen.inputs.render import RenderConfig

    options = consistency.Options(**{flag.name: flag.value for flag in _OPTIONS})
    source = open_records(_DATASET.value, _SPLIT.value)
    model = chain.load(_LM.value, _CODEC.value, _JOINT.value, int8=_INT8.value)
    # Of pieces as the joint embedding heard them in training.
    render = manifest.read(_JOINT.value)["config"]["data"]["render"]
    player = RenderConfig(sample_rate=model.sample_rate, **render)
    sampling = wish.sampling(len(_LM.value), guidance=_GUIDANCE.value)
    report = consistency.measure(model, source, player, sampling, options)
    for name, value in report.items():
        print(f"{name:12} {value:.4f}")
    path = clips.make_folder(_OUT.value) / "report.json"
    path.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    cli.run(main)
