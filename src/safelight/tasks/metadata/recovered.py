"""What could be recovered from a picture, whoever drew it; and the request that it becomes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args, get_origin

from pydantic import JsonValue
from pydantic.fields import FieldInfo

from safelight.errors import RequestError
from safelight.tasks.metadata.labels import Names
from safelight.tasks.metadata.record import Record
from safelight.tasks.request import asked, flag, positional
from safelight.tasks.requests import TASKS, FromPicture

SAFELIGHT = "safelight"
_SHOWN = 60
_TOLD_SIZES = frozenset({"width", "height", "crop", "negative_crop"})


@dataclass(frozen=True)
class ModelHint:
    """What is said of the model. Neither is enough to load it."""

    name: str | None = None
    """As the tool knew it: often the name of a file."""
    hash: str | None = None
    """The first digits of a hash, mostly of the SHA-256 of a file."""

    def __str__(self) -> str:
        if self.name is None:
            return "a model that it does not name" if self.hash is None else f"a model of hash {shown(self.hash)}"
        return shown(self.name) if self.hash is None else f"{shown(self.name)} (hash {shown(self.hash)})"


@dataclass(frozen=True)
class Recovered:
    """What a picture says of how it was made."""

    tool: str
    """Who wrote it, with the version where it is said."""
    task: str
    """A key of `TASKS`."""
    fields: Mapping[str, JsonValue]
    """Of the task's request, by our names; checked one by one."""
    model: ModelHint
    notes: tuple[str, ...] = ()
    """What was not understood, and what a request cannot carry; a line each."""
    record: Record | None = None
    """Where the picture is ours: then nothing is lost."""

    def command(self, picture: str) -> str:
        """The command line that would make the picture again, for a POSIX shell."""
        request = TASKS[self.task]
        words = ["safelight", self.task]
        if any(isinstance(value, str) and value.startswith("data:") for value in self.fields.values()):
            return shlex.join([*words, "--from", picture])  # the pictures that it began with are in it
        options = {name: value for name, value in self.fields.items() if name in asked(request)}
        first = positional(request)
        for name, value in options.items():
            described = request.model_fields[name]
            if value is None or _is_default(value, described):
                continue
            if name == first and not str(value).startswith("-"):
                words.insert(2, str(value))
            elif isinstance(value, list) and _any_number(described):
                words += [word for part in value for word in _option(flag(name, described), part)]
            else:
                words += _option(flag(name, described), value)
        if self.model.name is not None:
            words += _option("model", self.model.name)
        if self.record is not None:
            words += _option("dtype", self.record.model.dtype)
            words += [] if self.record.refiner is None else _option("refiner", self.record.refiner.name)
            words += [] if self.record.guide is None else _option("guide", self.record.guide.name)
        return shlex.join(words)


def _is_default(value: JsonValue, described: FieldInfo) -> bool:
    return not described.is_required() and described.default == (tuple(value) if isinstance(value, list) else value)


def _any_number(described: FieldInfo) -> bool:
    """Whether it is a tuple of any length, whose flag is given once for each part."""
    members = (described.annotation, *get_args(described.annotation))
    return any(get_origin(member) is tuple and ... in get_args(member) for member in members)


def _option(name: str, value: JsonValue) -> list[str]:
    if value is True:
        return [f"--{name}"]
    parts = [str(part) for part in value] if isinstance(value, list) else [str(value)]
    if parts[0].startswith("-"):  # else it would be taken for an option
        return [f"--{name}={parts[0]}", *parts[1:]]
    return [f"--{name}", *parts]


@dataclass
class Findings:
    """Collects what a reader finds. Fields that are None are not there."""

    tool: str
    task: str = "txt2img"
    model: ModelHint = ModelHint()
    fields: dict[str, JsonValue] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """What was seen and has no counterpart, like "Tiling: True"."""

    def set(self, name: str, value: JsonValue) -> None:
        """A field of the request."""
        if value is not None:
            self.fields[name] = value

    def note(self, line: str) -> None:
        """A line that the user should know, once."""
        line = " ".join(line.split())
        if line not in self.notes:
            self.notes.append(line)

    def leave(self, label: str, value: JsonValue) -> None:
        """Something that no request says."""
        if value not in (None, "", False):
            self.left.append(shown(f"{label}: {value}"))

    def sampler(self, name: str | None, names: Names) -> str | None:
        """Set the sampler by the tool's name for it."""
        ours = None if name is None else names.sampler(name)
        if name is not None and ours is None:
            self.note(f"the sampler {shown(name)!r} is not understood: the model's own is used")
        self.set("sampler", ours)
        return ours

    def spacing(self, name: str | None, names: Names) -> None:
        """Set the spacing by the tool's name for it."""
        ours = None if name is None else names.spacing(name)
        if name is not None and ours is None:
            self.note(f"the schedule {shown(name)!r} is not understood: the sampler's own is used")
        self.set("spacing", ours)

    def recovered(self) -> Recovered:
        """All of it, with what a request of the task cannot hold taken out and noted."""
        fields, refused = fitting(self.task, self.fields)
        notes = [*self.notes, *refused]
        if self.left:
            more = f"; and {len(self.left) - 12} more" if len(self.left) > 12 else ""
            notes.append(f"not carried over: {'; '.join(self.left[:12])}{more}")
        return Recovered(self.tool, self.task, fields, self.model, tuple(notes))


def shown(value: str) -> str:
    """A foreign text, short enough for a line."""
    line = " ".join(value.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 3] + "..."


def fitting(task: str, fields: Mapping[str, JsonValue]) -> tuple[dict[str, JsonValue], list[str]]:
    """The fields that a request of the task can hold, and a line for each that it cannot."""
    request = TASKS[task]
    known = asked(request)
    least = {name: described.examples[0] for name, described in known.items() if described.examples}
    kept: dict[str, JsonValue] = {}
    refused = []
    for name, value in fields.items():
        if name not in known:
            refused.append(f"{name.replace('_', ' ')} {shown(str(value))} is left out: {task} has no such option")
            continue
        try:
            request.model_validate({**least, name: value})
        except RequestError as error:
            refused.append(f"{error}: left out")
        else:
            kept[name] = value
    return kept, refused


def carried(found: Recovered, task: str, given: Sequence[str]) -> tuple[dict[str, JsonValue], list[str]]:
    """The fields of a picture that a request of another task takes from it, and what it does not.

    A task that begins with a picture has its size from there.
    """
    fields = {name: value for name, value in found.fields.items() if name not in given}
    if task != found.task:
        if issubclass(TASKS[task], FromPicture):
            sizes = {name for name in fields if name in _TOLD_SIZES or name.endswith("_size")}
            fields = {name: value for name, value in fields.items() if name not in sizes}
        known = asked(TASKS[found.task])  # without the hashes of pictures
        fields = {name: v for name, v in fields.items() if name in known and not _is_default(v, known[name])}
    return fitting(task, fields)
