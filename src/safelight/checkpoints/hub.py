"""A hub id -> a folder in the local hub cache, with the files that we need and no others.

`huggingface_hub` does the transport: HF_ENDPOINT, HF_HUB_OFFLINE, HF_HUB_CACHE and the token are its own.
Files are asked for one by one, in the order that a reader would want them, so that no second copy of the
weights comes down.
"""

from __future__ import annotations

import re
from pathlib import Path

from safelight.checkpoints import folder as layout
from safelight.checkpoints import vocabulary
from safelight.checkpoints.files import is_plain_name, read_json
from safelight.errors import ModelFileError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(text: str) -> bool:
    """Whether a text can be the name of a repository: owner/name."""
    return _ID.fullmatch(text) is not None


def download(repository: str, revision: str = "main") -> Path:
    """Bring a model to the local cache, or find it there when the hub cannot be reached.

    Raises:
        ModelFileError: there is no such repository, it cannot be reached, or it is no model in diffusers'
            layout.
    """
    repo = _Repository(repository, revision)
    index = repo.get(layout.INDEX)
    if index is None:
        raise ModelFileError(
            f"the hub repository {repository} has no {layout.INDEX}; download its checkpoint file and "
            f"give that file's path"
        )
    layout.check_index(index)
    # The folder is named by the commit: what follows is of the same, whatever is pushed meanwhile.
    repo.revision = index.parent.name
    for name in (*layout.CONFIGS, layout.SCHEDULE):
        if repo.get(name) is None:
            raise ModelFileError(f"the hub repository {repository} has no {name}; it is no whole model")
    for name in (layout.PRESET, *(f"{layout.TOKENIZER}/{file}" for file in vocabulary.FILES)):
        repo.get(name)
    for part in layout.STEMS:
        _weights(repo, part)
    return index.parent


def _weights(repo: _Repository, part: str) -> None:
    for name in layout.weight_names(part):
        path = repo.get(f"{part}/{name}")
        if path is None:
            continue
        if path.suffix == ".json":
            placed = read_json(path).get("weight_map")
            members = sorted({str(member) for member in placed.values()}) if isinstance(placed, dict) else []
            for member in members:
                if not is_plain_name(member):
                    raise ModelFileError(
                        f"{path} is refused: it names {member!r}, which is not a file beside it"
                    )
                if repo.get(f"{part}/{member}") is None:
                    raise ModelFileError(
                        f"the hub repository {repo.name} has no {part}/{member}, which {name} names"
                    )
        return
    raise ModelFileError(
        f"the hub repository {repo.name} has no weights in {part}, or they are not in the local cache"
    )


class _Repository:
    """Files of one repository."""

    def __init__(self, name: str, revision: str) -> None:
        self.name, self.revision = name, revision

    def get(self, file: str) -> Path | None:
        """The file in the local cache, downloaded if need be; None if the repository has no such file."""
        # Half a second to import, and only here.
        from huggingface_hub import errors, hf_hub_download  # noqa: PLC0415

        # That of its transport, which differs by version and is not exported.
        transport_error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
        try:
            return Path(hf_hub_download(self.name, file, revision=self.revision))
        except errors.LocalEntryNotFoundError as error:
            if file != layout.INDEX:
                return None  # offline: what was not downloaded then is not asked for now
            raise self.failed(
                "is neither a path here nor in the local hub cache, and the hub cannot be reached",
                "check the connection, HF_ENDPOINT and HF_HUB_OFFLINE, or give a path",
            ) from error
        except errors.EntryNotFoundError:
            return None
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
        except errors.HfHubHTTPError as error:
            status = getattr(error.response, "status_code", "an error")
            raise self.failed(
                f"could not be read: the hub answered {status} for {file}", "try again later"
            ) from error
        except (transport_error, OSError) as error:
            what = str(error).partition("\n")[0]
            raise self.failed(f"could not be downloaded: {what}, at {file}", "try again") from error

    def failed(self, what: str, mend: str) -> ModelFileError:
        return ModelFileError(f"{self.name} {what}; {mend}")
