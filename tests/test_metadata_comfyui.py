"""ComfyUI's graphs, in PNG and WebP: what of them a request can say, and what it cannot."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from sd_parsers import ParserManager

from metadata_cases import png, with_exif
from safelight.errors import RequestError
from safelight.tasks.metadata import Recovered, recover

Inputs = dict[str, object]


def node(kind: str, **inputs: object) -> Inputs:
    return {"class_type": kind, "inputs": inputs}


def basic(**changes: Inputs) -> dict[str, object]:
    """The graph that ComfyUI opens with."""
    return {
        "3": node(
            "KSampler",
            seed=156680208700286,
            steps=20,
            cfg=8.0,
            sampler_name="euler_ancestral",
            scheduler="normal",
            denoise=1.0,
            model=["4", 0],
            positive=["6", 0],
            negative=["7", 0],
            latent_image=["5", 0],
        ),
        "4": node("CheckpointLoaderSimple", ckpt_name="sd15/v1-5-pruned-emaonly.safetensors"),
        "5": node("EmptyLatentImage", width=512, height=768, batch_size=1),
        "6": node("CLIPTextEncode", text="a glass bottle, (galaxy:1.2)", clip=["4", 1]),
        "7": node("CLIPTextEncode", text="text, watermark", clip=["4", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", filename_prefix="ComfyUI", images=["8", 0]),
        **changes,
    }


def sampler(**changes: object) -> Inputs:
    inputs = basic()["3"]
    assert isinstance(inputs, dict)
    return {"class_type": "KSampler", "inputs": {**inputs["inputs"], **changes}}


def of(graph: object, tmp_path: Path) -> Recovered:
    text = graph if isinstance(graph, str) else json.dumps(graph)
    return recover(png(tmp_path / "a.png", {"prompt": text, "workflow": '{"nodes": []}'}))


FIELDS = {
    "prompt": "a glass bottle, (galaxy:1.2)",
    "negative_prompt": "text, watermark",
    "seed": 156680208700286,
    "steps": 20,
    "guidance": 8.0,
    "sampler": "euler_a",
    "spacing": "linspace",
    "width": 512,
    "height": 768,
}


def test_the_graph_that_comfyui_opens_with(tmp_path: Path) -> None:
    found = of(basic(), tmp_path)
    assert (found.tool, found.task) == ("ComfyUI", "txt2img")
    assert found.fields == FIELDS
    assert found.model.name == "sd15/v1-5-pruned-emaonly.safetensors"
    assert found.notes == ()


def test_sd_parsers_reads_the_same_from_it(tmp_path: Path) -> None:
    """The fixture is what ComfyUI writes, as another reader sees it."""
    kinds = {"model": "MODEL", "clip": "CLIP", "positive": "CONDITIONING", "negative": "CONDITIONING"}
    links = [
        [k, int(value[0]), value[1], int(id_), 0, kinds.get(name, "OTHER")]
        for k, (id_, name, value) in enumerate(
            (id_, name, value)
            for id_, one in basic().items()
            for name, value in one["inputs"].items()  # type: ignore[index]
            if isinstance(value, list)
        )
    ]
    texts = {"prompt": json.dumps(basic()), "workflow": json.dumps({"links": links})}
    info = ParserManager().parse(io.BytesIO(png(tmp_path / "a.png", texts).read_bytes()))
    assert info is not None
    [seen] = info.samplers
    assert [prompt.value for prompt in seen.prompts] == [FIELDS["prompt"]]
    assert (seen.parameters["seed"], seen.parameters["steps"]) == (FIELDS["seed"], 20)


@pytest.mark.parametrize("key", ["prompt", "Prompt"])
def test_webp_has_it_in_exif(key: str, tmp_path: Path) -> None:
    tags = {0x010F: "workflow:{}", 0x0110: f"{key}:{json.dumps(basic())}"}
    assert recover(with_exif(tmp_path / "a.webp", tags)).fields == FIELDS


def test_values_that_come_through_other_nodes(tmp_path: Path) -> None:
    graph = basic(
        **{
            "3": sampler(seed=["20", 0], steps=["21", 0]),
            "6": node("CLIPTextEncode", text=["22", 0], clip=["4", 1]),
            "20": node("Seed (rgthree)", seed=["23", 0]),
            "21": node("PrimitiveInt", value=12),
            "22": node("StringConstant", string="from afar"),
            "23": node("PrimitiveInt", value=77),
        }
    )
    found = of(graph, tmp_path)
    assert (found.fields["seed"], found.fields["steps"], found.fields["prompt"]) == (77, 12, "from afar")


def test_loras_become_tags_in_their_order_and_clip_skip_is_seen(tmp_path: Path) -> None:
    graph = basic(
        **{
            "3": sampler(model=["11", 0]),
            "10": node(
                "LoraLoader",
                lora_name="styles\\ink.safetensors",
                strength_model=0.8,
                strength_clip=0.5,
                model=["4", 0],
                clip=["4", 1],
            ),
            "11": node("LoraLoaderModelOnly", lora_name="lcm.safetensors", strength_model=1, model=["10", 0]),
            "12": node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=["10", 1]),
            "6": node("CLIPTextEncode", text="a fox", clip=["12", 0]),
        }
    )
    found = of(graph, tmp_path)
    assert found.fields["prompt"] == "a fox <lora:ink:0.5:0.8> <lora:lcm:0:1>"
    assert found.model.name == "sd15/v1-5-pruned-emaonly.safetensors"
    said = f"{found.fields.get('clip_skip')} {found.notes}"
    assert "2" in said


def test_a_second_pass_is_said_and_the_first_is_taken(tmp_path: Path) -> None:
    graph = basic(
        **{
            "13": node("LatentUpscale", width=1024, height=1536, samples=["3", 0]),
            "14": sampler(seed=5, steps=10, denoise=0.5, latent_image=["13", 0]),
            "8": node("VAEDecode", samples=["14", 0], vae=["4", 2]),
        }
    )
    found = of(graph, tmp_path)
    assert found.fields == FIELDS
    assert found.notes == ("not carried over: KSampler 14, a further pass: steps 10, denoise 0.5",)


def test_another_picture_to_begin_with(tmp_path: Path) -> None:
    graph = basic(
        **{
            "3": sampler(denoise=0.6, latent_image=["15", 0]),
            "15": node("VAEEncode", pixels=["16", 0], vae=["4", 2]),
            "16": node("LoadImage", image="cat.png"),
        }
    )
    found = of(graph, tmp_path)
    assert (found.task, found.fields["strength"], found.fields["steps"]) == ("img2img", 0.6, 34)
    assert int(34 * 0.6) == 20, "as many steps are walked as there"
    assert any("cat.png" in note for note in found.notes)
    graph["15"] = node("VAEEncodeForInpaint", pixels=["16", 0], mask=["16", 1], vae=["4", 2])
    assert of(graph, tmp_path).task == "inpaint"


def test_custom_samplers(tmp_path: Path) -> None:
    graph = basic(
        **{
            "3": node(
                "SamplerCustomAdvanced",
                noise=["30", 0],
                guider=["31", 0],
                sampler=["32", 0],
                sigmas=["33", 0],
                latent_image=["5", 0],
            ),
            "30": node("RandomNoise", noise_seed=9),
            "31": node("CFGGuider", model=["4", 0], positive=["6", 0], negative=["7", 0], cfg=5.5),
            "32": node("KSamplerSelect", sampler_name="dpmpp_2m"),
            "33": node("BasicScheduler", scheduler="karras", steps=25, denoise=1.0, model=["4", 0]),
        }
    )
    wanted = {**FIELDS, "seed": 9, "guidance": 5.5, "sampler": "dpmpp_2m", "spacing": "karras", "steps": 25}
    assert of(graph, tmp_path).fields == wanted
    graph["33"] = node("ExponentialScheduler", steps=25, sigma_max=14.6, sigma_min=0.03)
    assert of(graph, tmp_path).fields == {**wanted, "spacing": "exponential"}
    graph["33"] = node("LaplaceScheduler", steps=25)
    assert any("'LaplaceScheduler' is not understood" in note for note in of(graph, tmp_path).notes)


def test_advanced_samplers_hand_over(tmp_path: Path) -> None:
    first = {"noise_seed": 4, "start_at_step": 0, "end_at_step": 20, "add_noise": "enable"}
    graph = basic(
        **{
            "3": {
                "class_type": "KSamplerAdvanced",
                "inputs": {**sampler()["inputs"], **first, "steps": 25, "seed": None},
            },  # type: ignore[dict-item]
            "40": sampler(steps=25, start_at_step=20, model=["41", 0], latent_image=["3", 0]),
            "41": node("CheckpointLoaderSimple", ckpt_name="refiner.safetensors"),
            "8": node("VAEDecode", samples=["40", 0], vae=["4", 2]),
        }
    )
    del graph["3"]["inputs"]["seed"]  # type: ignore[index]
    found = of(graph, tmp_path)
    assert (found.fields["seed"], found.fields["steps"]) == (4, 25)
    assert any("end_at_step: 20" in note and "KSampler 40" in note for note in found.notes)


def test_the_sizes_of_sdxl_and_words_that_are_joined(tmp_path: Path) -> None:
    graph = basic(
        **{
            "6": node(
                "CLIPTextEncodeSDXL",
                text_g="wide",
                text_l="wide",
                width=1024,
                height=1152,
                crop_w=0,
                crop_h=8,
                target_width=1024,
                target_height=1024,
                clip=["4", 1],
            ),
            "7": node("ConditioningConcat", conditioning_to=["50", 0], conditioning_from=["51", 0]),
            "50": node("CLIPTextEncode", text="one", clip=["4", 1]),
            "51": node("CLIPTextEncode", text="two", clip=["4", 1]),
        }
    )
    fields = of(graph, tmp_path).fields
    assert (fields["original_size"], fields["crop"], fields["target_size"]) == ([1024, 1152], [0, 8], [1024, 1024])
    assert (fields["prompt"], fields["negative_prompt"]) == ("wide", "one BREAK two")


def test_what_stands_on_the_way_is_listed(tmp_path: Path) -> None:
    graph = basic(
        **{
            "3": sampler(positive=["60", 0], negative=["60", 1], model=["61", 0]),
            "60": node("ControlNetApplyAdvanced", positive=["6", 0], negative=["7", 0], strength=1.0),
            "61": node("FreeU_V2", b1=1.3, model=["4", 0]),
        }
    )
    found = of(graph, tmp_path)
    assert (found.fields["prompt"], found.fields["negative_prompt"]) == (FIELDS["prompt"], FIELDS["negative_prompt"])
    assert any("ControlNetApplyAdvanced 60" in note and "FreeU_V2 61" in note for note in found.notes)


def test_guidance_that_hangs_on_the_model(tmp_path: Path) -> None:
    graph = basic(
        **{
            "3": sampler(model=["61", 0]),
            "61": node("RescaleCFG", multiplier=0.7, model=["62", 0]),
            "62": node("PerturbedAttentionGuidance", scale=3.0, model=["63", 0]),
            "63": node("SelfAttentionGuidance", scale=0.5, blur_sigma=2.0, model=["64", 0]),
            "64": node("FreeU", b1=1.5, b2=1.6, s1=0.9, s2=0.2, model=["65", 0]),
            "65": node("TomePatchModel", ratio=0.3, model=["4", 0]),
        }
    )
    freeu = [1.5, 1.6, 0.9, 0.2]
    asked = {"guidance_rescale": 0.7, "pag": 3.0, "sag": 0.5, "freeu": freeu, "merge_tokens": 0.3}
    assert of(graph, tmp_path).fields == FIELDS | asked


def test_batches_brackets_and_strange_samplers_are_said(tmp_path: Path) -> None:
    graph = basic(
        **{
            "3": sampler(sampler_name="res_multistep", scheduler="bong_tangent"),
            "5": node("EmptyLatentImage", width=512, height=768, batch_size=4),
            "6": node("CLIPTextEncode", text="a [b:c]", clip=["4", 1]),
        }
    )
    found = of(graph, tmp_path)
    assert "sampler" not in found.fields
    for words in ("batch of 4", "takes [ and ]", "'res_multistep' is not", "'bong_tangent' is not"):
        assert any(words in note for note in found.notes), words


def test_the_two_kinds_of_unipc(tmp_path: Path) -> None:
    assert of(basic(**{"3": sampler(sampler_name="uni_pc_bh2")}), tmp_path).notes == ()
    [note] = of(basic(**{"3": sampler(sampler_name="uni_pc")}), tmp_path).notes
    assert "B1 there" in note


def test_a_node_that_says_it_changed_writes_nan(tmp_path: Path) -> None:
    graph = basic()
    graph["9"]["is_changed"] = [float("nan")]  # type: ignore[index]
    assert of(json.dumps(graph), tmp_path).fields == FIELDS


def test_rings_do_not_trap(tmp_path: Path) -> None:
    graph = basic(
        **{
            "3": sampler(model=["70", 0], latent_image=["71", 0], positive=["72", 0], seed=["73", 0]),
            "70": node("Reroute", model=["70", 0]),
            "71": node("LatentUpscale", samples=["3", 0], width=["71", 0]),
            "72": node("ConditioningConcat", conditioning_to=["72", 0], conditioning_from=["72", 0]),
            "73": node("Primitive", value=["74", 0]),
            "74": node("Primitive", value=["73", 0]),
        }
    )
    found = of(graph, tmp_path)
    assert "seed" not in found.fields
    assert found.fields["steps"] == 20


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "no nodes"),
        ("{}", "no nodes"),
        ('{"1": 5, "2": {"class_type": 7}}', "no nodes"),
        (json.dumps({"1": node("SaveImage", images=["2", 0])}), "no sampler with steps"),
        ('{"1": {"class_type": "KSampler", "class_type": "KSampler"}}', "says 'class_type' twice"),
        (json.dumps({str(k): node("Note") for k in range(20_001)}), "more than 20000 nodes"),
        (json.dumps({str(k): sampler() for k in range(100)}), "more than 64 samplers"),
    ],
)
def test_broken_graphs_are_one_line(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"^[^\n]*$") as caught:
        of(text, tmp_path)
    assert words in str(caught.value)


def test_a_workflow_alone_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="workflow, but not the graph that ran"):
        recover(png(tmp_path / "a.png", {"workflow": '{"nodes": []}'}))
