"""Score files to `Score`s through music21: notes with ties merged, repeats expanded, metre, key,
tempo, chord symbols.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mgen.data.corpus_scores import chords as harmony
from mgen.data.corpus_scores.score import (
    VELOCITY,
    Part,
    Score,
    bar_length,
    make_bars,
    note_table,
)

# music21 asks for the version to know that an accidental holds to the end of its bar.
ABC_VERSION = "%abc-2.1\n"
TUNE = re.compile(r"(?m)^(?=X:)")
TEMPO = re.compile(r"(\d+)/(\d+)\s*=\s*(\d+)")
QPM_RANGE = (20.0, 400.0)

# Words in titles and R: fields; the first that occurs names the type.
TUNE_TYPES = (
    "slip jig", "slide", "jig", "strathspey", "hornpipe", "clog", "highland fling", "fling", "reel",
    "waltz", "polka", "mazurka", "minuet", "quadrille", "gavotte", "quick step", "quickstep",
    "march", "walk around", "lament", "air",
)  # fmt: skip


def read_text(path: Path) -> str:
    """The text of a tune book: UTF-8, or Latin-1 where it is not."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def split_tunes(text: str) -> list[str]:
    """The tunes of an ABC book, in order, each with its header."""
    return [tune for tune in TUNE.split(text) if tune.startswith("X:")]


def abc_field(tune: str, letter: str) -> str:
    """The first non-empty header field `letter` of a tune, without a comment or quotation marks."""
    for value in re.findall(rf"(?m)^{letter}:(.*)$", tune):
        value = value.split("%")[0].strip().strip('"').strip()
        if value:
            return value
    return ""


def tune_type(tune: str) -> str:
    """ "jig", "reel", ... from R: or the titles of an ABC tune; empty where neither says."""
    rhythm = abc_field(tune, "R").lower().replace("slipjig", "slip jig").replace("walka", "walk a")
    titles = " ".join(re.findall(r"(?m)^T:(.*)$", tune)).lower()
    for text in (rhythm, titles):
        for word in TUNE_TYPES:
            if re.search(rf"\b{word}s?\b", text):
                return word.replace("quickstep", "quick step")
    slow = re.search(r"(?mi)^[NQ]:.*\b(slow|plaintive|tender)", tune)
    return "air" if slow else ""


def clean_title(title: str) -> str:
    """ "BAG OF MEAL, THE." -> "The Bag of Meal"."""
    title = title.strip().rstrip(".").strip()
    if title.endswith((".mxl", ".xml", ".krn")):  # music21 falls back on the file's name
        return ""
    article = re.fullmatch(r"(.*), (the|a|an|da|le|la)", title, re.IGNORECASE)
    if article:
        title = f"{article[2]} {article[1]}"
    if title.isupper():
        title = re.sub(r"[A-Za-z]+('[A-Za-z]+)?", lambda word: word[0].capitalize(), title)
    return title


def clean_composer(name: str) -> str:
    """ "J. HAND." -> "J. Hand"; empty for remarks, traditions and the unknown."""
    # Early music carries the manuscript: "Gratiosus I-Pu 684".
    name = re.sub(r"\s+[A-Z]{1,2}-[A-Z][a-z]+\b.*", "", name).strip()
    if re.search(r"(?i)\d|trad|anon|irish|scot|collect|play|unknown|\bfrom\b|\?", name):
        return ""
    return clean_title(name)


def parse_tune(tune: str) -> Score:
    """One ABC tune. Quoted text that is no chord symbol (fingerings, remarks) is dropped first."""
    from music21 import converter

    text = re.sub(
        r'"([^"\n]*)"', lambda quote: quote[0] if harmony.parse_symbol(quote[1]) else "", tune
    )
    stream = converter.parseData(ABC_VERSION + text, format="abc")
    score = from_stream(stream, abc_metre(abc_field(tune, "M")))
    score.title = clean_title(abc_field(tune, "T"))
    score.composer = clean_composer(abc_field(tune, "C"))
    score.tune_type = tune_type(tune)
    # music21 invents a tempo where there is none and takes Q: for words.
    declared = TEMPO.search(abc_field(tune, "Q"))
    score.tempi = []
    if declared:
        above, below, rate = map(int, declared.groups())
        score.tempi = valid_tempi([(0.0, rate * 4 * above / below)])
    return score


def parse_voices(tunes: Sequence[str]) -> Score:
    """An ABC file whose tunes are the voices of one piece."""
    voices = [parse_tune(tune) for tune in tunes]
    score = max(voices, key=lambda voice: voice.end)
    score.parts = [part for voice in voices for part in voice.parts]
    score.chords = []  # what looks like them are rehearsal letters
    return score


def parse_file(path: Path) -> Score:
    """A MusicXML or Humdrum file, or an ABC file that holds the voices of one piece."""
    from music21 import converter

    if path.suffix == ".abc":
        return parse_voices(split_tunes(read_text(path)))
    # music21 would keep pickles of what it parsed in the temporary folder.
    reader = converter.Converter()
    reader.parseFile(str(path), forceSource=True, storePickle=False)
    return from_stream(reader.stream)


def abc_metre(field: str) -> tuple[int, int] | None:
    """ "C|" -> (2, 2), "6/8" -> (6, 8); None for "none" and what else is no metre."""
    if field in ("C", "C|"):
        return (4, 4) if field == "C" else (2, 2)
    found = re.fullmatch(r"(\d+)/(1|2|4|8|16)", field)
    return (int(found[1]), int(found[2])) if found else None


def from_stream(stream: Any, metre: tuple[int, int] | None = None) -> Score:
    """A music21 Score with at least one part that has notes.

    Args:
      stream: the score.
      metre: that of the header, where music21's may be guessed from an upbeat.
    """
    parts = [part for part in stream.parts if part.recurse().notes] if stream.parts else [stream]
    if not parts or not parts[0].recurse().notes:
        raise ValueError("no notes")
    measures = list(parts[0].getElementsByClass("Measure"))
    end = max(float(part.highestTime) for part in parts)
    if measures:
        starts = [float(measure.offset) for measure in measures]
        order = repeats(parts[0], measures)
    elif metre:  # old music without bar lines
        starts = np.arange(0, end, bar_length(*metre)).tolist()
        order = list(range(len(starts)))
    else:
        raise ValueError("no bar lines")
    unfold = Unfolding(list(zip(starts, [*starts[1:], max(end, starts[-1] + 1e-3)])), order)

    metres = [
        (start, int(numerator), int(denominator))
        for start, numerator, denominator in unfold.states(metre_marks(parts[0]))
    ]
    if metre:
        metres[:1] = [(0.0, *metre)]
    lines = []
    for part in parts:
        notes = note_table(unfold.notes(merged_notes(part)))
        if len(notes):
            lines.append(Part(str(part.partName or "").strip(), notes))
    if not metres:
        raise ValueError("no metre")
    metadata = stream.metadata
    return Score(
        parts=lines,
        bars=make_bars(unfold.measures, metres),
        tempi=valid_tempi(unfold.states(tempo_marks(stream))),
        chords=[(start, label) for start, label in unfold.states(chord_symbols(parts[0]))],
        key=declared_key(parts[0]),
        title=clean_title((metadata and (metadata.bestTitle or "")) or ""),
        composer=clean_composer((metadata and metadata.composer) or ""),
    )


class Unfolding:
    """Moves events from written to sounding positions, once a time that they are played."""

    def __init__(self, spans: Sequence[tuple[float, float]], order: Sequence[int]):
        self.spans, self.order = spans, order
        self.measures: list[tuple[float, float]] = []
        position = 0.0
        for index in order:
            start, end = spans[index]
            self.measures.append((position, end - start))
            position += end - start

    def _moved(self, events: Sequence[tuple]) -> Iterator[tuple[float, tuple]]:
        events = sorted(events)
        positions = [event[0] for event in events]
        for (position, _), index in zip(self.measures, self.order):
            start, end = self.spans[index]
            first, stop = bisect_left(positions, start - 1e-6), bisect_left(positions, end - 1e-6)
            for event in events[first:stop]:
                yield position - start, event

    def notes(self, notes: Sequence[tuple[float, float, float, float]]) -> Iterator[tuple]:
        """Notes (onset, offset, pitch, velocity), moved."""
        for shift, (onset, offset, pitch, velocity) in self._moved(notes):
            yield round(onset + shift, 6), round(offset + shift, 6), pitch, velocity

    def states(self, marks: Sequence[tuple]) -> list[tuple]:
        """Marks (position, *value) that hold until the next, moved; a jump back restores what held
        there.
        """
        if not marks:
            return []
        unfolded: list[tuple] = []
        for (position, _), index in zip(self.measures, self.order):
            start, end = self.spans[index]
            before = [mark for mark in marks if mark[0] <= start + 1e-6]
            inside = [mark for mark in marks if start + 1e-6 < mark[0] < end - 1e-6]
            for mark in [*before[-1:], *inside]:
                moved = (round(position + max(0.0, mark[0] - start), 6), *mark[1:])
                if not unfolded or unfolded[-1][1:] != moved[1:]:
                    unfolded.append(moved)
        if unfolded and unfolded[0][0] > 0 and not isinstance(unfolded[0][1], str):
            unfolded[0] = (0.0, *unfolded[0][1:])
        return unfolded


def repeats(part: Any, measures: Sequence[Any]) -> list[int]:
    """Indices of the measures in the order they are played; da capo and dal segno are not followed.

    music21's own expansion goes back to the beginning of the piece where a strain has no sign at
    its start; tune books mean the beginning of the strain.
    """
    from music21 import spanner

    starts, ends = set(), {}
    for index, measure in enumerate(measures):
        for side, here in (("leftBarline", index), ("rightBarline", index + 1)):
            line = getattr(measure, side)
            direction = getattr(line, "direction", None)
            if direction == "start":
                starts.add(here)
            elif direction == "end":
                ends[here - 1] = line.times or 2
    number = {id(measure): index for index, measure in enumerate(measures)}
    endings: dict[int, set[int]] = {}
    for bracket in part.recurse().getElementsByClass(spanner.RepeatBracket):
        for measure in bracket.getSpannedElements():
            if id(measure) in number:
                endings.setdefault(number[id(measure)], set()).update(bracket.numberRange)
    return playing_order(len(measures), starts, ends, endings)


def playing_order(
    count: int, starts: set[int], ends: dict[int, int], endings: dict[int, set[int]]
) -> list[int]:
    """Order of `count` measures with start signs before `starts`, end signs after `ends` (and how
    often the strain is played), and `endings`: the passes in which a measure under a bracket is
    played."""
    order: list[int] = []
    index = start = 0
    turn = 1
    while index < count:
        leaves_ending = index - 1 in endings and index not in endings
        if index > start and (index in starts or leaves_ending):
            start, turn = index, 1
        if index in endings and turn not in endings[index]:
            index += 1
            continue
        order.append(index)
        if index in ends and turn < ends[index]:
            index, turn = start, turn + 1
            continue
        index += 1
        if index - 1 in ends and index not in endings:
            start, turn = index, 1
    return order


def merged_notes(part: Any) -> list[tuple[float, float, float, float]]:
    """Sounding notes of a music21 part with ties merged and grace notes left out."""
    notes: list[list[float]] = []
    tied: dict[float, list[float]] = {}
    for element in part.flatten().notes:
        if "ChordSymbol" in element.classes or element.duration.isGrace:
            continue
        onset = float(element.offset)
        offset = onset + float(element.quarterLength)
        if offset <= onset:
            continue
        for single in getattr(element, "notes", [element]):
            if not hasattr(single, "pitch"):
                continue
            pitch = float(single.pitch.midi)
            velocity = single.volume.velocity or element.volume.velocity or VELOCITY
            tie = single.tie or element.tie
            open_note = tied.pop(pitch, None)
            continues = open_note is not None and abs(open_note[1] - onset) < 1e-3
            if tie is not None and tie.type in ("continue", "stop") and continues and open_note:
                open_note[1] = offset
                current = open_note
            else:
                current = [onset, offset, pitch, float(velocity)]
                notes.append(current)
            if tie is not None and tie.type in ("start", "continue"):
                tied[pitch] = current
    return [(onset, offset, pitch, velocity) for onset, offset, pitch, velocity in notes]


def metre_marks(part: Any) -> list[tuple[float, int, int]]:
    """Time signatures of a part."""
    flat = part.flatten()
    return [
        (float(mark.offset), int(mark.numerator), int(mark.denominator))
        for mark in flat.getElementsByClass("TimeSignature")
        if mark.numerator and mark.denominator
    ]


def tempo_marks(stream: Any) -> list[tuple[float, float]]:
    """Tempo marks in quarters a minute; where there are none, the words of the first bars and of
    the title ("Allegro"), as music21 counts them.
    """
    marks: dict[float, float] = {}
    for mark in stream.flatten().getElementsByClass("MetronomeMark"):
        qpm = mark.getQuarterBPM()
        if qpm:
            marks.setdefault(float(mark.offset), float(qpm))
    return sorted(marks.items()) or tempo_words(stream)


def tempo_words(stream: Any) -> list[tuple[float, float]]:
    """The tempo that the longest known word in the opening texts or the title names, if any."""
    from music21 import tempo

    texts = [str(t.content) for t in stream.flatten().getElementsByClass("TextExpression")[:4]]
    if stream.metadata:
        texts += [stream.metadata.movementName or "", stream.metadata.title or ""]
    for text in texts:
        known = [
            word
            for word in tempo.defaultTempoValues
            if re.search(rf"\b{re.escape(word)}\b", text.lower())
        ]
        if known:
            return [(0.0, float(tempo.defaultTempoValues[max(known, key=len)]))]
    return []


def valid_tempi(tempi: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Drops what no player plays: misprints and units misread."""
    return [(at, qpm) for at, qpm in tempi if QPM_RANGE[0] <= qpm <= QPM_RANGE[1]]


def chord_symbols(part: Any) -> list[tuple[float, str]]:
    """Chord symbols above a part as Harte labels."""
    found = []
    for symbol in part.flatten().getElementsByClass("ChordSymbol"):
        # music21 writes a flat as "-".
        label = harmony.parse_symbol(re.sub(r"(?<=[A-G])-", "b", symbol.figure or ""))
        if label:
            found.append((float(symbol.offset), label))
    return found


def declared_key(part: Any) -> str:
    """The first key with a mode, such as "G major" or "A dorian"; empty where there is only a
    signature.
    """
    for found in part.flatten().getElementsByClass("Key"):
        return f"{found.tonic.name.replace('-', 'b')} {found.mode}"
    return ""
