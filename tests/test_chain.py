"""What a user writes of a clip, read."""

import pytest

from mgen import wish
from mgen.errors import UserError


def test_a_story_is_read_in_the_order_of_time():
    assert wish.parse_story("15: louder ; 0:a slow intro; 7.5:a turn: drums") == [
        (0.0, "a slow intro"),
        (7.5, "a turn: drums"),
        (15.0, "louder"),
    ]
    for text in ("soon: louder", "3", "-1: louder", "4:"):
        with pytest.raises(UserError, match="--story"):
            wish.parse_story(text)


def test_temperatures_are_musiclms_unless_given():
    def temperatures(*args):
        return [own.temperature for own in wish.sampling(*args)]

    assert temperatures(1) == [1.0] and temperatures(3) == [1.0, 0.95, 0.4]
    assert temperatures(4) == [1.0, 0.95, 0.4, 0.4]
    assert temperatures(3, ["0.5"]) == [0.5] * 3 and temperatures(2, ["1", "2"]) == [1.0, 2.0]
    for bad in (["1", "2"], ["warm"], ["-1"]):
        with pytest.raises(UserError, match="temperature"):
            wish.sampling(3, bad)
    assert wish.sampling(1, top_k=5, guidance=2.0)[0].top_k == 5
