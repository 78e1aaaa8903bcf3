"""From a picture, whoever drew it, to a request: `recover`, and `request_from` for `--from`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safelight.errors import RequestError
from safelight.tasks.metadata import a1111, comfyui, invokeai, novelai
from safelight.tasks.metadata.containers import Embedded, embedded, named
from safelight.tasks.metadata.names import RECORD_CHUNK
from safelight.tasks.metadata.record import ModelIdentity, Record
from safelight.tasks.metadata.recovered import SAFELIGHT, ModelHint, Recovered, carried
from safelight.tasks.metadata.stealth import hidden
from safelight.tasks.request import Request
from safelight.tasks.requests import TASKS, Prompted

READERS: Mapping[str, Callable[[Embedded], Recovered | None]] = {
    invokeai.TOOL: invokeai.read,
    novelai.TOOL: novelai.read,
    a1111.TOOL: a1111.read,
    comfyui.TOOL: comfyui.read,
}
"""By tool, in the order in which they are asked: those that cannot be mistaken first. A graph beside a text of A1111
is from a node of ComfyUI that writes both; the text then says what the graph may have computed."""

_SHA256 = re.compile(r"[0-9A-Fa-f]{10,64}")
"""The first digits of one. Eight are of an older hash of A1111's, over a part of the file."""


def recover(picture: str | Path | bytes) -> Recovered:
    """All that a picture says of how it was made: our own record, else the metadata of other tools.

    Looks into PNG, JPEG and WebP, at what NovelAI hides in the alpha channel, and at NAME.txt beside the picture; or
    into such a text itself.

    Args:
        picture: its path, or all its bytes.

    Raises:
        RequestError: no such file, another format, damaged, or nothing in it that is understood.
    """
    name = named(picture)
    found = embedded(picture)
    if RECORD_CHUNK in found.texts:
        return _of_record(Record.read(found.texts[RECORD_CHUNK], name))
    recovered = _ask(found, name)
    if recovered is None and found.kind != "text":
        recovered = _beside(picture)
        if recovered is None:
            recovered = _ask(hidden(picture), name)
    if recovered is None:
        raise RequestError(
            f"{name} carries no Safelight record, and no metadata of {', '.join(READERS)} that is understood: "
            "give a picture as the program wrote it, not one that another program saved again"
        )
    return recovered


def _ask(found: Embedded | None, name: str) -> Recovered | None:
    if found is None:
        return None
    for reader in READERS.values():
        try:
            recovered = reader(found)
        except RequestError as error:
            raise RequestError(f"{name}: {error}") from error
        if recovered is not None:
            return recovered
    return None


def _beside(picture: str | Path | bytes) -> Recovered | None:
    """What NAME.txt says, which A1111 can write beside a picture."""
    beside = None if isinstance(picture, bytes) else Path(picture).with_suffix(".txt")
    if beside is None or not beside.is_file():
        return None
    try:
        recovered = a1111.read(embedded(beside))
    except RequestError:
        return None  # some other text
    if recovered is None:
        return None
    return Recovered(
        recovered.tool,
        recovered.task,
        recovered.fields,
        recovered.model,
        (f"taken from {str(beside)!r} beside the picture", *recovered.notes),
    )


def _of_record(record: Record) -> Recovered:
    record.asked()
    model = ModelHint(record.model.name, record.model.sha256)
    return Recovered(f"{SAFELIGHT} {record.version}", record.task, record.request, model, (), record)


@dataclass(frozen=True)
class Taken:
    """A request that was taken from a picture."""

    request: Request
    found: Recovered
    notes: tuple[str, ...]
    """What of the picture is not in the request; a line each, to be shown."""

    def source(self) -> str:
        """The model to load where the user names none.

        Raises:
            RequestError: the picture does not say enough to find it.
        """
        record = self.found.record
        if record is None:
            raise RequestError(f"the picture was drawn by {self.found.tool} with {self.found.model}: give --model")
        return _source(record.model, "model")

    def refiner(self) -> str | None:
        """The refiner to load where the user names none; None if there was none.

        Raises:
            RequestError: there was one, and the picture does not say enough to find it.
        """
        record = self.found.record
        return None if record is None or record.refiner is None else _source(record.refiner, "refiner")

    def guide(self) -> str | None:
        """As `refiner`, of the weaker model that autoguidance led away from."""
        record = self.found.record
        return None if record is None or record.guide is None else _source(record.guide, "guide")

    def dtype(self) -> str | None:
        """In which the networks ran, where it is recorded."""
        return None if self.found.record is None else self.found.record.model.dtype

    def other_weights(self, sha256: str) -> str | None:
        """A line to be shown if a model's weights are not those that drew the picture."""
        drew = self.found.model.hash
        if drew is None or _SHA256.fullmatch(drew) is None or sha256.startswith(drew.lower()):
            return None
        return f"other weights ({sha256[:10]}) than those that drew the picture ({drew[:10]}): the result will differ"


def _source(model: ModelIdentity, flag: str) -> str:
    if model.local:
        raise RequestError(
            f"the picture was drawn by {model.name!r} from a local path, which is not recorded: "
            f"give --{flag} (weights {model.sha256[:10]})"
        )
    return model.name


def request_from(picture: str | Path | bytes, task: str, given: Mapping[str, object] | None = None) -> Taken:
    """A request of the task from what a picture says, for `--from`.

    Our own picture of the same task gives its very request. What was drawn by another task, or another tool, gives
    what the task has a field for; the rest is in the notes.

    Args:
        picture: its path, or all its bytes.
        task: a key of `TASKS`.
        given: fields that the user gave beside the picture; they go before what it says.

    Raises:
        RequestError: as `recover`; the picture has no words for a task that needs them; a field is wrong.
    """
    given = {} if given is None else given
    found = recover(picture)
    if found.record is not None and found.task == task:
        return Taken(found.record.asked().changed(**given), found, ())
    if not (issubclass(TASKS[task], Prompted) and issubclass(TASKS[found.task], Prompted)):
        raise RequestError(
            f"{named(picture)} was made by {found.task}, which has nothing in common with {task}: "
            f"use `safelight {found.task} --from {picture if not isinstance(picture, bytes) else 'PICTURE'}`"
        )
    fields, refused = carried(found, task, tuple(given))
    return Taken(TASKS[task].model_validate({**fields, **given}), found, (*found.notes, *refused))


def taken_of(record: Record) -> Taken:
    """What a record says, taken whole."""
    return Taken(record.asked(), _of_record(record), ())
