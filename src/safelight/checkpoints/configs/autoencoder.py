"""`vae/config.json` and `vqvae/config.json`: of AutoencoderKL, and of VQModel with its codebook."""

from __future__ import annotations

from pathlib import Path

from safelight.checkpoints.fields import Fields
from safelight.errors import ModelFileError
from safelight.models.autoencoder import AutoencoderConfig
from safelight.presets import PRESETS

KL, VQ = "AutoencoderKL", "VQModel"
MOST_LAYERS = 256
PLAIN, ATTENDING = ("DownEncoderBlock2D", "UpDecoderBlock2D"), ("AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D")
"""Kinds of levels, in the encoder and in the decoder."""

VQ_SCALE = 1.0
"""The latent scale of a VQModel whose file says none. The library's default is another, but such files were written
before it had the field, by latent diffusion's models, which scale nothing."""

_MUST: dict[str, object] = {"act_fn": "silu"}
_KL_MUST: dict[str, object] = {
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}
_VQ_MUST: dict[str, object] = {"norm_type": "group", "lookup_from_codebook": False}


def read_autoencoder(path: Path, kind: str | None = None) -> tuple[AutoencoderConfig, float]:
    """`vae/config.json` -> our config, and the latent scale.

    kind: the class of diffusers that it is said to be of; None: that which the file names.

    Raises:
        ModelFileError: a field asks for a network that we do not have.
    """
    config, scale = read_autoencoder_as_stated(path, kind)
    return config, default_scale(config) if scale is None else scale


def read_autoencoder_as_stated(path: Path, kind: str | None = None) -> tuple[AutoencoderConfig, float | None]:
    """As `read_autoencoder`, with None for a latent scale that is not in the file."""
    fields = Fields(path)
    quantised = fields.kind(kind, (KL, VQ)) == VQ
    channels = fields.wholes("block_out_channels", [64])
    z = fields.whole("latent_channels", 3 if quantised else 4)
    entries = fields.whole("num_vq_embeddings", 256) if quantised else None
    width = fields.whole("vq_embed_dim", z) if quantised and fields.get("vq_embed_dim", None) is not None else z
    groups = fields.whole("norm_num_groups", 32)
    if any(channel % groups for channel in channels):
        raise fields.bad("norm_num_groups", groups, f"a divisor of the widths {channels}")
    config = AutoencoderConfig(
        in_channels=fields.whole("in_channels", 3),
        latent_channels=width,
        inner_channels=None if width == z else z,
        channels=channels,
        blocks_per_level=fields.whole("layers_per_block", 1, MOST_LAYERS),
        attention_levels=_attention_levels(fields, len(channels)),
        middle_attention=fields.flag("mid_block_add_attention", True),
        codebook_size=entries,
        norm_groups=groups,
    )
    scale = None if fields.get("scaling_factor", None) is None else fields.number("scaling_factor", 1.0)
    fields.must({"out_channels": config.in_channels, **_MUST, **(_VQ_MUST if quantised else _KL_MUST)})
    fields.ignore(("sample_size", "force_upcast"))
    fields.done()
    return config, scale


def default_scale(config: AutoencoderConfig) -> float:
    """The latent scale where the file says none."""
    return PRESETS["sd1"].latent_scale if config.codebook_size is None else VQ_SCALE


def autoencoder_json(config: AutoencoderConfig, latent_scale: float, size: int) -> dict[str, object]:
    """Our config -> `vae/config.json`. `size`: pixels on a side.

    Raises:
        ModelFileError: diffusers has no such network.
    """
    if config.codebook_size is None and config.z_channels != config.latent_channels:
        raise ModelFileError(
            f"diffusers has no KL autoencoder with {config.z_channels} channels inside and {config.latent_channels} "
            "in its latent; make them equal"
        )
    levels = range(len(config.channels))
    down = [ATTENDING[0] if level in config.attention_levels else PLAIN[0] for level in levels]
    up = [ATTENDING[1] if level in config.attention_levels else PLAIN[1] for level in reversed(levels)]
    content: dict[str, object] = {
        "_class_name": autoencoder_class(config),
        "sample_size": size,
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "latent_channels": config.z_channels,
        "down_block_types": down,
        "up_block_types": up,
        "block_out_channels": list(config.channels),
        "layers_per_block": config.blocks_per_level,
        "norm_num_groups": config.norm_groups,
        "scaling_factor": latent_scale,
        **_MUST,
    }
    if not config.middle_attention:
        content["mid_block_add_attention"] = False
    if config.codebook_size is not None:
        content |= {"num_vq_embeddings": config.codebook_size, "vq_embed_dim": config.latent_channels}
    return content


def autoencoder_class(config: AutoencoderConfig) -> str:
    """diffusers' class of such a network."""
    return KL if config.codebook_size is None else VQ


def _attention_levels(fields: Fields, levels: int) -> tuple[int, ...]:
    down = fields.words("down_block_types", [PLAIN[0]], (PLAIN[0], ATTENDING[0]))
    up = fields.words("up_block_types", [PLAIN[1]], (PLAIN[1], ATTENDING[1]))
    for name, kinds in (("down_block_types", down), ("up_block_types", up)):
        if len(kinds) != levels:
            raise fields.bad(name, kinds, f"{levels} levels")
    attends = tuple(level for level, kind in enumerate(down) if kind == ATTENDING[0])
    if tuple(level for level, kind in enumerate(reversed(up)) if kind == ATTENDING[1]) != attends:
        raise fields.bad("up_block_types", up, "the mirror of down_block_types")
    return attends
