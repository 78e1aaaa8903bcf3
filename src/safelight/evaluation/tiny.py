"""`safelight evaluate tiny`: how well a model of scenes draws what it was never shown. No torch until it starts."""

# ruff: noqa: PLC0415  (help must not wait for torch)

from __future__ import annotations

import json
import math
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from safelight.errors import ModelFileError, OutputError, RequestError


def main(
    *,
    model: str = "tiny",
    judge: Path | None = None,
    prompts: int = 500,
    guidance: str = "1,2,3,4,5,6,7.5,10",
    curve: int = 100,
    steps: int | None = None,
    sampler: str | None = None,
    seed: int = 0,
    device: str | None = None,
    precision: str | None = None,
    sheet: Path | None = None,
    markdown: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Measure a model of scenes on combinations held out of its training, by a judge that was trained apart.

    The table is measured at the model's own guidance; about five minutes on two cores, most of it the curve.

    Args:
        model: A shipped model, a folder, a .safetensors or .ckpt file, or a hub id.
        judge: A folder from `safelight train judge`. Default: the shipped one.
        prompts: How many; 3 of 5 name one object, the others two.
        guidance: Scales of the curve over guidance, with commas; "none" leaves it out.
        curve: Prompts of each kind at each point of the curve.
        steps: Sampling steps. Default: the model's.
        sampler: The way from noise to picture. Default: the model's.
        seed: Of prompts and noise; picture k is drawn from seed + k.
        device: Where to compute, like cpu or cuda. Default: the accelerator if there is one.
        precision: float32, bfloat16, float16, or int8 on the CPU. Default: float32 on the CPU, else as the weights are.
        sheet: PNG to write: four held-out prompts, each with seeds 0 to 15, none left out.
        markdown: File to write the report to, as it stands in a model card.
        as_json: Print one JSON object.
    """
    scales = parse_scales(guidance)
    for path in (sheet, markdown):
        if path is not None and not path.parent.is_dir():
            raise OutputError(f"there is no folder {str(path.parent)!r} for {path.name}: make it first")
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise RequestError(f"--sheet {str(sheet)!r} must end in .png")

    from tqdm import tqdm

    from safelight.checkpoints.components import read_judge
    from safelight.checkpoints.writing import write_text
    from safelight.evaluation.judging import check_judge
    from safelight.evaluation.measuring import Measuring, Plan, shown
    from safelight.evaluation.sheet import contact_sheet
    from safelight.tasks.identity import hash_files
    from safelight.tasks.loading import load
    from safelight.tasks.pictures import save_picture

    plan = Plan(prompts, scales, curve, steps, sampler, seed)
    folder = judge_folder(judge)
    network = read_judge(folder)
    check_judge(network, str(folder))
    drawing = load(model, device, precision)
    network = network.to(drawing.device).eval()
    with closing(tqdm(unit=" pictures", leave=False, disable=None)) as bar:
        measuring = Measuring(drawing, network, plan, bar.update)
        bar.reset(measuring.count)
        report = measuring.run(hash_files(folder))
    if sheet is not None:
        save_picture(contact_sheet(shown(drawing, plan)), sheet)
    if markdown is not None:
        write_text(markdown, report.markdown())
    print(json.dumps(report.json()) if as_json else report.text())


def parse_scales(text: str) -> tuple[float, ...]:
    """Numbers with commas between them; "none" is none.

    Raises:
        RequestError: one is no number, or not finite.
    """
    if text.strip() == "none":
        return ()
    scales = []
    for part in text.split(","):
        try:
            scale = float(part)
        except ValueError:
            scale = math.nan
        if not math.isfinite(scale):
            raise RequestError(f"--guidance {part.strip()!r} is no number: give some with commas, like 1,4,7.5")
        scales.append(scale)
    return tuple(scales)


def judge_folder(given: Path | None) -> Path:
    """The folder given, or the shipped judge's.

    Raises:
        ModelFileError: none is shipped.
    """
    if given is not None:
        return given
    folder = Path(str(files("safelight"))) / "assets" / "judge"
    if not folder.is_dir():
        raise ModelFileError(
            "no judge is shipped with this version: train one with `safelight train judge`, "
            "and give its folder by --judge"
        )
    return folder
