"""Turn a dataset into tokens. Interrupted or on many machines: run it again, it fills in.

mgen tokenize --codec=out/codec --dataset=out/data --out=out/tokens
mgen tokenize --codec=out/codec --semantic=out/semantic --semantic_codebook=out/semantic_codebook \\
  --joint=out/joint --joint_codebook=out/joint_codebook --dataset=out/data --out=out/tokens
mgen tokenize ... --num_shards=1024 --runner=DataflowRunner --beam_options="--project=p --region=r"
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this file must not shadow the standard library's tokenize

from absl import flags

from mgen import cli

_DATASET = flags.DEFINE_string("dataset", None, "Prepared dataset.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder of the token dataset.", required=True)
_MODELS = [
    flags.DEFINE_string("codec", "", "Workdir of a trained codec: acoustic tokens."),
    flags.DEFINE_string("text_encoder", "", "Folder of a T5 release: vectors of descriptions."),
    flags.DEFINE_bool("chroma", False, "The loudest pitch class over time, as MusicGen reads it."),
]
_FIT = dict(semantic="rate=25", style="rate=5", joint="stride_seconds=1", melody="stride_seconds=3")
for _name, _flag in _FIT.items():
    _MODELS.append(flags.DEFINE_string(_name, "", f"Workdir of the encoder of {_name} tokens."))
    _MODELS.append(flags.DEFINE_string(f"{_name}_codebook", "", f"Of fit_codebook --{_flag}."))
_SPLITS = flags.DEFINE_list("splits", "train,validation,test", "Splits to tokenize.")
_OPTIONS = [
    flags.DEFINE_integer("num_shards", 4, "Files a split.", 1),
    flags.DEFINE_integer("shard_index", None, "This worker; of its launcher by default.", 0),
    flags.DEFINE_integer("shard_count", None, "Workers; those started together by default.", 1),
    flags.DEFINE_integer("renders", 1, "Performances of each score, each with its own seed.", 1),
    flags.DEFINE_float("max_seconds", 60.0, "Of each piece, from its start.", 1.0),
    flags.DEFINE_integer("seed", 0, "Seed of the first performance."),
    flags.DEFINE_bool("stems", False, "Each stem beside a mix of others, not the whole mix."),
]
_RUNNER = flags.DEFINE_string("runner", "", "Beam runner; without one, a plain loop.")
_BEAM_OPTIONS = flags.DEFINE_string("beam_options", "", "Passed on to Beam: '--a=1 --b=2'.")


def main(argv: list[str]) -> None:
    del argv
    from mgen import tokenize, tokenize_beam
    from mgen.sharding import hosts

    models = tokenize.Models(**{flag.name: flag.value for flag in _MODELS})
    own = dict(zip(("shard_index", "shard_count"), (0, 1) if _RUNNER.value else hosts.part()))
    given = own | {f.name: f.value for f in (_DATASET, _OUT, *_OPTIONS) if f.value is not None}
    job = tokenize.Job(splits=tuple(_SPLITS.value), **given)
    if _RUNNER.value:
        print(tokenize_beam.run(models, job, _RUNNER.value, _BEAM_OPTIONS.value))
    else:
        print(tokenize.tokenize(models, job).report())
    print(f"tokens: --config.data.dataset={_OUT.value}")


if __name__ == "__main__":
    cli.run(main)
