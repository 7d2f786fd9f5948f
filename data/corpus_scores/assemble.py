"""`Score` to `Record`: key, tempo, beats, chords and the note table of each config."""

import hashlib
import itertools
from collections.abc import Sequence

import numpy as np

from mgen.data.corpus_scores import chords as harmony
from mgen.data.corpus_scores import midi
from mgen.data.corpus_scores.arrange import BAND, DRUMS, arrange
from mgen.data.corpus_scores.score import Bar, Clock, Part, Score, bar_length, beat_length, skyline
from mgen.inputs.record import DRUM_KIT, STEM, Record

QUARTET = ("soprano", "alto", "tenor", "bass")
QUARTET_CENTRES = (71.0, 65.0, 59.0, 50.0)  # MIDI pitch around which each slot lies
TUNE = ("melody",)

MAX_SECONDS = 700.0
MAX_UNEVEN = 0.25  # share of bars inside a tune that do not fit its metre: it did not parse
MIN_NOTES = 12  # fewer is a fragment, a cue or a tune that did not parse

# Beats a minute (of `Bar.beat`) of tune types, from common dance practice.
TYPE_TEMPI = {
    "jig": 112, "slip jig": 112, "slide": 126, "reel": 104, "hornpipe": 84, "clog": 76,
    "strathspey": 66, "highland fling": 72, "fling": 72, "waltz": 138, "polka": 116, "mazurka": 132,
    "minuet": 116, "quadrille": 104, "gavotte": 72, "quick step": 112, "march": 92,
    "walk around": 100, "lament": 56, "air": 72,
}  # fmt: skip
IN_HALVES = ("reel", "hornpipe", "clog", "strathspey", "highland fling", "fling", "quadrille")
SLOW = ("air", "lament")
# The same where no type is known: by metre, else by the kind of beat.
METRE_TEMPI = {(4, 4): 112, (2, 2): 80, (2, 4): 92, (3, 4): 112, (4, 2): 72, (3, 2): 72}
SCORE_TEMPI = {(4, 4): 88, (2, 2): 72, (2, 4): 84, (3, 4): 100, (4, 2): 76, (3, 2): 76}


def default_tempo(score: Score, tunes: bool) -> float:
    """Quarters a minute where the score declares none: by tune type, else by commonest metre."""
    metres = [(bar.numerator, bar.denominator) for bar in score.bars]
    metre = max(sorted(set(metres)), key=metres.count)
    beat = beat_length(*metre)
    if score.tune_type in TYPE_TEMPI:
        if score.tune_type in IN_HALVES and metre == (4, 4):
            beat = 2.0
        elif score.tune_type in SLOW:
            beat = min(beat, 1.5)
        return TYPE_TEMPI[score.tune_type] * beat
    by_metre = METRE_TEMPI if tunes else SCORE_TEMPI
    return by_metre.get(metre, 100 if tunes else 72) * beat


def profile(notes: np.ndarray) -> np.ndarray:
    """Duration-weighted pitch classes [12] of notes [n, 4]."""
    weights = notes[:, 1] - notes[:, 0]
    return np.bincount(notes[:, 2].astype(int) % 12, weights, 12)


def chord_spans(bars: Sequence[Bar], notes: np.ndarray, by_beat: bool) -> list[harmony.Span]:
    """Spans to harmonise: beats, or half bars (whole bars in triple time); a note on a span's start
    counts double.
    """
    spans = []
    for bar in bars:
        beats = [bar.start, *(beat for beat in bar.beats if beat > bar.start + 1e-6)]
        if not by_beat:
            step = 2 if len(beats) % 4 == 0 else 1 if len(beats) == 2 else len(beats)
            beats = beats[::step]
        for start, end in itertools.pairwise([*beats, bar.end]):
            shared = np.minimum(notes[:, 1], end) - np.maximum(notes[:, 0], start)
            held = shared > 1e-6
            weights = shared[held] * np.where(np.abs(notes[held, 0] - start) < 1e-6, 2.0, 1.0)
            pitches = notes[held, 2].astype(int) % 12
            first = start == bar.start
            spans.append(harmony.Span(start, np.bincount(pitches, weights, 12), first))
    return spans


def find_chords(
    score: Score, notes: np.ndarray, key: str, by_beat: bool
) -> list[tuple[float, str]]:
    """Chords (position, Harte label) that cover the piece from 0: its symbols, else harmonised; "N"
    before the first.
    """
    if score.chords:
        found = list(score.chords)
    else:
        # Nobody accompanies the upbeat of a tune.
        bars = [bar for bar in score.bars if by_beat or not bar.upbeat] or score.bars
        spans = chord_spans(bars, notes, by_beat)
        found = list(zip([span.start for span in spans], harmony.harmonise(spans, key)))
    if found[0][0] > 1e-6:
        found.insert(0, (0.0, "N"))
    return [
        chord for index, chord in enumerate(found) if index == 0 or chord[1] != found[index - 1][1]
    ]


def merge_parts(parts: Sequence[Part], count: int) -> list[Part]:
    """At most `count` parts, highest first: neighbours by mean pitch are joined, the closest pair
    first.
    """
    ordered = sorted(parts, key=lambda part: -part.mean_pitch)
    while len(ordered) > count:
        means = [part.mean_pitch for part in ordered]
        index = int(np.argmin(-np.diff(means)))
        pair = np.concatenate([part.notes for part in ordered[index : index + 2]])
        order = np.lexsort((pair[:, 2], pair[:, 0]))
        merged = Part(ordered[index].name, pair[order], ordered[index].program)
        ordered[index : index + 2] = [merged]
    return ordered


def quartet_slots(parts: Sequence[Part]) -> dict[int, Part]:
    """Slot -> part: in order of mean pitch, each part as near as can be to its slot's register."""
    ordered = merge_parts(parts, len(QUARTET))
    choices = itertools.combinations(range(len(QUARTET)), len(ordered))
    best = min(
        choices,
        key=lambda slots: sum(
            abs(part.mean_pitch - QUARTET_CENTRES[slot]) for slot, part in zip(slots, ordered)
        ),
    )
    return dict(zip(best, ordered))


class Unsuitable(Exception):
    """A piece that a config has no use for; `kind` groups them in the build report."""

    def __init__(self, kind: str, reason: str):
        super().__init__(kind, reason)  # as pickle gives them back
        self.kind = kind

    def __str__(self) -> str:
        return self.args[1]


def choose_parts(score: Score, config: str) -> list[Part]:
    """The pitched parts that a config reads.

    Raises:
      Unsuitable: there are too few.
    """
    pitched = [part for part in score.parts if part.program != DRUM_KIT]
    if config == "quartets" and len(pitched) < 3:
        raise Unsuitable("too_few_parts", f"{len(pitched)} parts, quartets need three")
    if not pitched:
        raise Unsuitable("too_few_parts", "no pitched part")
    if config == "quartets" or (config == "band" and score.played):
        return pitched
    melody = max(pitched, key=lambda part: part.mean_pitch) if score.played else pitched[0]
    return [Part(melody.name, skyline(melody.notes), melody.program)]


def uneven_bars(bars: Sequence[Bar]) -> float:
    """Share of the bars, the last and an upbeat left aside, whose length is not the metre's."""
    inner = [bar for bar in bars[:-1] if not bar.upbeat]
    wrong = sum(
        abs(bar.length - bar_length(bar.numerator, bar.denominator)) > 1e-3 for bar in inner
    )
    return wrong / max(len(inner), 1)


def assemble(score: Score, config: str, **provenance: str) -> Record:
    """A record of config "quartets", "band" or "tunes".

    Args:
      score: the parsed piece; `tunes` reads its first part (of a MIDI file its highest), `band`
        arranges that, or takes the parts of a MIDI file by program.
      config: as above.
      **provenance: `id`, `collection`, `licence`, and `composer` where the score names none.

    Raises:
      Unsuitable: the piece has not the parts, or is longer than `MAX_SECONDS`.
    """
    if not score.tempi:
        score.tempi = [(0.0, default_tempo(score, config != "quartets"))]
    seconds = float(Clock(score.tempi)([score.bars[-1].end])[0])
    if seconds > MAX_SECONDS:
        raise Unsuitable("too_long", f"{seconds:.0f} s, longer than {MAX_SECONDS:.0f}")
    parts = choose_parts(score, config)
    notes = np.concatenate([part.notes for part in parts])
    if len(notes) < MIN_NOTES:
        raise Unsuitable("too_short", f"{len(notes)} notes, fewer than {MIN_NOTES}")
    uneven = uneven_bars(score.bars)
    if config != "quartets" and uneven > MAX_UNEVEN:
        raise Unsuitable("uneven_bars", f"{uneven:.0%} of the bars do not fit the metre")
    key = score.key or harmony.find_key(profile(notes))
    chords = find_chords(score, notes, key, by_beat=config == "quartets")
    names: Sequence[str] = {"quartets": QUARTET, "band": BAND, "tunes": TUNE}[config]
    programs = np.full(len(names), -1, np.int32)
    if config == "band" and score.played:
        stems, programs = midi.band_slots(score)
        if not stems:
            raise Unsuitable("too_few_parts", "no bass, drums, guitar or piano")
    elif config == "band":
        stems = arrange(notes, score.bars, chords, key, seed=provenance["id"])
        programs[DRUMS] = DRUM_KIT
    else:
        slots = quartet_slots(parts) if config == "quartets" else {0: parts[0]}
        stems = {slot: part.notes for slot, part in slots.items()}
        for slot, part in slots.items():
            programs[slot] = part.program
    return make_record(score, stems, names, programs, key, chords, **provenance)


def make_record(
    score: Score,
    stems: dict[int, np.ndarray],
    names: Sequence[str],
    programs: np.ndarray,
    key: str,
    chords: Sequence[tuple[float, str]],
    **provenance: str,
) -> Record:
    """Quarter notes to seconds, stems [n, 4] to one table."""
    clock = Clock(score.tempi)
    end = max(score.bars[-1].end, *(float(notes[:, 1].max()) for notes in stems.values()))
    table = np.concatenate(
        [
            np.column_stack(
                [clock(notes[:, 0]), clock(notes[:, 1]), notes[:, 2:4], np.full(len(notes), stem)]
            )
            for stem, notes in stems.items()
        ]
    ).astype(np.float32)
    table = table[np.lexsort((table[:, 2], table[:, STEM], table[:, 0]))]
    beats = [beat for bar in score.bars for beat in bar.beats if beat > -1e-6]
    metres = [
        (bar.start, bar.numerator, bar.denominator)
        for index, bar in enumerate(score.bars)
        if index == 0
        or (bar.numerator, bar.denominator)
        != (score.bars[index - 1].numerator, score.bars[index - 1].denominator)
    ]
    tempi = np.array([(0.0, score.tempi[0][1]), *score.tempi[1:]])
    tempi[:, 0] = clock(tempi[:, 0])
    starts = np.array(metres, np.float64)
    starts[:, 0] = clock(starts[:, 0])
    mask = np.zeros(len(names), bool)
    mask[list(stems)] = True
    return Record(
        id=provenance["id"],
        stem_names=list(names),
        stem_mask=mask,
        programs=programs,
        duration=float(np.float32(clock([end])[0])),
        collection=provenance["collection"],
        licence=provenance["licence"],
        composer=provenance.get("composer") or score.composer,
        title=score.title or provenance.get("title", ""),
        key=key,
        notes=table,
        tempi=tempi.astype(np.float32),
        metres=starts.astype(np.float32),
        beats=clock(beats).astype(np.float32),
        downbeats=clock([bar.start for bar in score.bars if not bar.upbeat]).astype(np.float32),
        chord_times=clock([position for position, _ in chords]).astype(np.float32),
        chords=[label for _, label in chords],
    )


def fingerprint(score: Score) -> tuple[str, str]:
    """Two hashes that transposition, tempo and part order leave alone: of the whole piece, and of
    its top line's opening.

    Equal content means the same notes; equal openings (16 notes: intervals and durations) mean the
    same theme, such as a chorale in two harmonisations.
    """
    notes = np.concatenate([part.notes for part in score.parts])
    notes = notes[np.lexsort((notes[:, 2], notes[:, 0]))]
    content = np.column_stack([notes[:, 0] - notes[0, 0], notes[:, 1] - notes[:, 0], notes[:, 2]])
    content[:, 2] -= content[:, 2].min()
    top = skyline(notes)[:17]
    opening = np.column_stack([np.diff(top[:, 2]), np.diff(top[:, 0]) / (top[1, 0] - top[0, 0])])
    hashes = [
        hashlib.sha256(np.round(table * 48).astype(np.int64).tobytes()).hexdigest()[:24]
        for table in (content, opening if len(top) >= 9 else content)
    ]
    return hashes[0], hashes[1]
