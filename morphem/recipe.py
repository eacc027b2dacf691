"""How the authors of an encoder cut an image before their network sees it, and how the pieces become one row."""

from dataclasses import dataclass, field

from morphem.data.crops import CropRule
from morphem.errors import ConfigError

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """Part of an encoder, saved with it: what is done where nothing else is asked for.

    Attributes:
        crops: What is cut out of an image (`image` or `tile`; see `morphem.data.crops.CropRule`). A row of an image is
            the mean over its crops, without those that the rule leaves out for being empty.
        unit_length: Whether a row is scaled to length 1 (L2), after channels were combined.

    Raises:
        ConfigError: If the crops are cells, or a mean over tiles shall have unit length.
    """

    crops: CropRule = field(default_factory=lambda: CropRule("image"))
    unit_length: bool = False

    def __post_init__(self) -> None:
        """Check that the parts go together."""
        if self.crops.unit == "cell":
            raise ConfigError(
                "a recipe cuts tiles or takes whole images; cells are asked for where images are embedded."
            )
        if self.unit_length and not self.whole_image:
            raise ConfigError("unit_length belongs to rows of whole images; a mean over tiles is not scaled.")

    @property
    def whole_image(self) -> bool:
        """Whether an image is one piece."""
        return self.crops.unit == "image"
