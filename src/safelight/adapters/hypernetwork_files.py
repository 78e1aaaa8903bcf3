"""Files of hypernetworks: `.pt` as AUTOMATIC1111's web UI and NovelAI wrote them, and `.safetensors` of our own.

A `.pt` holds for each width two dictionaries, for keys and for values, of `linear.N.weight` and `linear.N.bias`, where
N counts activations, norms and dropouts too; the oldest have `linear1` and `linear2`. Beside the widths stands what
the layers are. In `.safetensors` the same are `768.k.linear.0.weight`, and what they are is JSON in the metadata.
"""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from safelight.adapters.hypernetworks import (
    INITIALISATIONS,
    KEYS,
    LINEAR,
    MOST_LAYERS,
    VALUES,
    WIDEST,
    Hypernetwork,
    HypernetworkConfig,
    Initialisation,
    standard_dropout,
)
from safelight.adapters.origin import MODEL, MODEL_HASH, STEP, Origin, named, require_no_other
from safelight.checkpoints.files import printable, read_contents
from safelight.checkpoints.sorts import HYPERNETWORK
from safelight.checkpoints.writing import atomic, write_tensors
from safelight.errors import ModelFileError

SHAPE = "safelight.hypernetwork"
"""The entry of the metadata with the fields that a `.pt` has."""
MOST_WIDTHS = 16
MOST_WEIGHTS = 4 * MOST_LAYERS
"""Of one network: of its layers and their norms."""
MAX_FIELDS = 1 << 16
"""Letters of JSON."""
THEIR_INITIALISATIONS: Mapping[Initialisation, str] = {
    "normal": "Normal",
    "xavier-uniform": "XavierUniform",
    "xavier-normal": "XavierNormal",
    "kaiming-uniform": "KaimingUniform",
    "kaiming-normal": "KaimingNormal",
}
_FIELDS = frozenset(
    [
        *("name", STEP, MODEL, MODEL_HASH),
        *("layer_structure", "activation_func", "is_layer_norm", "weight_initialization", "activate_output"),
        *("use_dropout", "dropout_structure", "last_layer_dropout"),
        *("optional_info", "hash", "optimizer_name", "optimizer_state_dict"),  # nothing that pictures depend on
    ]
)
_OLD = {f"linear{n + 1}.{kind}": f"linear.{n}.{kind}" for n in (0, 1) for kind in ("weight", "bias")}
_OF = (KEYS, VALUES)

Weights = dict[int, dict[str, dict[str, Tensor]]]
"""Width -> "k" and "v" -> name -> tensor."""


def read_hypernetwork(path: Path) -> Hypernetwork:
    """Read either kind, float32, in evaluation mode and without gradients. No file runs code.

    Raises:
        ModelFileError: the file is missing, damaged, tries to run code, or holds something else.
    """
    contents = read_contents(path)
    if not isinstance(contents.values, dict):
        raise _refused(path, "it has no widths")
    values: dict[object, object] = contents.values
    require_no_other(path, values, HYPERNETWORK, "a hypernetwork")
    if all(isinstance(value, Tensor) for value in values.values()):
        fields, weights = _of_safetensors(path, values, contents.metadata)
    else:
        fields, weights = _of_torch(path, values, contents.tensor)
    if not weights:
        raise _refused(path, "it has no widths")
    for key in fields:
        if key not in _FIELDS and fields[key] not in (None, False, [], {}):
            raise _refused(path, f"it uses {named(key)}, which the web UI does not know")
    config = _config(path, fields)
    numbers = sum(w.numel() for pair in weights.values() for side in pair.values() for w in side.values())
    if numbers > path.stat().st_size:
        raise _refused(path, f"it says that it has {numbers:,} numbers, which is more than it has bytes")
    state: dict[str, Tensor] = {}
    for width, pair in weights.items():
        try:
            shapes = config.shapes(width)
        except ValueError as error:
            raise _refused(path, str(error)) from error
        for of, side in pair.items():
            checked = _checked(path, f"{width}.{of}", side, shapes)
            state |= {f"pairs.{width}.{of}.{name}": tensor for name, tensor in checked.items()}
    with torch.device("meta"):
        found = Hypernetwork(
            weights, config, initialisation=_initialisation(fields), origin=Origin.of(fields), file=path
        )
    found.load_state_dict(state, assign=True)
    return found.eval().requires_grad_(False)


def _of_torch(
    path: Path, values: Mapping[object, object], tensor: Callable[[object], Tensor | None]
) -> tuple[dict[object, object], Weights]:
    """The fields and weights of a `.pt`."""
    weights: Weights = {}
    fields: dict[object, object] = {}
    for key, pair in values.items():
        if not isinstance(key, int) or isinstance(key, bool):
            fields[key] = pair
            continue
        _require_width(path, key, len(weights))
        both = pair if isinstance(pair, list | tuple) else ()
        sides = [side for side in both if isinstance(side, dict)]
        if len(sides) != 2 or len(both) != 2 or max(map(len, sides)) > MOST_WEIGHTS:
            raise _refused(path, f"at {key} it has no pair of networks")
        weights[key] = {}
        for of, side in zip(_OF, sides, strict=True):
            found = weights[key][of] = {}
            for name, value in side.items():
                weight = tensor(value)
                if weight is None or not isinstance(name, str):
                    raise _refused(path, f"{key}.{of}.{named(name)} is no tensor")
                if (today := _OLD.get(name, name)) in found:
                    raise _refused(path, f"{key}.{of}.{today} stands in it twice")
                found[today] = weight
    return fields, weights


def _of_safetensors(
    path: Path, values: Mapping[object, object], metadata: Mapping[str, str]
) -> tuple[dict[object, object], Weights]:
    """The fields and weights of a file of our own."""
    text = metadata.get(SHAPE)
    if text is None or len(text) > MAX_FIELDS:
        raise _refused(path, f"its metadata have no {SHAPE!r} that says what its layers are")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is corrupted: {SHAPE!r} is no JSON; download or copy it again") from error
    if not isinstance(fields, dict):
        raise _refused(path, f"{SHAPE!r} is no JSON object")
    weights: Weights = {}
    for key, weight in values.items():
        first, _, rest = str(key).partition(".")
        of, _, name = rest.partition(".")
        if not (first.isascii() and first.isdecimal() and len(first) < 8 and of in _OF and isinstance(weight, Tensor)):
            raise _refused(path, f"{named(key)} is no part of one")
        width = int(first)
        if width not in weights:
            _require_width(path, width, len(weights))
            weights[width] = {side: {} for side in _OF}
        weights[width][of][name] = weight
    return fields, weights


def _require_width(path: Path, width: int, others: int) -> None:
    if not 0 < width <= WIDEST or others >= MOST_WIDTHS:
        raise _refused(path, f"{named(width)} is no width of what networks attend to")


def _checked(
    path: Path, place: str, side: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Exactly the weights that the structure asks for, float32."""
    for name in side:
        if name not in shapes:
            raise _refused(path, f"{place}.{printable(name)} has no place in the layers that it says it has")
    found: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        weight = side.get(name)
        if weight is None:
            raise ModelFileError(f"{path} lacks {place}.{name}; download it again")
        if tuple(weight.shape) != shape or not weight.is_floating_point():
            raise _refused(path, f"{place}.{name} is {list(weight.shape)} of {_dtype(weight)}, expected {list(shape)}")
        if not bool(torch.isfinite(weight).all()):
            raise ModelFileError(
                f"{path} is of no use: {place}.{name} has numbers that are not finite; download or train it again"
            )
        found[name] = weight.float()
    return found


def _config(path: Path, fields: Mapping[object, object]) -> HypernetworkConfig:
    """What the layers are; what a file does not say is as the web UI takes it."""
    structure = _numbers(path, fields, "layer_structure")
    structure = (1.0, 2.0, 1.0) if structure is None else structure
    activation = fields.get("activation_func")
    if activation is not None and not isinstance(activation, str):
        raise _refused(path, "its activation_func is no name")
    dropout = _numbers(path, fields, "dropout_structure")
    if dropout is None and fields.get("use_dropout") is True and len(structure) >= 2:
        dropout = standard_dropout(structure, last=fields.get("last_layer_dropout") is True)
    try:
        return HypernetworkConfig(
            structure=structure,
            activation=LINEAR if activation is None else activation,
            activate_output=fields.get("activate_output", True) is True,
            norm=fields.get("is_layer_norm") is True,
            dropout=() if dropout is None or not any(dropout) else dropout,
        )
    except ValueError as error:
        raise _refused(path, str(error)) from error


def _numbers(path: Path, fields: Mapping[object, object], key: str) -> tuple[float, ...] | None:
    value = fields.get(key)
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) > 1000 or not all(type(x) in (int, float) for x in value):
        raise _refused(path, f"its {key} is no list of numbers")
    try:
        return tuple(float(x) for x in value)
    except OverflowError:
        raise _refused(path, f"its {key} has a number that is too large") from None


def _initialisation(fields: Mapping[object, object]) -> Initialisation:
    theirs = fields.get("weight_initialization")
    return next((ours for ours in INITIALISATIONS if THEIR_INITIALISATIONS[ours] == theirs), "normal")


def _refused(path: Path, why: str) -> ModelFileError:
    return ModelFileError(f"{path} cannot be used as a hypernetwork: {why}; give a hypernetwork of the web UI's layout")


def _dtype(weight: Tensor) -> str:
    return str(weight.dtype).removeprefix("torch.")


# Writing


def write_hypernetwork(path: Path, hypernetwork: Hypernetwork, metadata: Mapping[str, str] | None = None) -> None:
    """A `.safetensors` file if the path ends so, else a `.pt` that the web UI reads; float32, atomically.

    Args:
        metadata: beside what the layers are; of `.safetensors` only.

    Raises:
        OutputError: it could not be written.
    """
    fields = _fields(hypernetwork)
    weights: Weights = {
        width: {
            of: {
                name: weight.detach().float().cpu()
                for name, weight in hypernetwork.bend(width, of).state_dict().items()
            }
            for of in ("k", "v")
        }
        for width in hypernetwork.widths
    }
    if path.suffix == ".safetensors":
        tensors = {
            f"{width}.{of}.{name}": weight
            for width, pair in weights.items()
            for of, side in pair.items()
            for name, weight in side.items()
        }
        write_tensors(path, tensors, {SHAPE: json.dumps(fields)} | dict({} if metadata is None else metadata))
        return
    content: dict[int | str, object] = {
        width: tuple(OrderedDict((name, w.contiguous().clone()) for name, w in pair[of].items()) for of in _OF)
        for width, pair in weights.items()
    }
    buffer = io.BytesIO()  # PyTorch would write the name of the file into it, which is not yet its own
    origin = hypernetwork.origin
    told = {
        "name": path.stem if origin.name is None else origin.name,
        STEP: 0 if origin.step is None else origin.step,
    }
    torch.save(content | fields | told, buffer)
    with atomic(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _fields(hypernetwork: Hypernetwork) -> dict[str, object]:
    """What stands beside the widths, as the web UI names it."""
    config = hypernetwork.config
    dropout = list(config.dropout) if config.dropout else [0.0] * len(config.structure)
    return {
        **hypernetwork.origin.fields(),
        "layer_structure": list(config.structure),
        "activation_func": config.activation,
        "is_layer_norm": config.norm,
        "weight_initialization": THEIR_INITIALISATIONS[hypernetwork.initialisation],
        "activate_output": config.activate_output,
        "use_dropout": any(dropout),
        "dropout_structure": dropout,
        "last_layer_dropout": dropout[-2] != 0,
        "optional_info": None,
    }
