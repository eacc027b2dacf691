"""Decoders with published weights predict what the authors' own code predicts for the same hidden patches."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from morphem import decoders
from morphem.backbones.positions import sincos_positions
from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.decoders import Canvas, DecoderRecipe, PerChannelDecoder, SharedDecoder
from morphem.losses.reconstruction import LossRecipe, reconstruction_sums, weighted
from morphem.testing.batches import dense_batch
from tests.references.golden import tensors, tolerance

SIX = ("nucleus", "rna", "actin", "golgi", "mitochondria", "endoplasmic reticulum")


def _without_bias(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights under a prefix, with zeros for the attention biases that the authors leave out."""
    mine = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    for key in [key for key in mine if key.endswith(("qkv.weight", "q.weight", "kv.weight"))]:
        mine.setdefault(key.replace("weight", "bias"), torch.zeros(len(mine[key])))
    return mine


def test_the_shared_decoder_is_that_of_chammi75s_mae(golden: Path) -> None:
    name, case = "chammi75_mae_boc", "masked_training_forward"
    weights = torch.load(golden / f"{name}.ckpt", weights_only=True)["model"]
    known = tensors(golden, name)
    backbone = VisionTransformer("vit_small_patch16_224", embed_dim=48, depth=3, n_heads=6, positions="sincos")
    parts = ("cls_token", "pos_embed", "patch_embed", "blocks", "norm")
    backbone.network.load_state_dict({k: v for k, v in _without_bias(weights, "").items() if k.startswith(parts)})
    decoder = SharedDecoder(48, 256, 1, DecoderRecipe(width=48, depth=1, n_heads=16))
    decoder.load_state_dict(
        {
            "entry.mask_token": weights["mask_token"].flatten(),
            **{f"entry.project.{key}": weights[f"decoder_embed.{key}"] for key in ("weight", "bias")},
            **{f"blocks.{key}": value for key, value in _without_bias(weights, "decoder_blocks.").items()},
            **{f"norm.{key}": weights[f"decoder_norm.{key}"] for key in ("weight", "bias")},
            **{f"predict.{key}": weights[f"decoder_pred.{key}"] for key in ("weight", "bias")},
        }
    )
    images = known["native.images"][:, :1].float() / 255
    mean, variance = images.mean((2, 3), keepdim=True), images.var((2, 3), keepdim=True, correction=0)
    batch = dense_batch([("nucleus",), ("nucleus",)])._replace(planes=(images - mean) / (variance + 1e-7).sqrt())
    strategy = BagOfChannels(backbone).eval()
    (part,) = strategy.sequences(batch)
    visible = known[f"{case}.noise"].argsort(dim=1)[:, :49].sort(dim=1).values
    hidden = torch.ones(2, 196, dtype=torch.bool).scatter(1, visible, False)
    assert torch.equal(hidden.float(), known[f"{case}.mask"])
    canvas = Canvas(visible, part.channels, part.patches, part.grid, part.planes * 0, part.places)
    with torch.no_grad():
        encoded = strategy.encode(part.tokens.gather(1, visible[:, :, None].expand(-1, -1, 48)))
        predicted = decoder.eval()(encoded, canvas)
    limit = tolerance(golden, name, case, "prediction_every_7th_patch")
    torch.testing.assert_close(predicted[:, ::7], known[f"{case}.prediction_every_7th_patch"], atol=limit, rtol=0)
    recipe, places = LossRecipe(), (part.channels, part.patches)
    sums = reconstruction_sums(predicted, strategy.pixels(batch, part), hidden, places, part.grid, (16, 16), recipe)
    loss = weighted(sums.terms(recipe), recipe)
    assert float(loss) == pytest.approx(float(known[f"{case}.loss"]), abs=tolerance(golden, name, case, "loss"))


def _openphenom_latent(weights: dict[str, Tensor], images: Tensor, visible: Tensor) -> Tensor:
    """The authors' encoder written plainly: parallel blocks, whose stored bias is shifted against its rows."""
    w = {key.removeprefix("encoder.vit_backbone."): value for key, value in weights.items()}
    count, channels, side, _ = images.shape
    x = torch.nn.functional.conv2d(
        images.reshape(-1, 1, side, side), w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=16
    )
    x = x.flatten(2).transpose(1, 2).reshape(count, channels * 256, 36) + w["pos_embed"][:, 1 : 1 + channels * 256]
    x = x.gather(1, visible[:, :, None].expand(-1, -1, 36))
    x = torch.cat([(w["cls_token"] + w["pos_embed"][:, :1]).expand(count, -1, -1), x], dim=1)
    for block in ("blocks.0.", "blocks.1."):
        b = {key.removeprefix(block): value for key, value in w.items() if key.startswith(block)}
        y = layer_norm(x, (36,), b["in_norm.weight"], b["in_norm.bias"], 1e-6)
        y = y @ b["in_proj.weight"].T + torch.cat([torch.zeros(108), b["mlp_bias"]])
        hidden, q, k, v = y.split([144, 36, 36, 36], dim=2)
        q, k, v = (z.reshape(count, -1, 6, 6).transpose(1, 2) for z in (q, k, v))
        q, k = (layer_norm(z, (6,), b[f"{n}.weight"], b[f"{n}.bias"], 1e-6) for z, n in ((q, "q_norm"), (k, "k_norm")))
        seen = (q @ k.transpose(2, 3) / 6**0.5).softmax(3) @ v
        seen = seen.transpose(1, 2).flatten(2) @ b["attn_out_proj.weight"].T + b["attn_out_proj.bias"]
        dense = gelu(hidden) @ b["mlp_out_proj.weight"].T + b["mlp_out_proj.bias"]
        x = x + b["ls.gamma"] * (seen + dense)
    return x


def test_the_decoder_per_channel_is_that_of_openphenom(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, case = "openphenom", "masked_forward"
    weights = torch.load(golden / f"{name}.ckpt", weights_only=True)["state_dict"]
    known = tensors(golden, name)
    images = known["eleven_channels.images"][:, :6].float() / 255
    mean, variance = images.mean((2, 3), keepdim=True), images.var((2, 3), keepdim=True, correction=0)
    visible = known[f"{case}.noise"].argsort(dim=1)[:, :384]
    latent = _openphenom_latent(weights, (images - mean) / (variance + 1e-5).sqrt(), visible)
    torch.testing.assert_close(latent[:, ::9], known[f"{case}.latent_every_9th"], atol=2e-5, rtol=0)

    recipe = DecoderRecipe(kind="per_channel", identity="types", channels=SIX, width=16, depth=1, n_heads=16)
    decoder = PerChannelDecoder(36, 256, 6, recipe)
    theirs = _without_bias(weights, "decoder.")
    renamed = {"cross_attention.": "cross.", "cross.proj.": "cross.out.", "out_norm.": "mlp_norm."}
    mine: dict[str, Tensor] = {}
    for key, value in theirs.items():
        for old, new in renamed.items():
            key = new + key.removeprefix(old) if key.startswith(old) else key
        mine[key] = value
    state = {key: value for key, value in mine.items() if key in decoder.state_dict()}
    state["entry.mask_token"] = theirs["mask_token"].flatten()
    state["entry.types.weight"] = torch.cat([theirs[f"modality_tokens.{k}"][0] for k in range(6)])
    state |= {f"entry.project.{key}": weights[f"encoder_decoder_proj.{key}"] for key in ("weight", "bias")}
    state |= {f"predict.{key}": weights[f"decoder_pred.{key}"] for key in ("weight", "bias")}
    decoder.load_state_dict(state)
    for module in decoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5  # what OpenPhenom was configured with; the default of its code is 1e-6
    # the authors' table has the row's half before the column's
    monkeypatch.setattr(decoders, "patch_positions", lambda grid, width, device: sincos_positions(grid, width)[0])
    torch.testing.assert_close(theirs["pos_embeddings"][0, 1:257], sincos_positions((16, 16), 16)[0])
    canvas = Canvas(
        visible,
        torch.arange(6).repeat_interleave(256)[None],
        torch.arange(256).repeat(6)[None],
        (16, 16),
        torch.arange(6)[None],
        torch.empty(1, 1536, 36),
    )
    with torch.no_grad():
        predicted = decoder.eval()(latent, canvas)
    limit = tolerance(golden, name, case, "reconstruction_every_41st")
    torch.testing.assert_close(predicted[:, ::41], known[f"{case}.reconstruction_every_41st"], atol=limit, rtol=0)
