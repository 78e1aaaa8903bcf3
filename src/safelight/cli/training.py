"""`safelight train` and `safelight evaluate`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Annotated, get_type_hints

from cyclopts import App, Parameter

from safelight.cli.options import signed
from safelight.training.recipes import commands as recipes

SEVERAL = Parameter(name="*", consume_multiple=True)
"""The fields are options of the command itself, and those that take several values take them behind each other."""


def _training_command(start: Callable[..., None]) -> Callable[..., None]:
    """The command of a recipe: the options are the fields of the configs that `start` takes."""
    hints = get_type_hints(start)
    hints.pop("return")
    # A config without required fields needs not be given at all.
    whole = {name: config() for name, config in hints.items() if all(_has_default(f) for f in fields(config))}

    def command(**given: object) -> None:
        start(**(whole | given))

    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=whole.get(name, inspect.Parameter.empty),
            annotation=Annotated[config, SEVERAL],
        )
        for name, config in hints.items()
    ]
    return signed(command, parameters, start.__doc__)


def _has_default(field: Field[object]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def register(app: App) -> None:
    """Add the command of every recipe, and of every report."""
    train = App(name="train", help="Train the parts of a model, one recipe each.")
    for start in (
        recipes.clip,
        recipes.autoencoder,
        recipes.preview_decoder,
        recipes.diffusion,
        recipes.lora,
        recipes.dreambooth,
        recipes.textual_inversion,
        recipes.hypernetwork,
        recipes.judge,
    ):
        train.command(_training_command(start), name=start.__name__.replace("_", "-"))
    app.command(train)
    evaluate = App(name="evaluate", help="Measure a model on prompts that it never saw.")
    evaluate.command(
        "safelight.evaluation.tiny:main",
        name="tiny",
        help="The shipped model, on combinations held out of its training.",
    )
    app.command(evaluate)
