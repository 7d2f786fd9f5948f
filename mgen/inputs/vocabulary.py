"""SentencePiece vocabularies (Kudo and Richardson 2018): text to ids, and training one on captions.

A vocabulary is a `.model` file, the format that released text encoders such as T5's come in.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mgen import files
from mgen.errors import UserError
from mgen.inputs import captions, render
from mgen.inputs.records import RecordSource

PAD, UNKNOWN, BOS, EOS = range(4)  # of a vocabulary trained here; BOS is where BERT has [CLS]


class Vocabulary:
    """Text to ids; opens its file where it is first used, so it can be pickled.

    Attributes:
      path: of the `.model` file.
    """

    def __init__(self, path: str | Path):
        """Raises `UserError` where `path` is no SentencePiece model."""
        self.path = Path(path)
        self._processor: Any = None
        self._open()

    def _open(self) -> Any:
        from sentencepiece import SentencePieceProcessor

        if not self.path.is_file():
            raise UserError(
                f"data.vocabulary: no file {str(self.path)!r}; expected a SentencePiece .model "
                "(train_vocabulary writes one)"
            )
        try:
            self._processor = SentencePieceProcessor(model_proto=self.path.read_bytes())
        except (RuntimeError, OSError) as error:
            raise UserError(f"{self.path}: not a SentencePiece model") from error
        return self._processor

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_processor": None}

    @property
    def processor(self) -> Any:
        return self._processor or self._open()

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.processor.vocab_size()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the file, hex."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def encode(
        self, texts: Sequence[str], length: int, lower: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [B, length] and where they are, bool [B, length].

        A text stands between the vocabulary's begin and end ids, where it has them; what does not
        fit into `length` is cut, the end id stays. `lower`: as lower case, which vocabularies
        trained here have only.
        """
        model = self.processor
        begin, end, pad = model.bos_id(), model.eos_id(), max(model.pad_id(), 0)
        ids = np.full((len(texts), length), pad, np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, text in enumerate(texts):
            first, last = [begin] * (begin >= 0), [end] * (end >= 0)
            pieces = model.encode(text.lower() if lower else text)
            inner = pieces[: length - len(first) - len(last)]
            pieces = [*first, *inner, *last]
            ids[row, : len(pieces)] = pieces
            mask[row, : len(pieces)] = True
        return ids, mask

    def decode(self, ids: np.ndarray) -> str:
        """The text of a row of ids, without the special ones."""
        return self.processor.decode([int(i) for i in ids if i >= 0])


def train(texts: Iterable[str], size: int, path: str | Path) -> Vocabulary:
    """Trains a unigram vocabulary of at most `size` ids on `texts` and writes it to `path`
    (atomically).

    Equal texts in equal order give equal files. Raises `UserError` where there is no text, or more
    characters than `size`.
    """
    from sentencepiece import SentencePieceTrainer

    path = Path(path)
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=(text.lower() for text in texts),
            model_writer=model,
            vocab_size=size,
            # Templates have few words: what they allow, not an error.
            hard_vocab_limit=False,
            character_coverage=1.0,
            pad_id=PAD,
            unk_id=UNKNOWN,
            bos_id=BOS,
            eos_id=EOS,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[-200:]
        raise UserError(f"vocabulary of {size} pieces: {reason}") from error
    with files.replacing(path) as temporary:
        temporary.write_bytes(model.getvalue())
    return Vocabulary(path)


def caption_stream(source: RecordSource, count: int, seed: int = 0) -> Iterator[str]:
    """`count` captions of the records of a split, over and over: their own ones, or what is written
    of a score as some instruments play it (`mgen.inputs.captions`)."""
    player = render.RenderConfig(instruments="free")
    for number in range(count):
        record, variant = source[number % len(source)], seed + number // len(source)
        yield captions.of_performance(record, variant, player)
