"""Chunks and weights through the text towers, against transformers' tokenizer and tower and the published formulas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig as TheirConfig
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from checkpoint_cases import toy_tokenizer
from golden_cases import agree
from safelight.checkpoints.vocabulary import write_tokenizer
from safelight.conditioning.prompts.edits import Steps
from safelight.conditioning.prompts.emphasis import Emphasis
from safelight.conditioning.prompts.prompt import Phase, phases, read
from safelight.conditioning.spoken import Voice, speak
from safelight.conditioning.text import Encoder, Reader, encode_prompts
from safelight.doors import Conditioning
from safelight.errors import RequestError
from safelight.models.bert import Bert, BertConfig
from safelight.models.clip import ClipText, ClipTextConfig, States
from safelight.models.layers import attend
from safelight.models.tokenizer import BertTokenizer

TOKENIZER = toy_tokenizer()
CONFIG = ClipTextConfig(
    vocab_size=len(TOKENIZER.vocab),
    width=12,
    layers=3,
    heads=2,
    mlp_width=16,
    projection_width=8,
    start_token=TOKENIZER.start_token,
    end_token=TOKENIZER.end_token,
    pad_token=TOKENIZER.pad_token,
    projected=True,
)
LONG = ", ".join(["a red apple on a blue background"] * 12)
PLAIN = ["", "a red apple", "a dog to the left of a car on a blue background", "é日本, 42"]


T = TypeVar("T", bound=nn.Module)


def lively(module: T) -> T:
    """With random biases and gains: a norm that has none leaves states of mean 0, which nothing can be scaled to."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.requires_grad_(False).parameters():
        if parameter.ndim == 1:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator) + 0.1)
    return module.eval()


def made(theirs: CLIPTextModelWithProjection) -> ClipText:
    """Our tower with their weights."""
    ours = ClipText(CONFIG)
    tensors = {key.removeprefix("text_model."): tensor for key, tensor in theirs.state_dict().items()}
    ours.load_state_dict(tensors, strict=True)
    return ours.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def their_tower() -> CLIPTextModelWithProjection:
    config = TheirConfig(
        vocab_size=CONFIG.vocab_size,
        hidden_size=CONFIG.width,
        intermediate_size=CONFIG.mlp_width,
        num_hidden_layers=CONFIG.layers,
        num_attention_heads=CONFIG.heads,
        projection_dim=CONFIG.projection_width,
        hidden_act=CONFIG.activation,
        bos_token_id=CONFIG.start_token,
        eos_token_id=CONFIG.end_token,
        pad_token_id=CONFIG.pad_token,
    )
    torch.manual_seed(0)
    return lively(CLIPTextModelWithProjection(config))


@pytest.fixture(scope="module")
def their_words(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, TOKENIZER)
    found: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return found


@pytest.fixture(scope="module")
def tower(their_tower: CLIPTextModelWithProjection) -> ClipText:
    return made(their_tower)


def encoder(tower: ClipText | Bert, emphasis: Emphasis = "original", **options: Any) -> Encoder:
    tokenizer: Any = options.pop("tokenizer", TOKENIZER)
    reader = Reader(tokenizer, emphasis, single=isinstance(tower, Bert))
    return Encoder(reader, tower, **options)


def context(cond: Conditioning) -> Tensor:
    assert cond.context is not None
    return cond.context


def vector(cond: Conditioning) -> Tensor:
    assert cond.vector is not None
    return cond.vector


# A prompt that fits


@pytest.mark.parametrize("emphasis", ["none", "ignore", "original", "no-norm"])
@pytest.mark.parametrize("states", ["last", "penultimate", "penultimate_normed"])
@pytest.mark.parametrize("pad", [TOKENIZER.pad_token, 0])
def test_a_plain_prompt_is_to_the_bit_what_it_was(
    tower: ClipText, emphasis: Emphasis, states: States, pad: int
) -> None:
    tokenizer = TOKENIZER.padded_with(pad)
    encode = encoder(tower, emphasis, tokenizer=tokenizer, states=states, pooled=True)
    for text in PLAIN:
        expected = encode_prompts(tokenizer, tower, [text], states=states, pooled=True)
        found = encode(text)
        assert torch.equal(context(found), context(expected))
        assert torch.equal(vector(found), vector(expected))
        assert found.concat is None


def bert() -> tuple[BertTokenizer, Bert]:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "apple", "##s", ",", "(", ")", ":", "break"]
    torch.manual_seed(0)
    network = lively(Bert(BertConfig(len(pieces), 12, 2, 2, 4, 16, 77)))
    return BertTokenizer({piece: i for i, piece in enumerate(pieces)}), network


def test_a_tower_of_one_chunk_cuts_and_weighs() -> None:
    tokenizer, network = bert()
    encode = encoder(network, tokenizer=tokenizer)
    for text in ("", "a red apple", "a red apples " * 40):
        assert torch.equal(context(encode(text)), context(encode_prompts(tokenizer, network, [text])))
    reader = encode.reader
    assert [len(reader.unread(text).ids) for text in ("a red apple", "a " * 75, "a " * 80)] == [0, 0, 5]
    assert len(reader.chunks("a BREAK red")) == 1
    assert torch.equal(context(encode("a BREAK red")), context(encode("a red"))), "it has no second chunk"
    plain, weighted = context(encode("a red apple")), context(encode("a (red:1.4) apple"))
    expected = plain.clone()
    expected[:, 2] *= 1.4
    agree("weighted", weighted, expected * (plain.mean() / expected.mean()))
    with pytest.raises(RequestError, match="clip_skip is for models whose text tower is a CLIP: leave it out"):
        encoder(network, tokenizer=tokenizer, clip_skip=2)


# Longer ones


def their_chunks(words: CLIPTokenizer, texts: Sequence[str], pad: int) -> Tensor:
    """Texts of up to 75 tokens each by transformers, marked and padded."""
    words.pad_token_id = pad
    return torch.tensor(words(list(texts), padding="max_length", max_length=77).input_ids)


@pytest.mark.parametrize("pad", [TOKENIZER.pad_token, 0])
def test_chunks_are_encoded_apart_and_stand_one_behind_the_other(
    tower: ClipText, their_tower: CLIPTextModelWithProjection, their_words: CLIPTokenizer, pad: int
) -> None:
    ids = their_words(LONG, add_special_tokens=False).input_ids
    encode = encoder(tower, tokenizer=TOKENIZER.padded_with(pad), states="penultimate", pooled=True)
    chunks = encode.reader.chunks(LONG)
    assert [token for chunk in chunks for token in chunk.ids] == ids, "transformers' tokens"
    assert [len(chunk.ids) for chunk in chunks] == [72, 23], "up to the last comma"
    rows = [[CONFIG.start_token, *c.ids, CONFIG.end_token, *[pad] * (75 - len(c.ids))] for c in chunks]
    said = their_tower(torch.tensor(rows), output_hidden_states=True)
    found = encode(LONG)
    agree("context", context(found), said.hidden_states[-2].reshape(1, 154, 12))
    agree("the summary is the first chunk's", vector(found), said.text_embeds[:1])
    apart = encode("a red apple BREAK a dog")
    expected = their_tower(their_chunks(their_words, ["a red apple", "a dog"], pad), output_hidden_states=True)
    agree("BREAK", context(apart), expected.hidden_states[-2].reshape(1, 154, 12))


def test_further_chunks_are_empty_ones(tower: ClipText) -> None:
    encode = encoder(tower)
    empty = context(encode(""))
    assert torch.equal(context(encode("a dog", 3)), torch.cat([context(encode("a dog")), empty, empty], dim=1))
    assert torch.equal(context(encode("BREAK a dog")), torch.cat([empty, context(encode("a dog"))], dim=1))


# Weights


def by_formula(plain: Tensor, weights: Sequence[float], mode: str) -> np.ndarray:
    """z = z m, then z old_mean / new_mean, in float64."""
    z = plain.double().numpy()
    factors = np.ones(z.shape[1])
    factors[1 : 1 + len(weights)] = weights
    after = z * factors[None, :, None]
    return after * (z.mean() / after.mean()) if mode == "original" else after


@pytest.mark.parametrize("mode", ["original", "no-norm"])
def test_weights_by_the_formula(tower: ClipText, mode: Emphasis) -> None:
    encode = encoder(tower, mode, pooled=True)
    plain = encode("a red apple on a blue background")
    found = encode("a (red:1.4) apple [on a] ((blue background:0.5))")
    less = 1 / 1.1
    weights = [1.0, 1.4, 1.0, less, less, 0.55, 0.55]
    assert encode.reader.chunks("a (red:1.4) apple [on a] ((blue background:0.5))")[0].weights == pytest.approx(weights)
    agree("weighted", context(found), torch.from_numpy(by_formula(context(plain), weights, mode)).float())
    assert not torch.allclose(context(found), context(plain), atol=1e-2)
    assert torch.equal(vector(found), vector(plain)), "the summary has no weights"
    if mode == "original":
        assert float(context(found).mean()) == pytest.approx(float(context(plain).mean()), rel=1e-4)


def test_every_chunk_keeps_its_own_mean(tower: ClipText) -> None:
    encode = encoder(tower)
    found = context(encode("a (red:1.5) apple BREAK a dog BREAK (a car:0.2)"))
    alone = [context(encode(text)) for text in ("a (red:1.5) apple", "a dog", "(a car:0.2)")]
    assert torch.equal(found, torch.cat(alone, dim=1))
    assert torch.equal(alone[1], context(encode_prompts(TOKENIZER, tower, ["a dog"])))


def test_modes_without_weights(tower: ClipText) -> None:
    text = "a (red:1.4) apple"
    literal = encode_prompts(TOKENIZER, tower, [text])
    assert torch.equal(context(encoder(tower, "none")(text)), context(literal))
    plain = encode_prompts(TOKENIZER, tower, ["a red apple"])
    assert torch.equal(context(encoder(tower, "ignore")(text)), context(plain))


def test_weights_in_half_precision_are_applied_in_float32(tower: ClipText) -> None:
    half = ClipText(CONFIG)
    half.load_state_dict(tower.state_dict())
    half = half.to(torch.bfloat16).eval().requires_grad_(False)
    plain, found = (context(encoder(half)(text)) for text in ("a red apple", "a (red:1.4) apple"))
    assert found.dtype == torch.bfloat16
    expected = by_formula(plain.float(), [1.0, 1.4, 1.0], "original")
    assert torch.equal(found, torch.from_numpy(expected).float().to(torch.bfloat16))


# Clip skip


def test_clip_skip_counts_from_the_last_layer(
    tower: ClipText, their_tower: CLIPTextModelWithProjection, their_words: CLIPTokenizer
) -> None:
    ids = their_chunks(their_words, ["a red apple"], TOKENIZER.pad_token)
    hidden = their_tower(ids, output_hidden_states=True).hidden_states
    norm = next(module for name, module in their_tower.named_modules() if name.endswith("final_layer_norm"))
    for n in (1, 2, 3):
        agree(f"SD 1, {n}", context(encoder(tower, clip_skip=n)("a red apple")), norm(hidden[-n]))
        expected = hidden[-max(n, 2)]
        agree(f"SDXL, {n}", context(encoder(tower, states="penultimate", clip_skip=n)("a red apple")), expected)
    for n in (0, 4):
        with pytest.raises(RequestError, match=f"clip_skip cannot be {n}: the text tower has 3 layers, give 1 to 3"):
            encoder(tower, clip_skip=n)


# Nothing twice


class Counting(nn.Module):
    """Counts the rows that a tower is asked for."""

    def __init__(self, tower: ClipText) -> None:
        super().__init__()
        self.rows = 0
        tower.register_forward_pre_hook(self.count)

    def count(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        self.rows += len(given[0])


def test_nothing_is_encoded_twice(their_tower: CLIPTextModelWithProjection) -> None:
    tower = made(their_tower)
    counting = Counting(tower)
    voice = Voice(encoder(tower))
    found = speak([said("a [dog|car] AND a red apple BREAK a dog", 20)], [voice])
    assert counting.rows == 3, "a dog, a car, a red apple; the other dog is the same chunk"
    assert len({id(cond) for _, cond in found[0].conds}) == 2
    [(until, always)] = found[1].conds
    assert until == 20
    assert all(found[1].at(step) is always for step in (1, 7, 20))
    assert found[0].at(1) is found[0].at(3)
    assert found[0].at(1) is not found[0].at(2)
    speak([said("a dog", 20)], [voice])
    assert counting.rows == 3, "what a request has said is still known"


# All that is said to pictures


def said(text: str, steps: int = 4, second: str | None = None, *, negative: bool = False) -> tuple[Phase, ...]:
    other = None if second is None else read(second, negative=negative)
    return phases(read(text, negative=negative), Steps(steps), other)


def test_what_is_said_when(tower: ClipText) -> None:
    encode = encoder(tower)
    [spoken] = speak([said("a [dog:car:2]")], [Voice(encode)])
    assert spoken.weight == 1.0
    assert [until for until, _ in spoken.conds] == [2, 4]
    assert torch.equal(context(spoken.at(2)), context(encode("a dog")))
    assert torch.equal(context(spoken.at(3)), context(encode("a car")))


def test_shorter_parts_repeat_their_last_token(tower: ClipText) -> None:
    encode = encoder(tower)
    one, two = speak([said(f"a dog :0.5 AND {LONG} :-2")], [Voice(encode)])
    assert (one.weight, two.weight) == (0.5, -2.0)
    assert torch.equal(context(two.at(1)), context(encode(f" {LONG}")))
    short = context(encode("a dog"))
    assert torch.equal(context(one.at(1)), torch.cat([short, short[:, -1:].expand(-1, 77, -1)], dim=1))


def test_pictures_of_unequal_prompts_are_what_they_are_alone(tower: ClipText) -> None:
    """Attention to a context repeated whole is attention to the context."""
    texts = ["a dog", LONG, f"{LONG} BREAK a car"]
    encode = encoder(tower, pooled=True)
    [spoken] = speak([said(text) for text in texts], [Voice(encode)])
    together = spoken.at(1)
    assert context(together).shape == (3, 6 * 77, 12)
    q = torch.randn(1, 9, 12, generator=torch.Generator().manual_seed(0))
    for k, text in enumerate(texts):
        alone = encode(text)
        here, there = context(together)[k : k + 1], context(alone)
        agree(text[:9], attend(q, here, here, 2), attend(q, there, there, 2))
        assert torch.equal(vector(together)[k : k + 1], vector(alone))


def test_pictures_that_cannot_be_told_together(tower: ClipText) -> None:
    voices = [Voice(encoder(tower))]
    with pytest.raises(RequestError, match="differ in their parts joined by AND: draw them one by one"):
        speak([said("a AND b"), said("a")], voices)
    with pytest.raises(RequestError, match="differ in their parts"):
        speak([said("a AND b"), said("a AND b :2")], voices)
    prompts = [said(" BREAK ".join(["a dog"] * n)) for n in (7, 10)]
    with pytest.raises(RequestError, match="too unequal in length: draw them one by one"):
        speak(prompts, voices)
    assert len(speak(prompts[:1] * 2, voices)) == 1, "however long, if they are alike"


def test_pictures_change_at_their_own_steps(tower: ClipText) -> None:
    encode = encoder(tower)
    [spoken] = speak([said("a [dog:car:1]"), said("a [car:dog:3]")], [Voice(encode)])
    assert [until for until, _ in spoken.conds] == [1, 3, 4]
    rows = [[torch.equal(row, context(encode("a dog"))[0]) for row in context(cond)] for _, cond in spoken.conds]
    assert rows == [[True, False], [False, False], [False, True]]


def test_two_towers_and_a_second_prompt(tower: ClipText) -> None:
    wide = ClipText(replace(CONFIG, width=16)).eval().requires_grad_(False)
    first = encoder(tower, states="penultimate")
    second = encoder(wide, states="penultimate", pooled=True, tokenizer=TOKENIZER.padded_with(0))
    voices = [Voice(first, zeros=True), Voice(second, second=True, zeros=True)]
    [same] = speak([said("a dog")], voices)
    assert torch.equal(context(same.at(1)), torch.cat([context(first("a dog")), context(second("a dog"))], dim=2))
    [other] = speak([said("a dog", 4, f"[{LONG}:a car:2]")], voices)
    assert context(other.at(1)).shape == (1, 154, 28)
    assert torch.equal(context(other.at(1))[..., :12], context(first("a dog", 2))), "as many chunks, further ones empty"
    assert torch.equal(context(other.at(1))[..., 12:], context(second(LONG)))
    assert torch.equal(vector(other.at(1)), vector(second(LONG)))
    assert context(other.at(3)).shape == (1, 77, 28)
    [silent] = speak([said("", negative=True)], voices, negative=True)
    assert not context(silent.at(1)).any()
    assert not vector(silent.at(1)).any()
    assert context(silent.at(1)).shape == (1, 77, 28)
    [heard] = speak([said("", 4, "a car", negative=True)], voices, negative=True)
    assert torch.equal(vector(heard.at(1)), vector(second("a car")))
    assert context(heard.at(1))[..., :12].any(), "said to one tower, it is not nothing"
    assert context(speak([said("")], voices)[0].at(1)).any(), "an empty prompt is told; only a negative one is zeros"


def test_a_picture_is_told_the_same_alone_and_among_others(tower: ClipText) -> None:
    texts = ["a red apple", "a (dog:1.3)", "a blue car"]
    [together] = speak([said(text) for text in texts], [Voice(encoder(tower))])
    for k, text in enumerate(texts):
        [alone] = speak([said(text)], [Voice(encoder(tower))])
        assert torch.equal(context(together.at(1))[k : k + 1], context(alone.at(1)))
