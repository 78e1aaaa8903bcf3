"""Every task that a model can be asked to do. Descriptions, ranges and defaults stand on the fields, and nowhere else.

A task is a class; what tasks share is in the classes that they are made of. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

from pydantic import Field

from safelight.conditioning.prompts.emphasis import Emphasis
from safelight.tasks.marks import Flag, Group, Positional, Recorded
from safelight.tasks.request import MAX_SIDE, Request

MAX_PROMPT = 32_000

_AS_STARTED = "Pixels. Default: that of the picture started from."
_NO_NUL = r"^[^\x00]*$"
"""A PNG text chunk cannot hold a zero byte."""
_TOLD = "that the model is told"
_PROMPT, _ADAPTERS, _SDXL = Group("Prompt"), Group("Adapters"), Group("Stable Diffusion XL")

SWITCH = 0.8
"""Where SDXL's refiner takes over: it was trained on the last 200 of 1000 timesteps (Podell et al. 2023, sec. 2.5)."""

Pair = tuple[int, int]
Picture = Annotated[str, Field(min_length=1)]
Sha256 = Annotated[
    str | None, Recorded(), Field(description="Of the bytes of that picture.", pattern=r"^[0-9a-f]{64}$")
]
NoiseLevel = Annotated[
    int | None,
    Field(description="How much noise the picture is put under before it is looked at.", ge=0, le=999),
]


class Prompted(Request):
    """Tasks told by words."""

    prompt: Annotated[
        str,
        Positional(),
        Field(description="What to draw.", examples=["a red apple"], max_length=MAX_PROMPT, pattern=_NO_NUL),
    ]
    negative_prompt: Annotated[
        str,
        Flag("negative"),
        Field(description="What to stay away from.", max_length=MAX_PROMPT, pattern=_NO_NUL),
    ] = ""
    emphasis: Annotated[
        Emphasis,
        _PROMPT,
        Field(
            description="What (brackets:1.2) do: none reads them as words, ignore takes them away, original weighs "
            "words and keeps the mean, no-norm weighs them and does not."
        ),
    ] = "original"
    clip_skip: Annotated[
        int | None,
        _PROMPT,
        Field(description="Read the text tower's last but so many layers; 1 is the last. Default: 1.", ge=1, le=64),
    ] = None
    style: Annotated[
        tuple[str, ...], _PROMPT, Field(description="A style to put around the prompt; may be given several times.")
    ] = ()
    styles: Annotated[
        str | None,
        _PROMPT,
        Field(description="The table that styles are in: a CSV file of name,prompt,negative_prompt.", min_length=1),
    ] = None
    wildcards: Annotated[
        str | None,
        _PROMPT,
        Field(description="A folder: __name__ becomes a line of name.txt in it, chosen by the seed.", min_length=1),
    ] = None
    regions: Annotated[
        tuple[Picture, ...] | None,
        _PROMPT,
        Field(
            description="For each part of the prompt that AND joins, where it acts: LEFT,TOP,WIDTH,HEIGHT in parts of "
            "the picture, a grey picture that is white there, or - for everywhere."
        ),
    ] = None
    lora: Annotated[
        tuple[Picture, ...],
        _ADAPTERS,
        Field(
            description="A LoRA or its kin, FILE or FILE:WEIGHT or FILE:WEIGHT:UNET-WEIGHT; may be given several times."
        ),
    ] = ()
    embedding: Annotated[
        tuple[Picture, ...],
        _ADAPTERS,
        Field(
            description="A textual inversion, FILE or FILE=NAME: the file's name or that, in the prompt, is what it "
            "taught. Several times, too."
        ),
    ] = ()
    hypernetwork: Annotated[
        tuple[Picture, ...],
        _ADAPTERS,
        Field(description="A hypernetwork, FILE or FILE:STRENGTH; may be given several times."),
    ] = ()
    adapters: Annotated[
        str | None,
        _ADAPTERS,
        Field(
            description="The folder in which <lora:NAME:1> and <hypernet:NAME:1> in a prompt are found.", min_length=1
        ),
    ] = None
    adapter_sha256: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...] | None,
        Recorded(),
        Field(description="Of the files of adapters."),
    ] = None
    prompt_2: Annotated[
        str | None,
        _SDXL,
        Field(
            description="What the second text tower is told. Default: the same.", max_length=MAX_PROMPT, pattern=_NO_NUL
        ),
    ] = None
    negative_prompt_2: Annotated[
        str | None,
        Flag("negative-2"),
        _SDXL,
        Field(
            description="What it is told to stay away from. Default: the same.", max_length=MAX_PROMPT, pattern=_NO_NUL
        ),
    ] = None
    original_size: Annotated[
        Pair | None,
        _SDXL,
        Field(description=f"Width and height {_TOLD} the picture had before it was scaled. Default: its size."),
    ] = None
    crop: Annotated[
        Pair | None, _SDXL, Field(description=f"Pixels {_TOLD} were cut off at the left and the top. Default: 0 0.")
    ] = None
    target_size: Annotated[
        Pair | None, _SDXL, Field(description=f"Width and height {_TOLD} the picture is to have. Default: its size.")
    ] = None
    negative_original_size: Annotated[
        Pair | None, _SDXL, Field(description="An --original-size to stay away from. Default: the same.")
    ] = None
    negative_crop: Annotated[
        Pair | None, _SDXL, Field(description="A --crop to stay away from. Default: the same.")
    ] = None
    negative_target_size: Annotated[
        Pair | None, _SDXL, Field(description="A --target-size to stay away from. Default: the same.")
    ] = None
    aesthetic: Annotated[
        float | None,
        _SDXL,
        Field(description="How beautiful the refiner is told the picture is.", ge=0, le=10, allow_inf_nan=False),
    ] = None
    negative_aesthetic: Annotated[
        float | None,
        _SDXL,
        Field(description="How beautiful it is told to stay away from.", ge=0, le=10, allow_inf_nan=False),
    ] = None
    switch: Annotated[
        float | None,
        _SDXL,
        Field(
            description="The part of the noise that the model takes away before its --refiner goes on. Default: "
            f"{SWITCH}, if there is a refiner.",
            gt=0,
            lt=1,
            allow_inf_nan=False,
        ),
    ] = None

    def changed(self, **fields: object) -> Self:
        """As `Request.changed`; other adapters have other hashes."""
        others = {"prompt", "lora", "embedding", "hypernetwork", "adapters"} & fields.keys()
        reset: dict[str, object] = (
            {"adapter_sha256": None} if any(fields[n] != getattr(self, n) for n in others) else {}
        )
        return super().changed(**(reset | fields))


class FromPicture(Request):
    """Tasks that begin with a picture."""

    width: Annotated[int | None, Field(description=_AS_STARTED, ge=1, le=MAX_SIDE)] = None
    height: Annotated[int | None, Field(description=_AS_STARTED, ge=1, le=MAX_SIDE)] = None
    image: Annotated[
        Picture,
        Field(description="The picture to start from: a path, or a data: URI with its bytes.", examples=["photo.png"]),
    ]
    image_sha256: Sha256 = None

    def changed(self, **fields: object) -> Self:
        """As `Request.changed`; another picture has another hash."""
        hashes = {f"{name}_sha256": None for name in fields if f"{name}_sha256" in type(self).model_fields}
        return super().changed(**(hashes | fields))


class TextToImage(Prompted):
    """Draw a picture of a prompt."""

    task: ClassVar[str] = "txt2img"


class ImageToImage(FromPicture, Prompted):
    """Draw over a picture: the sampler starts from it under noise, not from noise alone (SDEdit)."""

    task: ClassVar[str] = "img2img"

    strength: Annotated[
        float,
        Field(
            description="How far to leave the picture: near 0 keeps it, 1 forgets it.",
            gt=0,
            le=1,
            allow_inf_nan=False,
        ),
    ] = 0.75


class Inpaint(ImageToImage):
    """Draw a part of a picture anew, or more around it. Any model can; those trained for it see what is around."""

    task: ClassVar[str] = "inpaint"

    prompt: Annotated[str, Positional(), Field(description="What to draw.", max_length=MAX_PROMPT, pattern=_NO_NUL)] = (
        ""
    )
    mask: Annotated[
        str | None,
        Field(description="White where to draw anew, black where to keep: a path, or a data: URI.", min_length=1),
    ] = None
    mask_sha256: Sha256 = None
    extend: Annotated[
        tuple[int, int, int, int] | None,
        Field(description="Pixels to draw beyond the left, top, right and bottom edge of the picture."),
    ] = None
    strength: Annotated[
        float,
        Field(
            description="How far to leave the picture where it is drawn anew; 1 forgets it.",
            gt=0,
            le=1,
            allow_inf_nan=False,
        ),
    ] = 1.0
    blur: Annotated[int, Field(description="Pixels over which the new runs into the old.", ge=0, le=512)] = 4
    padding: Annotated[
        int | None,
        Field(
            description="Draw only the masked part, at full size, with so many pixels around it. Default: all of it.",
            ge=0,
            le=MAX_SIDE,
        ),
    ] = None


class Refine(ImageToImage):
    """Give a picture its fine details: SDXL's refiner, which was trained on the last, small noise."""

    task: ClassVar[str] = "refine"

    strength: Annotated[
        float,
        Field(description="How far to leave the picture; the refiner is for little.", gt=0, le=1, allow_inf_nan=False),
    ] = 0.3


class DepthToImage(ImageToImage):
    """Draw a picture that is as deep as another."""

    task: ClassVar[str] = "depth2img"

    strength: Annotated[
        float,
        Field(description="How far to leave the picture's colours; 1 forgets them.", gt=0, le=1, allow_inf_nan=False),
    ] = 1.0
    depth: Annotated[
        str | None,
        Field(description="A grey picture of depth, light is near. Default: told from the picture.", min_length=1),
    ] = None
    depth_sha256: Sha256 = None


class Upscale(FromPicture, Prompted):
    """Enlarge a picture four times, with the details that a prompt says."""

    task: ClassVar[str] = "upscale"

    prompt: Annotated[
        str, Positional(), Field(description="What is in the picture.", max_length=MAX_PROMPT, pattern=_NO_NUL)
    ] = ""
    width: Annotated[int | None, Recorded(), Field(description="Pixels.", ge=1, le=MAX_SIDE)] = None
    height: Annotated[int | None, Recorded(), Field(description="Pixels.", ge=1, le=MAX_SIDE)] = None
    noise_level: NoiseLevel = None


class Variations(FromPicture, Prompted):
    """Draw what CLIP sees in a picture, or between two, anew."""

    task: ClassVar[str] = "variations"

    prompt: Annotated[str, Positional(), Field(description="What to add.", max_length=MAX_PROMPT, pattern=_NO_NUL)] = ""
    width: Annotated[int | None, Field(description="Pixels. Default: the model's.", ge=1, le=MAX_SIDE)] = None
    height: Annotated[int | None, Field(description="Pixels. Default: the model's.", ge=1, le=MAX_SIDE)] = None
    other: Annotated[
        str | None, Field(description="A second picture to mix with: a path, or a data: URI.", min_length=1)
    ] = None
    other_sha256: Sha256 = None
    mix: Annotated[
        float, Field(description="How much of the second picture, 0 to 1.", ge=0, le=1, allow_inf_nan=False)
    ] = 0.5
    noise_level: NoiseLevel = None


class ClassToImage(Request):
    """Draw a picture of a class."""

    task: ClassVar[str] = "class2img"

    label: Annotated[
        int,
        Positional(),
        Field(description="Which class: its number among those that the model knows.", examples=[207], ge=0),
    ]


class LayoutToImage(Request):
    """Draw a picture from labelled boxes."""

    task: ClassVar[str] = "layout2img"

    boxes: Annotated[
        str,
        Positional(),
        Field(
            description="CLASS:LEFT,TOP,WIDTH,HEIGHT of each box, in parts of the picture, with spaces between.",
            examples=["12:0.1,0.2,0.5,0.6"],
            min_length=1,
            max_length=MAX_PROMPT,
        ),
    ]


class SemanticToImage(Request):
    """Draw a picture from a map of what is where."""

    task: ClassVar[str] = "semantic2img"

    map: Annotated[
        Picture,
        Positional(),
        Field(description="A grey picture whose values are classes: a path, or a data: URI.", examples=["map.png"]),
    ]
    map_sha256: Sha256 = None

    def changed(self, **fields: object) -> Self:
        """As `FromPicture.changed`."""
        return super().changed(**(({"map_sha256": None} if "map" in fields else {}) | fields))


class Unconditional(Request):
    """Draw a picture of whatever the model was trained on."""

    task: ClassVar[str] = "unconditional"


TASKS: Mapping[str, type[Request]] = {
    request.task: request
    for request in (
        *(TextToImage, ImageToImage, Inpaint, Refine, DepthToImage, Upscale, Variations),
        *(ClassToImage, LayoutToImage, SemanticToImage, Unconditional),
    )
}
"""Every task by its name: the command line, the server and the records go by this table."""
