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
