"""Captions and edit instructions of a record, from seeded templates.

A caption is drawn from the facts that the record holds (metre, key, composer, instruments, number
of parts, tempo, density, texture); every fact may be dropped, so that a model learns to take few or
many. What the record does not hold is never mentioned. Equal seeds give equal text.
"""

import random
from collections.abc import Sequence

import numpy as np

from mgen.inputs import render
from mgen.inputs.record import DRUM_KIT, ONSET, STEM, Record

DROPOUT = 0.4  # probability that a caption leaves out a fact
SIMULTANEOUS = 0.03  # s within which two onsets count as one

# General MIDI level 1, programs 0 to 127, as one says them.
PROGRAMS = (
    "grand piano", "bright piano", "electric grand piano", "honky-tonk piano", "electric piano",
    "chorused electric piano", "harpsichord", "clavinet", "celesta", "glockenspiel", "music box",
    "vibraphone", "marimba", "xylophone", "tubular bells", "dulcimer", "drawbar organ",
    "percussive organ", "rock organ", "church organ", "reed organ", "accordion", "harmonica",
    "tango accordion", "nylon guitar", "steel guitar", "jazz guitar", "clean electric guitar",
    "muted electric guitar", "overdriven guitar", "distorted guitar", "guitar harmonics",
    "acoustic bass", "fingered bass", "picked bass", "fretless bass", "slap bass",
    "popped slap bass", "synth bass", "analogue synth bass", "violin", "viola", "cello",
    "double bass", "tremolo strings", "pizzicato strings", "harp", "timpani", "string ensemble",
    "slow strings", "synth strings", "soft synth strings", "choir", "voice", "synth voice",
    "orchestra hit", "trumpet", "trombone", "tuba", "muted trumpet", "french horn",
    "brass section", "synth brass", "soft synth brass", "soprano saxophone", "alto saxophone",
    "tenor saxophone", "baritone saxophone", "oboe", "english horn", "bassoon", "clarinet",
    "piccolo", "flute", "recorder", "pan flute", "blown bottle", "shakuhachi", "whistle", "ocarina",
    "square lead", "sawtooth lead", "calliope lead", "chiff lead", "charang lead", "voice lead",
    "fifths lead", "bass and lead", "new age pad", "warm pad", "polysynth pad", "choir pad",
    "bowed pad", "metallic pad", "halo pad", "sweep pad", "rain effect", "soundtrack effect",
    "crystal effect", "atmosphere effect", "brightness effect", "goblins effect", "echoes effect",
    "sci-fi effect", "sitar", "banjo", "shamisen", "koto", "kalimba", "bagpipe", "fiddle", "shanai",
    "tinkle bell", "agogo", "steel drums", "woodblock", "taiko drum", "melodic tom", "synth drum",
    "reverse cymbal", "guitar fret noise", "breath noise", "seashore", "bird song",
    "telephone ring", "helicopter", "applause", "gunshot",
)  # fmt: skip

# Upper limits and the words up to them.
TEMPO_WORDS = (
    (58, ("very slow", "solemn")),
    (76, ("slow", "unhurried")),
    (104, ("moderate", "mid-tempo")),
    (132, ("lively", "brisk")),
    (np.inf, ("fast", "rapid")),
)  # beats a minute
DENSITY_WORDS = (
    (2.0, ("sparse", "spacious")),
    (5.5, ("flowing", "steady")),
    (np.inf, ("busy", "dense")),
)  # onsets a second in all stems together
COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
ENSEMBLES = {1: "solo", 2: "duo", 3: "trio", 4: "quartet", 5: "quintet"}
VOICES = ("soprano", "alto", "tenor", "bass")


def program_name(program: int) -> str:
    """ "bassoon" for 70, "drum kit" for `DRUM_KIT`, empty for unknown."""
    if program == DRUM_KIT:
        return "drum kit"
    return PROGRAMS[program] if 0 <= program < len(PROGRAMS) else ""


def stem_name(record: Record, stem: int) -> str:
    """What plays stem `stem`: its instrument where known, else the name of its slot."""
    slot = record.stem_names[stem].replace("_", " ")
    return program_name(int(record.programs[stem])) or slot


def listing(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def facts(record: Record, draw: random.Random) -> dict[str, str]:
    """What can be said of a record, in words; a key is absent where the record does not tell."""
    present = [stem for stem, there in enumerate(record.stem_mask) if there]
    names = list(dict.fromkeys(stem_name(record, stem) for stem in present))
    found = {
        "metre": common_metre(record),
        "key": record.key,
        "composer": record.composer,
        "instruments": listing(names),
        "parts": part_count(len(present), draw),
        "tempo": tempo_word(record, draw),
        "density": density_word(record, draw),
        "texture": texture(record),
    }
    return {name: text for name, text in found.items() if text}


def common_metre(record: Record) -> str:
    """The metre that holds longest, such as "6/8"."""
    if not len(record.metres):
        return ""
    lengths = np.diff([*record.metres[:, 0], max(record.duration, float(record.metres[-1, 0]))])
    held: dict[str, float] = {}
    for (_, numerator, denominator), length in zip(record.metres, lengths):
        name = f"{int(numerator)}/{int(denominator)}"
        held[name] = held.get(name, 0.0) + float(length)
    return max(held, key=lambda name: held[name])


def part_count(count: int, draw: random.Random) -> str:
    """ "quartet" or "four parts"."""
    if count == 0:
        return ""
    parts = f"{COUNTS[count] if count < len(COUNTS) else count} part{'s' if count > 1 else ''}"
    return draw.choice((parts, ENSEMBLES.get(count, parts)))


def tempo_word(record: Record, draw: random.Random) -> str:
    """A word for the median tempo in beats a minute."""
    if len(record.beats) < 2:
        return ""
    rate = 60 / max(float(np.median(np.diff(record.beats))), 1e-3)
    return draw.choice(next(words for limit, words in TEMPO_WORDS if rate < limit))


def onsets(record: Record) -> np.ndarray:
    """Times at which something begins, and in how many stems: [n, 2]."""
    times = np.round(record.notes[:, ONSET] / SIMULTANEOUS)
    pairs = np.unique(np.column_stack([times, record.notes[:, STEM]]), axis=0)
    starts, stems = np.unique(pairs[:, 0], return_counts=True)
    return np.column_stack([starts, stems])


def density_word(record: Record, draw: random.Random) -> str:
    """A word for the number of onsets a second."""
    if not len(record.notes) or record.duration <= 0:
        return ""
    rate = len(onsets(record)) / record.duration
    return draw.choice(next(words for limit, words in DENSITY_WORDS if rate < limit))


def texture(record: Record) -> str:
    """ "homophonic" where the parts move together, "polyphonic" where they do not, of voices; else
    by the slots.
    """
    if not len(record.notes):
        return ""
    stems = np.unique(record.notes[:, STEM]).astype(int)
    if len(stems) == 1:
        return "single-line" if record.stem_names[stems[0]] == "melody" else ""
    if not all(record.stem_names[stem] in VOICES for stem in stems) or "drums" in record.stem_names:
        return ""
    together = float(onsets(record)[:, 1].mean()) / len(stems)
    return "homophonic" if together > 0.65 else "polyphonic"


def article(text: str) -> str:
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def _sentence(known: dict[str, str], draw: random.Random) -> str:
    """ "A lively polyphonic quartet in G major, in 3/4, for oboe and harp, by Joseph Haydn." """
    noun = draw.choice(("piece", "piece of music", "track"))
    adjectives = [known[name] for name in ("tempo", "density", "texture") if name in known]
    parts = known.get("parts", "")
    if parts in ENSEMBLES.values():
        noun, parts = ("solo piece" if parts == "solo" else parts), ""
    subject = article(" ".join([*adjectives, noun]))
    details = []
    if parts:
        details.append(draw.choice(("in {}", "with {}")).format(parts))
    if "key" in known:
        details.append(f"in {known['key']}")
    if "metre" in known:
        details.append(draw.choice(("in {}", "in {} time")).format(known["metre"]))
    if "instruments" in known:
        details.append(
            draw.choice(("for {}", "played on {}", "with {}")).format(known["instruments"])
        )
    if "composer" in known:
        details.append(draw.choice(("by {}", "in the style of {}")).format(known["composer"]))
    text = ", ".join([subject, *details]) if draw.random() < 0.5 else " ".join([subject, *details])
    return text[0].upper() + text[1:] + "."


def _tags(known: dict[str, str], draw: random.Random) -> str:
    """ "oboe and harp, G major, 3/4, lively"."""
    words = list(known.values())
    draw.shuffle(words)
    return ", ".join(words)


def _performance(known: dict[str, str], draw: random.Random) -> str:
    """ "Oboe and harp play a lively piece in G major by Joseph Haydn." """
    if "instruments" not in known:
        return _sentence(known, draw)
    players = known["instruments"]
    plural = " and " in players or players.endswith("s")
    rest = {name: text for name, text in known.items() if name not in ("instruments", "parts")}
    what = _sentence(rest, draw)
    verb = draw.choice(("play", "perform") if plural else ("plays", "performs"))
    return f"{players[0].upper()}{players[1:]} {verb} {what[0].lower()}{what[1:]}"


def captions(record: Record, seed: int, count: int, dropout: float = DROPOUT) -> list[str]:
    """`count` captions of a record, deterministic by (record, seed); the first k do not depend on
    `count`.

    Args:
      record: score or recording; its own `captions` are not looked at.
      seed: any integer.
      count: how many.
      dropout: probability that a caption leaves out a fact.
    """
    draw = random.Random(f"captions {seed} {record.id}")
    written = []
    for _ in range(count):
        known = facts(record, draw)
        kept = {name: text for name, text in known.items() if draw.random() >= dropout}
        if not kept and known:
            name = draw.choice(sorted(known))
            kept = {name: known[name]}
        template = draw.choice((_sentence, _sentence, _tags, _performance))
        written.append(template(kept, draw) if kept else "A piece of music.")
    return written


def of_performance(record: Record, seed: int, player: render.RenderConfig) -> str:
    """One of the record's own captions, or what is written of a score as `player` plays it with
    this seed."""
    if record.captions:
        return record.captions[seed % len(record.captions)]
    if record.is_score:
        record = render.performed(record, render.perform(record, seed=seed, config=player))
    return captions(record, seed, 1)[0]


def edit_instruction(record: Record, stem: int, seed: int, program: int | None = None) -> str:
    """An instruction to add stem `stem` to the others, such as "add the tenor line on bassoon".

    Args:
      record: the piece.
      stem: index of the stem to insert.
      seed: any integer.
      program: General MIDI program that plays it, where the loader drew one; None takes the
        record's.

    Raises:
      ValueError: the record has no such stem.
    """
    if not 0 <= stem < len(record.stem_names):
        raise ValueError(f"stem {stem} of {record.id}, which has {len(record.stem_names)}")
    draw = random.Random(f"edit {seed} {record.id} {stem}")
    slot = record.stem_names[stem].replace("_", " ")
    instrument = program_name(int(record.programs[stem]) if program is None else program)
    line = slot if slot in ("drums", "melody") else f"{slot} {draw.choice(('line', 'part'))}"
    verb = draw.choice(("add", "insert", "put in", "bring in"))
    if not instrument or slot == "drums":
        return draw.choice((f"{verb} the {line}", f"{verb} the missing {line}"))
    return draw.choice(
        (
            f"{verb} the {line} on {instrument}",
            f"{verb} the {line}, played on {instrument}",
            f"{verb} {article(instrument)} for the {line}",
            f"let {article(instrument)} play the {line}",
        )
    )
