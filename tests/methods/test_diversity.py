"""The diversity terms of DiChaViT in the methods that offer them: switched on, refused, and equal to plain loops."""

import numpy as np
import pytest
import torch

from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.base import ChannelStrategy
from morphem.channels.channel_agnostic import ChannelAgnostic
from morphem.channels.channel_attention import ChannelAttention
from morphem.channels.fixed_channels import FixedChannels
from morphem.channels.memory_fusion import MemoryFusion
from morphem.channels.slot_attention import SlotAttention
from morphem.encoder import Encoder
from morphem.errors import ConfigError
from morphem.masking import hidden_tokens
from morphem.methods.base import Method
from morphem.methods.cha_mae import ChaMAE
from morphem.methods.dino import DINO
from morphem.methods.dinov2 import DINOv2
from morphem.methods.diversity import DiversityRecipe
from morphem.methods.mae import MAE
from morphem.methods.proxy import Proxy
from morphem.methods.simclr import SimCLR
from morphem.methods.supcon import SupCon
from morphem.methods.supervised import Supervised
from morphem.normalizers import SelfNormalize
from morphem.spec import from_spec, to_spec
from morphem.testing import tiny_batch, train
from morphem.types import ChannelBatch
from tests.references import diversity as plain

OFFERING = [DINO, DINOv2, SimCLR, MAE, ChaMAE, Supervised, SupCon, Proxy]
RECIPE = DiversityRecipe(token_weight=0.7, within=0.5, across=2.0, channel_weight=0.3, channel_temperature=0.1)
PANELS = (("nucleus", "actin", "rna"), ("nucleus",), ("mitochondria", "nucleus"), ("r", "g", "b"))


def with_terms(cls: type[Method], recipe: DiversityRecipe | None = RECIPE, strategy: ChannelStrategy | None = None):
    """The smallest instance of a method over channel attention, with the terms switched on."""
    torch.manual_seed(0)
    encoder = Encoder(strategy or ChannelAttention.tiny(), SelfNormalize(), input_size_px=32)
    spec = to_spec(cls.tiny(encoder))
    spec["init_args"]["diversity"] = None if recipe is None else {"name": path(), "init_args": dict(vars(recipe))}
    torch.manual_seed(0)
    return from_spec(spec)


def path() -> str:
    return f"{DiversityRecipe.__module__}.{DiversityRecipe.__qualname__}"


def views_of(method: Method) -> list[ChannelBatch]:
    return method.make_views(tiny_batch(PANELS))


@pytest.mark.parametrize("cls", OFFERING, ids=lambda cls: cls.__name__)
def test_the_terms_are_added_to_the_loss_and_logged(cls: type[Method]) -> None:
    without, method = with_terms(cls, None), with_terms(cls)
    assert without.diversity is None
    views = views_of(method)
    torch.manual_seed(1)
    alone = without.train().step(views)
    method.load_state_dict(without.state_dict(), strict=False)
    torch.manual_seed(1)
    output = method.train().step(views)
    logs = output.logs
    tokens = 0.5 * logs["diversity_within"] + 2.0 * logs["diversity_across"]
    expected = alone.loss + 0.7 * tokens + 0.3 * logs["diversity_channels"]
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-6)
    assert float(logs["diversity_channels"]) > 0


@pytest.mark.parametrize("cls", [DINO, MAE, Supervised], ids=lambda cls: cls.__name__)
def test_the_terms_are_those_of_plain_loops_over_pairs_of_tokens(cls: type[Method]) -> None:
    method = with_terms(cls)
    views = views_of(method)
    logs = method.eval().step(views).logs
    table = method.encoder.channels.channel_embedding.detach().double().numpy()
    proxies = method.diversity.proxies.detach().double().numpy()
    rows = []
    for view in views:
        types = method.encoder.channels.types(view)
        for part in method.encoder.channels.sequences(view):
            raw = (part.tokens - part.places).detach().double().numpy()
            hidden = hidden_tokens(method.masks, view, part) if cls is MAE else torch.zeros_like(part.channels).bool()
            for row in range(len(raw)):
                seen = (~hidden[row]).tolist()
                present = set(types[part.planes[row]].tolist())
                confusion = plain.channel_confusion(table, proxies, present, 0.1, among_present=True)
                rows.append((*plain.token_likeness(raw[row], part.channels[row].tolist(), seen), confusion))
    expected = np.mean(rows, axis=0)
    found = [float(logs[f"diversity_{name}"]) for name in ("within", "across", "channels")]
    assert found == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("cls", OFFERING, ids=lambda cls: cls.__name__)
def test_training_with_the_terms_makes_tokens_and_channels_less_alike(cls: type[Method]) -> None:
    method = with_terms(cls, DiversityRecipe(token_weight=1.0, within=1.0, across=1.0, channel_weight=1.0))
    before = method.eval().step(views_of(method)).logs
    train(method.train(), epochs=10, panels=PANELS)
    after = method.eval().step(views_of(method)).logs
    for name in ("diversity_within", "diversity_across", "diversity_channels"):
        assert float(after[name]) < float(before[name]), name


def test_the_recipe_is_saved_with_the_method() -> None:
    method = with_terms(DINO)
    again = from_spec(to_spec(method))
    assert again.diversity.recipe == RECIPE


def test_memory_tokens_around_channel_attention_keep_its_channel_types_apart() -> None:
    method = with_terms(ChaMAE, RECIPE, MemoryFusion.tiny())
    loss = method.train().step(views_of(method)).loss
    loss.backward()
    assert bool((method.diversity.proxies.grad != 0).any())


@pytest.mark.parametrize("strategy", [ChannelAgnostic, SlotAttention], ids=lambda cls: cls.__name__)
def test_a_strategy_without_embeddings_of_types_offers_the_tokens_term_alone(strategy: type[ChannelStrategy]) -> None:
    with pytest.raises(ConfigError, match=f"diversity: {strategy.__name__} has no embeddings of channel types"):
        with_terms(Supervised, RECIPE, strategy.tiny())
    method = with_terms(Supervised, DiversityRecipe(channel_weight=0.0), strategy.tiny())
    logs = method.train().step(views_of(method)).logs
    assert float(logs["diversity_across"]) != 0.0
    assert float(logs["diversity_channels"]) == 0.0


@pytest.mark.parametrize("strategy", [BagOfChannels, FixedChannels], ids=lambda cls: cls.__name__)
def test_a_strategy_without_tokens_of_several_channels_is_refused(strategy: type[ChannelStrategy]) -> None:
    with pytest.raises(ConfigError, match=f"diversity: the sequences of {strategy.__name__} have no tokens of several"):
        with_terms(Supervised, RECIPE, strategy.tiny())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"token_weight": -1.0}, r"token_weight is -1.0; it must be at least 0"),
        ({"across": float("nan")}, r"across is nan; it must be at least 0"),
        ({"channel_temperature": 0.0}, r"channel_temperature is 0.0; it must be above 0"),
        ({"channel_among": "batch"}, r"channel_among is 'batch'; it must be 'image' or 'vocabulary'"),
        ({"within": 0.0, "across": 0.0}, r"token_weight has no effect with within: 0 and across: 0"),
        ({"token_weight": 0.0, "channel_weight": 0.0}, r"no weight above 0; leave `diversity` out"),
    ],
)
def test_settings_out_of_range_or_without_effect_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DiversityRecipe(**settings)


def test_types_outside_the_vocabulary_are_left_out_of_the_term_in_validation() -> None:
    strategy = ChannelAttention.tiny()
    lenient = ChannelAttention(strategy.backbone, ["nucleus", "actin"], unknown="mean")
    method = with_terms(Supervised, RECIPE, lenient)
    logs = method.eval().step(views_of(method)).logs
    assert bool(torch.isfinite(logs["diversity_channels"]))
