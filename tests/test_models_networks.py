"""Networks without numbers are made once for their shapes and for being filled, and never handed out twice."""

from __future__ import annotations

from safelight.models import networks
from safelight.models.labels import LabelsConfig
from safelight.models.networks import shapes_of, unfilled


def test_what_was_made_for_its_shapes_is_handed_out_once() -> None:
    config = LabelsConfig(classes=7, width=11)
    shapes = shapes_of(config)
    first, second = unfilled(config), unfilled(config)
    assert first is not second
    assert all(parameter.is_meta for parameter in first.parameters())
    assert shapes == {name: tuple(x.shape) for name, x in second.state_dict().items()} == shapes_of(config)


def test_only_a_few_are_kept() -> None:
    for width in range(20, 40):
        shapes_of(LabelsConfig(classes=7, width=width))
    assert len(networks._spare) <= networks.SPARE
