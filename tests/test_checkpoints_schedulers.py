"""Schedulers of diffusers in our words and back: held against diffusers' own classes, and the published files."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from checkpoint_cases import manifest
from safelight.checkpoints import configs, write_folder
from safelight.checkpoints.configs import Scheduling, read_scheduler, scheduler_json
from safelight.checkpoints.configs.scheduler_classes import ALIKE, CLASSES, NEVER, SCHEDULERS, schedulers
from safelight.checkpoints.folder import read_folder
from safelight.diffusion.samplers import SAMPLERS
from safelight.diffusion.schedule import Schedule, ScheduleConfig
from safelight.diffusion.sigmas import SPACINGS, sigmas
from safelight.errors import ModelFileError
from safelight.presets import PRESETS
from toy_family import filled, toy_preset

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")

SD = ScheduleConfig()
KNOWN = {
    **dict.fromkeys(("ddim", "plms", "pndm"), "leading trailing"),
    "ddpm": "leading leading_0 linspace_whole trailing",
    **dict.fromkeys(
        ("lms", "euler", "heun", "dpm_2", "dpm_2_a", "dpmpp_sde"),
        "beta exponential karras leading leading_0 linspace_straight trailing",
    ),
    "euler_a": "leading leading_0 linspace_straight trailing",
    **dict.fromkeys(
        ("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "unipc"),
        "beta exponential karras leading_dpm sgm_uniform_whole trailing",
    ),
    "dpmpp_2s": "beta exponential karras sgm_uniform_whole",
    **dict.fromkeys(("lcm", "tcd"), "lcm"),
}
"""The spacings that diffusers can make exactly of each of our samplers; of the others, none."""


def read(path: Path, content: dict[str, Any]) -> Scheduling:
    path.write_text(json.dumps(content))
    return read_scheduler(path)


def class_of(name: str) -> Any:
    """diffusers' own class. One of them walks by torchsde, and is hidden where that is not: its levels need it not."""
    found = getattr(diffusers, name)
    if found.__module__.endswith("dummy_torch_and_torchsde_objects"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))
            return getattr(importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde"), name)
    return found


def made(content: dict[str, object]) -> Any:
    """diffusers' own scheduler of a file: one for all who ask for steps of it, as some take seconds to be made."""
    return _made(json.dumps(content, sort_keys=True))


@cache
def _made(content: str) -> Any:
    found = json.loads(content)
    return class_of(found["_class_name"]).from_config(found)


def levels_of(theirs: Any, steps: int) -> Tensor:
    """The noise levels (steps + 1,) that diffusers' scheduler goes through."""
    theirs.set_timesteps(steps)
    if hasattr(theirs, "sigmas"):
        return torch.unique_consecutive(theirs.sigmas).double()  # twice where a step asks twice
    name = type(theirs).__name__
    t = torch.as_tensor(theirs._timesteps if name == "PNDMScheduler" else theirs.timesteps).long()
    abar = theirs.alphas_cumprod[t.unique().flip(0)].double()
    abar[abar == 0] = 2**-24  # where their samplers know no sigmas, they need nothing in its place
    if name == "TCDScheduler":
        end = theirs.alphas_cumprod[:1]
    elif name in ("DDIMScheduler", "PNDMScheduler"):
        end = theirs.final_alpha_cumprod.view(1)
    else:
        end = torch.ones(1)
    abar = torch.cat([abar, end.double()])
    return ((1 - abar) / abar).sqrt()


def agree(content: dict[str, object], found: Scheduling, ends_at: Any, steps: tuple[int, ...] = (4, 10, 30)) -> float:
    """The largest error of our noise levels, relative; those below 0.03 to 0.03, for theirs come from 1 - abar in
    float32. Asserts that the networks are told the same timesteps."""
    schedule, worst = Schedule(found.schedule), 0.0
    theirs = made(content)
    for n in steps:
        expected = levels_of(theirs, n)
        ours = sigmas(schedule, n, found.spacing, ends_at).double()
        worst = max(worst, float(((ours - expected).abs() / expected.clamp(min=0.03)).max()))
        if len(theirs.timesteps) == n:
            t = torch.tensor([schedule.t(v) for v in ours[:-1].tolist()])
            # What the network is told: some of theirs round a fractional timestep, or cut it off.
            whole = any(flag.startswith("use_") for flag in content) and theirs.timesteps.dtype == torch.int64
            rounded = whole or (content["_class_name"] == "KDPM2DiscreteScheduler")
            assert float((t - theirs.timesteps.double()).abs().max()) <= (1.01 if rounded else 0.02)
    return worst


@pytest.mark.parametrize("sampler", [*SAMPLERS, "another"])
def test_what_diffusers_knows_it_does_as_we_do_and_the_rest_is_said(tmp_path: Path, sampler: str) -> None:
    exact, worst = set(), 0.0
    for spacing in SPACINGS:
        wanted = Scheduling(sampler, spacing, SD, "eps")
        content, notes = scheduler_json(wanted)
        back = read(tmp_path / "s", content)
        assert (back.schedule, back.prediction) == (SD, "eps")
        theirs = made(content)
        assert all(name in theirs.config for name in content.keys() - {"_class_name"}), "a field that means nothing"
        assert all("\n" not in note and note.partition(":")[0] in {*content} for note in notes + back.inexact)
        if notes:
            theirs.set_timesteps(4)  # it runs all the same
            continue
        assert back == replace(wanted, spacing=ALIKE.get(spacing, spacing))
        worst = max(worst, agree(content, wanted, SCHEDULERS[sampler].ends_at))
        exact |= {spacing} - ALIKE.keys()
    print(f"{sampler}: {' '.join(sorted(exact))}: {worst:.1e}")
    assert worst <= 1e-4
    assert " ".join(sorted(exact)) == KNOWN.get(sampler, "")


@pytest.mark.parametrize("sampler", [*SCHEDULERS, "another"])
@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_noise_without_signal_at_the_end_is_written_and_read(tmp_path: Path, sampler: str, prediction: Any) -> None:
    wanted = Scheduling(sampler, "trailing", replace(SD, zero_snr=True), prediction)
    content, notes = scheduler_json(wanted)
    back = read(tmp_path / "s", content)
    assert (back.schedule, back.prediction) == (wanted.schedule, prediction)
    assert made(content).config.rescale_betas_zero_snr is True
    if not notes:
        assert back == wanted
        assert agree(content, wanted, SCHEDULERS[sampler].ends_at) <= 1e-4
    else:
        assert notes[0].split(":")[0] in content


@pytest.mark.parametrize(
    "schedule", [ScheduleConfig("linear", 0.0001, 0.02), ScheduleConfig("cosine"), replace(SD, end=0.02, steps=500)]
)
@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_every_schedule_is_written_and_read(tmp_path: Path, sampler: str, schedule: ScheduleConfig) -> None:
    wanted = Scheduling(sampler, "trailing", schedule, "v")
    content, notes = scheduler_json(wanted)
    back = read(tmp_path / "s", content)
    assert (back.schedule, back.prediction) == (schedule, "v")
    if not notes:
        assert back == wanted
        assert agree(content, wanted, SCHEDULERS[sampler].ends_at, (4, 10)) <= 1e-4


def test_the_table_fits_the_samplers() -> None:
    for scheduler in schedulers():
        assert scheduler.sampler in SAMPLERS
        assert scheduler.differs is not None or scheduler.ends_at == SAMPLERS[scheduler.sampler].ends_at
        assert scheduler.fields.keys() <= CLASSES[scheduler.class_name].fields.keys()
    assert not {name for known in CLASSES.values() for name in known.fields} & (NEVER - {"lower_order_final"})


@pytest.mark.parametrize("name", CLASSES)
def test_absent_fields_are_diffusers_defaults(tmp_path: Path, name: str) -> None:
    known, found = CLASSES[name], read(tmp_path / "s", {"_class_name": name})
    defaults = {p.name: p.default for p in inspect.signature(class_of(name).__init__).parameters.values()}
    for field, default in known.fields.items():
        expected = [] if field == "disable_corrector" else defaults[field]
        assert default == expected, field
    assert known.word == defaults.get("timestep_spacing", "linspace")
    assert known.spaced == ("timestep_spacing" in defaults)
    assert known.zero_snr == ("rescale_betas_zero_snr" in defaults)
    assert all(flag in defaults for flag in known.sigmas)
    theirs = made({"_class_name": name})
    torch.testing.assert_close(
        Schedule(found.schedule).alphas_cumprod, theirs.alphas_cumprod.double(), rtol=1e-4, atol=1e-7
    )
    assert not any(note.startswith(("timestep", "use_")) for note in found.inexact if "stands still" not in note)


# Published files

HUB = {
    name: entry["scheduler"]
    for name, entry in manifest("folders")["hub"].items()
    if isinstance(entry, dict) and isinstance(entry.get("scheduler"), dict)
}
FOUND = {
    "stable-diffusion-v1-5": ("plms", "leading", "eps"),
    "stable-diffusion-inpainting": ("plms", "leading", "eps"),
    "stable-diffusion-2-base / 2-1-base": ("plms", "leading", "eps"),
    "stable-diffusion-2 (768)": ("euler", "linspace_straight", "v"),
    "stable-diffusion-2-1 (768)": ("ddim", "leading", "v"),
    "stable-diffusion-2-inpainting": ("plms", "leading", "eps"),
    "stable-diffusion-2-depth": ("plms", "leading", "eps"),
    "stable-diffusion-x4-upscaler": ("ddim", "leading", "v"),
    "stable-diffusion-2-1-unclip (-h) / -small (-l)": ("plms", "leading", "v"),
    "stable-diffusion-xl-base-1.0": ("euler", "leading", "eps"),
    "sdxl-turbo": ("euler_a", "trailing", "eps"),
    "sd-turbo": ("euler", "trailing", "eps"),
    "ldm-text2im-large-256": ("euler", "leading_0", "eps"),
    "ldm-celebahq-256": ("euler", "leading_0", "eps"),
    "ldm-super-resolution-4x-openimages": ("euler", "leading_0", "eps"),
}


@pytest.mark.parametrize("name", HUB)
def test_a_published_scheduler_is_read_exactly_and_written_as_it_was(tmp_path: Path, name: str) -> None:
    published = HUB[name]
    found = read(tmp_path / "s", published)
    assert (found.sampler, found.spacing, found.prediction) == FOUND[name]
    assert found.inexact == ()
    content, notes = scheduler_json(found, allowed=(published["_class_name"],))
    assert notes == ()
    again, once = made(content), made(published)
    assert type(again) is type(once)
    used = inspect.signature(type(once).__init__).parameters.keys()  # files name others beside
    used -= {"self"} if found.spacing in ("leading", "leading_0") else {"self", "steps_offset"}
    differing = {
        key: (again.config.get(key), once.config[key]) for key in used if again.config.get(key) != once.config[key]
    }
    assert differing == {}
    ends_at = next(s.ends_at for s in schedulers(found.sampler, published["_class_name"]))
    error = max(agree(content, found, ends_at), agree(published, found, ends_at))
    print(f"{name}: {error:.1e}")
    assert error <= 1e-4


# What is not ours

MULTI = {"_class_name": "DPMSolverMultistepScheduler"}
EULER = {"_class_name": "EulerDiscreteScheduler", "steps_offset": 1}


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({"_class_name": "EDMEulerScheduler"}, "_class_name"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "_class_name"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "_class_name"),
        ({"_class_name": "IPNDMScheduler"}, "_class_name"),
        ({"_class_name": ["DDIMScheduler"]}, "_class_name"),
        ({**EULER, "trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({**EULER, "timestep_type": "continuous"}, "timestep_type"),
        ({**MULTI, "use_flow_sigmas": True}, "use_flow_sigmas"),
        ({**MULTI, "prediction_type": "flow_prediction"}, "prediction_type"),
        ({**MULTI, "beta_schedule": "sigmoid"}, "beta_schedule"),
        ({**EULER, "rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({**EULER, "rescale_betas_zero_snr": "yes"}, "rescale_betas_zero_snr"),
        ({**EULER, "timestep_spacing": "logarithmic"}, "timestep_spacing"),
        ({**EULER, "use_karras_sigmas": True, "use_beta_sigmas": True}, "use_beta_sigmas"),
    ],
    ids=str,
)
def test_other_noise_is_refused_by_field(tmp_path: Path, content: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        read(tmp_path / "s", content)
    assert str(caught.value).startswith(f"{tmp_path / 's'}: {field} is ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "found", "fields"),
    [
        (MULTI, ("dpmpp_2m", "sgm_uniform_whole"), []),
        ({**MULTI, "use_lu_lambdas": True}, ("dpmpp_2m", "exponential"), []),
        (
            {**MULTI, "lambda_min_clipped": float("-inf"), "use_karras_sigmas": None},
            ("dpmpp_2m", "sgm_uniform_whole"),
            [],
        ),
        ({**MULTI, "algorithm_type": "sde-dpmsolver++"}, ("dpmpp_2m_sde", "sgm_uniform_whole"), []),
        ({**MULTI, "solver_order": 1}, ("euler", "sgm_uniform_whole"), []),
        ({**MULTI, "solver_order": 3}, ("dpmpp_2m", "sgm_uniform_whole"), ["solver_order"]),
        ({**MULTI, "solver_type": "heun"}, ("dpmpp_2m", "sgm_uniform_whole"), ["solver_type"]),
        ({**MULTI, "thresholding": True}, ("dpmpp_2m", "sgm_uniform_whole"), ["thresholding"]),
        ({**MULTI, "final_sigmas_type": "sigma_min"}, ("dpmpp_2m", "sgm_uniform_whole"), ["final_sigmas_type"]),
        ({**MULTI, "timestep_spacing": "leading"}, ("dpmpp_2m", "leading_dpm"), ["steps_offset"]),
        ({**MULTI, "timestep_spacing": "leading", "use_karras_sigmas": True}, ("dpmpp_2m", "karras"), []),
        (
            {**EULER, "timestep_spacing": "leading", "use_karras_sigmas": True},
            ("euler", "karras"),
            ["timestep_spacing"],
        ),
        ({**EULER, "timestep_spacing": "leading", "steps_offset": 3}, ("euler", "leading"), ["steps_offset"]),
        ({**EULER, "interpolation_type": "log_linear"}, ("euler", "linspace_straight"), ["interpolation_type"]),
        ({**EULER, "a_field_of_tomorrow": 7}, ("euler", "linspace_straight"), ["a_field_of_tomorrow"]),
        ({**EULER, "skip_prk_steps": True, "a_field_of_tomorrow": False}, ("euler", "linspace_straight"), []),
        ({"_class_name": "DDIMScheduler"}, ("euler", "leading_0"), ["clip_sample"]),
        (
            {"_class_name": "DDPMScheduler", "variance_type": "fixed_large"},
            ("ddpm", "leading_0"),
            ["variance_type", "clip_sample"],
        ),
        ({"_class_name": "PNDMScheduler"}, ("pndm", "leading_0"), ["timestep_spacing"]),
        ({"_class_name": "SASolverScheduler"}, (None, "sgm_uniform_whole"), ["_class_name"]),
        ({}, (None, "leading_0"), ["_class_name"]),
    ],
    ids=str,
)
def test_other_ways_to_sample_are_named_by_field(
    tmp_path: Path, content: dict[str, Any], found: tuple[str | None, str], fields: list[str]
) -> None:
    scheduling = read(tmp_path / "s", content)
    assert (scheduling.sampler, scheduling.spacing) == found
    assert sorted(note.partition(":")[0] for note in scheduling.inexact) == sorted(fields)


def test_a_pipeline_that_knows_one_class_gets_it() -> None:
    content, notes = scheduler_json(Scheduling("euler", "leading", SD, "eps"), ("DDIMScheduler",))
    assert (content["_class_name"], content["set_alpha_to_one"], notes) == ("DDIMScheduler", True, ())
    content, notes = scheduler_json(Scheduling("heun", "karras", SD, "eps"), ("DDPMScheduler",))
    assert content["_class_name"] == "DDPMScheduler"
    assert [note.partition(":")[0] for note in notes] == ["_class_name", "timestep_spacing"]


@pytest.mark.parametrize("name", PRESETS)
def test_reading_keeps_the_table_that_the_member_aligns_its_steps_by(tmp_path: Path, name: str) -> None:
    preset = PRESETS[name]
    (tmp_path / "s").write_text(json.dumps(scheduler_json(Scheduling.of(preset))[0]))
    found = configs.read_schedule(tmp_path / "s", preset)
    assert found == preset and found.schedule.aligned == preset.schedule.aligned


def test_a_folder_is_read_with_the_table_of_its_member(tmp_path: Path) -> None:
    write_folder(tmp_path / "x", filled(toy_preset(PRESETS["sdxl"])))
    (tmp_path / "x/safelight.json").unlink()
    assert read_folder(tmp_path / "x").preset.schedule.aligned == "sdxl"
