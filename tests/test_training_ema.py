"""The averaged twin, against the published code's numbers."""

from __future__ import annotations

import torch
from torch import nn

from golden_cases import golden, weight
from safelight.training.ema import Ema


def test_it_follows_as_the_published_code_does() -> None:
    recorded = golden("training/lit_ema")
    module = nn.Linear(3, 2)
    module.load_state_dict({key: weight(key, tuple(t.shape)) for key, t in module.state_dict().items()})
    ema = Ema(module, decay=0.9999)
    for n in range(5):
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.add_(recorded[f"update{n}.{name}"])
        ema.update()
        shadow = torch.cat([p.reshape(-1) for p in ema.module.parameters()])
        torch.testing.assert_close(shadow, recorded["shadow_after_each"][n], rtol=1e-6, atol=5e-7)
    assert ema.updates == 5


def test_the_decay_never_exceeds_the_one_asked_for() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    ema = Ema(module, decay=0.5)
    ema.updates = 1000  # where the warm-up alone would give 0.99
    nn.init.ones_(module.weight)
    ema.update()
    assert ema.module.weight.item() == 0.5


def test_statistics_are_copied_and_frozen_weights_are_left_alone() -> None:
    module = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.BatchNorm1d(2))
    ema = Ema(module, decay=0.9)
    before = module[0].weight.clone()
    module(torch.randn(8, 2))
    ema.update()
    twin = ema.module
    assert torch.equal(twin.get_buffer("1.running_mean"), module.get_buffer("1.running_mean"))
    assert int(twin.get_buffer("1.num_batches_tracked")) == 1
    assert torch.equal(twin.get_parameter("0.weight"), before)
    assert not twin.training
    assert not any(p.requires_grad for p in twin.parameters())
