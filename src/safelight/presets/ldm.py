"""Latent diffusion before Stable Diffusion (Rombach et al. 2022, tables 8, 12 and 15; its released configurations).

Heads are written as numbers; where the paper gives the width of a head, 32 channels, they are a level's width / 32.
"""

from __future__ import annotations

from dataclasses import replace

from safelight.diffusion.schedule import ScheduleConfig
from safelight.models.autoencoder import AutoencoderConfig
from safelight.models.bert import BertConfig
from safelight.models.boxes import BoxesConfig
from safelight.models.clip import ClipTextConfig
from safelight.models.labels import LabelsConfig
from safelight.models.rescaler import RescalerConfig
from safelight.models.unet import UNetConfig
from safelight.presets.conditions import Boxes, HiddenPicture, Label, LabelMap, SmallPicture, Words
from safelight.presets.preset import Preset

KL_F4 = AutoencoderConfig(latent_channels=3, channels=(128, 256, 512))
KL_F8 = AutoencoderConfig()
KL_F16 = AutoencoderConfig(latent_channels=16, channels=(128, 128, 256, 256, 512), attention_levels=(4,))
KL_F32 = AutoencoderConfig(latent_channels=64, channels=(128, 128, 256, 256, 512, 512), attention_levels=(4, 5))
VQ_F4 = replace(KL_F4, codebook_size=8192)
VQ_F4_NOATTN = replace(VQ_F4, middle_attention=False)
VQ_F8 = AutoencoderConfig(channels=(128, 256, 256, 512), attention_levels=(3,), codebook_size=16384)
VQ_F8_N256 = replace(VQ_F8, codebook_size=256)
VQ_F16 = replace(KL_F16, latent_channels=8, codebook_size=16384)

UNCONDITIONAL_UNET = UNetConfig(
    in_channels=3,
    out_channels=3,
    channels=(224, 448, 672, 896),
    transformer_depth=(0, 1, 1, 1),
    heads=(7, 14, 21, 28),
    context_width=None,
)
"""CelebA-HQ, FFHQ and LSUN bedrooms, 256 pixels, over VQ_F4."""

CHURCHES_UNET = UNetConfig(
    channels=(192, 384, 384, 768, 768),
    transformer_depth=(1, 1, 1, 1, 0),
    heads=(8, 8, 8, 8, 8),
    context_width=None,
    scale_shift=True,
    resnet_resampling=True,
)
"""LSUN churches, 256 pixels, over KL_F8."""

CLASS_F8_UNET = UNetConfig(channels=(256, 512, 1024), transformer_depth=(1, 1, 1), heads=(8, 16, 32), context_width=512)
"""ImageNet by class, 256 pixels, over VQ_F8."""

CLASS_F4_UNET = UNetConfig(
    in_channels=3,
    out_channels=3,
    channels=(192, 384, 576, 960),
    transformer_depth=(0, 1, 1, 1),
    heads=(1, 1, 1, 1),
    context_width=512,
)
"""ImageNet by class, second version, over VQ_F4."""

TEXT_F4_UNET = replace(CLASS_F4_UNET, heads=(6, 12, 18, 30), context_width=640)
"""Conceptual Captions, 256 pixels, over VQ_F4."""

TEXT_UNET = UNetConfig(context_width=1280)
"""LAION-400M, the model of 1.45 thousand million parameters, over KL_F8."""

LAYOUT_UNET = UNetConfig(
    in_channels=3,
    out_channels=3,
    channels=(128, 256, 384, 512),
    transformer_depth=(0, 3, 3, 3),
    middle_depth=3,
    heads=(4, 8, 12, 16),
    context_width=512,
)
"""OpenImages by boxes, 256 pixels, over VQ_F4."""

SEMANTIC_UNET = UNetConfig(
    in_channels=6,
    out_channels=3,
    channels=(128, 512, 1024),
    transformer_depth=(0, 0, 0),
    heads=(8, 8, 8),
    context_width=None,
)
"""Landscapes by semantic map, 256 and 512 pixels, over VQ_F4: a latent of 3 channels and a map of 3."""

UPSCALING_UNET = UNetConfig(
    in_channels=6,
    out_channels=3,
    channels=(160, 320, 320, 640),
    transformer_depth=(0, 0, 0, 1),
    heads=(5, 10, 10, 20),
    context_width=None,
)
"""Four times the size (BSR), over VQ_F4: a latent of 3 channels and a small picture of 3."""

INPAINTING_UNET = UNetConfig(
    in_channels=7,
    out_channels=3,
    channels=(256, 512, 768, 1024),
    transformer_depth=(0, 1, 1, 1),
    heads=(8, 8, 8, 8),
    context_width=None,
    resnet_resampling=True,
)
"""Inpainting, over VQ_F4_NOATTN: a latent of 3 channels, the masked picture's latent of 3, and a mask."""

RETRIEVAL_UNET = UNetConfig(
    in_channels=16,
    out_channels=16,
    channels=(448, 896, 1344, 1792),
    heads=(14, 28, 42, 56),
    context_width=768,
)
"""Retrieval-augmented diffusion, 768 pixels, over KL_F16 (Blattmann et al. 2022)."""

CELEBA = Preset(
    name="ldm-celeba",
    title="LDM CelebA-HQ (faces)",
    unet=UNCONDITIONAL_UNET,
    autoencoder=VQ_F4,
    conditions=(),
    schedule=ScheduleConfig(kind="scaled_linear", start=0.0015, end=0.0195, steps=1000),
    prediction="eps",
    latent_scale=1.0,
    width=256,
    height=256,
    steps=50,
    sampler="ddim",
    spacing="leading",
    guidance=1.0,
)
FFHQ = replace(CELEBA, name="ldm-ffhq", title="LDM FFHQ (faces)")
BEDROOMS = replace(CELEBA, name="ldm-bedrooms", title="LDM LSUN bedrooms")
CHURCHES = replace(
    CELEBA,
    name="ldm-churches",
    title="LDM LSUN churches",
    unet=CHURCHES_UNET,
    autoencoder=KL_F8,
    schedule=replace(CELEBA.schedule, end=0.0155),
)
CLASS_F8 = replace(
    CELEBA,
    name="ldm-class-f8",
    title="LDM ImageNet, first version (no class for none)",
    unet=CLASS_F8_UNET,
    autoencoder=VQ_F8,
    conditions=(Label(LabelsConfig(classes=1000)),),
)
CLASS = replace(
    CELEBA,
    name="ldm-class",
    title="LDM ImageNet",
    unet=CLASS_F4_UNET,
    conditions=(Label(LabelsConfig(), empty=1000),),
    guidance=3.0,
)
TEXT = replace(
    CELEBA,
    name="ldm-text",
    title="LDM text to image, 1.45B",
    unet=TEXT_UNET,
    autoencoder=KL_F8,
    conditions=(Words(BertConfig()),),
    schedule=replace(CELEBA.schedule, start=0.00085, end=0.012),
    latent_scale=0.18215,
    guidance=5.0,
)
TEXT_F4 = replace(
    CELEBA,
    name="ldm-text-f4",
    title="LDM text to image, Conceptual Captions",
    unet=TEXT_F4_UNET,
    conditions=(Words(BertConfig(width=640, mlp_width=2560)),),
)
LAYOUT = replace(
    CELEBA,
    name="ldm-layout",
    title="LDM OpenImages by boxes",
    unet=LAYOUT_UNET,
    conditions=(
        Boxes(BoxesConfig(), BertConfig(vocab_size=8192, width=512, layers=16, mlp_width=2048, context_length=92)),
    ),
    schedule=replace(CELEBA.schedule, end=0.0205),
)
SEMANTIC = replace(
    CELEBA,
    name="ldm-semantic",
    title="LDM landscapes by semantic map",
    unet=SEMANTIC_UNET,
    conditions=(LabelMap(RescalerConfig()),),
    schedule=replace(CELEBA.schedule, end=0.0205),
)
SEMANTIC_512 = replace(
    SEMANTIC, name="ldm-semantic-512", title="LDM landscapes by semantic map, 512 pixels", width=512, height=512
)
UPSCALING = replace(
    CELEBA,
    name="ldm-upscaling",
    title="LDM super-resolution (bicubic or BSR)",
    unet=UPSCALING_UNET,
    conditions=(SmallPicture(),),
    schedule=replace(CELEBA.schedule, end=0.0155),
)
RETRIEVAL = replace(
    CELEBA,
    name="ldm-retrieval",
    title="LDM by CLIP's embedding of words (retrieval-augmented)",
    unet=RETRIEVAL_UNET,
    autoencoder=KL_F16,
    conditions=(Words(ClipTextConfig(projection_width=768, projected=True), states="embedding", zeros=True),),
    schedule=replace(CELEBA.schedule, end=0.015),
    latent_scale=0.22765929,
    width=768,
    height=768,
    guidance=5.0,
)
"""Told CLIP's embedding of the prompt as one token; the embeddings of neighbours, which training put beside it, can be
left out (Blattmann et al. 2022, sec. 3). Its file has no text tower."""
INPAINTING = replace(
    CELEBA,
    name="ldm-inpainting",
    title="LDM inpainting",
    unet=INPAINTING_UNET,
    autoencoder=VQ_F4_NOATTN,
    conditions=(HiddenPicture("latent"),),
    schedule=replace(CELEBA.schedule, end=0.0205),
)
