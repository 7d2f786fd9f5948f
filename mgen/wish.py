"""What a user asks of a chain: a clip's description and how its tokens are drawn."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from mgen.errors import UserError
from mgen.lm.filters import SamplingConfig

# MusicLM's temperatures, by depth in the hierarchy.
TEMPERATURES = (1.0, 0.95, 0.4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wish:
    """What a clip should be.

    Attributes:
      duration: s, the audio prompt included.
      prompt: what it should sound like, or a list with a text for each clip; style: an audio file
        that it should sound like.
      story: texts by second, instead of one: "0:a slow intro; 15:louder".
      condition: classes, see `mgen.inputs.attributes.parse`.
      audio_prompt: file that it goes on from; any sample rate and channel count.
      context_stems: files of stems that the clip is to be played with; target_stem: which one it
        is, such as "bass".
      guidance_by: scales of single sources in place of one of all, such as "context=3",
        "category=1".
      negative: text that it should lead away from, by guidance.
      melody: audio file of a tune that it should follow; a short one begins again.
      start, end: s, what of the audio prompt is made anew; the clip is then as long as the file.
    """

    duration: float
    prompt: str | Sequence[str] = ""
    style: str | Path = ""
    story: str = ""
    condition: str = ""
    audio_prompt: str | Path = ""
    context_stems: Sequence[str | Path] = ()
    target_stem: str = ""
    guidance_by: Sequence[str] = ()
    negative: str = ""
    melody: str | Path = ""
    start: float | None = None
    end: float | None = None


def define_flags() -> Callable[[], Wish]:
    """A flag for each field; returns what reads them once they are parsed. A script makes them its
    own by `flags.adopt_module_key_flags(wish)`."""
    defined: tuple[flags.FlagHolder[Any], ...] = (
        flags.DEFINE_float("duration", 6.0, "Seconds, the prompt included.", 0.1, 3600.0),
        flags.DEFINE_string("prompt", "", "What it should sound like."),
        flags.DEFINE_string("style", "", "Audio file that it should sound like."),
        flags.DEFINE_string("story", "", "Prompts by second: '0:a slow intro; 15:louder'."),
        flags.DEFINE_string("condition", "", "Such as metre=3/4,mode=minor."),
        flags.DEFINE_string("audio_prompt", "", "Audio file to continue, or to fill in."),
        flags.DEFINE_list("context_stems", [], "Audio files of stems that play along."),
        flags.DEFINE_string("target_stem", "", "The stem to make for them, such as bass."),
        flags.DEFINE_list("guidance_by", [], "Scales of single sources: context=3,category=1."),
        flags.DEFINE_string("negative", "", "What it should not sound like."),
        flags.DEFINE_string("melody", "", "Audio file of a tune to follow."),
        flags.DEFINE_float("start", None, "Second of --audio_prompt from which it is made anew."),
        flags.DEFINE_float("end", None, "Second until which it is made anew."),
    )
    return lambda: Wish(**{flag.name: flag.value for flag in defined})


def parse_story(text: str) -> list[tuple[float, str]]:
    """(second, text) in order from "0:a slow intro; 15:louder"; `UserError` for anything else."""
    found = []
    for part in filter(str.strip, text.split(";")):
        second, _, prompt = part.partition(":")
        try:
            found.append((float(second), prompt.strip()))
        except ValueError:
            found.append((-1.0, ""))
        if found[-1][0] < 0 or not found[-1][1]:
            raise UserError(f"--story: {part.strip()!r}, expected SECOND:PROMPT; SECOND:PROMPT ...")
    return sorted(found)


def parse_scales(texts: Sequence[str]) -> dict[str, float]:
    """Scale by source from "context=3", "category=1"; `UserError` for anything else."""
    found = {}
    for text in texts:
        name, _, scale = text.partition("=")
        try:
            found[name.strip()] = float(scale)
        except ValueError:
            raise UserError(f"--guidance_by={text}: expected SOURCE=SCALE") from None
    return found


def define_sampling_flags() -> Callable[[int], list[SamplingConfig]]:
    """The flags of `sampling`; returns what reads them once they are parsed."""
    defined: tuple[flags.FlagHolder[Any], ...] = (
        flags.DEFINE_list("temperature", [], "One a model; 0 takes the likeliest token."),
        flags.DEFINE_integer("top_k", 250, "Draw from the k likeliest tokens; 0: all.", 0),
        flags.DEFINE_float("top_p", 1.0, "Draw from the likeliest tokens of this mass.", 0.0, 1.0),
        flags.DEFINE_float("guidance", 3.0, "Scale of classifier-free guidance; 1: off."),
    )
    return lambda count: sampling(count, **{flag.name: flag.value for flag in defined})


def sampling(count: int, temperature: Sequence[str] = (), **fields: Any) -> list[SamplingConfig]:
    """Settings of `count` stages; without temperatures MusicLM's where there are several."""
    defaults = TEMPERATURES if count > 1 else (1.0,)
    values = temperature or [str(defaults[min(i, len(defaults) - 1)]) for i in range(count)]
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        raise UserError(f"--temperature={','.join(values)}: expected numbers") from None
    if len(numbers) == 1:
        numbers *= count
    if len(numbers) != count:
        raise UserError(f"--temperature: {len(numbers)} numbers, expected one, or {count}")
    return [SamplingConfig(temperature=value, **fields) for value in numbers]
