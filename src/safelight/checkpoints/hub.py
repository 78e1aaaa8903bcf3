"""A hub id -> a folder in the local hub cache, with the files that we need and no others.

`huggingface_hub` does the transport: HF_ENDPOINT, HF_HUB_OFFLINE, HF_HUB_CACHE and the token are its own.
Files are asked for one by one, in the order that a reader would want them, so that no second copy of the
weights comes down.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from pathlib import Path

from safelight.checkpoints.described import CONFIG
from safelight.checkpoints.files import FILE_ENDINGS, is_plain_name, printable, read_json
from safelight.checkpoints.folder import files_of, weight_names
from safelight.checkpoints.index import INDEX, Contents, read_index
from safelight.checkpoints.kinds import KINDS, Kind
from safelight.errors import ModelFileError

OFFLINE = "HF_HUB_OFFLINE is set"
_log = logging.getLogger(__name__)
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(text: str) -> bool:
    """Whether a text can be the name of a repository, owner/name, and not that of a file."""
    return _ID.fullmatch(text) is not None and not text.endswith(FILE_ENDINGS)


def download(repository: str, revision: str = "main") -> Path:
    """Bring a model to the local cache, or find it there when the hub cannot be reached.

    Raises:
        ModelFileError: there is no such repository, it cannot be reached, or it is no model in diffusers'
            layout.
    """
    repo = _Repository(repository, revision)
    repo.reach()
    index = repo.get(INDEX)
    if index is None:
        repo.must_be_reached()
        raise ModelFileError(
            f"the hub repository {repository} has no {INDEX}; download its checkpoint file and give that file's path"
        )
    contents = repo.opened(index)
    needed, wanted = files_of(contents)
    for name in needed:
        if repo.get(name) is None:
            raise ModelFileError(f"the hub repository {repository} has no {name}; it is no whole model")
    for name in wanted:
        repo.get(name)
    for place in contents.places:
        _weights(repo, f"{place.folder}/", KINDS[contents.kinds[place.folder]])
    return index.parent


def download_part(repository: str, parts: Collection[str], kind: Kind, revision: str = "main") -> Path:
    """Bring parts of a model, or a repository that holds such a part alone, to the local cache, or find it there.

    Args:
        parts: which ones of a whole model.
        kind: the class of network that such a part alone is.

    Returns:
        The folder of the repository, with nothing else in it that was not there before.

    Raises:
        ModelFileError: as `download`, or it has no such part.
    """
    repo = _Repository(repository, revision)
    repo.reach()
    index = repo.get(INDEX)
    if index is None:
        config = repo.get(CONFIG)
        if config is None:
            repo.must_be_reached()
            raise ModelFileError(
                f"the hub repository {repository} has neither {CONFIG} nor {INDEX}; download its file and give the path"
            )
        repo.settle(config)
        _weights(repo, "", kind)
        return config.parent
    contents = repo.opened(index)
    for place in contents.places:
        if place.part in parts:
            repo.get(f"{place.folder}/{CONFIG}")
            _weights(repo, f"{place.folder}/", KINDS[contents.kinds[place.folder]])
    return index.parent


def _weights(repo: _Repository, folder: str, kind: Kind) -> None:
    """The weights in a folder of the repository, whose name ends in a slash unless it is the root."""
    for name in weight_names(kind):
        path = repo.get(f"{folder}{name}")
        if path is None:
            continue
        if path.suffix == ".json":
            placed = read_json(path).get("weight_map")
            members = sorted({str(member) for member in placed.values()}) if isinstance(placed, dict) else []
            for member in members:
                if not is_plain_name(member):
                    raise ModelFileError(
                        f"{path} is refused: it names {printable(member)!r}, which is not a file beside it; choose "
                        "another repository"
                    )
                if repo.get(f"{folder}{member}") is None:
                    raise ModelFileError(
                        f"the hub repository {repo.name} has no {folder}{member}, which {name} names; choose another"
                    )
        return
    raise ModelFileError(
        f"the hub repository {repo.name} has no weights{f' in {folder[:-1]}' if folder else ''} named "
        f"{weight_names(kind)[0]}, or they are not in the local cache; choose another, or connect to the hub"
    )


class _Repository:
    """Files of one repository. Half a second is saved by importing the hub's library only here."""

    def __init__(self, name: str, revision: str) -> None:
        self.name, self.revision = name, revision
        self.unreachable: str | None = None
        """Why the hub cannot be asked; the local cache answers then, for all files alike."""

    def reach(self) -> None:
        """Find out, once, whether the hub answers. A file that fails later is an error, not an absent file."""
        from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url  # noqa: PLC0415

        try:
            get_hf_file_metadata(hf_hub_url(self.name, INDEX, revision=self.revision))
        except errors.EntryNotFoundError:
            pass
        except errors.GatedRepoError as error:
            raise self.failed("is gated", "ask for access on its page, then `hf auth login`") from error
        except errors.RepositoryNotFoundError as error:
            raise self.failed(
                "is neither a path here nor a repository on the hub",
                "check the spelling, or `hf auth login` if it is private",
            ) from error
        except errors.RevisionNotFoundError as error:
            raise self.failed(f"has no revision {self.revision!r}", "leave it out for `main`") from error
        except errors.HFValidationError as error:
            raise self.failed("is neither a path here nor a hub id", "give owner/name") from error
        except errors.OfflineModeIsEnabled:
            self.unreachable = OFFLINE
        except errors.HfHubHTTPError as error:
            self.unreachable = f"it answered {getattr(error.response, 'status_code', 'an error')}"
        except (_transport_error(), OSError) as error:
            self.unreachable = _first_line(error)

    def get(self, file: str) -> Path | None:
        """The file in the local cache, downloaded if need be; None if there is no such file."""
        from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache  # noqa: PLC0415

        if self.unreachable is not None:
            found = try_to_load_from_cache(self.name, file, revision=self.revision)
            return Path(found) if isinstance(found, str) else None
        try:
            return Path(hf_hub_download(self.name, file, revision=self.revision))
        except errors.LocalEntryNotFoundError as error:
            raise self.failed(f"could not be downloaded: {file}: {_first_line(error)}", "try again") from error
        except errors.EntryNotFoundError:
            return None
        except (_transport_error(), OSError) as error:
            raise self.failed(f"could not be downloaded: {file}: {_first_line(error)}", "try again") from error

    def must_be_reached(self) -> None:
        """What is not in the cache either is missing because the hub does not answer, if it does not.

        Raises:
            ModelFileError: it does not.
        """
        if self.unreachable is not None:
            raise self.failed(
                "is neither a path here nor in the local hub cache, and the hub cannot be reached "
                f"({self.unreachable})",
                "check the connection, HF_ENDPOINT and HF_HUB_OFFLINE, or give a path",
            )

    def settle(self, file: Path) -> None:
        """Take all further files of the commit that this one is of, whatever is pushed meanwhile."""
        if self.unreachable not in (None, OFFLINE):
            _log.warning(
                "the hub cannot be reached (%s): %s is taken from the local cache", self.unreachable, self.name
            )
        self.revision = file.parent.name  # the folder is named by the commit

    def opened(self, index: Path) -> Contents:
        """What a whole model's index says, before the rest of it is asked for."""
        self.settle(index)
        return read_index(index)

    def failed(self, what: str, mend: str) -> ModelFileError:
        return ModelFileError(f"{self.name} {what}; {mend}")


def _transport_error() -> type[Exception]:
    """Of what the hub's library asks with, which differs by its version and is not exported."""
    from huggingface_hub import errors  # noqa: PLC0415

    found: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    return found


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.partition("\n")[0] if text else type(error).__name__
