"""Any network of timm that makes one vector of a picture: DINOv3, ResNets and others that `vit` is not.

Source: timm (https://github.com/huggingface/pytorch-image-models), whose own forward pass is run as it is.
"""

from collections.abc import Mapping
from typing import Any, Self

import timm
from torch import Tensor

from morphem.backbones.base import Backbone
from morphem.errors import ConfigError, DataError, unknown_name


class AnyTimm(Backbone):
    """A network of timm without its classifier.

    Args:
        name: Of timm, for example `vit_small_patch16_dinov3` or `resnet18`.
        in_channels: Planes that it takes at once.
        settings: Further arguments of timm's constructor, for example `{"global_pool": "token"}`.

    Raises:
        ConfigError: If timm has no such network, it does not take the settings, or it does not give vectors.
    """

    def __init__(self, name: str, in_channels: int = 1, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise ConfigError(unknown_name("timm network", name, timm.list_models()))
        if in_channels < 1:
            raise ConfigError(f"timm: in_channels={in_channels} must be at least 1.")
        given = dict(settings or {})
        fixed = sorted({"in_chans", "num_classes", "pretrained"} & set(given))
        if fixed:
            raise ConfigError(
                f"timm: settings may not hold {', '.join(fixed)}; in_channels says the planes, the classifier is left "
                "out, and weights are loaded by the zoo."
            )
        try:
            network: Any = timm.create_model(name, pretrained=False, in_chans=in_channels, num_classes=0, **given)
        except (
            TypeError,
            ValueError,
            AssertionError,
            RuntimeError,
        ) as fault:  # what timm raises for settings that clash
            raise ConfigError(f"timm: '{name}' does not take {given}: {fault or 'they do not fit'}.") from fault
        self.network = network
        self.in_channels = in_channels
        self.embed_dim = int(network.num_features)

    def forward(self, planes: Tensor) -> Tensor:
        """Embed planes, (P, 1, H, W), or pictures, (P, C, H, W), to (P, D).

        Args:
            planes: Normalised pixels; which sides it takes, the network says.

        Raises:
            DataError: If the network does not take pictures of that size.
        """
        try:
            out: Tensor = self.network(planes)
        except AssertionError as fault:  # timm's way to refuse sides that a patch does not divide
            raise DataError(
                f"the network does not take pictures of {planes.shape[-2]} x {planes.shape[-1]} pixels ({fault}); "
                "resize them (input_size_px of the encoder does it)."
            ) from fault
        return out

    @classmethod
    def tiny(cls) -> Self:
        """Build the smallest instance that works: timm's test network of convolutions."""
        return cls("test_resnet", settings={"zero_init_last": False})
