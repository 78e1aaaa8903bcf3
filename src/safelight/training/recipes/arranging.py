"""What a TOML file of a data set says of a run, put into the run's settings (`training.kohya`)."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TypeVar

from safelight.errors import TrainingError
from safelight.training.config import option
from safelight.training.folders import TOML
from safelight.training.kohya import read_dataset
from safelight.training.recipes.tuning_settings import TuningData, TuningLoop

L = TypeVar("L", bound=TuningLoop)
V = TypeVar("V")


def arranged(loop: L, data: TuningData) -> tuple[L, TuningData]:
    """The settings with what the file says; as they are, where the data are no such file.

    Raises:
        DataError: as `read_dataset`.
        TrainingError: an option says something else than the file.
    """
    if data.data.suffix.lower() != TOML:
        return loop, data
    usual = {field.name: field.default for field in fields(TuningData)}
    for name, key in (
        ("shuffle_tags", "shuffle_caption"),
        ("keep_tags", "keep_tokens"),
        ("tag_dropout", "caption_tag_dropout_rate"),
    ):
        if getattr(data, name) != usual[name]:
            raise TrainingError(f"{option(name)} is not for a .toml file: write {key} into {data.data}")

    def agreed(name: str, said: V, default: object, key: str, written: V | None) -> V:
        if written is None:
            return said
        if said not in (default, written):
            raise TrainingError(
                f"{option(name)} {said} is not what {data.data} says ({key}, {written}): leave out one of them"
            )
        return written

    sizes = read_dataset(data.data).sizes
    batch = next(field.default for field in fields(loop) if field.name == "batch")
    return replace(loop, batch=agreed("batch", loop.batch, batch, "batch_size", sizes.batch)), replace(
        data,
        size=agreed("size", data.size, None, "resolution", sizes.size),
        square=agreed("square", data.square, False, "enable_bucket", sizes.square),
        bucket_step=agreed("bucket_step", data.bucket_step, None, "bucket_reso_steps", sizes.step),
        bucket_smallest=agreed("bucket_smallest", data.bucket_smallest, None, "min_bucket_reso", sizes.smallest),
        bucket_largest=agreed("bucket_largest", data.bucket_largest, None, "max_bucket_reso", sizes.largest),
        no_enlarge=agreed("no_enlarge", data.no_enlarge, False, "bucket_no_upscale", sizes.no_enlarge),
    )
