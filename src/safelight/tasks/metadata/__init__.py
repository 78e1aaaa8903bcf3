"""What a picture knows about itself, in words for other tools and in lossless JSON; and what others' pictures know.

Written into PNG, JPEG and WebP: `parameters`, the text of AUTOMATIC1111's web UI (`infotext`), and `safelight`, a
`Record`, from which the same bytes can be made again. Read: both, and ComfyUI, InvokeAI and NovelAI (`recover`).
Nothing in this package imports torch.
"""

from safelight.tasks.metadata.infotext import infotext
from safelight.tasks.metadata.labels import SAMPLER_LABELS, SPACING_LABELS
from safelight.tasks.metadata.names import RECORD_CHUNK, TEXT_CHUNK
from safelight.tasks.metadata.reading import Taken, recover, request_from, taken_of
from safelight.tasks.metadata.record import ModelIdentity, Record, read_record
from safelight.tasks.metadata.recovered import ModelHint, Recovered

__all__ = [
    "RECORD_CHUNK",
    "SAMPLER_LABELS",
    "SPACING_LABELS",
    "TEXT_CHUNK",
    "ModelHint",
    "ModelIdentity",
    "Record",
    "Recovered",
    "Taken",
    "infotext",
    "read_record",
    "recover",
    "request_from",
    "taken_of",
]
