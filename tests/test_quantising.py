"""`--precision int8`: made once, kept, taken from there; the picture says so, and is drawn again from its record."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import safelight
from safelight.checkpoints import Checkpoint, write_folder
from safelight.errors import RequestError
from safelight.models import int8_products
from safelight.models.int8 import Int8Conv2d, rounded_weights
from safelight.models.int8_products import Quantised
from safelight.tasks.loading import load, open_checkpoint
from safelight.tasks.metadata import read_record
from safelight.tasks.quantising import QuantisedWarning

FEW = safelight.TextToImage(prompt="a cat on a red background", seed=3, steps=4)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "safelight" / "int8"


def _silently(source: str | Path = "tiny") -> safelight.Model:
    """A second start: nothing is made, so nothing is said."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load(source, dtype="int8")


def test_it_is_made_once_and_the_second_start_only_reads(_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(QuantisedWarning, match=f"kept for the next start in {_cache}"):
        model = load("tiny", dtype="int8")
    (file,) = _cache.iterdir()
    picture = model.draw(FEW)[0]
    float_weights = sum(w.numel() * 4 for w in rounded_weights(load("tiny").unet).values())
    assert file.stat().st_size < 0.27 * float_weights

    def fail(weight: torch.Tensor) -> Quantised:
        raise AssertionError("it was made again")

    monkeypatch.setattr(Quantised, "of", fail)
    again = _silently()
    assert any(isinstance(layer, Int8Conv2d) for layer in again.unet.modules())
    assert again.draw(FEW)[0].tobytes() == picture.tobytes()
    assert (again.dtype, again.identity.dtype) == (torch.float32, "int8")


def test_a_picture_records_it_and_is_near_the_one_in_float32(tmp_path: Path) -> None:
    with pytest.warns(QuantisedWarning):
        picture = load("tiny", dtype="int8").draw(FEW)[0]
    safelight.save_picture(picture, tmp_path / "picture.png")
    record = read_record(tmp_path / "picture.png")
    assert record is not None and record.model.dtype == "int8"
    exact = load("tiny").draw(FEW)[0]
    assert picture.tobytes() != exact.tobytes()
    assert _decibels(picture, exact) > 35


def _decibels(one: Image.Image, other: Image.Image) -> float:
    a, b = (torch.tensor(list(image.tobytes()), dtype=torch.float64) for image in (one, other))
    return float(20 * torch.log10(255 / (a - b).square().mean().sqrt()))


def _model(folder: Path, dtype: torch.dtype, scale: float = 1.0) -> Path:
    """The shipped model, written in another precision, one weight multiplied."""
    shipped = open_checkpoint("tiny")
    parts = {part: {k: x.to(dtype) for k, x in tensors.items()} for part, tensors in shipped.parts.items()}
    parts["unet"]["mid_block.resnets.0.conv1.weight"] *= scale
    write_folder(folder, Checkpoint(shipped.preset, parts, shipped.tokenizers))
    return folder


def test_weights_in_half_precision_stay_as_they_are_stored(tmp_path: Path) -> None:
    with pytest.warns(QuantisedWarning):
        model = load(_model(tmp_path / "half", torch.float16), dtype="int8")
    left = rounded_weights(load(tmp_path / "half").unet)
    dtypes = {model.unet.get_parameter(name).dtype for name in left}
    others = {weight.dtype for name, weight in model.unet.named_parameters() if name not in left}
    assert (dtypes, others) == ({torch.float16}, {torch.float32})
    assert _decibels(model.draw(FEW)[0], load(tmp_path / "half").draw(FEW)[0]) > 35


def test_other_weights_and_a_damaged_file_are_made_anew(tmp_path: Path, _cache: Path) -> None:
    one = _model(tmp_path / "one", torch.float32)
    for folder in (one, _model(tmp_path / "two", torch.float32, scale=0.5)):
        with pytest.warns(QuantisedWarning):
            load(folder, dtype="int8")
    assert len(list(_cache.iterdir())) == 2
    for file in _cache.iterdir():
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.warns(QuantisedWarning, match="are kept"):
        load(one, dtype="int8")
    (whole,) = (file for file in _cache.iterdir() if file.stat().st_size > 1000)
    tensors = load_file(whole)
    save_file(dict(list(tensors.items())[1:]), whole)
    with pytest.warns(QuantisedWarning, match="are kept"):
        load(one, dtype="int8")
    os.utime(one / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.warns(QuantisedWarning, match="are kept"):  # written since: what was not looked at may have changed
        load(one, dtype="int8")


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(_cache: Path) -> None:
    _cache.parent.mkdir(parents=True)
    _cache.write_text("a file where the folder should be")
    with pytest.warns(QuantisedWarning, match="at every start"):
        model = load("tiny", dtype="int8")
    assert _decibels(model.draw(FEW)[0], load("tiny").draw(FEW)[0]) > 35


def test_with_low_memory_the_picture_is_the_same() -> None:
    with pytest.warns(QuantisedWarning):
        whole = load("tiny", dtype="int8").draw(FEW)[0]
    assert load("tiny", dtype="int8", low_memory=True).draw(FEW)[0].tobytes() == whole.tobytes()


def test_only_on_the_cpu() -> None:
    with pytest.raises(RequestError, match="int8 is for the CPU"):
        load("tiny", device="meta", dtype="int8")


def test_where_it_cannot_be_computed_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert int8_products.supported()

    def fail(*_: object) -> None:
        raise RuntimeError("there is no such kernel")

    monkeypatch.setattr(int8_products, "product", fail)
    int8_products.supported.cache_clear()
    with pytest.raises(RequestError, match="cannot multiply in int8: leave out"):
        load("tiny", dtype="int8")
    int8_products.supported.cache_clear()
