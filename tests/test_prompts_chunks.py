"""Chunks: what stands in which, where commas and BREAK are, and what is never split."""

from __future__ import annotations

from random import Random

import pytest

from checkpoint_cases import toy_tokenizer
from safelight.conditioning.prompts.chunks import Chunk, fill
from safelight.conditioning.prompts.emphasis import read
from safelight.conditioning.text import Reader
from safelight.errors import RequestError
from safelight.models.tokenizer import BertTokenizer, ClipTokenizer

COMMA, ROOM = 0, 75


def words(text: str) -> list[int]:
    """A token for each word; words are numbers and commas."""
    return [COMMA if word == "," else int(word) for word in text.replace(",", " , ").split()]


def filled(text: str, **options: int) -> list[list[int]]:
    return [list(chunk.ids) for chunk in fill(read(text), words, ROOM, comma=COMMA, **options)]


def numbers(first: int, last: int) -> str:
    return " ".join(str(n) for n in range(first, last + 1))


def test_short_and_empty_prompts_are_one_chunk() -> None:
    assert filled("") == [[]]
    assert filled("5 6") == [[5, 6]]
    assert filled(numbers(1, 75)) == [list(range(1, 76))]


def test_the_76th_token_begins_the_next_chunk() -> None:
    assert filled(numbers(1, 200)) == [list(range(1, 76)), list(range(76, 151)), list(range(151, 201))]


@pytest.mark.parametrize(("back", "moves"), [(1, True), (2, True), (20, True), (21, False), (75, False)])
def test_what_stands_behind_a_near_comma_goes_on_together(back: int, moves: bool) -> None:
    """The comma is `back` tokens before the end of the full chunk, counting itself."""
    tokens = [*range(1, ROOM - back + 1), COMMA, *range(101, 101 + back - 1)]
    assert len(tokens) == ROOM
    text = " ".join("," if token == COMMA else str(token) for token in tokens) + " 999"
    tail = tokens[ROOM - back + 1 :]
    expected = [tokens[: ROOM - back + 1], [*tail, 999]] if moves else [tokens, [999]]
    assert filled(text) == expected
    assert filled(text, backtrack=0) == [tokens, [999]]
    assert filled(text.removesuffix(" 999")) == [tokens], "a chunk that is just full is not split"


def test_a_comma_that_finds_its_chunk_full_begins_the_next() -> None:
    assert filled(numbers(1, 75) + " , 9") == [list(range(1, 76)), [COMMA, 9]]
    near = numbers(1, 70) + " , 1 2 3 4 , 9"
    assert filled(near) == [[*range(1, 71), COMMA, 1, 2, 3, 4], [COMMA, 9]], "and moves nothing"


def test_the_last_comma_counts_and_none_of_an_earlier_chunk() -> None:
    text = numbers(1, 60) + " , " + numbers(61, 65) + " , " + numbers(66, 100)
    assert filled(text) == [[*range(1, 61), COMMA, *range(61, 66), COMMA], list(range(66, 101))]
    again = numbers(1, 74) + " , " + numbers(75, 160)
    assert filled(again) == [[*range(1, 75), COMMA], list(range(75, 150)), list(range(150, 161))]


def test_break_fills_a_chunk_up() -> None:
    assert filled("1 2 BREAK 3") == [[1, 2], [3]]
    assert filled("BREAK 3") == [[], [3]]
    assert filled("1 BREAK") == [[1]]
    assert filled("1 BREAK BREAK 2") == [[1], [], [2]]
    assert filled("1 , BREAK " + numbers(2, 80)) == [[1, COMMA], list(range(2, 77)), list(range(77, 81))]


def test_weights_go_with_their_tokens() -> None:
    text = f"({numbers(1, 70)}, 71:1.5) 72 73 [74 75]"
    chunks = fill(read(text), words, ROOM, comma=COMMA)
    assert [len(chunk.ids) for chunk in chunks] == [71, 5]
    assert chunks[0].weights == (1.5,) * 71
    assert chunks[1].weights == (1.5, 1.0, 1.0, 1 / 1.1, 1 / 1.1)
    assert all(chunk.weighted for chunk in chunks)
    assert not Chunk((1, 2), (1.0, 1.0)).weighted


def test_an_embedding_of_several_tokens_is_never_split() -> None:
    together = {500: 3}

    def embedded(text: str) -> list[int]:
        return [token for word in words(text) for token in ((500, 501, 502) if word == 500 else (word,))]

    chunks = fill(read(numbers(1, 73) + " 500 6"), embedded, ROOM, comma=COMMA, together=together)
    assert [chunk.ids for chunk in chunks] == [tuple(range(1, 74)), (500, 501, 502, 6)]
    chunks = fill(read(numbers(1, 72) + " 500 6"), embedded, ROOM, comma=COMMA, together=together)
    assert [chunk.ids for chunk in chunks] == [(*range(1, 73), 500, 501, 502), (6,)]
    with pytest.raises(RequestError, match="an embedding of 76 tokens is in the prompt, where a chunk has 75"):
        fill(read("500"), embedded, ROOM, together={500: 76})


def test_no_token_is_lost_and_no_chunk_too_long() -> None:
    random = Random(0)
    for _ in range(300):
        tokens = [COMMA if random.random() < 0.1 else random.randint(1, 999) for _ in range(random.randint(0, 400))]
        text = " ".join("," if token == COMMA else str(token) for token in tokens)
        chunks = filled(text, backtrack=random.choice((0, 5, 20, 74)))
        assert [token for chunk in chunks for token in chunk] == tokens
        assert all(len(chunk) <= ROOM for chunk in chunks)
        assert len(chunks) == 1 or all(chunks)


# What tokens stand for


def test_tokens_are_spelled() -> None:
    tokenizer = toy_tokenizer()
    ids = tokenizer.words("a red apple, été 日")
    assert "".join(tokenizer.spelled(token) for token in ids[:4]) == "aredapple,"
    assert tokenizer.comma == tokenizer.words(",")[0]
    assert tokenizer.spelled(tokenizer.end_token) == "<|endoftext|>"
    whole = ClipTokenizer.train(["été 日本"] * 4, 700)
    assert [whole.spelled(token) for token in whole.words("été 日本")] == ["été", "日本"]
    pieces = BertTokenizer(
        {piece: i for i, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "apple", "##s", ","])}
    )
    assert [pieces.spelled(token) for token in pieces.words("apples,")] == ["apple", "##s", ","]
    assert pieces.comma == 6


def test_a_vocabulary_without_a_comma() -> None:
    tokenizer = ClipTokenizer({"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}, [])
    assert tokenizer.comma is None
    assert [chunk.ids for chunk in Reader(tokenizer).chunks("a " * 76)] == [(0,) * 75, (0,)]
