"""The `parameters` text as A1111, its heirs and their extensions write it, and as programs between them broke it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from metadata_cases import png, with_exif
from safelight.errors import RequestError
from safelight.tasks.metadata import Recovered, recover
from safelight.tasks.metadata.a1111 import MAX_LENGTH, parse

BASIC = (
    "a house, (detailed:1.2)\nby the sea\nNegative prompt: blurry, [low quality]\n"
    "Steps: 28, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 965400086, Size: 512x768, "
    "Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, RNG: CPU, Version: v1.10.1"
)


def of(text: str, tmp_path: Path) -> Recovered:
    return recover(png(tmp_path / "a.png", {"parameters": text}))


def line(settings: str, tmp_path: Path) -> Recovered:
    """Of a text whose other settings are plain."""
    return of(f"a house\nSteps: 20, CFG scale: 7, Seed: 1, RNG: CPU, {settings}", tmp_path)


def test_all_of_a_plain_text_is_recovered(tmp_path: Path) -> None:
    found = of(BASIC, tmp_path)
    assert found.tool == "AUTOMATIC1111 v1.10.1"
    assert found.task == "txt2img"
    assert found.fields == {
        "prompt": "a house, (detailed:1.2)\nby the sea",
        "negative_prompt": "blurry, [low quality]",
        "steps": 28,
        "sampler": "dpmpp_2m",
        "spacing": "karras",
        "guidance": 6.5,
        "seed": 965400086,
        "width": 512,
        "height": 768,
    }
    assert (found.model.name, found.model.hash) == ("v1-5-pruned-emaonly", "6ce0161689")
    assert found.notes == ()


def test_exif_in_either_order_of_bytes_and_in_plain_utf8(tmp_path: Path) -> None:
    text = BASIC.replace("house", "Häuschen \N{RED APPLE}")
    wanted = of(text, tmp_path).fields
    for name in ("a.jpg", "a.webp"):
        for comment in (
            b"UNICODE\0" + text.encode("utf-16-be"),
            b"UNICODE\0" + text.encode("utf-16-le"),
            b"UNICODE\0" + text.encode("utf-16"),  # with a mark of the order
            b"\0" * 8 + text.encode(),
            b"ASCII\0\0\0" + text.encode() + b"\0",
            text.encode(),
        ):
            assert recover(with_exif(tmp_path / name, {}, comment)).fields == wanted


def test_compressed_and_international_chunks_and_those_behind_the_pixels(tmp_path: Path) -> None:
    from PIL import PngImagePlugin  # noqa: PLC0415

    wanted = of(BASIC, tmp_path).fields
    for kind in ("tEXt", "zTXt", "iTXt", "iTXt compressed"):
        info = PngImagePlugin.PngInfo()
        if kind.startswith("iTXt"):
            info.add_itxt("parameters", BASIC, "en", "Parameter", zip=kind.endswith("compressed"))
        else:
            info.add_text("parameters", BASIC, zip=kind == "zTXt")
        Image.new("RGB", (8, 8)).save(tmp_path / "b.png", pnginfo=info)
        assert recover(tmp_path / "b.png").fields == wanted
        data = (tmp_path / "b.png").read_bytes()
        start, end = data.index(kind[:4].encode()) - 4, data.index(b"IDAT") - 4
        behind = data[:start] + data[end : data.index(b"IEND") - 4] + data[start:end] + data[-12:]
        assert recover(behind).fields == wanted


def test_a_text_beside_the_picture_or_alone(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(RequestError, match="carries no Safelight record"):
        recover(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(BASIC, "utf-8")
    found = recover(tmp_path / "a.png")
    assert found.fields == recover(tmp_path / "a.txt").fields == of(BASIC, tmp_path).fields
    png(tmp_path / "a.png", {})
    assert recover(tmp_path / "a.png").notes[0].endswith("a.txt' beside the picture")


@pytest.mark.parametrize(
    ("settings", "sampler", "spacing"),
    [
        ("Sampler: DPM++ 2M Karras", "dpmpp_2m", "karras"),  # before 1.9
        ("Sampler: Euler", "euler", "linspace"),
        ("Sampler: Euler a, Schedule type: Automatic", "euler_a", "linspace"),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", "dpmpp_2m", "karras"),
        ("Sampler: DPM++ 2M", "dpmpp_2m", "linspace"),
        ("Sampler: DDIM", "ddim", "leading"),
        ("Sampler: DDIM, Schedule type: Automatic", "ddim", "leading"),
        ("Sampler: Heun, Schedule type: SGM Uniform", "heun", "sgm_uniform"),
        ("Sampler: euler_a, Schedule type: Normal", "euler_a", "linspace"),
        ("Sampler: LMS Exponential", "lms", "exponential"),
        ("Sampler: Euler, Schedule type: Turbo", "euler", "trailing"),  # Forge
        ("Sampler: DPM++ 2M SDE Heun", "dpmpp_2m_sde_heun", "linspace"),
    ],
)
def test_samplers_and_schedules(settings: str, sampler: str, spacing: str, tmp_path: Path) -> None:
    fields = line(settings, tmp_path).fields
    assert (fields["sampler"], fields["spacing"]) == (sampler, spacing)


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        ("Sampler: Euler CFG++", "the sampler 'Euler CFG++' is not understood"),
        ("Sampler: Euler, Schedule type: Karras Exponential", "the schedule 'Karras Exponential' is not understood"),
        ("Size: 0x512", "width cannot be 0"),
        ("Tiling: True, VAE: a.safetensors", "not carried over: tiling: True; vae: a.safetensors"),
        ("Variation seed: 5, Variation seed strength: 0.5", "variation seed: 5"),
        ('ADetailer model: "face, yolo"', "adetailer model: face, yolo"),
        ("Denoising strength: 0.5, Hires upscale: 2, Hires steps: 10", "hires upscale: 2"),
        ("RNG: CPU, Denoising strength: lots", "Denoising strength 'lots' is not understood"),
    ],
)
def test_what_is_not_understood_or_not_carried_is_said(settings: str, note: str, tmp_path: Path) -> None:
    notes = line(settings, tmp_path).notes
    assert any(note in line for line in notes), notes
    assert all("\n" not in line for line in notes)


def test_adapters_are_named_with_their_hashes(tmp_path: Path) -> None:
    hashes = 'Lora hashes: "style: 0123456789ab, extra: ba9876543210", TI hashes: "bad: 00ff00ff00ff"'
    civitai = ', Hashes: {"model": "ab12", "lora:other": "fedcba9876", "embed:worse": "11aa11aa11"}'
    found = of(BASIC.replace("a house", "a house <lora:style:0.8>").replace("RNG", f"{hashes}{civitai}, RNG"), tmp_path)
    assert [note for note in found.notes if "LoRA" in note or "embedding" in note] == [
        "it was drawn with the LoRA style (hash 0123456789ab): give the folder that it is in by --adapters",
        "it was drawn with the LoRA extra (hash ba9876543210): give its file by --lora",
        "it was drawn with the LoRA other (hash fedcba9876): give its file by --lora",
        "its word bad (hash 00ff00ff00ff) is of an embedding: give the file by --embedding",
        "its word worse (hash 11aa11aa11) is of an embedding: give the file by --embedding",
    ]
    many = of(BASIC.replace("a house", "".join(f"<lora:x{k}:1>" for k in range(5000))), tmp_path)
    assert len(many.notes) < 30


def test_fields_that_requests_are_getting_are_read_or_said(tmp_path: Path) -> None:
    found = line("Clip skip: 2, Emphasis: No norm, CFG Rescale: 0.7, Eta DDIM: 0.5", tmp_path)
    for name, value in (("clip_skip", 2), ("emphasis", "no-norm"), ("guidance_rescale", 0.7), ("eta", 0.5)):
        said = any(note.startswith(f"{name.replace('_', ' ')} {value} is left out") for note in found.notes)
        assert found.fields.get(name) == value or said, name


def test_noise_of_a_graphics_card_is_said(tmp_path: Path) -> None:
    assert "not drawn by the CPU" in of(BASIC.replace("RNG: CPU, ", ""), tmp_path).notes[0]


def test_the_task_follows_from_the_settings(tmp_path: Path) -> None:
    assert line("Denoising strength: 0.4", tmp_path).task == "img2img"
    assert line("Denoising strength: 0.4", tmp_path).fields["strength"] == 0.4
    hires = line("Denoising strength: 0.4, Hires upscale: 2", tmp_path)
    assert hires.task == "txt2img"
    assert "strength" not in hires.fields
    masked = line("Denoising strength: 0.75, Mask blur: 8, Inpaint area: Only masked", tmp_path)
    assert (masked.task, masked.fields["blur"], masked.fields["padding"]) == ("inpaint", 8, 32)


# -- breakages that people met


def test_an_extension_that_writes_line_breaks_does_not_become_the_negative_prompt(tmp_path: Path) -> None:
    """A value with a line break once sent all settings into the negative prompt."""
    found = of(
        "a house\nNegative prompt: blurry\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, RNG: CPU, "
        'Template: "{red|blue} house\non a hill", Script: x\ny, Version: v1.6.0',
        tmp_path,
    )
    assert found.fields["negative_prompt"] == "blurry"
    assert found.fields["seed"] == 1
    assert found.tool == "AUTOMATIC1111 v1.6.0"


def test_a_prompt_that_talks_of_steps_is_a_prompt(tmp_path: Path) -> None:
    fake = "Steps: 3, Sampler: Heun, CFG scale: 1, Seed: 2"
    found = of(
        f"stairs\n{fake}\nNegative prompt: x\n{fake}\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1", tmp_path
    )
    assert found.fields["prompt"] == f"stairs\n{fake}"
    assert found.fields["negative_prompt"] == f"x\n{fake}"
    assert found.fields["steps"] == 20


def test_lost_line_breaks(tmp_path: Path) -> None:
    found = of(BASIC.replace("\n", " "), tmp_path)
    assert found.fields == {
        **of(BASIC, tmp_path).fields,
        "prompt": "a house, (detailed:1.2) by the sea",
    }
    assert of(BASIC.replace("\n", "\r\n"), tmp_path).fields == of(BASIC, tmp_path).fields


def test_keys_in_another_order_and_lists_without_quotes(tmp_path: Path) -> None:
    """As a site writes that makes pictures itself."""
    found = of(
        "a cat\nNegative prompt: dog\nCFG scale: 7, Sampler: Euler a, Seed: 1, Size: 832x1216, Steps: 28, RNG: CPU, "
        'Civitai resources: [{"type":"checkpoint","modelVersionId":1,"modelName":"a, b: c"}], Clip skip: 1',
        tmp_path,
    )
    assert (found.fields["width"], found.fields["steps"]) == (832, 28)
    assert not any("modelName" in key for key in found.fields)
    assert [note.count("civitai resources") for note in found.notes] == [1]


def test_hypernetworks_of_old_texts_become_tags(tmp_path: Path) -> None:
    found = line("Hypernet: anime(1a2b3c), Hypernet strength: 0.6", tmp_path)
    assert found.fields["prompt"] == "a house<hypernet:anime:0.6>"


def test_the_first_of_two_equal_keys_counts(tmp_path: Path) -> None:
    assert line("Seed: 99", tmp_path).fields["seed"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "only a prompt: with colons, and: commas, so: many",
        '{"sui_image_params": {"prompt": "x", "steps": 20, "seed": 1}}',
        "Steps: 20",
        "Steps: , Sampler: , CFG scale: ",
    ],
)
def test_texts_without_settings_are_not_taken_for_prompts(text: str, tmp_path: Path) -> None:
    if text.startswith("Steps: ,"):
        assert "how many steps is not said" in of(text, tmp_path).notes
        return
    with pytest.raises(
        RequestError, match="no metadata of InvokeAI, NovelAI, AUTOMATIC1111, ComfyUI that is understood"
    ):
        of(text, tmp_path)


def test_too_much_text_is_refused_and_any_text_is_read_in_linear_time() -> None:
    with pytest.raises(RequestError, match="more than 1048576 characters"):
        parse("x" * (MAX_LENGTH + 1))
    for piece in (
        'a:"',
        "a:[",
        "a:{",
        'a:"\\',
        "Steps: 1,",
        "Steps: 1, Seed: 1, Size: 1\n",
        "\nNegative prompt:",
        "w ",
    ):
        parse((piece * MAX_LENGTH)[:MAX_LENGTH])  # would take hours if it were quadratic
