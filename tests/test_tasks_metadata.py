"""What a picture says of itself, in words that other tools read and in lossless JSON."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from xml.etree import ElementTree

import piexif
import piexif.helper
import pytest
from PIL import Image
from sd_parsers import ParserManager

from metadata_cases import FORMATS, MODEL, a1111_reading, png, prompt_reader_reading, request, words
from safelight.diffusion.names import SAMPLER_NAMES, SPACING_NAMES
from safelight.errors import OutputError, RequestError
from safelight.tasks import pictures
from safelight.tasks.metadata import RECORD_CHUNK, TEXT_CHUNK, ModelIdentity, Record, infotext, read_record, recover
from safelight.tasks.metadata.formats import format_of
from safelight.tasks.metadata.labels import SAMPLER_LABELS, SPACING_LABELS
from safelight.tasks.requests import ImageToImage, Inpaint, Prompted, TextToImage

RESOLVED = TextToImage(
    prompt="a red apple,\non blue",
    negative_prompt="blur: any",
    seed=7,
    steps=20,
    sampler="dpmpp_2m",
    spacing="karras",
    guidance=7.0,
    width=64,
    height=128,
)


def written(request: Prompted, end: str, model: ModelIdentity = MODEL) -> bytes:
    image = Image.new("RGB", (8, 8))
    image.info = {TEXT_CHUNK: infotext(request, model), RECORD_CHUNK: Record.of(request, model).to_json()}
    return pictures.encode(image, format_of(f"a.{end}"))


# -- the text for others


def test_the_parameters_text_is_exactly_this() -> None:
    assert infotext(RESOLVED, MODEL) == (
        "a red apple,\non blue\nNegative prompt: blur: any\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 7, Size: 64x128, "
        "Model hash: ab12ab12ab, Model: tiny, RNG: CPU, Version: safelight 0.1.0"
    )


def test_the_parameters_text_reads_back_as_other_tools_read_it() -> None:
    prompt, negative, keys = a1111_reading(infotext(RESOLVED, MODEL))
    assert (prompt, negative) == (RESOLVED.prompt, RESOLVED.negative_prompt)
    assert keys["Steps"] == "20"
    assert keys["Size"] == "64x128"


def test_without_a_negative_prompt_there_is_no_line_for_it_and_steps_come_first() -> None:
    text = infotext(RESOLVED.changed(negative_prompt="", guidance=7.5), MODEL)
    assert "Negative prompt" not in text
    assert text.split("\n")[-1].startswith("Steps: 20, Sampler: ")
    assert "CFG scale: 7.5," in text


def test_img2img_says_its_strength_and_awkward_values_are_quoted() -> None:
    request = ImageToImage(**RESOLVED.model_dump(), image="a.png", strength=0.6)
    text = infotext(request, MODEL.model_copy(update={"name": 'odd, "name": x\nSteps: 1\u2028'}))
    assert "Denoising strength: 0.6" in text
    assert r'Model: "odd, \"name\": x\nSteps: 1\u2028"' in text
    assert a1111_reading(text)[2]["Version"] == "safelight 0.1.0"
    assert a1111_reading(text)[2]["Model"] == 'odd, "name": x\nSteps: 1\u2028'


def test_inpainting_says_its_mask_and_ddim_what_it_is_to_a1111() -> None:
    request = Inpaint(**RESOLVED.model_dump(), image="a.png", mask="b.png", padding=16)
    keys = a1111_reading(infotext(request, MODEL))[2]
    assert (keys["Mask blur"], keys["Inpaint area"], keys["Masked area padding"]) == ("4", "Only masked", "16")
    assert a1111_reading(infotext(RESOLVED.changed(sampler="ddim", spacing="leading"), MODEL))[2]["Schedule type"] == (
        "Automatic"  # of which A1111 makes the leading timesteps for DDIM
    )


def test_what_a_sampler_was_set_to_is_said_where_it_is_not_the_usual() -> None:
    asked = RESOLVED.changed(eta=0.5, s_churn=0.0, s_noise=1.0, s_tmax=10.0)
    assert "RNG: CPU, Eta: 0.5, Sigma tmax: 10, Version" in infotext(asked, MODEL)
    assert "Eta DDIM: 0.5" in infotext(asked.changed(sampler="ddim"), MODEL)


def test_the_refiner_is_named_in_both() -> None:
    refiner = MODEL.model_copy(update={"name": "sdxl-refiner", "sha256": "cd34" * 16})
    text = infotext(RESOLVED.changed(switch=0.8), MODEL, refiner)
    assert "RNG: CPU, Refiner: sdxl-refiner [cd34cd34cd], Refiner switch at: 0.8, Version" in text
    assert Record.of(RESOLVED, MODEL, refiner).refiner == refiner


def test_the_hash_of_nothing_is_never_written() -> None:
    empty = MODEL.model_copy(update={"sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"})
    assert "Model hash" not in infotext(RESOLVED, empty)


def test_the_labels_are_of_names_that_can_be_told_apart() -> None:
    assert SAMPLER_LABELS.keys() <= set(SAMPLER_NAMES)
    assert SPACING_LABELS.keys() <= set(SPACING_NAMES)
    assert len({label.lower() for label in SAMPLER_LABELS.values()}) == len(SAMPLER_LABELS)
    assert len({label.lower() for label in SPACING_LABELS.values()}) == len(SPACING_LABELS)


@pytest.mark.parametrize("spacing", SPACING_NAMES)
def test_every_sampler_and_spacing_is_read_back_from_the_text(spacing: str) -> None:
    for sampler in SAMPLER_NAMES:
        text = infotext(RESOLVED.changed(sampler=sampler, spacing=spacing), MODEL)
        image = Image.new("RGB", (8, 8))
        image.info[TEXT_CHUNK] = text
        found = recover(pictures.encode(image, "PNG"))
        assert (found.fields["sampler"], found.fields["spacing"]) == (sampler, spacing)
        assert found.notes == ("its lossless record is lost: this is from the text for other tools",)


# -- both, in every format


@pytest.mark.parametrize("end", FORMATS)
def test_generated_requests_come_back_whole(end: str) -> None:
    for seed in range(250):
        asked = request(seed)
        data = written(asked, end)
        assert read_record(data).asked() == asked, f"case {seed}"
        assert read_record(data).to_json() == Record.of(asked, MODEL).to_json()
        found = recover(data)
        assert (found.task, found.notes) == (asked.task, ())


@pytest.mark.parametrize("end", FORMATS)
def test_others_find_the_same_in_it(end: str) -> None:
    """Pillow finds both texts, an XML parser the record, sd-parsers and the rules of two more readers the settings."""
    seen = 0
    alive = []  # sd-parsers tells pictures apart by where they are in memory
    for seed in range(150):
        asked = request(seed)
        data = written(asked, end)
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if end == "png":
                text, record = image.info[TEXT_CHUNK], image.info[RECORD_CHUNK]
            else:
                comment = piexif.load(image.info["exif"])["Exif"][piexif.ExifIFD.UserComment]
                assert comment == image.getexif().get_ifd(0x8769)[0x9286]
                assert comment[:8] == b"UNICODE\0"
                text = piexif.helper.UserComment.load(comment)  # as A1111 does
                root = ElementTree.fromstring(image.info["xmp"].decode().removesuffix('<?xpacket end="w"?>'))
                record = next(iter(root.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"))).attrib[
                    "{urn:safelight:metadata:1}record"
                ]
        assert "comment" not in image.info, "sd-prompt-reader takes it for Fooocus"
        assert text == infotext(asked, MODEL)
        assert json.loads(record) == Record.of(asked, MODEL).model_dump()

        steps = str(asked.steps)
        assert a1111_reading(text)[2]["Steps"] == steps
        if "\nSteps:" not in asked.prompt + asked.negative_prompt:  # else it reads from there
            assert prompt_reader_reading(text)["Steps"] == steps
        if text.count("Negative prompt:") <= 1:  # else it raises
            alive.append(Image.open(io.BytesIO(data)))
            info = ParserManager().parse(alive[-1])
            assert info is not None
            assert info.samplers[0].name == SAMPLER_LABELS.get(str(asked.sampler), asked.sampler)
            assert (info.samplers[0].parameters["steps"], info.samplers[0].parameters["seed"]) == (
                steps,
                str(asked.seed),
            )
            if "Negative prompt:" not in asked.prompt + asked.negative_prompt:
                prompts = [prompt.value for prompt in info.samplers[0].prompts]
                assert prompts == ([asked.prompt.strip()] if asked.prompt.strip() else [])
                seen += 1
    assert seen > 50, "too few cases were looked at"


def test_the_text_alone_gives_the_request_back() -> None:
    """Where another program dropped our record; prompts that look like the text's own lines are beyond any reader."""
    seen = 0
    for seed in range(400):
        asked = request(seed)
        both = [asked.prompt, asked.negative_prompt]
        if any("\nNegative prompt:" in "\n" + words or words != words.strip() or "\r" in words for words in both):
            continue
        image = Image.new("RGB", (8, 8))
        image.info[TEXT_CHUNK] = infotext(asked, MODEL)
        found = recover(pictures.encode(image, "PNG"))
        kept = asked.model_dump(mode="json", exclude={"image"}, exclude_defaults=True)
        assert dict(found.fields) == kept, f"case {seed}"
        assert (found.task, found.model.name, found.model.hash) == (asked.task, "tiny", "ab12ab12ab")
        seen += 1
    assert seen > 100, "too few cases were looked at"


def test_prompts_of_any_length_are_kept_where_there_is_room_and_refused_where_there_is_none() -> None:
    long = RESOLVED.changed(prompt=words(random.Random(1), 10_000)[:32_000], negative_prompt="\N{RED APPLE}" * 30_000)
    for end in ("png", "webp"):
        assert read_record(written(long, end)).asked() == long
    with pytest.raises(OutputError, match=r"too long for a JPEG.*name a \.png or a \.webp$"):
        written(long, "jpg")
    fits = RESOLVED.changed(prompt="\N{RED APPLE}" * 4000)
    assert read_record(written(fits, "jpg")).asked() == fits


# -- the record


def test_the_record_survives_a_file_without_loss(tmp_path: Path) -> None:
    request = RESOLVED.changed(prompt="Ünïcödé 🍎 \t\n \\ \" '", seed=2**64 - 1, guidance=0.1)
    record = Record.of(request, MODEL)
    read = read_record(png(tmp_path / "a.png", {RECORD_CHUNK: record.to_json()}))
    assert read == record
    assert read.asked() == request
    assert read.to_json() == record.to_json()
    assert read.torch is not None


def test_records_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """As the first pictures had it, without torch's version and whatever was added to requests since."""
    early = (
        '{"model":{"dtype":"float32","local":false,"name":"tiny","preset":"tiny","sha256":"00"},"request":{"batch":1,'
        '"guidance":4.0,"height":64,"negative_prompt":"","prompt":"x","sampler":"ddim","seed":1,"spacing":"leading",'
        '"steps":10,"width":64},"schema_version":1,"task":"txt2img","version":"0.1.0"}'
    )
    assert read_record(png(tmp_path / "a.png", {RECORD_CHUNK: early})).asked() == TextToImage(
        prompt="x", guidance=4.0, height=64, width=64, sampler="ddim", seed=1, spacing="leading", steps=10
    )


GOOD = Record.of(RESOLVED, MODEL).to_json()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "carries no Safelight record"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        (GOOD.replace('"schema_version":1', '"schema_version":2'), "newer version"),
        (GOOD.replace('"steps":20', '"steps":20,"steps":21'), "says 'steps' twice"),
        (GOOD.replace('"guidance":7.0', '"guidance":NaN'), "NaN is no number"),
        (GOOD.replace('"task":"txt2img"', '"task":["txt2img"]'), "at task"),
    ],
)
def test_a_picture_without_a_good_record_is_refused_in_one_line(tmp_path: Path, text: str | None, words: str) -> None:
    with pytest.raises(RequestError, match=r"^[^\n]*$") as caught:
        read_record(png(tmp_path / "a.png", {} if text is None else {RECORD_CHUNK: text}))
    assert words in str(caught.value)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no picture"):
        read_record(tmp_path / "missing.png")
    with pytest.raises(RequestError, match="cannot be read as a picture"):
        read_record(tmp_path)
    for end in FORMATS:
        whole = written(RESOLVED, end)
        for cut in (0, 1, 5, 11, 12, 40, 100, len(whole) // 2 if end == "png" else 300):
            with pytest.raises(RequestError, match=r"^[^\n]*$"):
                read_record(whole[:cut])


def test_a_record_of_an_unknown_task_or_with_bad_fields_is_refused() -> None:
    record = Record.of(RESOLVED, MODEL)
    with pytest.raises(RequestError, match="does not know: it knows txt2img, img2img"):
        record.model_copy(update={"task": "telepathy"}).asked()
    with pytest.raises(RequestError, match="steps cannot be 0"):
        record.model_copy(update={"request": {"prompt": "x", "steps": 0}}).asked()
