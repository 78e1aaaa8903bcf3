"""A prompt explained for a model that is named, without filling its networks."""

from __future__ import annotations

from safelight.conditioning.prompts.emphasis import Emphasis
from safelight.tasks.loading import open_checkpoint
from safelight.tasks.prompts.explain import Explained, explain
from safelight.tasks.prompts.readers import readers
from safelight.tasks.prompts.wording import Wording
from safelight.tasks.sources import PLAIN, Reading


def explain_wording(
    wording: Wording,
    source: str,
    reading: Reading = PLAIN,
    *,
    steps: int | None = None,
    emphasis: Emphasis = "original",
    seed: int = 0,
) -> list[Explained]:
    """What a model makes of a prompt and, if there is one, of a negative prompt.

    Args:
        source, reading: the model, as `load` takes it.
        steps: of the walk; None: the model's own number.
        seed: that chooses from wildcards.

    Raises:
        ModelFileError: as `load`.
        RequestError: as `explain` and `Wording.resolved`.
    """
    words = wording.resolved(seed)
    checkpoint = open_checkpoint(source, reading)
    towers = readers(checkpoint.preset, checkpoint.vocabularies(), emphasis)
    count = checkpoint.preset.steps if steps is None else steps
    found = [explain(words.prompt, towers, count, second=words.prompt_2)]
    if words.negative_prompt or words.negative_prompt_2:
        second = words.negative_prompt_2
        found.append(explain(words.negative_prompt, towers, count, second=second, negative=True))
    return found
