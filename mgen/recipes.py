"""The demos' recipes: which commands, in which order, make a chain of tiny models from nothing.

Every stage goes on where it was interrupted, so a recipe does too.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

Command = list[str]
DATASET = "corpus_scores/band"


def data(work: Path, pieces: int) -> tuple[Command, Path]:
    """The command that prepares `pieces` pieces, and the folder that they will be in."""
    command = ["prepare_data", f"--dataset={DATASET}", f"--limit={pieces}", f"--out={work}"]
    return command, work / DATASET


def training(work: Path, name: str, config: str, dataset: Path, *fields: str) -> Command:
    """The command that trains what `work`/`name` will hold."""
    flags = [f"--workdir={work / name}", f"--config.data.dataset={dataset}"]
    return ["train", f"--config={config}", *flags, *fields]


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
        return training(work, name, f"{config}{size}", folder, *fields)

    def codebook(name: str, size: int, seconds: int, *fields: str) -> Command:
        flags = [f"--out={work / name}", f"--size={size}", f"--max_seconds={seconds}"]
        return ["fit_codebook", given, *flags, *fields]

    # Tokens are of pieces played as in the codec's training: by all that captions speak of.
    steps = [] if smoke else [f"--config.train.{name}=1700" for name in ("steps", "eval_every")]
    yield train("codec/tiny_16khz", "codec", "--config.data.render.instruments=free", *steps)
    yield train("joint/tiny_mulan", "joint", f"--config.data.vocabulary={vocabulary}")
    codes = 8 if smoke else 256
    coarse = f"--encoder={work / 'joint'}", "--levels=2"
    yield codebook("joint_codebook", 8 if smoke else 32, 15, *coarse)
    mel = ("--features=mel", f"--config=semantic/tiny_muq{size}")
    yield codebook("mel_rvq", 16 if smoke else 256, 8, *mel, f"--levels={2 if smoke else 8}")
    yield train("semantic/tiny_muq", "semantic", f"--config.targets.codebook={work / 'mel_rvq'}")
    yield codebook("semantic_codebook", codes, 10, f"--encoder={work / 'semantic'}", "--layer=1")
    models = ("codec", "joint", "joint_codebook", "semantic", "semantic_codebook")
    folders = [f"--{name}={work / name}" for name in models]
    written = [f"--out={work / 'all_tokens'}", "--chroma", "--max_seconds=20"]
    yield ["tokenize", given, *folders, *written]
    few = ["--clips=8", "--train_clips=8", "--seconds=2"] if smoke else []
    encoders = [f"--joint={work / 'joint'}", f"--semantic={work / 'semantic'}"]
    encoders.append(f"--codebook={work / 'semantic_codebook'}")
    out = work.parent / "tokens"
    if not (out / "report.json").exists():
        yield ["probe", given, *encoders, f"--out={out}", *few]


class Model(NamedTuple):
    """A language model of the chain that `hierarchy` makes: its config and the argument, streams
    that it reads beside the codec's, and the folder of its tokens."""

    config: str
    arg: str = ""
    streams: tuple[str, ...] = ()
    tokens: str = "all_tokens"


# By name of the workdir.
STAGES = {
    "semantic_lm": Model("tiny_musiclm", "semantic", ("semantic", "joint")),
    "coarse_lm": Model("tiny_musiclm", "coarse", ("semantic", "joint")),
    "fine_lm": Model("tiny_musiclm", "fine"),
    "soundstorm": Model("tiny_soundstorm", "", ("semantic",)),
    "depth_lm": Model("tiny_magenta_rt", "", ("joint",)),
    "melody_lm": Model("tiny_tune", "", ("joint",)),
    "stemgen": Model("tiny_stemgen", tokens="stem_tokens"),
}
CHAINS = {
    "musiclm": ("semantic_lm", "coarse_lm", "fine_lm"),
    "soundstorm": ("semantic_lm", "soundstorm"),
    "depth": ("depth_lm",),
}
PROMPT = "a fast tune in a major key"
# Sizes of the smoke models of `tokens`.
SMOKE = {"semantic": ("codebook_size",), "joint": ("codebook_size", "embed_dim")}


def hierarchy(work: Path, smoke: bool) -> Iterator[Command]:
    """On what `tokens` left in `work`: the models of `STAGES`, each scored on held-out pieces, and
    clips (work/../hierarchy)."""
    out, given, codec = work.parent / "hierarchy", _data(work), work / "codec"
    stems = ["--stems", f"--out={work / 'stem_tokens'}", "--max_seconds=15"]
    yield ["tokenize", given, f"--codec={codec}", *stems]
    for name, model in STAGES.items():
        yield _train(work, name, model, smoke)
        yield ["evaluate", f"--workdir={work / name}", f"--out={out / name}"]
    yield from _clips(work, out, 2 if smoke else 10)
    few = ["--n=4", "--batch=4", "--seconds=1"] if smoke else []
    models = [f"--codec={codec}", f"--joint={work / 'joint'}"]
    for name in ("musiclm", "soundstorm"):
        score = f"--out={out / name / 'score'}"
        yield ["score", _lm(work, *CHAINS[name]), *models, given, *few, score]


def _train(work: Path, name: str, model: Model, smoke: bool) -> Command:
    variant = ",".join(filter(None, (model.arg, "smoke" if smoke else "")))
    command = training(work, name, f"hierarchy/{model.config}:{variant}", work / model.tokens)
    if "joint" in model.streams:
        command.append(f"--config.stage.joint_codebook={work / 'joint_codebook'}")
    if smoke:
        sizes = [f"{stream}.{field}" for stream in model.streams for field in SMOKE[stream]]
        command += [f"--config.streams.{size}=8" for size in sizes]
    return command


def _clips(work: Path, out: Path, seconds: int) -> Iterator[Command]:
    """From text by each chain, from a story, and from the start of a held-out piece; a tune that
    is followed, and a missing bass, of another one."""
    models = [f"--{name}={work / name}" for name in ("codec", "joint")]
    common = [*models, f"--duration={seconds}"]
    for name, stages in CHAINS.items():
        prompt = [f"--prompt={PROMPT}", f"--out={out / name}"]
        yield ["generate", _lm(work, *stages), *common, *prompt]
    sample = ["generate", _lm(work, *CHAINS["musiclm"]), *common]
    story = f"0:{PROMPT}; {seconds // 2}:a slow tune in a minor key"
    yield [*sample, f"--story={story}", f"--out={out / 'story'}"]
    clip, trained = out / "codec" / "target_0.wav", f"--workdir={work / 'codec'}"
    yield ["evaluate", trained, _data(work), f"--out={clip.parent}", "--batches=1"]
    encoder = [f"--{name}={work / name}" for name in ("semantic", "semantic_codebook")]
    yield [*sample, *encoder, f"--audio_prompt={clip}", f"--out={out / 'continued'}"]
    one = ["--splits=test", "--records=1", "--examples=1", "--sample_rate=16000"]
    yield ["inspect_data", _data(work), f"--out={out / 'stems'}", *one, f"--seconds={seconds}"]
    stems = {name: out / "stems" / f"0_{name}.wav" for name in ("drums", "guitar", "piano")}
    tune = [f"--prompt={PROMPT}", f"--melody={stems['guitar']}", f"--out={out / 'melody'}"]
    yield ["generate", _lm(work, "melody_lm"), *common, *tune]
    others = f"--context_stems={','.join(map(str, stems.values()))}"
    ask = [others, "--target_stem=bass", "--guidance_by=context=3,category=3"]
    yield ["generate", _lm(work, "stemgen"), *common, *ask, f"--out={out / 'stemgen'}"]


def _lm(work: Path, *names: str) -> str:
    return f"--lm={','.join(str(work / name) for name in names)}"


def _data(work: Path) -> str:
    return f"--dataset={work / DATASET}"


STEMS = ("bass", "drums", "guitar", "piano")


def stems(work: Path, smoke: bool) -> Iterator[Command]:
    """A diffusion model of all stems, a separator, a diffusion model of each stem alone, and what
    they do on held-out pieces (work/../scores)."""
    size, pieces = ("smoke", 24) if smoke else ("", 600)
    command, folder = data(work, pieces)
    yield command
    models = {"joint": ("tiny_bands", ""), "separator": ("tiny_separator", "")}
    models |= {name: ("tiny_isdm", name) for name in STEMS}
    for name, (config, arg) in models.items():
        variant = ",".join(filter(None, (arg, size)))
        yield training(work, name, f"stems/{config}:{variant}", folder)
    scores = [f"--{name}={work / name}" for name in ("joint", "separator")]
    scores.append(f"--independent={','.join(str(work / name) for name in STEMS)}")
    few = (
        ["--clips=2", "--batch=2", "--seconds=0.5", "--steps=2"]
        if smoke
        else ["--steps=30", "--clips=16"]
    )
    out = work.parent / "scores"
    if not (out / "report.json").exists():
        yield ["score_stems", *scores, f"--dataset={folder}", f"--out={out}", *few]
