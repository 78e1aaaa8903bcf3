"""Training's options: their ranges, the learning rate, and that help need not wait for torch."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pytest
from cyclopts import App, Parameter

from golden_cases import golden
from safelight.errors import TrainingError
from safelight.training.config import MAY_CHANGE, LoopConfig, option

BASE = LoopConfig(output=Path("out"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images", 0),
        ("batch", 0),
        ("accumulate", 0),
        ("save_every", -1),
        ("keep", 0),
        ("log_every", 0),
        ("warmup", -1),
        ("workers", -1),
        ("seed", -1),
        ("seed", 2**63),
        ("lr", 0.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("weight_decay", -0.1),
        ("weight_decay", math.nan),
        ("clip", math.nan),
        ("ema", 1.0),
        ("ema", math.nan),
        ("final_lr", 1.5),
        ("betas", (0.9, 1.0)),
        ("schedule", "linear"),
        ("precision", "fp16"),
        ("device", "cuda:7"),
    ],
)
def test_a_value_out_of_range_is_named_in_one_line(name: str, value: object) -> None:
    with pytest.raises(TrainingError, match=f"^{option(name)} is .*: give ") as caught:
        replace(BASE, **{name: value})  # type: ignore[arg-type]  # wrong on purpose
    assert "\n" not in str(caught.value)


def test_zero_is_a_value_where_it_means_none() -> None:
    config = replace(BASE, seed=0, clip=0.0, ema=0.0, warmup=0, workers=0, weight_decay=0.0)
    assert (config.seed, config.clip, config.ema) == (0, 0.0, 0.0)


def test_cosine_is_that_of_the_published_code() -> None:
    # LambdaWarmUpCosineScheduler: warm-up 1000 of 50,000, multiplier 0.1 at the top and 0.0001 at the end.
    recorded = golden("training/lr_schedulers")
    config = replace(BASE, lr=0.1, final_lr=0.001, warmup=1000, images=50_000, batch=1)
    after = [
        (n, w) for n, w in zip(recorded["n"].tolist(), recorded["warmup_cosine"].tolist(), strict=True) if n >= 1000
    ]
    assert len(after) == 6
    for n, wanted in after:
        assert config.rate(n) == pytest.approx(wanted, rel=1e-12), f"at {n} images"


def test_warm_up_rises_in_a_line_from_the_first_step_to_the_full_rate() -> None:
    config = replace(BASE, lr=1.0, warmup=100, batch=5, accumulate=2, schedule="constant")
    assert [config.rate(n) for n in (0, 10, 50, 90, 100, 10**9)] == pytest.approx([0.1, 0.2, 0.6, 1, 1, 1])
    assert replace(config, warmup=0).rate(0) == 1.0
    assert replace(config, warmup=3).rate(0) == 1.0


def test_what_a_resumed_run_may_change_is_a_field_and_the_rest_is_fixed() -> None:
    assert set(BASE.fixed()) | MAY_CHANGE == set(LoopConfig.__dataclass_fields__)
    assert {"lr", "batch", "seed", "accumulate", "ema", "precision"} <= set(BASE.fixed())


def test_options_come_from_the_dataclass_with_its_words_as_help(capsys: pytest.CaptureFixture[str]) -> None:
    app = App(name="try", result_action="return_value")

    @app.default
    def command(loop: Annotated[LoopConfig, Parameter(name="*")]) -> LoopConfig:
        return loop

    given = app(["--output", "o", "--images", "64", "--lr", "0.1", "--betas", "0.5", "0.9", "--resume"])
    assert given == LoopConfig(Path("o"), images=64, lr=0.1, betas=(0.5, 0.9), resume=True)
    app(["--help"])
    assert "--save-every" in capsys.readouterr().out


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys, safelight.training.config; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
