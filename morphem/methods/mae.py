"""Masked autoencoders: an encoder sees a few patches of an image, a decoder fills in the others.

Source: He et al. 2022, https://arxiv.org/abs/2111.06377; the defaults are those of the paper's bag-of-channels training
of CHAMMI-75 (arXiv 2512.20833; models/mae of CaicedoLab/CHAMMI-75 at b84a4ec has other argument defaults: learning rate
5e-5, 40 warm-up and 400 epochs). Channel-aware masks, decoders and losses come from the sources that `morphem.masking`,
`morphem.decoders` and `morphem.losses.reconstruction` name.
Differs from them: masks depend on the image alone; images of different channel counts are computed without padding; the
loss is the mean over all judged patches of the global batch, computed in float32; positions of the encoder are those of
its backbone, learned unless it says otherwise.
"""

from collections.abc import Sequence
from typing import Literal, Self

import torch
import torch.distributed as dist
from torch import Tensor

from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.base import ChannelStrategy
from morphem.channels.channel_agnostic import ChannelAgnostic
from morphem.channels.fixed_channels import FixedChannels
from morphem.channels.sequences import Sequences
from morphem.data.schema import channel_vocabulary
from morphem.data.view_recipe import ViewRecipe
from morphem.data.views import MultiCrop
from morphem.decoders import Canvas, DecoderRecipe, PerChannelDecoder, SharedDecoder, channel_context
from morphem.encoder import Encoder
from morphem.errors import ChannelError, ConfigError
from morphem.losses.reconstruction import LossRecipe, Sums, reconstruction_sums, weighted
from morphem.masking import MaskRecipe, Split, hidden_tokens, split_by_count
from morphem.methods.base import Method
from morphem.methods.diversity import DiversityRecipe
from morphem.normalizers import SelfNormalize
from morphem.optimizers import RECIPES
from morphem.types import ChannelBatch, StepOutput
from morphem.vocabulary import resolve_distinct


class MAE(Method):
    """Hide most patches of an image and predict their pixels from the others.

    Only the visible patches go through the encoder. What callbacks see is the class token of these.

    Args:
        encoder: What is trained; its channel strategy works on patch tokens.
        views: Makes the views; published: one, or four plain crops (Kim et al.). The loss is the mean over all.
        masks: Kinds of masks; an image gets one of them. Null is one kind: 75 % of each channel's patches.
        decoder: How patches are reconstructed; null takes the defaults of `DecoderRecipe`.
        loss: What reconstructions are judged by; null takes the defaults of `LossRecipe`.
        diversity: Terms that keep visible tokens and channel types apart (DiChaViT); null for none.
        optimizer: Rule of the steps: `adamw`, or `lion` as CA-MAE, which takes smaller rates.
        lr: Peak learning rate for `lr_per_images` images in a global batch. CHAMMI-75's batch is 1024 per GPU.
        lr_per_images: Global batch size to which `lr` belongs; null takes `lr` as it is. Kim et al.: 1.5e-4 per 256.
        min_lr: Learning rate at the end of the run.
        warmup_epochs: Epochs over which the learning rate rises from 0.
        weight_decay: At the start of the run; biases and one-dimensional parameters have none.
        weight_decay_end: At its end; null keeps it constant.
        betas: Of the optimizer.
        clip_per_tensor: Largest gradient norm of each parameter tensor; null for none.
        seed: Seed of stochastic depth.

    Raises:
        ConfigError: If a number is out of its range, a mask hides nothing or everything, or the decoder could not tell
            channels apart.
    """

    def __init__(
        self,
        encoder: Encoder,
        views: MultiCrop,
        masks: list[MaskRecipe] | None = None,
        decoder: DecoderRecipe | None = None,
        loss: LossRecipe | None = None,
        diversity: DiversityRecipe | None = None,
        optimizer: Literal["adamw", "lion"] = "adamw",
        lr: float = 5e-4,
        lr_per_images: int | None = None,
        min_lr: float = 0.0,
        warmup_epochs: float = 10.0,
        weight_decay: float = 0.04,
        weight_decay_end: float | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        clip_per_tensor: float | None = None,
        seed: int = 0,
    ) -> None:
        if optimizer not in RECIPES:
            raise ConfigError(f"mae: optimizer='{optimizer}' is not known; it is 'adamw' or 'lion'.")
        recipe = RECIPES[optimizer](
            lr=lr,
            lr_per_images=lr_per_images,
            min_lr=min_lr,
            warmup_epochs=warmup_epochs,
            weight_decay=weight_decay,
            weight_decay_end=weight_decay_end,
            betas=(betas[0], betas[1]),
            clip_per_tensor=clip_per_tensor,
        )
        super().__init__(encoder, views, recipe, seed=seed)
        self.keep_channels_apart(diversity)
        self.prepare([MaskRecipe()] if masks is None else masks, decoder or DecoderRecipe(), loss or LossRecipe())

    def prepare(self, masks: Sequence[MaskRecipe], decoder: DecoderRecipe, loss: LossRecipe) -> None:
        """Build the decoder; for `__init__`, also of subclasses.

        Args:
            masks: Kinds of masks.
            decoder: How patches are reconstructed.
            loss: What reconstructions are judged by.

        Raises:
            ConfigError: If the settings do not go together.
        """
        self.masks = tuple(masks)
        self.decoder_recipe = decoder
        self.loss = loss
        encoder, views = self.encoder, self.views
        strategy = encoder.channels
        check_masks(self.masks, strategy, views)
        check_decoder(self.decoder_recipe, strategy)
        names = self.decoder_recipe.channels
        self.types = resolve_distinct(names, "DecoderRecipe.channels") if names else tuple(channel_vocabulary())
        patch = strategy.patch_size_px
        n_pixels = patch[0] * patch[1] * planes_per_token(strategy)
        kind = PerChannelDecoder if self.decoder_recipe.kind == "per_channel" else SharedDecoder
        self.decoder = kind(encoder.embed_dim, n_pixels, len(self.types), self.decoder_recipe)

    @classmethod
    def compatible(cls, strategy: ChannelStrategy) -> str | None:
        """Return why the method cannot work with a channel strategy, or None where it can."""
        if not strategy.tokenised:
            return "it gives no patch tokens, which are what is hidden and predicted."
        return None

    @classmethod
    def tiny(cls, encoder: Encoder | None = None) -> Self:
        """One view of 32 px, one decoder block of width 32; a bag of channels where not told."""
        encoder = encoder or Encoder(BagOfChannels.tiny(), SelfNormalize(), input_size_px=32)
        joint = several_channels(encoder.channels)
        return cls(
            encoder,
            MultiCrop([ViewRecipe(count=1, size_px=32, area=(0.9, 1.0), aspect=(0.9, 1.1), interpolation="bilinear")]),
            decoder=DecoderRecipe(identity="types" if joint else "none", width=32, depth=1, n_heads=2),
            lr=1e-2,
            warmup_epochs=0,
        )

    def step(self, views: list[ChannelBatch]) -> StepOutput:
        """Hide patches of every view and judge what the decoder makes of the rest."""
        loss, embeddings, logs = self.reconstruct(views)
        return self.with_diversity(StepOutput(loss, embeddings[0].detach(), logs), views)

    def seen_tokens(self, view: ChannelBatch, part: Sequences) -> Tensor | None:
        """Return which tokens of sequences are not hidden, (B, T), bool.

        Args:
            view: Dense and normalised.
            part: Some of its sequences.
        """
        return ~hidden_tokens(self.masks, view, part)

    def reconstruct(self, views: list[ChannelBatch]) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        """Hide patches of every view and judge what the decoder makes of the rest.

        Args:
            views: Dense normalised batches.

        Returns:
            The loss, (); for each view the first token of each row's visible patches, (M, D), float32, with its graph;
            the terms of the loss, where there are several.
        """
        parts = [self._reconstruct(view) for view in views]
        sums = parts[0][0]
        for other, _ in parts[1:]:
            sums = sums.plus(other)
        patches, planes = self._counts(sums)
        terms = sums.terms(self.loss, patches, planes)
        logs = {name: value.detach() for name, value in terms.items()} if len(terms) > 1 else {}
        return weighted(terms, self.loss), [embedding for _, embedding in parts], logs

    def _counts(self, sums: Sums) -> tuple[Tensor, Tensor]:
        """Return the patches and planes of an average process, so that the mean gradient is that of the global batch.

        Not in evaluation, where processes may have different numbers of batches.
        """
        counts = torch.stack([sums.patches, sums.planes]).detach()
        if self.training and dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
            counts = counts / dist.get_world_size()
        return counts[0], counts[1]

    def _reconstruct(self, view: ChannelBatch) -> tuple[Sums, Tensor]:
        """Return the sums of the loss over a view, and the first token of each row's visible patches, (M, D)."""
        strategy = self.encoder.channels
        parts = strategy.sequences(view)
        types = self._types_of(view)
        context = self._context(view, parts, types)
        sums: list[Sums] = []
        embeddings, rows = [], []
        for part in parts:
            hidden = hidden_tokens(self.masks, view, part)
            pixels = strategy.pixels(view, part).float()
            for group in split_by_count(hidden):
                visible = group.members[:, None], group.visible
                encoded = strategy.encode_at(part.tokens[visible], part.coordinates[visible])
                predicted = self.decoder(encoded, _canvas(part, group, types, context)).float()
                sums.append(self._judge(predicted, pixels[group.members], hidden[group.members], part, group))
                embeddings.append(encoded[:, 0].float())
                rows.append(part.rows[group.members])
        total = sums[0]
        for other in sums[1:]:
            total = total.plus(other)
        return total, torch.cat(embeddings)[torch.cat(rows).argsort()]

    def _judge(self, predicted: Tensor, pixels: Tensor, hidden: Tensor, part: Sequences, group: Split) -> Sums:
        places = part.channels[group.members], part.patches[group.members]
        with torch.autocast(predicted.device.type, enabled=False):
            return reconstruction_sums(
                predicted, pixels, hidden, places, part.grid, self.encoder.channels.patch_size_px, self.loss
            )

    def _types_of(self, view: ChannelBatch) -> Tensor:
        """Return the number of the channel type of each plane, (P,); 0 where no decoder asks for it."""
        if self.decoder_recipe.identity not in ("types", "context"):
            return torch.zeros(view.n_planes, dtype=torch.int64, device=view.planes.device)
        numbers = {name: number for number, name in enumerate(self.types)}
        unknown = sorted(set(view.channel_types) - set(numbers))
        if unknown:
            raise ChannelError(
                f"channel type '{unknown[0]}' is not among those of the decoder ({', '.join(self.types)}); add it to "
                "decoder.channels, or leave the channel out."
            )
        return torch.tensor([numbers[name] for name in view.channel_types], device=view.planes.device)

    @torch.no_grad()
    def _context(self, view: ChannelBatch, parts: list[Sequences], types: Tensor) -> Tensor | None:
        """Return the mean patch embedding of the channel type of each plane, (P, D)."""
        if self.decoder_recipe.identity != "context":
            return None
        content = torch.zeros(view.n_planes, self.encoder.embed_dim, device=view.planes.device)
        for part in parts:
            raw = (part.tokens - part.places).float().flatten(0, 1)
            content.index_add_(0, part.planes.gather(1, part.channels).flatten(), raw)
        content /= parts[0].grid[0] * parts[0].grid[1]
        seen = torch.cat([part.planes.flatten() for part in parts])
        images = view.image_of_plane()[seen]
        over, gather = self.decoder_recipe.context_over, self.training
        means = channel_context(content[seen], types[seen], images, len(self.types), over, gather=gather)
        return torch.zeros_like(content).index_copy(0, seen, means)


def _canvas(part: Sequences, group: Split, types: Tensor, context: Tensor | None) -> Canvas:
    """Return what the decoder needs to know of some of the sequences."""
    planes = part.planes[group.members]
    return Canvas(
        visible=group.visible,
        channels=part.channels[group.members],
        patches=part.patches[group.members],
        grid=part.grid,
        types=types[planes],
        places=part.places[group.members],
        context=None if context is None else context[planes],
    )


def planes_per_token(strategy: ChannelStrategy) -> int:
    """Return how many planes a token is cut from: all of them for fixed channels, else one."""
    return len(strategy.channels) if isinstance(strategy, FixedChannels) else 1


def several_channels(strategy: ChannelStrategy) -> bool:
    """Whether a sequence holds tokens of several channels, which a decoder has to tell apart."""
    return not strategy.per_channel and planes_per_token(strategy) == 1


def check_masks(masks: tuple[MaskRecipe, ...], strategy: ChannelStrategy, views: MultiCrop) -> None:
    """Check that masks hide something and leave something in every view.

    Raises:
        ConfigError: If they do not, or the patch does not divide a view.
    """
    if not masks:
        raise ConfigError("mae: masks is empty; give at least one, for example {patches: independent, ratio: 0.75}.")
    if not several_channels(strategy) and any(mask.channels for mask in masks):
        raise ConfigError(
            f"mae: masks with channels: true have no meaning over {type(strategy).__name__}, whose sequences have no "
            "tokens of single channels; leave it out."
        )
    height, width = strategy.patch_size_px
    for recipe in views.recipes:
        side = recipe.size_px
        if side % height or side % width:
            raise ConfigError(
                f"mae: views of {side} px (views.recipes.size_px) do not divide into patches of {height} x {width} px; "
                f"take a multiple of {height}."
            )
        if strategy.per_channel and recipe.channel_drop:
            raise ConfigError(
                "views.recipes.channel_drop has no meaning where each channel plane is embedded alone "
                f"({type(strategy).__name__}); remove it."
            )
        for mask in masks:
            mask.n_visible(side // height * (side // width))


def check_decoder(recipe: DecoderRecipe, strategy: ChannelStrategy) -> None:
    """Check that a decoder fits the sequences of a strategy.

    Raises:
        ConfigError: If it could not tell channels apart, or tells apart what has no tokens of its own.
    """
    name = type(strategy).__name__
    if several_channels(strategy) and recipe.identity == "none":
        raise ConfigError(
            f"mae: over {name} decoder.identity: none gives the hidden patches of all channels one prediction; "
            "set it to places, types or context."
        )
    if isinstance(strategy, ChannelAgnostic) and recipe.identity == "places":
        raise ConfigError(
            f"mae: decoder.identity: places has no effect over {name}, which does not tell channels apart itself; "
            "set it to types or context."
        )
    if planes_per_token(strategy) > 1 and recipe.identity in ("types", "context"):
        raise ConfigError(
            f"mae: decoder.identity: {recipe.identity} has no meaning over {name}, whose tokens are cut from all "
            "channels; set it to none or places."
        )
