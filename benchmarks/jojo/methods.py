"""The commands that are measured, as a user types them; how long they took, and how large their files are."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import safelight
from jojo.asking import Wearing, class_prompts
from safelight.training.recipes.prior import with_class
from safelight.training.recipes.tuning_settings import LoraSettings, TuningLoop

PICTURES, CLASS_PROMPTS, CLASS_PICTURES, CLASS_IMAGES = "jojo", "class.txt", "class", 192
PRIOR = f"--class-prompts {CLASS_PROMPTS} --class-data {CLASS_PICTURES} --class-images {CLASS_IMAGES}"
WORD = "jojo"
PARTS = ("unet", "text_encoder", "vae")


@dataclass(frozen=True)
class Method:
    """One way to teach it."""

    title: str
    command: str
    """Behind `safelight train`, without model, data and output."""
    gives: str
    """What of a request its file is for; "model": a whole one."""
    images: int
    """Seen in training, without those of the class; with prior preservation as many of these are seen, too."""
    beside: str = ""
    """What is added to the command with prior preservation."""
    worn: str = ""
    """Behind the name of a file that was made so: how strongly it is worn."""
    prior: bool = True
    """Whether there is anything that it must be kept from forgetting."""

    def line(self, output: str, prior: bool) -> str:
        """As it is typed in the folder of the run."""
        images = self.images * (2 if prior else 1)
        line = f"safelight train {self.command} --model tiny --images {images} --data {PICTURES} --output {output}"
        return f"{line} {PRIOR} {self.beside}".rstrip() if prior else line

    def made(self, output: Path) -> Path:
        """The file, or the folder of a whole model."""
        name = WORD if self.gives == "embedding" else output.name
        return (
            output
            if self.gives == "model"
            else output / f"{name}.{'pt' if self.gives == 'hypernetwork' else 'safetensors'}"
        )

    def wearing(self, output: Path, prior: bool) -> Wearing:
        """What a request says to draw with it."""
        file = (f"{self.made(output)}{self.worn if prior else ''}",)
        match self.gives:
            case "lora":
                return Wearing(lora=file)
            case "embedding":
                return Wearing(embedding=file)
            case "hypernetwork":
                return Wearing(hypernetwork=file)
            case _:
                return Wearing()


_WORD = (
    f"textual-inversion --placeholder {WORD} --initial cat --vectors {{}} --lr 5e-3 --weight-decay 0.01 "
    "--schedule cosine --batch 8"
)
_BEND = (
    "hypernetwork{} --structure 1 2 2 1 --activation mish --initialisation kaiming-uniform --zero-last --lr 1e-3 "
    "--warmup 400 --schedule cosine --batch 4"
)
_KEEP = "--class-target model --class-caption-dropout 0.15"
METHODS: Mapping[str, Method] = {
    "lora": Method("LoRA", "lora --train-text --lr 1e-3 --schedule cosine --batch 4", "lora", 1200),
    "dreambooth": Method("DreamBooth", "dreambooth --train-text --lr 3e-4 --schedule cosine --batch 4", "model", 1200),
    "hypernetwork": Method("hypernetwork", _BEND.format(" --widths 128"), "hypernetwork", 6400, _KEEP, ":1.6"),
    "word": Method("textual inversion", _WORD.format(12), "embedding", 16_000, prior=False),
    "wide-hypernetwork": Method("hypernetwork, all widths", _BEND.format(""), "hypernetwork", 6400, _KEEP, ":0.9"),
    "long-word": Method("textual inversion, 32 vectors", _WORD.format(32), "embedding", 32_000, prior=False),
}
USUAL = ("lora", "dreambooth", "hypernetwork", "word")
"""The others are for what is unlike all that the model knows: a long word says more, and what stands behind it says
less; a hypernetwork for all widths bends what the picture sees of itself, too, and so its grounds.
"""


@dataclass(frozen=True)
class Cost:
    """Of one training."""

    seconds: float
    """By the clock."""
    processor: float
    """Seconds of all threads together, which other work on the machine disturbs less."""
    size: int = 0
    """Bytes of the file, or of all files of the model."""


def draw_class(folder: Path) -> Cost:
    """The pictures of prior preservation: the first training that wants them would draw them, here timed apart."""
    (folder / CLASS_PROMPTS).write_text("\n".join(class_prompts(CLASS_IMAGES)) + "\n")
    settings = LoraSettings(
        class_prompts=folder / CLASS_PROMPTS, class_data=folder / CLASS_PICTURES, class_images=CLASS_IMAGES
    )
    return _once(folder / "class.json", lambda: with_class(settings, [], TuningLoop(folder, device="cpu")))


def train(method: Method, name: str, prior: bool, folder: Path) -> Cost:
    """One command, in the folder of the run, unless that was done."""
    line = method.line(name, prior)

    def run() -> None:
        print(f"$ {line}", flush=True)
        if (folder / name).exists():  # it was stopped
            shutil.rmtree(folder / name)
        source = str(Path(safelight.__file__).parents[1])
        command = [sys.executable, "-m", *shlex.split(line), "--device", "cpu"]
        if subprocess.run(command, cwd=folder, check=False, env={**os.environ, "PYTHONPATH": source}).returncode != 0:
            sys.exit(f"this failed: {line}")

    cost = _once(folder / f"{name}.json", run)
    made = method.made(folder / name)
    files = [made] if made.is_file() else [file for part in PARTS for file in (made / part).rglob("*.safetensors")]
    return replace(cost, size=sum(file.stat().st_size for file in files))


def _once(kept: Path, work: Callable[[], object]) -> Cost:
    """What work costs, or did when it was done."""
    if not kept.is_file():
        started, before = time.perf_counter(), _processor()
        work()
        cost = Cost(time.perf_counter() - started, _processor() - before)
        kept.write_text(json.dumps(asdict(cost)))
    return Cost(**json.loads(kept.read_text()))


def _processor() -> float:
    """Seconds of this process and all that it started and that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
