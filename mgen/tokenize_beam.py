"""`mgen.tokenize` as a Beam pipeline: one element a missing shard, models loaded once a worker.

  missing shards -> Reshuffle -> write a shard -> (when all are done) what SeqIO's cache has beside

Every folder that is named must be visible to the workers under the same path (a network drive).
Beam retries a shard that failed; a shard that exists is left alone, so that retries and speculative
workers are harmless.
"""

import shlex
from collections.abc import Iterable
from typing import Any

from mgen import tokenize
from mgen.errors import UserError
from mgen.inputs import tokens

COUNTERS, AUDIO = "tokenize", "music"  # names of Beam's counters, ms


def run(models: tokenize.Models, job: tokenize.Job, runner: str, options: str = "") -> str:
    """Runs the pipeline to its end; returns where the workers' time went.

    Args:
      runner: "DirectRunner", "DataflowRunner", "FlinkRunner", ...
      options: further options of Beam, as on its command line.

    Raises `UserError` as `tokenize.tokenize`, for a runner that Beam does not know, or without
    Beam.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners.runner import create_runner
    except ImportError as error:
        raise UserError(
            f"--runner={runner}: {error}; expected Beam, pip install 'mgen[scale]'"
        ) from error
    if job.shard_count != 1:
        raise UserError(
            f"shard_count is {job.shard_count}, expected 1: the runner gives out shards"
        )
    sources = tokenize.open_splits(job)
    tokenizer = tokenize.load(models)  # Here too, for the errors and the manifest.
    tokenize.claim(tokenizer, job, sources)
    todo = [(s, i) for s in job.splits for i in tokens.shards_todo(job.out, s, job.num_shards)]
    try:
        made = create_runner(runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(f"--runner={runner}: not a runner of Beam ({error})") from error

    class WriteShard(beam.DoFn):
        """(split, shard) -> the file."""

        def setup(self) -> None:
            self._tokenizer = tokenize.load(models)
            self._sources = tokenize.open_splits(job)

        def process(self, element: tuple[str, int]) -> Iterable[None]:
            split, shard = element
            before = dict(self._tokenizer.seconds)
            audio = self._tokenizer.audio_seconds
            if shard in tokens.shards_todo(job.out, split, job.num_shards):
                tokenize.write_shard(self._tokenizer, job, self._sources[split], shard)
            spent = {name: s - before[name] for name, s in self._tokenizer.seconds.items()}
            spent[AUDIO] = self._tokenizer.audio_seconds - audio
            for name, seconds in spent.items():
                beam.metrics.Metrics.counter(COUNTERS, name).inc(round(1000 * seconds))
            return ()

    pipeline = beam.Pipeline(runner=made, options=PipelineOptions(shlex.split(options)))
    _ = (
        pipeline
        | "missing shards" >> beam.Create(todo)
        | "spread" >> beam.Reshuffle()
        | "write shard" >> beam.ParDo(WriteShard())
    )
    result = pipeline.run()
    result.wait_until_finish()
    tokens.finish(job.out, job.splits, job.num_shards)
    return _collect(tokenizer, result).report()


def _collect(tokenizer: tokenize.Tokenizer, result: Any) -> tokenize.Tokenizer:
    """The workers' seconds, in the tokenizer of this process."""
    for counter in result.metrics().query()["counters"]:
        name = counter.key.metric.name
        if counter.key.metric.namespace == COUNTERS and name in (AUDIO, *tokenizer.seconds):
            seconds = counter.result / 1000
            if name == AUDIO:
                tokenizer.audio_seconds += seconds
            else:
                tokenizer.seconds[name] += seconds
    return tokenizer
