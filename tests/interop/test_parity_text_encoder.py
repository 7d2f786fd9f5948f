"""A T5 release's folder, written by transformers itself: the vectors of its tokens."""

import io
import json

import numpy as np
import pytest
import sentencepiece

from mgen.errors import UserError
from mgen.text_encoder import TextEncoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

TEXTS = ["A slow waltz", "drums"]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    model = io.BytesIO()
    # T5's special ids: padding 0, end 1, unknown 2, no begin.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a slow waltz A", "drums and bass", "a fast tune"] * 3),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=40, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    theirs = transformers.T5EncoderModel(config).eval()
    theirs.save_pretrained(folder)
    return folder, theirs


def test_vectors_of_a_release(release):
    folder, theirs = release
    encoder = TextEncoder(folder, length=24)
    vectors, mask = encoder(TEXTS)
    assert vectors.shape == (2, 24, 24) and encoder.width == 24
    tokenizer = sentencepiece.SentencePieceProcessor(str(folder / "spiece.model"))
    for row, text in enumerate(TEXTS):
        ids = [*tokenizer.encode(text), tokenizer.eos_id()]
        assert mask[row].sum() == len(ids)
        with torch.inference_mode():
            expected = theirs(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
        # Float32 over two layers.
        np.testing.assert_allclose(vectors[row, : len(ids)], expected, atol=1e-4)


def test_damaged_releases_say_what_is_wrong(release, tmp_path):
    folder, _ = release
    for name in ("spiece.model", "model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    shape = json.loads((folder / "config.json").read_text())
    for change, word in (
        ({"feed_forward_proj": "swish"}, "feed_forward_proj is 'swish'"),
        ({"d_ff": None}, "d_ff is None"),
        ({"d_ff": 48}, "has shape"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**shape, **change}))
        with pytest.raises(UserError, match=word):
            TextEncoder(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="config of a T5 encoder"):
        TextEncoder(tmp_path)
