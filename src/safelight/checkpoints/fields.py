"""Reads a `config.json` field by field: what is used, what must have one value, what does not matter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from safelight.checkpoints.files import read_json
from safelight.errors import ModelFileError

MOST = 1 << 20
"""No width, number of words or of layers is larger; a network of such a size is never built."""

PRETRAINED = (
    *("architectures", "attn_implementation", "bad_words_ids", "begin_suppress_tokens", "bos_token_id"),
    *("chunk_size_feed_forward", "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype"),
    *("early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty"),
    *("finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing", "id2label"),
    *("initializer_factor", "initializer_range", "is_encoder_decoder", "label2id", "length_penalty", "max_length"),
    *("min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_labels", "num_return_sequences"),
    *("output_attentions", "output_hidden_states", "output_scores", "pad_token_id", "prefix", "problem_type"),
    *("pruned_heads", "remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate"),
    *("sep_token_id", "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss"),
    *("tie_word_embeddings", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript"),
    *("transformers_version", "typical_p", "use_bfloat16", "use_cache"),
)
"""What transformers writes into the config of every network, and no picture depends on."""


class Fields:
    """The fields of one `config.json`, or of one section of it.

    Absent ones take the defaults of the library that wrote it.
    """

    def __init__(self, path: Path, section: str | None = None, *, optional: bool = False) -> None:
        """section: where in the file; optional: one that is absent or null is an empty one."""
        self.path = path
        content: object = read_json(path)
        if section is not None:
            content = content.get(section) if isinstance(content, dict) else None
            content = {} if content is None and optional else content
        if not isinstance(content, dict):
            raise ModelFileError(f"{path} has no {section}: it describes another kind of model")
        self.class_name: object = content.get("_class_name")
        self.content = {k: v for k, v in content.items() if not k.startswith("_")}
        self.known: set[str] = set()

    def kind(self, expected: str | None, known: Sequence[str]) -> str:
        """Which of the `known` classes of diffusers this is: as the file says, or `expected`, or else the first."""
        if self.class_name is None:
            return known[0] if expected is None else expected
        allowed = known if expected is None else (expected,)
        if not isinstance(self.class_name, str) or self.class_name not in allowed:
            raise self.bad("_class_name", self.class_name, " or ".join(allowed))
        return self.class_name

    def get(self, name: str, default: object) -> object:
        """Any value."""
        self.known.add(name)
        return self.content.get(name, default)

    def whole(self, name: str, default: int, most: int = MOST) -> int:
        """A whole number of 1 or more."""
        return self._whole(name, self.get(name, default), most)

    def wholes(
        self, name: str, default: int | list[int], length: int | None = None, most: int = MOST
    ) -> tuple[int, ...]:
        """Whole numbers, one per level. Where `length` is given, a single number stands for all."""
        value = self.get(name, default)
        if not isinstance(value, list) and length is not None:
            value = [value] * length
        if not isinstance(value, list) or not 1 <= len(value) <= 16 or (length is not None and len(value) != length):
            raise self.bad(name, value, "one number per level")
        return tuple(self._whole(name, item, most) for item in value)

    def whole_or_none(self, name: str, default: int | None = None, most: int = MOST) -> int | None:
        """A whole number of 1 or more, or null."""
        value = self.get(name, default)
        return None if value is None else self._whole(name, value, most)

    def number(self, name: str, default: float) -> float:
        """A number above 0."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.bad(name, value, "a number above 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.bad(name, value, "true or false")
        return value

    def words(self, name: str, default: list[str], allowed: Iterable[str]) -> list[str]:
        """Words of a known set."""
        value = self.get(name, default)
        if not isinstance(value, list) or not all(isinstance(word, str) and word in allowed for word in value):
            raise self.bad(name, value, f"only {', '.join(allowed)}")
        return value

    def word(self, name: str, default: str, allowed: Iterable[str]) -> str:
        """A word of a known set."""
        value = self.get(name, default)
        if not isinstance(value, str) or value not in allowed:
            raise self.bad(name, value, f"one of {', '.join(allowed)}")
        return value

    def word_or_none(self, name: str, allowed: Iterable[str]) -> str | None:
        """A word of a known set, or null, which is the default."""
        return None if self.get(name, None) is None else self.word(name, "", allowed)

    def must(self, wanted: Mapping[str, object]) -> None:
        """Fields that change the network in ways that we do not have: absent, or of this value."""
        for name, value in wanted.items():
            if (found := self.get(name, value)) != value:
                raise self.bad(name, found, f"{value!r}: Safelight has no network with another")

    def ignore(self, names: Iterable[str]) -> None:
        """Fields that do not change what the network computes."""
        self.known.update(names)

    def done(self) -> None:
        """Every other field is unknown, and may be anything: it must be off."""
        for name, value in self.content.items():
            if name not in self.known and value is not None and value is not False:
                raise self.bad(name, value, "no such field: Safelight does not know what it changes")

    def bad(self, name: str, value: object, expected: str) -> ModelFileError:
        """The error for a field."""
        return ModelFileError(f"{self.path}: {ascii(name)[1:-1]} is {ascii(value)[:120]}, expected {expected}")

    def _whole(self, name: str, value: object, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self.bad(name, value, f"whole numbers from 1 to {most}")
        return value
