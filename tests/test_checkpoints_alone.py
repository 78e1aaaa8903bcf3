"""An autoencoder from a file of its own, in every way that such files are written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

import safelight
from safelight.checkpoints import Checkpoint
from safelight.checkpoints.alone import read_vae
from safelight.checkpoints.configs import autoencoder_json
from safelight.checkpoints.files import read_tensors
from safelight.checkpoints.layouts import ldm, original
from safelight.errors import ModelFileError, RequestError
from safelight.presets import PRESETS
from safelight.tasks.files import convert_model
from toy_family import toy_model, toy_preset

PRESET = toy_preset(PRESETS["sd1"])
CONFIG = PRESET.networks["autoencoder"]


def _weights(seed: int) -> dict[str, torch.Tensor]:
    return dict(toy_model(PRESETS["sd1"], seed).networks["autoencoder"].state_dict())


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_original_names(tmp_path: Path, prefix: str) -> None:
    weights = _weights(1)
    theirs = {pair.theirs: pair.op.out_of([weights[pair.ours]]) for pair in ldm.autoencoder(CONFIG, prefix)}
    extra = {prefix + "loss.logvar": torch.zeros(())}
    if prefix:
        extra["model.diffusion_model.out.0.weight"] = torch.zeros(3)
    save_file({**theirs, **extra}, tmp_path / "vae.safetensors")
    found = read_vae(tmp_path / "vae.safetensors", CONFIG)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key]) for key in weights)


def test_a_folder_that_diffusers_wrote(tmp_path: Path) -> None:
    weights = _weights(2)
    fields = autoencoder_json(CONFIG, PRESET.latent_scale, PRESET.width)
    theirs = AutoencoderKL(**{k: v for k, v in fields.items() if not k.startswith("_")})
    theirs.load_state_dict(weights)
    theirs.save_pretrained(tmp_path)
    found = read_vae(tmp_path, CONFIG)
    assert all(torch.equal(found[key], weights[key]) for key in weights)


def test_it_draws_in_place_of_the_models_own(tmp_path: Path) -> None:
    model = toy_model(PRESETS["sd1"])
    model.save(tmp_path / "model")
    own = safelight.load(tmp_path / "model")
    weights = _weights(3)
    theirs = {pair.theirs: pair.op.out_of([weights[pair.ours]]) for pair in ldm.autoencoder(CONFIG)}
    save_file(theirs, tmp_path / "vae.safetensors")
    other = safelight.load(tmp_path / "model", vae=tmp_path / "vae.safetensors")
    assert other.identity.sha256 != own.identity.sha256
    ask = safelight.TextToImage(prompt="a dog", seed=1)
    assert other.draw(ask)[0].tobytes() != own.draw(ask)[0].tobytes()


def test_what_is_no_autoencoder_is_refused_by_name(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelFileError, match=r"x\.safetensors holds no autoencoder.*--vae"):
        read_vae(tmp_path / "x.safetensors", CONFIG)
    with pytest.raises(ModelFileError, match="missing"):
        read_vae(tmp_path / "nowhere.safetensors", CONFIG)


def test_an_original_unclip_file_lacks_the_statistics_of_embeddings() -> None:
    model = toy_model(PRESETS["unclip-l"])
    written = original.save(model.preset, model.weights())
    for name in original.STATISTICS.values():
        del written[name]
    back, _ = original.layout(model.preset, written).load(written, "x")
    checkpoint = Checkpoint(model.preset, back)
    assert checkpoint.absent() == ["normalizer"]
    with pytest.raises(ModelFileError, match="no normalizer in it: give one by --normalizer"):
        checkpoint.require_whole()


def test_a_folder_becomes_an_original_file_with_the_same_numbers(tmp_path: Path) -> None:
    model = toy_model(PRESETS["tiny"])
    model.save(tmp_path / "folder")
    convert_model(str(tmp_path / "folder"), tmp_path / "one.safetensors", layout="original")
    tensors = read_tensors(tmp_path / "one.safetensors")
    parts, dropped = original.layout(model.preset, tensors).load(tensors, "one")
    assert not dropped
    for part, network in model.networks.items():
        assert all(torch.equal(parts[part][key], tensor) for key, tensor in network.state_dict().items())
    with pytest.raises(RequestError, match=r"must end in \.safetensors"):
        convert_model(str(tmp_path / "folder"), tmp_path / "one.ckpt", layout="original")
