"""The decoder of CHAMMI-75's masked autoencoders, for the cases of golden records that need it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from morphem.decoders import Canvas, DecoderRecipe, SharedDecoder
from morphem.encoder import Encoder
from morphem.losses.reconstruction import LossRecipe, reconstruction_sums, weighted
from morphem.types import ChannelBatch
from morphem.zoo.seen import network_batch

LEFT_OUT = ("decoder", "mask_token")
"""What the names of tensors start with that are no part of the encoder."""

_EVERY = 7  # records hold every seventh patch of a prediction
_KEPT = 0.25  # share of the patches that the encoder sees: the mask ratio is 0.75


@torch.no_grad()
def masked(
    encoder: Encoder, tensors: Mapping[str, Tensor], n_heads: int, images: Tensor, noise: Tensor
) -> dict[str, Tensor]:
    """Run encoder and decoder on the first channel of images, three quarters of whose patches are hidden.

    Args:
        encoder: Of the file.
        tensors: All tensors of the file, under the authors' names.
        n_heads: Attention heads of the decoder.
        images: (N, C, H, W), uint8, of the native size.
        noise: Its ascending order says which patches are kept, (N, h * w).

    Returns:
        `loss` (1,), `prediction_every_7th_patch` and `mask`, 1 where a patch is hidden, as the records hold them.
    """
    strategy = encoder.channels
    batch = ChannelBatch.from_planes([[image[0]] for image in images], [["other"]] * len(images))
    seen = network_batch(encoder, batch)
    (part,) = strategy.sequences(seen)
    n_kept = int(noise.shape[1] * _KEPT)
    visible = noise.argsort(dim=1)[:, :n_kept].sort(dim=1).values
    hidden = torch.ones(noise.shape, dtype=torch.bool).scatter(1, visible, False)
    canvas = Canvas(visible, part.channels, part.patches, part.grid, torch.zeros_like(part.planes), part.places)
    index = visible[:, :, None].expand(-1, -1, part.tokens.shape[2])
    n_pixels = strategy.pixels(seen, part).shape[2]
    decoder = shared_decoder(tensors, encoder.embed_dim, n_pixels, n_heads).to(encoder.dtype).eval()
    predicted = decoder(strategy.encode(part.tokens.gather(1, index)), canvas)
    recipe, places = LossRecipe(), (part.channels, part.patches)
    sums = reconstruction_sums(
        predicted, strategy.pixels(seen, part), hidden, places, part.grid, strategy.patch_size_px, recipe
    )
    return {
        "loss": weighted(sums.terms(recipe), recipe).reshape(1),
        "prediction_every_7th_patch": predicted[:, ::_EVERY],
        "mask": hidden.to(encoder.dtype),
    }


def shared_decoder(tensors: Mapping[str, Tensor], embed_dim: int, n_pixels: int, n_heads: int) -> SharedDecoder:
    """Build the decoder of a masked autoencoder; attention without biases gets zeros for them.

    Args:
        tensors: Under MAE's names (`decoder_embed`, `decoder_blocks.{i}`, `decoder_norm`, `decoder_pred`).
        embed_dim: D of the encoder.
        n_pixels: Pixels that a token stands for.
        n_heads: Attention heads.
    """
    blocks = {
        key.removeprefix("decoder_"): value for key, value in tensors.items() if key.startswith("decoder_blocks.")
    }
    for key in [key for key in blocks if key.endswith("qkv.weight")]:
        blocks.setdefault(key.replace("weight", "bias"), blocks[key].new_zeros(len(blocks[key])))
    depth = len({key.split(".")[1] for key in blocks})
    recipe = DecoderRecipe(width=len(tensors["decoder_embed.bias"]), depth=depth, n_heads=n_heads)
    decoder = SharedDecoder(embed_dim, n_pixels, 1, recipe)
    pairs = {"entry.project": "decoder_embed", "norm": "decoder_norm", "predict": "decoder_pred"}
    decoder.load_state_dict(
        {
            **blocks,
            "entry.mask_token": tensors["mask_token"].flatten(),
            **{f"{ours}.{k}": tensors[f"{theirs}.{k}"] for ours, theirs in pairs.items() for k in ("weight", "bias")},
        }
    )
    return decoder
