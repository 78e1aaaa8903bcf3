"""Textual inversion: every kind of file, words in prompts, towers of every member, against diffusers and torch."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from family_oracles import Both, alike, fresh, made
from golden_cases import GOLDEN, agree
from safelight.adapters.embedding_files import (
    MAX_TEXT,
    read_embedding,
    write_diffusers_embedding,
    write_embedding,
)
from safelight.adapters.embeddings import ONLY, Embedding, Taught, TaughtTokenizer, teach
from safelight.adapters.origin import Origin
from safelight.conditioning.text import Encoder, Reader, encode_prompts
from safelight.errors import ModelFileError, RequestError, SafelightError
from safelight.models.bert import Bert
from safelight.models.clip import ClipText
from safelight.presets import PRESETS
from safelight.presets.conditions import Words
from safelight.tasks.model import Model
from toy_family import BERT_WORDS, CLIP_WORDS, SECOND_WIDTH, WIDTH, toy_model, toy_preset

FILES = GOLDEN / "adapters" / "files"
WORD = "jojo"
PROMPT = "a jojo cat, the (JOJO:1.3) of a dog"


def vectors(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def embedding(count: int = 2, *widths: int, word: str = WORD, seed: int = 0) -> Embedding:
    """For towers of these widths: one, or SDXL's two."""
    parts = (ONLY,) if len(widths) == 1 else ("text", "text_2")
    return Embedding(
        (word,), {part: vectors(count, w, seed + k) for k, (part, w) in enumerate(zip(parts, widths, strict=True))}
    )


def taught_words(taught: list[tuple[tuple[str, ...], int]], first: int = 1000) -> TaughtTokenizer:
    return TaughtTokenizer(CLIP_WORDS, first, taught)


# Files

AS_READ: Mapping[str, tuple[tuple[str, ...], Mapping[str, str], Origin]] = {
    "ti_a1111_sd1_3vec.pt": (
        ("ti_a1111_sd1_3vec",),
        {ONLY: "string_to_param"},
        Origin("my-style", 1999, "model", "abcdef12"),
    ),
    "ti_original_ldm_parameterdict.pt": (("ti_original_ldm_parameterdict",), {ONLY: "string_to_param"}, Origin()),
    "ti_diffusers_concept.bin": (("ti_diffusers_concept", "<my-concept>"), {ONLY: "<my-concept>"}, Origin()),
    "ti_diffusers_concept.safetensors": (("ti_diffusers_concept", "<my-concept>"), {ONLY: "<my-concept>"}, Origin()),
    "ti_emb_params_sd1.safetensors": (("ti_emb_params_sd1",), {ONLY: "emb_params"}, Origin()),
    "ti_emb_params_sd2.safetensors": (("ti_emb_params_sd2",), {ONLY: "emb_params"}, Origin()),
    "ti_sdxl_clip_l_clip_g.safetensors": (
        ("ti_sdxl_clip_l_clip_g",),
        {"text": "clip_l", "text_2": "clip_g"},
        Origin(),
    ),
}
FAMILIES = {"sd1": "Stable Diffusion 1", "sd2": "Stable Diffusion 2", "sdxl": "Stable Diffusion XL"}


def test_every_recorded_file_is_tested() -> None:
    assert set(AS_READ) == {path.name for path in FILES.glob("ti_*")}


@pytest.mark.parametrize("name", AS_READ)
def test_every_kind_of_file_is_read_as_its_own_library_reads_it(name: str) -> None:
    words, keys, origin = AS_READ[name]
    safe = name.endswith(".safetensors")
    theirs: Any = load_file(FILES / name) if safe else torch.load(FILES / name, weights_only=False)
    found = read_embedding(FILES / name)
    assert found.words == words
    assert found.origin == origin
    assert set(found.vectors) == set(keys)
    for part, key in keys.items():
        expected = theirs[key]["*"] if key == "string_to_param" else theirs[key]
        assert torch.equal(found.vectors[part], expected.detach().reshape(-1, expected.shape[-1]))
        assert found.vectors[part].dtype == torch.float32
    assert read_embedding(FILES / name, "given").words == ("given",)
    family = next((title for mark, title in FAMILIES.items() if mark in name), "Stable Diffusion 1")
    assert found.family == family


@pytest.mark.parametrize("zipped", [True, False])
def test_half_precision_and_the_oldest_container_are_read(tmp_path: Path, zipped: bool) -> None:
    expected = vectors(2, 768).half()
    content = {"string_to_param": {"*": expected}, "string_to_token": {"*": 265}, "name": "x", "step": 3}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_embedding(tmp_path / "x.pt").vectors[ONLY], expected.float())


def preview(path: Path, content: object, key: str = "sd-ti-embedding", compress: bool = False) -> None:
    text = content if isinstance(content, str) else base64.b64encode(json.dumps(content).encode()).decode()
    info = PngImagePlugin.PngInfo()
    info.add_text(key, text, zip=compress)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)


@pytest.mark.parametrize("compress", [False, True])
def test_the_web_uis_preview_picture_carries_an_embedding(tmp_path: Path, compress: bool) -> None:
    expected = vectors(2, 768)
    content = {"string_to_param": {"*": {"TORCHTENSOR": expected.tolist()}}, "name": "painted", "step": 7}
    preview(tmp_path / "a.png", content, compress=compress)
    found = read_embedding(tmp_path / "a.png")
    assert found.words == ("painted",)
    assert found.origin.step == 7
    assert torch.equal(found.vectors[ONLY], expected), "floats come back from their shortest letters"


@pytest.mark.parametrize("widths", [(768,), (1024,), (768, 1280)])
def test_what_is_written_is_read_again_and_has_the_names_that_others_look_for(
    tmp_path: Path, widths: tuple[int, ...]
) -> None:
    taught = replace(embedding(3, *widths), origin=Origin("jojo", 500, "base", "0123456789"))
    write_embedding(tmp_path / "jojo.safetensors", taught, {"modelspec.title": "jojo"})
    keys = {"emb_params"} if len(widths) == 1 else {"clip_l", "clip_g"}
    assert set(load_file(tmp_path / "jojo.safetensors")) == keys
    again = read_embedding(tmp_path / "jojo.safetensors")
    assert again.words == (WORD,)
    assert again.origin == taught.origin
    assert all(torch.equal(again.vectors[part], tensor) for part, tensor in taught.vectors.items())


def test_files_for_diffusers_hold_one_tower_each(tmp_path: Path) -> None:
    both = embedding(2, 768, 1280)
    with pytest.raises(ValueError, match="name one"):
        write_diffusers_embedding(tmp_path / "a.safetensors", both)
    with pytest.raises(ValueError, match="not for 'vision'"):
        write_diffusers_embedding(tmp_path / "a.safetensors", both, "vision")
    write_diffusers_embedding(tmp_path / "a.safetensors", both, "text_2")
    assert torch.equal(load_file(tmp_path / "a.safetensors")[WORD], both.vectors["text_2"])


# Files that are none


def _saved(content: object) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


def _params(value: object, **more: object) -> Callable[[Path], None]:
    return _saved({"string_to_param": {"*": value}, **more})


BAD: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "missing.pt": (lambda path: None, "is missing"),
    "empty.pt": (lambda path: path.write_bytes(b""), "is empty"),
    "noise.pt": (lambda path: path.write_bytes(bytes(range(256)) * 8), "noise.pt"),
    "text.safetensors": (lambda path: path.write_bytes(b"no weights at all"), "text.safetensors"),
    "list.pt": (_saved([vectors(1, 768)]), "it holds no names"),
    "nothing.pt": (_saved({}), "it is empty"),
    "code.pt": (_saved({"a": Path}), "may run code"),
    "two.pt": (_saved({"<a>": vectors(1, 768), "<b>": vectors(1, 768)}), "it has '<b>' too"),
    "params.pt": (_saved({"string_to_param": {"*": vectors(1, 8), "+": vectors(1, 8)}}), "it has '\\+' too"),
    "unnamed.pt": (_saved({"string_to_param": {}}), "it names no vectors"),
    "number.pt": (_params(3), "'\\*' is no tensor"),
    "more.pt": (_params(vectors(1, 768), extra={"x": vectors(1, 1)}), "it has 'extra' too"),
    "cube.pt": (_params(torch.zeros(1, 2, 768)), r"the shape \[1, 2, 768\]"),
    "whole.pt": (_params(torch.zeros(2, 768, dtype=torch.int64)), "whole numbers"),
    "nan.pt": (_params(torch.full((1, 768), torch.nan)), "not finite"),
    "none.pt": (_params(torch.zeros(0, 768)), r"the shape \[0, 768\]"),
    "vast.pt": (_params(torch.zeros(1).expand(1 << 30, 768)), "the shape"),
    "digits.pt": (_saved({10**5000: vectors(1, 768), "b": 1}), "it has 'b' too"),
    "line\n.pt": (_saved({"a\nb": 1}), "'a"),
    "one.safetensors": (
        lambda path: save_file({"clip_l": vectors(1, 768), "unet": vectors(1, 8)}, path),
        "it has 'unet' too",
    ),
    "unequal.safetensors": (
        lambda path: save_file({"clip_l": vectors(1, 768), "clip_g": vectors(2, 1280)}, path),
        "unequal numbers",
    ),
    "hypernetwork.pt": (
        lambda path: path.write_bytes((FILES / "hypernetwork_plain.pt").read_bytes()),
        "32 is no tensor",
    ),
    "plain.png": (lambda path: Image.new("RGB", (8, 8)).save(path), "no text 'sd-ti-embedding'"),
    "cut.png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\0"), "no picture that can be read"),
    "garbage.png": (lambda path: preview(path, "not base64!"), "no JSON"),
    "deep.png": (lambda path: preview(path, base64.b64encode(b"[" * 99_999).decode()), "no JSON"),
    "long.png": (lambda path: preview(path, "A" * (MAX_TEXT + 4)), "is refused"),
    "bomb.png": (lambda path: preview(path, "A" * (MAX_TEXT + 4), compress=True), "no picture|is refused|no text"),
    "ragged.png": (
        lambda path: preview(path, {"string_to_param": {"*": {"TORCHTENSOR": [[1.0], [1.0, 2.0]]}}}),
        "no tensor",
    ),
    "large.png": (
        lambda path: preview(path, {"string_to_param": {"*": {"TORCHTENSOR": [[10**400]]}}}),
        "no tensor",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    write, message = BAD[name]
    path = tmp_path / name.replace("\n", "")
    write(path)
    with pytest.raises(ModelFileError, match=message) as caught:
        read_embedding(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = (FILES / "ti_a1111_sd1_3vec.pt").read_bytes()
    for size in range(0, len(whole), 501):
        (tmp_path / "cut.pt").write_bytes(whole[:size])
        with pytest.raises(SafelightError):
            read_embedding(tmp_path / "cut.pt")


# Which model


@pytest.mark.parametrize(
    ("name", "preset", "fits"),
    [
        ("ti_emb_params_sd1.safetensors", "sd1", True),
        ("ti_emb_params_sd2.safetensors", "sd2-v", True),
        ("ti_sdxl_clip_l_clip_g.safetensors", "sdxl", True),
        ("ti_sdxl_clip_l_clip_g.safetensors", "sdxl-refiner", True),
        ("ti_emb_params_sd1.safetensors", "sd2-v", False),
        ("ti_emb_params_sd1.safetensors", "sdxl", False),
        ("ti_emb_params_sd2.safetensors", "sd1", False),
        ("ti_sdxl_clip_l_clip_g.safetensors", "sd1", False),
        ("ti_emb_params_sd1.safetensors", "tiny", False),
    ],
)
def test_an_embedding_of_another_family_is_refused_by_its_name(name: str, preset: str, fits: bool) -> None:
    found, member = read_embedding(FILES / name), PRESETS[preset]
    towers = {words.part: words.tower for words in member.words}
    if fits:
        assert {part: v.shape[1] for part, v in found.for_towers(towers, member.title).items()} == {
            part: tower.width for part, tower in towers.items()
        }
        return
    with pytest.raises(ModelFileError) as caught:
        found.for_towers(towers, member.title)
    message = str(caught.value)
    assert name in message
    assert f"is of {found.family}: its vectors are" in message
    assert member.title in message
    assert "\n" not in message


# Words


def test_words_are_found_as_the_web_ui_finds_them() -> None:
    tokenizer = taught_words([(("jojo",), 2), (("jojo-style", "<jojo>"), 1), (("x",), 3)])
    plain = CLIP_WORDS.words

    def said(text: str) -> list[int | str]:
        return [i if i >= 1000 else CLIP_WORDS.spelled(i) for i in tokenizer.words(text)]

    assert said("a jojo cat") == ["a", 1000, 1001, "c", "a", "t"]
    assert said("JoJo") == [1000, 1001], "letters of any case"
    assert said("jojo,x") == [1000, 1001, ",", 1003, 1004, 1005]
    assert said("jojo-style") == [1002], "the longest name wins"
    assert said("jojo - style") == [1002], "tokens count, not spaces"
    assert said("jojo-stylex")[:2] == [1000, 1001]
    assert said("a<jojo>b") == ["a", 1002, "b"]
    assert tokenizer.words("no such word") == plain("no such word")
    assert tokenizer.mentioned("x of jojo and <jojo> x") == ("x", "jojo", "jojo-style")
    assert tokenizer.together == {1000: 2, 1002: 1, 1003: 3}
    assert [tokenizer.spelled(i) for i in range(1000, 1004)] == ["jojo[1/2]", "jojo[2/2]", "jojo-style", "x[1/3]"]
    assert tokenizer.spelled(plain("a")[0]) == "a"
    assert tokenizer.comma == CLIP_WORDS.comma


def test_a_word_inside_another_is_not_found() -> None:
    merged = CLIP_WORDS.train(["cat catalog"] * 9, 600)
    tokenizer = TaughtTokenizer(merged, 1000, [(("cat",), 1)])
    assert 1000 in tokenizer.words("a cat")
    assert tokenizer.words("a catalog") == merged.words("a catalog")


@pytest.mark.parametrize(
    ("taught", "message"),
    [
        ([((" ",), 1)], "no name that this model can read"),
        ([(("a",), 1), (("A ",), 1)], "two embeddings are called 'A '"),
        ([(("a", "b"), 1), (("b",), 2)], "two embeddings are called 'b'"),
    ],
)
def test_names_must_be_readable_and_one_for_each(taught: list[tuple[tuple[str, ...], int]], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        taught_words(taught)
    taught_words([(("a", "A"), 1)])


def test_a_name_of_no_known_letters_is_refused_for_bert() -> None:
    with pytest.raises(RequestError, match="no name"):
        TaughtTokenizer(BERT_WORDS, 1000, [(("日本",), 1)])


def test_several_vectors_are_never_split_over_chunks() -> None:
    tokenizer = taught_words([(("jojo",), 8)])
    reader = Reader(tokenizer, together=tokenizer.together)
    for before in range(60, 80):
        chunks = reader.chunks("z " * before + "(jojo:1.5) z")
        ids = [id_ for chunk in chunks for id_ in chunk.ids if id_ >= 1000]
        assert ids == list(range(1000, 1008))
        [holder] = [chunk for chunk in chunks if 1000 in chunk.ids]
        place = holder.ids.index(1000)
        assert holder.ids[place : place + 8] == tuple(range(1000, 1008))
        assert holder.weights[place : place + 8] == (1.5,) * 8
        assert len(chunks) == (1 if before <= 66 else 2)
    many = taught_words([(("jojo",), 76)])
    with pytest.raises(RequestError, match="embedding of 76 tokens"):
        Reader(many, together=many.together).chunks("jojo")


# Towers

TOLD_WORDS = [name for name, preset in PRESETS.items() if preset.words]


def lessons(model: Model, *embeddings: Embedding) -> dict[str, Taught]:
    towers = {words.part: words.tower for words in model.preset.words}
    return teach(embeddings, towers, model.tokenizers, model.preset.title)


def encoder(model: Model, words: Words, taught: Taught | None) -> Encoder:
    tower = model.networks[words.part]
    assert isinstance(tower, ClipText | Bert)
    tokenizer = model.tokenizers[words.part] if taught is None else taught.tokenizer
    together = None if taught is None else taught.tokenizer.together
    reader = Reader(tokenizer, together=together, single=isinstance(tower, Bert))
    rows = None if taught is None else taught.rows
    return Encoder(reader, tower, states=words.states, pooled=words.pooled, taught=rows)


@pytest.mark.parametrize("name", TOLD_WORDS)
def test_every_member_reads_taught_words_as_if_its_table_were_longer(name: str) -> None:
    """The oracle is the same tower with the rows in its table; ours is the same tensors before and after."""
    model = toy_model(PRESETS[name])
    before = {part: copy.deepcopy(model.networks[part].state_dict()) for part in model.networks}
    tensors = {part: list(model.networks[part].parameters()) for part in model.networks}
    widths = [words.tower.width for words in model.preset.words]
    taught = lessons(model, embedding(2, *widths), embedding(1, *widths, word="dog", seed=5))
    assert set(taught) == {words.part for words in model.preset.words}
    with torch.inference_mode():
        for words in model.preset.words:
            mine, plain = encoder(model, words, taught[words.part]), encoder(model, words, None)
            said = mine(PROMPT)
            longer = copy.deepcopy(model.networks[words.part])
            table = longer.get_submodule(
                "embeddings.token_embedding" if isinstance(longer, ClipText) else "model.embed_tokens"
            )
            assert isinstance(table, nn.Embedding)
            table.weight = nn.Parameter(torch.cat([table.weight, taught[words.part].rows]), requires_grad=False)
            table.num_embeddings = len(table.weight)
            assert isinstance(longer, ClipText | Bert)
            expected = Encoder(mine.reader, longer, states=words.states, pooled=words.pooled)(PROMPT)
            assert said.context is not None and expected.context is not None
            assert torch.equal(said.context, expected.context)
            assert said.context.shape == plain(PROMPT).context.shape  # type: ignore[union-attr]
            assert not torch.allclose(said.context, plain(PROMPT).context)  # type: ignore[arg-type]
            if words.pooled:
                assert torch.equal(said.vector, expected.vector)  # type: ignore[arg-type]
            assert mine("a cat").context.equal(plain("a cat").context)  # type: ignore[union-attr]
    for part, network in model.networks.items():
        assert all(a is b for a, b in zip(tensors[part], network.parameters(), strict=True))
        assert all(torch.equal(tensor, before[part][key]) for key, tensor in network.state_dict().items())


def test_the_summary_is_taken_at_the_end_mark_and_not_at_the_largest_id() -> None:
    model = toy_model(PRESETS["sdxl"])
    [_, words] = model.preset.words
    taught = lessons(model, embedding(2, WIDTH, SECOND_WIDTH))[words.part]
    tower = model.networks[words.part]
    assert isinstance(tower, ClipText)
    ids = taught.tokenizer(["a jojo cat"])
    assert int(ids.argmax()) != int((ids == tower.config.end_token).int().argmax()), "the case proves something"
    said = tower(ids, taught.rows)
    end = ids[0].tolist().index(tower.config.end_token)
    assert torch.equal(said.pooled, said.last[:, end])


def test_a_tower_without_vectors_reads_letters() -> None:
    model = toy_model(PRESETS["sdxl"])
    one = Embedding((WORD,), {"text_2": vectors(1, SECOND_WIDTH)})
    assert set(lessons(model, one)) == {"text_2"}
    assert one.family == "Stable Diffusion XL"


def test_towers_in_half_precision_read_them() -> None:
    model = toy_model(PRESETS["sd1"])
    [words] = model.preset.words
    taught = lessons(model, embedding(2, WIDTH))[words.part]
    expected = encoder(model, words, taught)(PROMPT).context
    model.networks[words.part].to(torch.bfloat16)
    said = encoder(model, words, taught)(PROMPT).context
    assert said is not None and expected is not None
    assert said.dtype == torch.bfloat16
    agree("bfloat16", said.float(), expected, 5e-2)


def test_training_reaches_the_taught_rows_alone() -> None:
    model = toy_model(PRESETS["sd1"])
    [words] = model.preset.words
    tower = model.networks[words.part]
    assert isinstance(tower, ClipText)
    taught = lessons(model, embedding(3, WIDTH), embedding(1, WIDTH, word="unsaid"))[words.part]
    rows = taught.rows.clone().requires_grad_()
    cond = encode_prompts(taught.tokenizer, tower, ["a jojo cat", "jojo"], taught=rows)
    assert cond.context is not None
    cond.context.square().sum().backward()
    assert rows.grad is not None
    assert bool((rows.grad[:3].abs().amax(dim=1) > 0).all())
    assert bool((rows.grad[3] == 0).all()), "of a word that was not said"
    assert all(parameter.grad is None for parameter in tower.parameters())


# Against diffusers


@pytest.fixture(scope="module", params=["sd1", "sd2-base", "sdxl"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return made(request.param, tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("count", [1, 3])
def test_diffusers_reads_our_files_and_says_and_draws_the_same(both: Both, tmp_path: Path, count: int) -> None:
    model = both.model
    widths = [words.tower.width for words in model.preset.words]
    taught = embedding(count, *widths)
    xl = len(widths) == 2
    theirs = both.theirs("StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline", "ddim", "leading")
    assert isinstance(theirs, StableDiffusionXLPipeline if xl else StableDiffusionPipeline)
    for words in model.preset.words:
        file = tmp_path / f"{words.part}.safetensors"
        write_diffusers_embedding(file, taught, words.part if xl else None)
        second = words.part == "text_2"
        theirs.load_textual_inversion(
            tmp_path,
            weight_name=file.name,
            tokenizer=theirs.tokenizer_2 if second else theirs.tokenizer,
            text_encoder=theirs.text_encoder_2 if second else theirs.text_encoder,
        )
    prompt = "a jojo cat left of jojo"
    expected = theirs.encode_prompt(prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    lesson = lessons(model, taught)
    with torch.inference_mode():
        said = [encoder(model, words, lesson[words.part])(prompt) for words in model.preset.words]
    context = torch.cat([cond.context for cond in said if cond.context is not None], dim=-1)
    agree("states", context, expected[0], 1e-5)
    size = {"width": model.preset.width, "height": model.preset.height}
    embeds = {"prompt_embeds": context, "negative_prompt_embeds": torch.zeros_like(context)}
    if xl:
        vector = said[1].vector
        assert vector is not None
        agree("summary", vector, expected[2], 1e-5)
        embeds |= {"pooled_prompt_embeds": vector, "negative_pooled_prompt_embeds": torch.zeros_like(vector)}
    told = {name: value for name, value in embeds.items() if name.startswith("negative")}
    one = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "pil", **size}
    alike(
        "pictures",
        theirs(**embeds, **one, generator=fresh(1)).images,
        theirs(prompt=prompt, **told, **one, generator=fresh(1)).images,
    )


def test_toy_towers_are_of_no_known_family() -> None:
    preset = toy_preset(PRESETS["sd1"])
    towers = {words.part: words.tower for words in preset.words}
    with pytest.raises(ModelFileError, match=r"is of an unknown family: its vectors are 7 wide, and those of .* 24;"):
        embedding(1, 7).for_towers(towers, preset.title)
