"""What the judge says becomes right or wrong; its files are checked; pictures reach it as users see them."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from safelight.checkpoints.components import read_judge, write_judge
from safelight.errors import ModelFileError
from safelight.evaluation.fidelity import psnr
from safelight.evaluation.judging import Marks, check_judge, look, mark, seen, tally
from safelight.evaluation.prompts import held_out_prompts, real_scene
from safelight.evaluation.proportions import Share
from safelight.models.judge import Judge, JudgeConfig, Verdict
from safelight.training.scenes import GROUNDS, LAYOUTS, NAMES, Facts, Scene, labels, make_scene
from safelight.training.scenes.facts import Place, Size

CELLS = 8


def perfect(scenes: list[Scene]) -> Verdict:
    """What a judge without fault would say of scenes as they are drawn."""
    count = len(scenes)
    map_ = torch.full((count, len(NAMES), CELLS, CELLS), -9.0)
    grounds, layouts = torch.zeros(count, len(GROUNDS)), torch.zeros(count, len(LAYOUTS))
    for k, scene in enumerate(scenes):
        wanted = labels(scene.facts)
        grounds[k, wanted.ground] = layouts[k, wanted.position] = 5.0
        for name, spot in zip(scene.facts.objects, scene.placements, strict=True):
            map_[k, NAMES.index(name), int(spot.y / 64 * CELLS), int(spot.x / 64 * CELLS)] = 7.0
    return Verdict(map_.amax((2, 3)), grounds, layouts, map_)


def a_scene(*objects: str, place: Place) -> Scene:
    sizes: tuple[Size, ...] = tuple("medium" for _ in objects)
    return make_scene(Facts(objects, sizes, "blue", "plain", place), Random(0))


def marks_of(shown: Scene, asked: Scene) -> Marks:
    """The marks of a picture that shows one thing where another was asked for."""
    (picture,) = seen(perfect([shown]))
    return mark(asked.facts, picture)


def test_real_scenes_seen_without_fault_are_all_right() -> None:
    prompts = held_out_prompts(500)
    scenes = [real_scene(prompt, i, 0, 64) for i, prompt in enumerate(prompts)]
    pictures = seen(perfect(scenes))
    shares = tally([mark(p.facts, picture) for p, picture in zip(prompts, pictures, strict=True)])
    assert shares == {
        "object": Share(300, 300),
        "ground": Share(500, 500),
        "position": Share(300, 300),
        "stated position": Share(250, 250),
        "all of one": Share(300, 300),
        "pair": Share(200, 200),
        "relation": Share(160, 160),  # "and" states no order
    }


def test_each_fault_is_marked_as_itself() -> None:
    asked = a_scene("rocket", place="left")
    right = {"object": True, "ground": True, "position": True, "stated position": True, "all of one": True}
    assert marks_of(asked, asked) == right
    other = marks_of(a_scene("banana", place="left"), asked)
    assert other == right | {"object": False, "all of one": False}
    elsewhere = marks_of(a_scene("rocket", place="right"), asked)
    assert elsewhere == right | {"position": False, "stated position": False, "all of one": False}
    red = Scene(Facts(("rocket",), ("medium",), "red", "plain", "left"), "", asked.placements, (), (0,), 0, 64)
    assert marks_of(red, asked) == right | {"ground": False, "all of one": False}


def test_an_unstated_place_means_the_middle_and_is_not_counted_as_stated() -> None:
    asked = a_scene("rocket", place="unstated")
    assert marks_of(a_scene("rocket", place="middle"), asked)["position"]
    marks = marks_of(a_scene("rocket", place="top"), asked)
    assert not marks["position"]
    assert "stated position" not in marks


@pytest.mark.parametrize(("place", "opposite"), [("left of", "right of"), ("right of", "left of"), ("above", "below")])
def test_the_order_of_a_pair_is_asked_only_where_both_are_found_and_it_is_stated(place: Place, opposite: Place) -> None:
    asked = a_scene("rocket", "banana", place=place)
    assert marks_of(asked, asked) == {"ground": True, "pair": True, "relation": True}
    swapped = marks_of(a_scene("rocket", "banana", place=opposite), asked)
    assert swapped == {"ground": True, "pair": True, "relation": False}
    one = marks_of(a_scene("rocket", "lemon", place=place), asked)
    assert one == {"ground": True, "pair": False}
    both = a_scene("rocket", "banana", place="and")
    assert marks_of(both, both) == {"ground": True, "pair": True}


def toy_judge() -> Judge:
    torch.manual_seed(0)
    config = JudgeConfig(len(NAMES), len(GROUNDS), len(LAYOUTS), channels=(8, 8), blocks=(1, 1), image_size=16)
    return Judge(config).eval()


def test_pictures_of_any_size_reach_the_judge_as_bytes() -> None:
    judge = toy_judge()
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(70)]
    found = look(judge, images)
    assert len(found) == 70, "more than are looked at in one go"
    array = torch.from_numpy(np.array(images[69])).permute(2, 0, 1)[None].float() / 127.5 - 1
    assert found[69] == seen(judge(array))[0]
    doubled = images[0].resize((32, 32), Image.Resampling.NEAREST)
    assert look(judge, [doubled]) == [found[0]]


def test_the_parts_of_a_seen_picture_are_the_networks_largest_answers() -> None:
    verdict = toy_judge()(torch.rand(3, 3, 16, 16) * 2 - 1)
    for k, picture in enumerate(seen(verdict)):
        assert picture.ranking[0] == NAMES[int(verdict.objects[k].argmax())]
        assert set(picture.ranking) == set(NAMES)
        row, column = picture.spots["rocket"]
        at = verdict.map[k, NAMES.index("rocket")]
        assert at[row, column] == at.max() == verdict.objects[k, NAMES.index("rocket")]


def test_the_shipped_shape_is_small() -> None:
    judge = Judge(JudgeConfig(len(NAMES), len(GROUNDS), len(LAYOUTS)))
    assert sum(p.numel() for p in judge.parameters()) < 600_000
    assert judge(torch.zeros(2, 3, 64, 64)).map.shape == (2, len(NAMES), 8, 8)


def test_a_judge_comes_back_from_its_files(tmp_path: Path) -> None:
    judge = toy_judge()
    write_judge(tmp_path / "judge", judge)
    back = read_judge(tmp_path / "judge")
    assert back.config == judge.config
    for key, tensor in back.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, judge.state_dict()[key].half().float())
    check_judge(back, "judge")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("channels", [8, 9], "norm_groups is 8"),
        ("blocks", [1], "blocks is"),
        ("image_size", 18, "a multiple of 4"),
        ("objects", 0, "whole numbers"),
        ("objects", 70, "objects.bias is"),
        ("grounds", "eight", "grounds is 'eight'"),
        ("surprise", 3, "surprise is 3"),
    ],
)
def test_a_wrong_judge_file_is_refused_in_one_line(tmp_path: Path, field: str, value: object, message: str) -> None:
    write_judge(tmp_path / "judge", toy_judge())
    path = tmp_path / "judge" / "judge.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ModelFileError, match=message) as error:
        read_judge(tmp_path / "judge")
    assert "\n" not in str(error.value)


def test_missing_and_foreign_judges_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"judge\.json is missing"):
        read_judge(tmp_path)
    write_judge(tmp_path / "judge", toy_judge())
    weights = tmp_path / "judge" / "judge.safetensors"
    tensors = load_file(weights)
    del tensors["grounds.bias"]
    save_file(tensors, weights)
    with pytest.raises(ModelFileError, match=r"grounds\.bias is nothing"):
        read_judge(tmp_path / "judge")
    other = Judge(JudgeConfig(3, 2, 4, channels=(8,), blocks=(1,), image_size=16))
    with pytest.raises(ModelFileError, match="tells 3 objects, 2 grounds and 4 layouts apart"):
        check_judge(other, "judge")


def test_psnr_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (9, 7, 3)).astype(np.uint8) for _ in range(2))
    error = np.mean((a.astype(float) - b) ** 2)
    assert psnr(Image.fromarray(a), Image.fromarray(b)) == pytest.approx(10 * np.log10(255**2 / error), abs=1e-4)
    black, grey = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), (51, 51, 51))
    assert psnr(black, grey) == pytest.approx(20 * np.log10(5), abs=1e-5)
    assert psnr(black, black) == float("inf")
