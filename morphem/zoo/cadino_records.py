"""What Meta released of Channel-Adaptive DINO and Cell-DINO; the families stand in `morphem.zoo.cadino`."""

from typing import Any

from morphem.zoo.base import ByHand, Record

CELL_PAINTING = ("nucleus", "endoplasmic reticulum", "rna", "actin golgi plasma membrane", "mitochondria")
"""DNA, ER, RNA, AGP, Mito: the order of the combined Cell Painting data set that the ViT-S/8 was trained on (Moshkov et
al. 2024, https://doi.org/10.1038/s41467-024-45999-1), and what others feed it. The release does not state it."""
ATLAS = ("microtubules", "protein", "nucleus", "endoplasmic reticulum")
"""Red, green, blue and yellow of the Human Protein Atlas. The release does not state the order: an assumption."""

_PAGE = "https://ai.meta.com/resources/models-and-libraries/cell-dino-downloads/"
_WORDS = "Ask for the weights with the form on this page; addresses come by e-mail; rename the file."
_PREPARATION = "divided by 255, z-score per plane (eps 1e-7 on the deviation) after"
_POOLING = "class token after the final LayerNorm; several blocks and mean patch tokens as options"


def _record(name: str, summary: str, file: str, size: int, width: int, n_heads: int, **more: Any) -> Record:
    return Record(
        name=name,
        summary=summary,
        location=ByHand(_PAGE, file, _WORDS),
        license="FAIR Noncommercial Research License",
        restricted=True,
        source="https://github.com/facebookresearch/dinov2 (December 2025), read at sondvo/dinov2 bfb35b5",
        exported="teacher",
        input_domain="uint8",
        native_size_px=size,
        pooling=_POOLING,
        embed_dim=width,
        facts={"n_heads": n_heads, **more.pop("facts", {})},
        **more,
    )


CHANNEL_ADAPTIVE: tuple[Record, ...] = (
    _record(
        "channel-adaptive-dino-vitl16",
        "Channel-Adaptive DINO: DINOv2, bag of channels, ViT-L/16 on extended CHAMMI: 1024 features per channel",
        "channel_adaptive_dino_vitl16_pretrain_cells-ef7c17ff.pth",
        224,
        1024,
        16,
        citation="De Lorenci et al. 2025, Scaling Channel-Adaptive Self-Supervised Learning, TMLR",
        preparation=f"{_PREPARATION} a resize of the shorter side to 256 (bicubic) and a centre crop of 224",
        channel_rule="any channels, each on its own",
    ),
)

CELL_DINO: tuple[Record, ...] = (
    _record(
        "cell-dino-cp-vits8",
        "Cell-DINO ViT-S/8 on five channels of Cell Painting: 384 features per image",
        "cell_dino_vits8_pretrain_cp-37d20e9c.pth",
        128,
        384,
        6,
        citation="Moutakanni et al. 2025, Cell-DINO, https://doi.org/10.1371/journal.pcbi.1013828",
        preparation=f"{_PREPARATION} a centre crop of 128",
        channel_rule="exactly nucleus, endoplasmic reticulum, RNA, AGP, mitochondria",
        vocabulary=CELL_PAINTING,
        facts={"channels": CELL_PAINTING},
    ),
    *(
        _record(
            name,
            f"Cell-DINO {title} on four channels of the Human Protein Atlas, {words}: 1024 features per image",
            f"{hub}.pth",
            size,
            1024,
            16,
            citation="Moutakanni et al. 2025, Cell-DINO, https://doi.org/10.1371/journal.pcbi.1013828",
            preparation=f"{_PREPARATION} a centre crop of {size}",
            channel_rule="exactly microtubules, protein, nucleus, endoplasmic reticulum (order assumed)",
            vocabulary=ATLAS,
        )
        for name, title, words, hub, size in (
            ("cell-dino-hpa-sc-vitl16", "ViT-L/16", "single cells", "cell_dino_hpa_vitl16_sc", 224),
            ("cell-dino-hpa-fov-vitl16", "ViT-L/16", "fields of view", "cell_dino_hpa_vitl16_fov", 224),
            ("cell-dino-hpa-vitl14", "ViT-L/14", "after natural images", "cell_dino_hpa_vitl14", 518),
        )
    ),
)
