"""Records of the transformers for everyday pictures, all in timm's form on the Hugging Face hub."""

from dataclasses import dataclass

from morphem.zoo.base import HubFile, Record

_HALVES = (0.5, 0.5, 0.5)
_WIDTHS = {"s": (384, 6), "b": (768, 12), "l": (1024, 16)}
_CITATIONS = {
    "dino": "Caron et al. 2021, https://arxiv.org/abs/2104.14294",
    "dinov2": "Oquab et al. 2023, https://arxiv.org/abs/2304.07193",
    "dinov2 reg": "Darcet et al. 2023, https://arxiv.org/abs/2309.16588",
    "dinov3": "Simeoni et al. 2025, https://arxiv.org/abs/2508.10104",
    "supervised": "Steiner et al. 2021, https://arxiv.org/abs/2106.10270",
}
_SOURCES = {
    "dino": "https://github.com/facebookresearch/dino at cb711401",
    "dinov2": "https://github.com/facebookresearch/dinov2",
    "dinov2 reg": "https://github.com/facebookresearch/dinov2",
    "dinov3": "https://github.com/facebookresearch/dinov3",
    "supervised": "https://github.com/google-research/vision_transformer",
}
_TRAINED_ON = {
    "dino": "DINO on ImageNet-1k",
    "dinov2": "DINOv2 on LVD-142M",
    "dinov2 reg": "DINOv2 with registers on LVD-142M",
    "dinov3": "DINOv3 on LVD-1689M",
    "supervised": "supervised on ImageNet-1k",
}


@dataclass(frozen=True)
class _Release:
    name: str
    kind: str
    size: str
    patch: int
    timm: str
    trained_px: int = 224


_RELEASES = (
    _Release("dino-imagenet-vits16", "dino", "s", 16, "vit_small_patch16_224.dino"),
    _Release("dino-imagenet-vits8", "dino", "s", 8, "vit_small_patch8_224.dino"),
    _Release("dino-imagenet-vitb16", "dino", "b", 16, "vit_base_patch16_224.dino"),
    _Release("dino-imagenet-vitb8", "dino", "b", 8, "vit_base_patch8_224.dino"),
    _Release("dinov2-reg-vits14", "dinov2 reg", "s", 14, "vit_small_patch14_reg4_dinov2.lvd142m", 518),
    _Release("dinov2-reg-vitb14", "dinov2 reg", "b", 14, "vit_base_patch14_reg4_dinov2.lvd142m", 518),
    _Release("dinov2-reg-vitl14", "dinov2 reg", "l", 14, "vit_large_patch14_reg4_dinov2.lvd142m", 518),
    _Release("dinov2-vits14", "dinov2", "s", 14, "vit_small_patch14_dinov2.lvd142m", 518),
    _Release("dinov2-vitb14", "dinov2", "b", 14, "vit_base_patch14_dinov2.lvd142m", 518),
    _Release("dinov2-vitl14", "dinov2", "l", 14, "vit_large_patch14_dinov2.lvd142m", 518),
    _Release("dinov3-vits16", "dinov3", "s", 16, "vit_small_patch16_dinov3.lvd1689m", 256),
    _Release("dinov3-vitb16", "dinov3", "b", 16, "vit_base_patch16_dinov3.lvd1689m", 256),
    _Release("dinov3-vitl16", "dinov3", "l", 16, "vit_large_patch16_dinov3.lvd1689m", 256),
    _Release("supervised-imagenet-vits16", "supervised", "s", 16, "vit_small_patch16_224.augreg_in1k"),
    _Release("supervised-imagenet-vitb16", "supervised", "b", 16, "vit_base_patch16_224.augreg_in1k"),
)


def _record(release: _Release) -> Record:
    width, n_heads = _WIDTHS[release.size]
    facts: dict[str, object] = {"n_heads": n_heads}
    if release.kind != "dinov3":
        as_timm = release.kind in ("dinov2 reg", "supervised")
        facts |= {"position_offset": 0.0 if as_timm else 0.1, "position_antialias": as_timm}
    if release.kind == "supervised":
        facts |= {"mean": _HALVES, "std": _HALVES}
    colours = "0.5 / 0.5" if release.kind == "supervised" else "ImageNet's"
    return Record(
        name=release.name,
        summary=f"{_TRAINED_ON[release.kind]}, ViT-{release.size.upper()}/{release.patch}: {width} per channel",
        location=HubFile(f"timm/{release.timm}", "model.safetensors"),
        license="DINOv3 License" if release.kind == "dinov3" else "Apache-2.0",
        restricted=release.kind == "dinov3",
        citation=_CITATIONS[release.kind],
        source=_SOURCES[release.kind],
        exported="only" if release.kind == "supervised" else "teacher",
        input_domain="any",
        preparation=(
            "resized to 224 (bilinear), divided by the maximum over all channels of the image, repeated to red, green "
            f"and blue, mean and std {colours} (CHAMMI-75's benchmark)"
        ),
        native_size_px=release.trained_px,
        pooling="class token after the final LayerNorm, per channel",
        channel_rule="any channels, each on its own as a grey picture",
        embed_dim=width,
        facts=facts,
    )


RECORDS = tuple(_record(release) for release in _RELEASES)
