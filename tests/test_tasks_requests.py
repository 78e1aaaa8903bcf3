"""Requests: one definition, and one clear line for every mistake."""

from __future__ import annotations

import json
import math

import pytest
from pydantic import ValidationError

from safelight.errors import RequestError
from safelight.tasks.request import MAX_SEED, Request, asked, flag
from safelight.tasks.requests import TASKS, ImageToImage, TextToImage


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "prompt is missing"),
        ({"prompt": "x", "steps": 0}, "steps cannot be 0: give a whole number from 1 to 1000"),
        ({"prompt": "x", "steps": "many"}, "steps cannot be 'many': give a whole number"),
        ({"prompt": "x", "steps": 1001}, "from 1 to 1000"),
        ({"prompt": "x", "guidance": math.nan}, "guidance cannot be nan: give a number from 0 to 100"),
        ({"prompt": "x", "guidance": math.inf}, "guidance cannot be inf"),
        ({"prompt": "x", "guidance": -1}, "guidance cannot be -1"),
        ({"prompt": "x", "batch": 0}, "batch cannot be 0: give a whole number from 1 to 64"),
        ({"prompt": "x", "batch": 10**9}, "batch cannot be"),
        ({"prompt": "x", "seed": -1}, "seed cannot be -1: give a whole number from 0"),
        ({"prompt": "x", "seed": MAX_SEED + 1}, "seed cannot be"),
        ({"prompt": "x", "width": 0}, "width cannot be 0"),
        ({"prompt": "x", "height": 10**6}, "height cannot be 1000000"),
        ({"prompt": "x" * 40_000}, "text of at most 32000 characters"),
        ({"prompt": "a\0b"}, "without zero bytes"),
        ({"prompt": "\udc80"}, "prompt cannot be"),
        ({"prompt": "x", "stepz": 3}, "has no field 'stepz': the fields are seed, batch, steps"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field_and_the_mend(fields: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError) as caught:
        TextToImage.model_validate(fields)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert len(message.partition(": the fields are")[0]) < 250, "the value given is cut short"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": "x"}, "image is missing"),
        ({"prompt": "x", "image": ""}, "image cannot be ''"),
        (
            {"prompt": "x", "image": "a.png", "strength": 0},
            "strength cannot be 0: give a number above 0 and at most 1",
        ),
        ({"prompt": "x", "image": "a.png", "strength": math.nan}, "strength cannot be nan"),
    ],
)
def test_img2img_mistakes(fields: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError, match=r"^[^\n]*$") as caught:
        ImageToImage.model_validate(fields)
    assert words in str(caught.value)


def test_something_else_than_an_object_is_refused_too() -> None:
    with pytest.raises(RequestError, match="must be an object"):
        TextToImage.model_validate([1])


def test_zero_is_a_value_and_not_an_absence() -> None:
    request = TextToImage(prompt="", seed=0, guidance=0.0)
    assert (request.seed, request.guidance) == (0, 0.0)
    assert TextToImage(prompt="").seed is None


@pytest.mark.parametrize("task", TASKS)
def test_a_request_survives_json(task: str) -> None:
    whole = {
        "prompt": 'é "quoted"\nnew line',
        "seed": MAX_SEED,
        "guidance": 0.1,
        "image": "a.png",
        "strength": 0.3,
        "label": 3,
        "boxes": "1:0,0,1,1",
        "map": "b.png",
        "crop": (3, 4),
    }
    kind = TASKS[task]
    request = kind.model_validate({k: v for k, v in whole.items() if k in kind.model_fields})
    assert kind.model_validate_json(request.model_dump_json()) == request
    assert kind.model_validate(json.loads(json.dumps(request.model_dump()))) == request


def test_a_request_cannot_be_changed_in_place_and_a_copy_is_checked() -> None:
    request = TextToImage(prompt="x")
    with pytest.raises(ValidationError, match="frozen"):
        setattr(request, "prompt", "y")  # noqa: B010  (that it is refused is the point)
    assert request.changed(steps=3).steps == 3
    with pytest.raises(RequestError, match="steps cannot be 0"):
        request.changed(steps=0)


def test_another_picture_forgets_the_hash_of_the_first() -> None:
    request = ImageToImage(prompt="x", image="a.png", image_sha256="0" * 64)
    assert request.changed(steps=3).image_sha256 == "0" * 64
    assert request.changed(image="b.png").image_sha256 is None


@pytest.mark.parametrize("kind", TASKS.values(), ids=TASKS)
def test_every_field_is_described_and_has_a_flag_of_its_own(kind: type[Request]) -> None:
    fields = asked(kind)
    assert all(field.description for field in fields.values())
    flags = [flag(name, field) for name, field in fields.items()]
    assert len(set(flags)) == len(flags)
    assert "schedule" in flags
    assert not any(name.endswith("sha256") for name in flags)


def test_the_schema_says_the_ranges() -> None:
    steps = TextToImage.model_json_schema()["properties"]["steps"]
    assert {"type": "integer", "minimum": 1, "maximum": 1000} in steps["anyOf"]
