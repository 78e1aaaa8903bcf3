"""InvokeAI's three kinds of metadata, and NovelAI's, in chunks and hidden in the alpha channel."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pytest
from PIL import Image
from sd_parsers import Eagerness, ParserManager

from metadata_cases import png
from safelight.diffusion.names import SAMPLER_NAMES, SPACING_NAMES
from safelight.errors import RequestError
from safelight.tasks.metadata import Recovered, recover
from safelight.tasks.metadata.labels import A1111, COMFY, INVOKE, INVOKE_OLD, NOVELAI, Names


@pytest.mark.parametrize("names", [A1111, COMFY, INVOKE, INVOKE_OLD, NOVELAI])
def test_every_table_leads_to_names_of_ours_in_lower_case(names: Names) -> None:
    assert set(names.samplers.values()) <= set(SAMPLER_NAMES)
    assert set(names.spacings.values()) <= set(SPACING_NAMES)
    assert all(key == key.lower() for key in (*names.samplers, *names.spacings))
    assert names.sampler(" EULER ") == names.sampler("euler")
    assert names.sampler("nonsense") is None
    assert names.spacing("nonsense") is None


# -- InvokeAI

MODERN: dict[str, object] = {
    "generation_mode": "sdxl_txt2img",
    "positive_prompt": "a wooden boat",
    "negative_prompt": "people",
    "width": 1024,
    "height": 832,
    "seed": 1234,
    "rand_device": "cpu",
    "cfg_scale": 7.5,
    "cfg_rescale_multiplier": 0.0,
    "steps": 30,
    "scheduler": "euler_k",
    "clip_skip": 0,
    "model": {"key": "k", "hash": "blake3:ab12cd34", "name": "boats XL", "base": "sdxl", "type": "main"},
    "app_version": "5.6.0",
}


def invoke(tmp_path: Path, **changes: object) -> Recovered:
    return recover(png(tmp_path / "a.png", {"invokeai_metadata": json.dumps(MODERN | changes)}))


def test_invokeai_since_three(tmp_path: Path) -> None:
    found = invoke(tmp_path)
    assert (found.tool, found.task, found.notes) == ("InvokeAI 5.6.0", "txt2img", ())
    assert found.fields == {
        "prompt": "a wooden boat",
        "negative_prompt": "people",
        "seed": 1234,
        "steps": 30,
        "width": 1024,
        "height": 832,
        "guidance": 7.5,
        "sampler": "euler",
        "spacing": "karras",
    }
    assert (found.model.name, found.model.hash) == ("boats XL", "blake3:ab12cd34")
    info = ParserManager().parse(tmp_path / "a.png")  # the fixture is one, as another reader sees it
    assert info is not None
    assert info.samplers[0].parameters["seed"] == 1234


def test_invokeai_loras_models_of_version_three_and_what_is_left(tmp_path: Path) -> None:
    found = invoke(
        tmp_path,
        model={"model_name": "old", "base_model": "sd-1", "model_type": "main"},
        loras=[{"lora": {"model_name": "ink"}, "weight": 0.75}, {"model": {"name": "wash"}, "weight": 1}],
        controlnets=[{"image": {}}],
        refiner_model={"name": "refiner"},
        scheduler="dpmpp_3m",
        positive_prompt="boat++ (sea)1.2",
    )
    assert found.fields["prompt"] == "boat++ (sea)1.2 <lora:ink:0.75> <lora:wash:1>"
    assert found.model.name == "old"
    for words in ("'dpmpp_3m' is not understood", "controlnets: 1 of them", "refiner_model: refiner", "++ and --"):
        assert any(words in note for note in found.notes), words


def test_invokeai_over_another_picture_and_of_another_family(tmp_path: Path) -> None:
    found = invoke(tmp_path, generation_mode="sdxl_img2img", strength=0.55)
    assert (found.task, found.fields["strength"]) == ("img2img", 0.55)
    assert invoke(tmp_path, generation_mode="outpaint").task == "inpaint"
    assert any("another family (flux)" in note for note in invoke(tmp_path, generation_mode="flux_txt2img").notes)


def test_invokeai_two(tmp_path: Path) -> None:
    image = {"prompt": [{"prompt": "a fox [blurry] in snow [dark]", "weight": 1.0}], "steps": 50, "cfg_scale": 7.5}
    image |= {"height": 512, "width": 640, "seed": 99, "type": "txt2img", "sampler": "k_lms", "variations": []}
    data = {"model_weights": "stable-diffusion-1.5", "model_hash": "cc6cb27103", "app_version": "2.3.0", "image": image}
    found = recover(png(tmp_path / "a.png", {"sd-metadata": json.dumps(data), "Dream": "ignored"}))
    assert found.fields == {
        "prompt": "a fox  in snow",
        "negative_prompt": "blurry dark",
        "seed": 99,
        "steps": 50,
        "width": 640,
        "height": 512,
        "guidance": 7.5,
        "sampler": "lms",
    }
    assert (found.tool, found.model.hash) == ("InvokeAI 2.3.0", "cc6cb27103")


@pytest.mark.parametrize(
    "line",
    [
        '"a fox, \\"red\\"" -s 50 -S 42 -W 512 -H 768 -C 7.5 -A k_euler_a -G 0.8',
        '"a fox, \\"red\\"" -s50 -S42 -W512 -H768 -C7.5 -A k_euler_a -G 0.8',
    ],
)
def test_invokeai_one(line: str, tmp_path: Path) -> None:
    found = recover(png(tmp_path / "a.png", {"Dream": line}))
    assert found.fields == {
        "prompt": 'a fox, \\"red\\"',
        "steps": 50,
        "seed": 42,
        "guidance": 7.5,
        "width": 512,
        "height": 768,
        "sampler": "euler_a",
    }
    assert found.notes == ("not carried over: -G: 0.8",)


# -- NovelAI

COMMENT: dict[str, object] = {
    "prompt": "1girl, {smile}",
    "steps": 28,
    "height": 1216,
    "width": 832,
    "scale": 5.0,
    "uncond_scale": 1.0,
    "cfg_rescale": 0.0,
    "seed": 2468,
    "noise_schedule": "karras",
    "sampler": "k_euler_ancestral",
    "sm": False,
    "sm_dyn": False,
    "dynamic_thresholding": False,
    "uc": "lowres",
    "request_type": "PromptGenerateRequest",
}


def chunks(**changes: object) -> dict[str, str]:
    return {
        "Title": "AI generated image",
        "Description": "1girl, {smile}",
        "Software": "NovelAI",
        "Source": "Stable Diffusion XL C1E1DE52",
        "Comment": json.dumps(COMMENT | changes),
    }


NOVEL = {
    "prompt": "1girl, {smile}",
    "negative_prompt": "lowres",
    "seed": 2468,
    "steps": 28,
    "guidance": 5.0,
    "width": 832,
    "height": 1216,
    "sampler": "euler_a",
    "spacing": "karras",
}


def test_novelai(tmp_path: Path) -> None:
    found = recover(png(tmp_path / "a.png", chunks()))
    assert (found.tool, found.task, found.model.name) == ("NovelAI", "txt2img", "Stable Diffusion XL C1E1DE52")
    assert found.fields == NOVEL
    assert [note for note in found.notes if "not carried over" in note] == []
    assert any("{} and [] weigh" in note for note in found.notes)
    info = ParserManager().parse(tmp_path / "a.png")
    assert info is not None
    assert info.samplers[0].parameters["seed"] == 2468


def test_novelai_as_it_was_first(tmp_path: Path) -> None:
    """No size, no prompt in the comment; `strength` says that it was drawn over another."""
    comment = {"steps": 28, "sampler": "k_euler", "seed": 1, "strength": 0.69, "noise": 0.2, "scale": 11.0, "uc": "x"}
    texts = {"Software": "NovelAI", "Description": "a cat", "Comment": json.dumps(comment)}
    found = recover(png(tmp_path / "a.png", texts))
    assert (found.task, found.fields["prompt"], found.fields["strength"]) == ("img2img", "a cat", 0.69)
    assert (found.fields["width"], found.fields["height"]) == (8, 8), "of the picture itself"
    assert any("noise: 0.2" in note for note in found.notes)


def test_novelai_four_with_characters(tmp_path: Path) -> None:
    v4 = {"caption": {"base_caption": "two cats", "char_captions": [{"char_caption": "a black cat"}]}}
    found = recover(png(tmp_path / "a.png", chunks(v4_prompt=v4, sm=True, sampler="ddim_v3")))
    assert found.fields["prompt"] == "two cats"
    for words in ("character prompt: a black cat", "sm: True", "'ddim_v3' is not understood"):
        assert any(words in note for note in found.notes), words


def hide(data: bytes, signature: bytes, size: tuple[int, int] = (96, 80)) -> bytes:
    """A PNG with bytes in the lowest bit of its alpha, column by column."""
    whole = signature + (8 * len(data)).to_bytes(4, "big") + data
    bits = [byte >> shift & 1 for byte in whole for shift in range(7, -1, -1)]
    image = Image.new("RGBA", size, (10, 20, 30, 254))
    for k, bit in enumerate(bits):
        image.putpixel((k // size[1], k % size[1]), (10, 20, 30, 254 | bit))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def test_novelai_hidden_in_the_alpha_channel() -> None:
    said = json.dumps(chunks()).encode()
    packed, plain = hide(gzip.compress(said), b"stealth_pngcomp"), hide(said, b"stealth_pnginfo", (100, 100))
    assert recover(packed).fields == recover(plain).fields == NOVEL
    info = ParserManager(eagerness=Eagerness.EAGER).parse(io.BytesIO(packed))
    assert info is not None, "the fixture is one, as another reader sees it"
    text = "a cat\nSteps: 5, Sampler: Euler, CFG scale: 7, Seed: 3, RNG: CPU"
    assert recover(hide(gzip.compress(text.encode()), b"stealth_pngcomp")).fields["seed"] == 3


@pytest.mark.parametrize(
    "data",
    [
        hide(b"not gzip", b"stealth_pngcomp"),
        hide(gzip.compress(b"x" * 100)[:-9], b"stealth_pngcomp"),
        hide(gzip.compress(bytes(2**23)), b"stealth_pngcomp", (200, 400)),  # unpacks to too much
        hide(b"", b"stealth_pngcomp")[:-40],
        hide(b"{}", b"stealth_pnginfo"),
        hide(b'{"Software": "NovelAI", "Comment": "["}', b"stealth_pnginfo"),
    ],
)
def test_what_is_hidden_badly_is_one_line(data: bytes) -> None:
    with pytest.raises(RequestError, match=r"^[^\n]*$"):
        recover(data)


@pytest.mark.parametrize("chunk", ["invokeai_metadata", "sd-metadata"])
@pytest.mark.parametrize(
    "text", ["{", "[1, 2]", '{"seed": "x", "steps": [], "image": 7, "model": "m", "loras": {}}', "7"]
)
def test_wrong_types_are_no_traceback(chunk: str, text: str, tmp_path: Path) -> None:
    for texts in ({chunk: text}, {"Software": "NovelAI", "Comment": text}):
        try:
            found = recover(png(tmp_path / "a.png", texts))
        except RequestError as error:
            assert "\n" not in str(error)
        else:
            assert "seed" not in found.fields
