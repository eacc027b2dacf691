"""The checks catch what they are for: each plug-in here is right but for one thing, and the failure names that."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from morphem import registry
from morphem.backbones.base import Backbone
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.base import ChannelStrategy
from morphem.data.views import MultiCrop, ViewRecipe
from morphem.encoder import Encoder
from morphem.methods.base import Method
from morphem.normalizers import SelfNormalize
from morphem.optimizers import AdamWRecipe
from morphem.sources.sheet import SheetSource
from morphem.testing import (
    ContractError,
    check_backbone,
    check_encoder,
    check_method,
    check_plugin,
    check_pretrained,
    check_source,
    check_strategy,
)
from morphem.testing.methods import check_accumulation, check_learning, check_resume, check_step, check_validation
from morphem.types import StepOutput
from morphem.zoo.base import Pretrained, Record
from morphem.zoo.morphem import MorphEm


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register one class of this module, as a package would: its other classes can then be rebuilt from specs too."""
    info = tmp_path / "odd_plugins-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-plugins\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[morphem.backbones]\ngood_backbone = {__name__}:Good\nfunction = {__name__}:function\n"
        f"Camel = {__name__}:Camel\nalias = {__name__}:Random\nrandom = {__name__}:Random\n"
        f"bad_backbone = {__name__}:Undocumented\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.refresh()
    yield
    monkeypatch.undo()
    registry.refresh()


def function() -> None:
    """No class."""


class Good(Backbone):
    """Mean of patches through a small network."""

    def __init__(self, embed_dim: int = 6) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.net = nn.Sequential(nn.Conv2d(1, 8, 4, 4), nn.GELU(), nn.Conv2d(8, embed_dim, 1))

    def forward(self, planes):
        return self.net(planes).amax((2, 3))

    @classmethod
    def tiny(cls):
        return cls()


class NoTiny(Good):
    """Cannot be built."""

    @classmethod
    def tiny(cls):
        raise RuntimeError("no such thing")


class WrongShape(Good):
    """Gives rows per pixel."""

    def forward(self, planes):
        return self.net(planes)


class Half(Good):
    """Gives half precision."""

    def forward(self, planes):
        return super().forward(planes).half()


class Mates(Good):
    """Normalises over the batch, in evaluation mode too."""

    def forward(self, planes):
        features = super().forward(planes)
        return features - features.mean(0)


class Random(Good):
    """Has dropout that is never off."""

    def forward(self, planes):
        return nn.functional.dropout(super().forward(planes), 0.5, training=True)


class DrawsNumbers(Good):
    """Draws a number that it does not use."""

    def forward(self, planes):
        torch.rand(1)
        return super().forward(planes)


class InPlace(Good):
    """Scales its input where it lies."""

    def forward(self, planes):
        return super().forward(planes.mul_(0.5))


class Blind(Good):
    """Looks at nothing."""

    def forward(self, planes):
        return super().forward(torch.zeros_like(planes))


class Unused(Good):
    """Has a parameter that does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.zeros(3))


class Forgetful(Good):
    """Keeps a weight where state_dict does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = [torch.rand(1)]

    def forward(self, planes):
        return super().forward(planes) * self.scale[0]


class Positional(Good):
    """Takes what has no name."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()


class Untyped(Good):
    """Takes what has no type."""

    def __init__(self, size=3) -> None:
        super().__init__()


class NotCopied(Good):
    """Its copy is itself."""

    def __deepcopy__(self, memo):
        return self


class Camel(Good):
    """Is registered under a name in upper case."""


class Undocumented(Good):
    pass


Undocumented.__doc__ = None


def test_a_good_backbone_passes():
    check_backbone(Good)
    check_plugin("backbones", "good_backbone")


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (NoTiny, r"NoTiny: tiny\(\) cannot be built: RuntimeError: no such thing"),
        (WrongShape, r"WrongShape: returned the shape .* instead of \(15, 6\)"),
        (Half, "returned torch.float16 for float32 input"),
        (Mates, "gives plane 0 another embedding alone than among 15 planes"),
        (Random, "gives other numbers when called again"),
        (DrawsNumbers, "draws from torch's global generator"),
        (InPlace, "gives other numbers when called again|changes its input in place"),
        (Blind, "gives two different inputs the same embedding"),
        (Unused, "no gradient reaches idle"),
        (Forgetful, "gives other numbers after saving and loading"),
        (Positional, r"takes '\*sizes: int' in __init__"),
        (Untyped, "does not annotate the argument 'size'"),
        (NotCopied, "a deep copy shares .* with the original"),
        (Undocumented, "has no docstring"),
        (BagOfChannels, "does not derive from morphem.backbones.base.Backbone"),
        (Backbone, "is abstract; it must define forward, tiny"),
        (function, "is a function, not a class"),
    ],
)
def test_a_bad_backbone_is_caught(cls, message):
    with pytest.raises(ContractError, match=message):
        check_backbone(cls)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("function", "is a function, not a class; register the class itself"),
        ("Camel", "a short name is lower case"),
        ("bad_backbone", "has no docstring"),
        ("random", "is also registered as 'backbones/alias'; one name is enough"),
    ],
)
def test_a_bad_registration_is_caught(name, message):
    with pytest.raises(ContractError, match=message):
        check_plugin("backbones", name)


class MeanOfChannels(ChannelStrategy):
    """Mean over the planes of an image."""

    per_channel = False

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.embed_dim = backbone.embed_dim

    def forward(self, batch):
        features = self.backbone(batch.planes)
        counts = batch.offsets.diff()
        total = features.new_zeros(len(counts), self.embed_dim).index_add(0, batch.image_of_plane(), features)
        return total / counts[:, None]

    @classmethod
    def tiny(cls):
        return cls(Good())


class ByPosition(MeanOfChannels):
    """Weights planes by their place in the image."""

    def forward(self, batch):
        place = torch.arange(batch.n_planes) - batch.offsets[:-1][batch.image_of_plane()]
        return super().forward(batch._replace(planes=batch.planes * (1 + place[:, None, None, None])))


class Padded(MeanOfChannels):
    """Divides by the largest number of channels in the batch, as a padded batch would."""

    def forward(self, batch):
        counts = batch.offsets.diff()
        return super().forward(batch) * (counts / counts.max())[:, None]


class FirstOnly(MeanOfChannels):
    """Gives as many rows as there are planes."""

    def forward(self, batch):
        return self.backbone(batch.planes)


class FiveOnly(MeanOfChannels):
    """Fails on images without five channels."""

    def forward(self, batch):
        return super().forward(batch._replace(offsets=torch.arange(0, batch.n_planes + 1, 5)))


def test_a_good_strategy_passes():
    check_strategy(MeanOfChannels)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (ByPosition, "reordered together with their names"),
        (Padded, r"gives image \d \(1 rows\) another embedding alone than among 6 images"),
        (FirstOnly, r"returned the shape \(15, 6\) instead of \(6, 6\)"),
        (FiveOnly, r"returned the shape \(3, 6\) instead of \(6, 6\)"),
    ],
)
def test_a_bad_strategy_is_caught(cls, message):
    with pytest.raises(ContractError, match=message):
        check_strategy(cls)


class NoisyNormalize(SelfNormalize):
    """Adds noise of no seed."""

    def forward(self, batch):
        batch = super().forward(batch)
        return batch._replace(planes=batch.planes + 0.01 * torch.randn_like(batch.planes))


class BatchNormalize(SelfNormalize):
    """Subtracts the mean of the batch."""

    def forward(self, batch):
        batch = super().forward(batch)
        return batch._replace(planes=batch.planes - batch.planes[:100].mean())


def test_a_good_encoder_of_a_strangers_parts_passes():
    check_encoder(Encoder(MeanOfChannels(Good()), SelfNormalize(), input_size_px=16))


@pytest.mark.parametrize(
    ("normalizer", "message"),
    [
        (NoisyNormalize, r"gives other numbers when called again"),
        (BatchNormalize, r"features\(\) gives image 'tiny-0-1' another embedding alone"),
    ],
)
def test_an_encoder_whose_normaliser_is_not_pure_is_caught(normalizer, message):
    with pytest.raises(ContractError, match=message):
        check_encoder(Encoder(MeanOfChannels(Good()), normalizer(), input_size_px=16))


class Agree(Method):
    """Two views agree, spread apart by a hinge: enough of a method to pass."""

    def __init__(self, encoder: Encoder, views: MultiCrop, lr: float = 3e-3) -> None:
        super().__init__(encoder, views, AdamWRecipe(lr=lr, lr_per_images=None, warmup_epochs=1.0))
        self.head = nn.Linear(encoder.embed_dim, 4)

    def step(self, views):
        first, second = (self.encoder(view) for view in views)
        a, b = self.head(first), self.head(second)
        loss = (a - b).square().mean() + (1 - a.std(0)).relu().mean()
        return StepOutput(loss, first.detach(), {})

    @classmethod
    def tiny(cls):
        views = MultiCrop([ViewRecipe(count=2, size_px=16)])
        return cls(Encoder(MeanOfChannels(Good()), SelfNormalize(), input_size_px=16), views)


class SharedTeacher(Agree):
    """Its teacher is the student."""

    def __init__(self, encoder: Encoder, views: MultiCrop) -> None:
        super().__init__(encoder, views)
        self.teacher = nn.Linear(encoder.embed_dim, 4)
        self.teacher.weight.data = self.head.weight.data
        self.teacher.requires_grad_(False)


class Attached(Agree):
    """Keeps the graph of its embedding."""

    def step(self, views):
        return super().step(views)._replace(embedding=self.encoder(views[0]))


class NotScalar(Agree):
    """Gives one loss per row."""

    def step(self, views):
        output = super().step(views)
        return output._replace(loss=output.loss * torch.ones(3))


class TupleStep(Agree):
    """Returns a bare tuple."""

    def step(self, views):
        return tuple(super().step(views))


class Refuses(Agree):
    """Refuses its own tiny instance."""

    @classmethod
    def compatible(cls, strategy):
        return "on principle" if hasattr(strategy, "seen") or setattr(strategy, "seen", 1) else None


class MovesInValidation(Agree):
    """Moves a buffer in evaluation mode."""

    def __init__(self, encoder: Encoder, views: MultiCrop) -> None:
        super().__init__(encoder, views)
        self.register_buffer("center", torch.zeros(1))

    def step(self, views):
        self.center += 1
        return super().step(views)


class RandomValidation(Agree):
    """Gives another validation loss each time."""

    def step(self, views):
        output = super().step(views)
        return output._replace(loss=output.loss + torch.rand(()))


class NotLearning(Agree):
    """Climbs instead of falling."""

    def step(self, views):
        output = super().step(views)
        return output._replace(loss=2 * output.loss.detach() - output.loss) if self.training else output


class HeadOnly(Agree):
    """Leaves the encoder out of the optimizer."""

    def configure_optimizers(self):
        self.horizon = self._find_horizon()
        return torch.optim.SGD(self.head.parameters(), lr=0.1)


class Detached(Agree):
    """Trains its head alone."""

    def step(self, views):
        output = super().step(views)
        loss = self.head(output.embedding).square().mean()
        return output._replace(loss=loss)


class ExportsACopy(Agree):
    """Exports an encoder that nobody trains."""

    def __init__(self, encoder: Encoder, views: MultiCrop) -> None:
        super().__init__(encoder, views)
        self.other = Encoder(MeanOfChannels(Good()), SelfNormalize(), input_size_px=16).requires_grad_(False)

    def exported_encoder(self):
        return self.other


class EagerTeacher(Agree):
    """Moves its teacher after every batch instead of every step."""

    def __init__(self, encoder: Encoder, views: MultiCrop) -> None:
        super().__init__(encoder, views)
        self.teacher = nn.Linear(encoder.embed_dim, 4).requires_grad_(False)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            self.teacher.weight.lerp_(self.head.weight, 0.5)


class Hidden(Agree):
    """Keeps a part of its state out of the checkpoint."""

    def __init__(self, encoder: Encoder, views: MultiCrop) -> None:
        super().__init__(encoder, views)
        self.seen = 0

    def step(self, views):
        output = super().step(views)
        self.seen += 1
        return output._replace(loss=output.loss * (1 + 0.1 * self.seen))


class Unseeded(Agree):
    """Draws from a generator of its own that nobody seeds."""

    def step(self, views):
        output = super().step(views)
        return output._replace(loss=output.loss * (1 + float(np.random.default_rng().random())))


class NoSpec(Agree):
    """Leaves the spec out of its checkpoint."""

    def on_save_checkpoint(self, checkpoint):
        checkpoint["other"] = 1


class PickledSelf(Agree):
    """Saves an object instead of data."""

    def on_save_checkpoint(self, checkpoint):
        super().on_save_checkpoint(checkpoint)
        checkpoint["path"] = Path("x")


@pytest.mark.parametrize(
    ("check", "cls", "message"),
    [
        (check_step, SharedTeacher, r"'teacher.weight' shares its memory with the trained 'head.weight'"),
        (check_step, Attached, "the embedding is not detached"),
        (check_step, NotScalar, r"the loss is torch.float32 of shape \(3,\)"),
        (check_step, TupleStep, r"step\(\) returns a tuple, not a StepOutput"),
        (check_step, Refuses, r"refuses the channel strategy of its own tiny\(\): on principle"),
        (check_validation, MovesInValidation, "validation moves center"),
        (check_validation, RandomValidation, r"gives validation losses .* for one batch"),
        (check_learning, NotLearning, "steps do not lower the loss"),
        (check_learning, HeadOnly, "the optimizer does not hold encoder.channels.backbone.net"),
        (check_learning, Detached, "no gradient reaches encoder.channels.backbone.net"),
        (check_learning, ExportsACopy, "training leaves the exported encoder as it was"),
        (check_accumulation, EagerTeacher, "teacher.weight move between optimizer steps"),
        (check_resume, Hidden, "a run that was cut and resumed ends with other weights"),
        (check_resume, Unseeded, "two runs with one seed end with different weights"),
        (check_resume, NoSpec, "its checkpoint has no 'morphem'"),
        (check_resume, PickledSelf, "cannot be resumed from its checkpoint|its checkpoint holds more than data"),
    ],
)
def test_a_bad_method_is_caught(check, cls, message):
    arguments = (20,) if check is check_learning else ()
    with pytest.raises(ContractError, match=message):
        check(cls, *arguments)


def test_a_good_method_of_a_stranger_passes():
    check_method(Agree)


class Repeats(SheetSource):
    """Names an image twice."""

    def image_ids(self):
        return [*super().image_ids(), super().image_ids()[0]]


class Unstable(SheetSource):
    """Reads other pixels each time."""

    def load(self, image_id):
        image = super().load(image_id)
        draw = np.random.default_rng()
        return type(image)(
            **{**vars(image), "planes": [p + draw.integers(1, 9, p.shape, p.dtype) for p in image.planes]}
        )


class Aliased(SheetSource):
    """Leaves aliases in its rows."""

    def load(self, image_id):
        image = super().load(image_id)
        rows = [{**row, "imaging.channel_type": "DNA"} for row in image.rows]
        return type(image)(**{**vars(image), "rows": rows})


class OtherStudy(SheetSource):
    """Says another study in its rows."""

    def load(self, image_id):
        image = super().load(image_id)
        return type(image)(**{**vars(image), "rows": [{**row, "experiment.study": "else"} for row in image.rows]})


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Repeats, "gives two images one name"),
        (Unstable, "has other pixels when it is read again"),
        (Aliased, "is called 'DNA', an alias; resolve it to 'nucleus'"),
        (OtherStudy, "says study 'else' instead of 'tiny'"),
    ],
)
def test_a_bad_source_is_caught(cls, message):
    with pytest.raises(ContractError, match=message):
        check_source(cls)


class NoLicense(MorphEm):
    """Says nothing of its licence."""

    record = Record(**{**vars(MorphEm.record), "license": ""})


class NeedsArgument(MorphEm):
    """Cannot be built without an argument."""

    def __init__(self, size: int) -> None:
        super().__init__()


class TakesAnything(Pretrained):
    """Converts whatever it is given."""

    record = MorphEm.record

    def convert(self, tensors, source):
        return Encoder.tiny()


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (NoLicense, "its record leaves license empty"),
        (NeedsArgument, "cannot be built without the argument 'size'"),
        (TakesAnything, r"convert\(\) takes no tensors at all without an error"),
    ],
)
def test_a_bad_family_of_pretrained_encoders_is_caught(cls, message):
    with pytest.raises(ContractError, match=message):
        check_pretrained(cls)


def test_the_checks_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    check_backbone(Good)
    check_strategy(MeanOfChannels)
    check_accumulation(Agree)
    assert torch.equal(before, torch.random.get_rng_state())


def test_this_module_is_found_under_its_own_name():
    assert isinstance(sys.modules[__name__], ModuleType)
    assert registry.find("backbones", "good_backbone").load() is Good
