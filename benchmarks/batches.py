"""Whether a picture is the same whatever its batch: the shipped tiny, each sampler, batches of 1, 2, 4 and 8.

    pip install . && python benchmarks/batches.py

Noise, prompts and steps of picture k never depend on its batch. What a platform may do otherwise is to add up the terms
of a sum in another order for another batch size; the last bits of a float then differ, and rarely a pixel does. This
counts how often: pictures with the very bytes of the one drawn alone, and the largest difference of any value.
"""

from __future__ import annotations

from functools import partial

import numpy as np

import safelight
from measuring import Report, arguments
from safelight.diffusion.samplers import SAMPLERS, Step
from safelight.tasks.metadata import RECORD_CHUNK, Record
from safelight.tasks.model import Model

BATCHES = (2, 4, 8)
PROMPT = "a cat face to the left of a key on a yellow background"


def main() -> None:
    """Print a line for each sampler."""
    parser = arguments(__doc__)
    parser.add_argument("--samplers", nargs="*", default=list(SAMPLERS))
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    report = Report.of(options)
    model = safelight.load("tiny", "cpu", "float32")
    print(f"{'sampler':<20}{'same bytes':>12}{'largest difference':>20}{'previews':>10}{'from record':>13}")
    whole, total = 0, 0
    for sampler in options.samplers:
        request = safelight.TextToImage(prompt=PROMPT, seed=100, steps=options.steps, sampler=sampler)
        alone = [model.draw(request.changed(seed=100 + k))[0] for k in range(max(BATCHES))]
        same, far = 0, 0
        last = []
        for batch in BATCHES:
            last = model.draw(request.changed(batch=batch))
            for k, image in enumerate(last):
                same += image.tobytes() == alone[k].tobytes()
                far = max(far, int(np.abs(np.asarray(image, np.int16) - np.asarray(alone[k], np.int16)).max()))
        looked = model.draw(request, partial(looking, model))[0].tobytes() == alone[0].tobytes()
        record = Record.read(str(last[-1].info[RECORD_CHUNK]), "the last picture")
        again = model.draw(record.asked())[0].tobytes() == alone[max(BATCHES) - 1].tobytes()
        count = sum(BATCHES)
        whole, total = whole + same, total + count
        line = f"{sampler:<20}{f'{same} of {count}':>12}{f'{far}/255':>20}{looked!s:>10}{again!s:>13}"
        told = {"same": same, "count": count, "difference": far, "with_previews": looked, "from_record": again}
        report.add(line, sampler=sampler, **told)
    print(f"in all {whole} of {total} pictures have the bytes of those drawn alone")


def looking(model: Model, step: Step) -> None:
    """Make a preview of the step, as a watcher does."""
    model.preview(step)


if __name__ == "__main__":
    main()
