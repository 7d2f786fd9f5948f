"""What trained encoders hear in held-out pieces, against chance and against raw log-mel.

Knows several families, as `mgen.chain` does. The pieces are scores, so that every label is exact
(`mgen.inputs.labels`); the same clips are given to the encoder and to the baseline.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from mgen.audio import mel
from mgen.inputs import attributes, captions, instruments, labels, pairs, render
from mgen.inputs.labels import Clip
from mgen.inputs.records import RecordSource
from mgen.inputs.vocabulary import Vocabulary
from mgen.joint.sample import FrozenJoint
from mgen.kmeans import Codebook, KMeansConfig, fit_array
from mgen.metrics import probes, retrieval
from mgen.progress import track
from mgen.semantic.sample import FrozenSemantic
from mgen.typing import Float

RATE = 25.0  # Hz of semantic tokens and of the labels
MEL_BANDS = 128
TARGETS = ("chord", "instrument", "beat")
MEASURES = ("recall_at_1", "recall_at_10", "mean_average_precision")
MELODY_ATTEMPTS = 8  # crops drawn, until the melody sounds in one
# Neighbouring frames tell the same: a probe sees every fifth of training, every second of test.
TRAIN_STRIDE, TEST_STRIDE = 5, 2


@dataclasses.dataclass(frozen=True)
class Options:
    """What is asked of the encoders.

    Attributes:
      clips, train_clips: held-out clips, and clips that probes are trained on.
      seconds: length of a clip (of a melody: the embedding's window).
      seed: of the performances.
    """

    clips: int = 120
    train_clips: int = 300
    seconds: float = 8.0
    seed: int = 0


def joint_report(
    model: FrozenJoint, vocabulary: Vocabulary | None, source: RecordSource, options: Options
) -> dict[str, tuple[float, float]]:
    """Name -> (value, chance): retrieval both ways, and zero-shot classes, on clips of `source`.
    Without a vocabulary, for an embedding of melodies, `melody_report`."""
    if vocabulary is None:
        return melody_report(model, source, options)

    def embed_text(texts: Sequence[str]) -> np.ndarray:
        ids, mask = vocabulary.encode(texts, model.config.text_length)
        return np.asarray(model.embed_text(ids, mask))

    def embed_audio(clips: Sequence[Clip], name: str) -> np.ndarray:
        return np.stack(
            [model.embed_audio(clip.audio) for clip in track(clips, name, unit="clips")]
        )

    found = _clips(source, options.clips, options, model.config.sample_rate)
    audio = embed_audio(found, "embed clips")
    texts = [captions.captions(clip.record, options.seed, 1, dropout=0.0)[0] for clip in found]
    rows = _retrieval(audio, embed_text(texts), texts)

    metres = attributes.NAMES["metre"][1:-1]
    said = [captions.common_metre(clip.record) for clip in found]
    rows["metre"] = _zero_shot(
        audio,
        [metres.index(m) if m in metres else -1 for m in said],
        [embed_text([f"A piece in {m} time."]) for m in metres],
    )
    rows["mode"] = _zero_shot(
        audio,
        [clip.key // 12 for clip in found],
        [
            embed_text([f"A piece in {tonic} {mode}." for tonic in render.SPELLING])
            for mode in labels.QUALITIES
        ],
    )
    solos = _clips(source, options.clips, options, model.config.sample_rate, solo=True)
    played = [labels.melodic_stems(clip.record.programs, clip.record.stem_mask) for clip in solos]
    groups = [
        labels.GROUPS.index(instruments.group_name(int(clip.record.programs[stems[0]])))
        if stems
        else -1
        for clip, stems in zip(solos, played)
    ]
    rows["instrument"] = _zero_shot(
        embed_audio(solos, "embed solos"),
        groups,
        [
            embed_text([f"A solo piece for {captions.program_name(p)}." for p in programs])
            for programs in (instruments.GROUPS[group].programs for group in labels.GROUPS)
        ],
    )
    return rows


def melody_report(
    model: FrozenJoint, source: RecordSource, options: Options
) -> dict[str, tuple[float, float]]:
    """Name -> (value, chance): retrieval of full mixes by the melody alone, and by the melody on
    another instrument, among as many windows of `source`; only the same bars are right.

    Every round through the pieces is in other keys and tempos.
    """
    config = model.config
    player = render.RenderConfig(
        sample_rate=config.sample_rate, channels=config.channels, instruments="free"
    )
    found: dict[str, list[np.ndarray]] = {"melody": [], "mix": [], "other": []}
    for number in track(range(options.clips), "embed melodies", unit="clips"):
        rng = np.random.default_rng([options.seed, number])
        seed = options.seed + 2 * (number // len(source))
        duet = pairs.perform(source[number % len(source)], seed, player)
        start = duet.start(config.seconds, MELODY_ATTEMPTS, rng)
        played = duet.alone, duet.together, pairs.solo(duet.together, duet.melody)
        for vectors, performance in zip(found.values(), played):
            crop = render.render_crop(performance, start=start, duration=config.seconds)
            vectors.append(model.embed_audio(crop.mix))
    melody, mix, other = (np.stack(vectors) for vectors in found.values())
    chance = retrieval.chance(np.arange(len(melody)), np.arange(len(melody)))
    rows: dict[str, tuple[float, float]] = {}
    for way, items in (("melody_to_mix", mix), ("melody_to_other", other)):
        result = retrieval.retrieval(melody, items)
        rows |= {f"{way}/{name}": (result[name], chance[name]) for name in MEASURES}
    return rows


def _retrieval(
    audio: np.ndarray, text: np.ndarray, texts: Sequence[str]
) -> dict[str, tuple[float, float]]:
    # Equal captions are equally right.
    _, group = np.unique(texts, return_inverse=True)
    found = retrieval.both_ways(audio, text, group, group)
    chance = retrieval.chance(group, group)
    return {
        f"{way}/{name}": (found[f"{way}/{name}"], chance[name])
        for way in ("text_to_audio", "audio_to_text")
        for name in MEASURES
    }


def _zero_shot(
    audio: np.ndarray, truth: Sequence[int], prompts: Sequence[np.ndarray]
) -> tuple[float, float]:
    """Balanced accuracy of the class whose prompts lie nearest in the mean, and chance."""
    wanted = np.asarray(truth)
    asked = np.unique(wanted[wanted >= 0])
    # Only classes that occur can be right: the others would make chance look worse.
    scores = np.stack([(audio @ prompts[c].T).mean(1) for c in asked], axis=1)
    predicted = asked[scores.argmax(1)]
    known = wanted >= 0
    return probes.balanced_accuracy(wanted[known], predicted[known]), 1 / len(asked)


def semantic_report(
    model: FrozenSemantic,
    codebook: Codebook,
    train: RecordSource,
    held_out: RecordSource,
    options: Options,
) -> dict[str, tuple[float, float]]:
    """Name -> (value of the encoder, value of log-mel): information in tokens, linear probes.

    Tokens are of the codebook's layer; those of the baseline are k-means of as many centres, fitted
    on the log-mel frames of the clips that the probes are trained on. Probes see the states of all
    layers side by side (Yang et al. 2021, "SUPERB", weighs them), the baseline's the log-mel frame.
    The key is asked of a clip's mean, the chord of frames, the instrument of frames of solos.
    """
    rate, layer = model.config.sample_rate, codebook.about["layer"]
    layers = range(model.config.layers + 1)

    def states(clip: Clip) -> np.ndarray:
        return np.stack([model.features_long(clip.audio, n, RATE) for n in layers], axis=1)

    def spectrum(clip: Clip) -> np.ndarray:
        return log_mel(clip.audio, rate)[:, None]

    known = _clips(train, options.train_clips, options, rate)
    asked = _clips(held_out, options.clips, options, rate)
    solos = [
        _clips(source, count, options, rate, solo=True)
        for source, count in ((train, options.train_clips), (held_out, options.clips))
    ]
    rows: dict[str, dict[str, float]] = {}
    for name, extract, chosen in (("encoder", states, layer), ("log_mel", spectrum, 0)):
        x, y, *alone = (
            _features(extract, clips, f"{name} frames") for clips in (known, asked, *solos)
        )
        book = codebook
        if name == "log_mel":
            settings = KMeansConfig(size=codebook.vectors.shape[1])
            book = fit_array(x[:, :, chosen].reshape(-1, x.shape[-1]), settings, options.seed)
        tokens = np.asarray(book.encode(y[:, :, chosen].reshape(-1, y.shape[-1])))[:, 0]
        rows[name] = _information(tokens, asked, y.shape[1])
        rows[name] |= _probes(_flat(x), known, _flat(y), asked)
        rows[name]["instrument probe"] = _probe(
            "instrument", _flat(alone[0]), solos[0], _flat(alone[1]), solos[1]
        )
    return {name: (rows["encoder"][name], rows["log_mel"][name]) for name in rows["encoder"]}


def _features(
    extract: Callable[[Clip], np.ndarray], clips: Sequence[Clip], name: str
) -> Float[np.ndarray, "N F L D"]:
    return np.stack([extract(clip) for clip in track(clips, name, unit="clips")])


def _flat(features: Float[np.ndarray, "N F L D"]) -> Float[np.ndarray, "N F E"]:
    return features.reshape(*features.shape[:2], -1)


def _information(tokens: np.ndarray, clips: Sequence[Clip], frames: int) -> dict[str, float]:
    labels = {name: [getattr(clip, name)[:frames] for clip in clips] for name in TARGETS}
    return {
        f"{name} information": probes.mutual_information(tokens, np.concatenate(found))
        for name, found in labels.items()
    }


def _probes(
    x: np.ndarray, known: Sequence[Clip], y: np.ndarray, asked: Sequence[Clip]
) -> dict[str, float]:
    keys = [np.array([clip.key for clip in clips]) for clips in (known, asked)]
    return {
        "key probe": probes.linear_probe(x.mean(1), keys[0], y.mean(1), keys[1]),
        "chord probe": _probe("chord", x, known, y, asked),
    }


def _probe(
    target: str, x: np.ndarray, known: Sequence[Clip], y: np.ndarray, asked: Sequence[Clip]
) -> float:
    """Accuracy on frames, features [N, F, E]."""
    pairs = []
    for features, clips, stride in ((x, known, TRAIN_STRIDE), (y, asked, TEST_STRIDE)):
        labels = np.stack([getattr(clip, target)[: features.shape[1]] for clip in clips])
        pairs += [
            features[:, ::stride].reshape(-1, features.shape[-1]),
            labels[:, ::stride].ravel(),
        ]
    return probes.linear_probe(*pairs)


def log_mel(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """The baseline's features: log-mel of audio [T, C] at `RATE`, float32 [F, M]."""
    hop = round(sample_rate / RATE)
    frames = _log_mel(
        audio.mean(-1), sample_rate=sample_rate, n_fft=2048, hop=hop, n_mels=MEL_BANDS, power=2.0
    )
    return np.asarray(frames)[: len(audio) // hop]


_log_mel = jax.jit(mel.log_mel, static_argnames=("sample_rate", "n_fft", "hop", "n_mels", "power"))


def _clips(
    source: RecordSource, count: int, options: Options, sample_rate: int, solo: bool = False
) -> list[Clip]:
    config = render.RenderConfig(sample_rate=sample_rate, instruments="free")
    drawn = labels.clips(
        source,
        count,
        seconds=options.seconds,
        frame_rate=RATE,
        config=config,
        seed=options.seed,
        solo=solo,
    )
    return list(track(drawn, "render solos" if solo else "render clips", count, "clips"))
