"""The demos' recipes: which commands, in which order, make a chain of tiny models from nothing.

Every stage goes on where it was interrupted, so a recipe does too.
"""

from collections.abc import Iterator
from pathlib import Path

Command = list[str]
DATASET = "corpus_scores/band"


def data(work: Path, pieces: int) -> tuple[Command, Path]:
    """The command that prepares `pieces` pieces, and the folder that they will be in."""
    command = ["prepare_data", f"--dataset={DATASET}", f"--limit={pieces}", f"--out={work}"]
    return command, work / DATASET


def tokens(work: Path, smoke: bool) -> Iterator[Command]:
    """A codec, a joint embedding, a semantic encoder, their codebooks, the tokens of all three, and
    what they hear in held-out pieces (work/../tokens/report.json)."""
    size, pieces = (":smoke", 24) if smoke else ("", 600)
    command, folder = data(work, pieces)
    yield command
    given, vocabulary = f"--dataset={folder}", work / "vocabulary.model"
    if not vocabulary.exists():
        yield ["train_vocabulary", given, f"--out={vocabulary}", f"--captions={pieces}"]

    def train(config: str, name: str, *fields: str) -> Command:
        config = f"--config={config}{size}"
        return ["train", config, f"--workdir={work / name}", f"--config.data.{given[2:]}", *fields]

    def codebook(name: str, size: int, *fields: str) -> Command:
        flags = [f"--out={work / name}", f"--size={size}", "--max_seconds=30"]
        return ["fit_codebook", given, *flags, *fields]

    yield train("codec/tiny_16khz", "codec")
    yield train("joint/tiny_mulan", "joint", f"--config.data.vocabulary={vocabulary}")
    codes = 8 if smoke else 256
    yield codebook("joint_codebook", codes, f"--encoder={work / 'joint'}", "--levels=12")
    mel = ("--features=mel", f"--config=semantic/tiny_muq{size}")
    yield codebook("mel_rvq", 16 if smoke else 256, *mel, f"--levels={2 if smoke else 8}")
    yield train("semantic/tiny_muq", "semantic", f"--config.targets.codebook={work / 'mel_rvq'}")
    yield codebook("semantic_codebook", codes, f"--encoder={work / 'semantic'}", "--layer=1")
    models = ("codec", "joint", "joint_codebook", "semantic", "semantic_codebook")
    folders = [f"--{name}={work / name}" for name in models]
    yield ["tokenize", given, *folders, f"--out={work / 'all_tokens'}", "--max_seconds=30"]
    few = ["--clips=8", "--train_clips=8", "--seconds=2"] if smoke else []
    encoders = [f"--joint={work / 'joint'}", f"--semantic={work / 'semantic'}"]
    encoders.append(f"--codebook={work / 'semantic_codebook'}")
    yield ["probe", given, *encoders, f"--out={work.parent / 'tokens'}", *few]


# Name of a workdir -> (config, its argument, streams that it reads beside the codec's) of the chain
# that `hierarchy` makes.
STAGES = {
    "semantic_lm": ("tiny_musiclm", "semantic", ("semantic", "joint")),
    "coarse_lm": ("tiny_musiclm", "coarse", ("semantic", "joint")),
    "fine_lm": ("tiny_musiclm", "fine", ()),
    "soundstorm": ("tiny_soundstorm", "", ("semantic",)),
    "depth_lm": ("tiny_magenta_rt", "", ("joint",)),
}
PROMPT = "a fast tune in a major key"
# Sizes of the smoke models of `tokens`.
SMOKE = {"semantic": ("codebook_size",), "joint": ("codebook_size", "embed_dim")}


def hierarchy(work: Path, smoke: bool) -> Iterator[Command]:
    """On what `tokens` left in `work`: MusicLM's stages, SoundStorm in place of two of them and a
    depth decoder, each scored on held-out pieces, and clips (work/../hierarchy)."""
    out, data = work.parent / "hierarchy", work / DATASET
    for name, (config, arg, streams) in STAGES.items():
        variant = ",".join(filter(None, (arg, "smoke" if smoke else "")))
        command = ["train", f"--config=hierarchy/{config}:{variant}", f"--workdir={work / name}"]
        command.append(f"--config.data.dataset={work / 'all_tokens'}")
        if "joint" in streams:
            command.append(f"--config.stage.joint_codebook={work / 'joint_codebook'}")
        if smoke:
            command += [f"--config.streams.{s}.{field}=8" for s in streams for field in SMOKE[s]]
        yield command
        yield ["evaluate", f"--workdir={work / name}", f"--out={out / name}"]
    models = [f"--codec={work / 'codec'}", f"--joint={work / 'joint'}"]
    prompts = [f"--{name}={work / name}" for name in ("semantic", "semantic_codebook")]
    seconds = "--duration=2" if smoke else "--duration=10"
    chains = {
        "musiclm": ("semantic_lm", "coarse_lm", "fine_lm"),
        "soundstorm": ("semantic_lm", "soundstorm"),
        "depth": ("depth_lm",),
    }
    lms = {name: f"--lm={','.join(str(work / s) for s in own)}" for name, own in chains.items()}
    story = f"0:{PROMPT}; {1 if smoke else 5}:a slow tune in a minor key"
    for name, lm in lms.items():
        sample = ["generate", lm, *models, seconds]
        yield [*sample, f"--prompt={PROMPT}", f"--out={out / name}"]
    sample = ["generate", lms["musiclm"], *models, seconds]
    yield [*sample, f"--story={story}", f"--out={out / 'story'}"]
    clip, given = out / "codec" / "target_0.wav", f"--dataset={data}"
    codec = f"--workdir={work / 'codec'}"
    yield ["evaluate", codec, given, f"--out={clip.parent}", "--batches=1"]
    yield [*sample, *prompts, f"--audio_prompt={clip}", f"--out={out / 'continued'}"]
    few = ["--n=4", "--batch=4", "--seconds=1"] if smoke else []
    for name in ("musiclm", "soundstorm"):
        yield ["score", lms[name], *models, given, *few, f"--out={out / name / 'score'}"]
