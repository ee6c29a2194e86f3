"""The options of ``edgewright finetune`` that are for images alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Final

from edgewright.errors import ConfigError

# none: as in serving. flip: mirrored half of the time. crop: a part of the picture. light: both.
AUGMENTS: Final = ("none", "flip", "crop", "light")
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
IMAGENET_CROP: Final = 0.875  # of the shorter side, by the usual cut of 224 from 256


@dataclass(frozen=True)
class ImageOptions:
    """As they are typed; None is a default. ``FinetuneConfig`` tells what ``faults`` gives.

    All but ``augment`` and ``views`` describe what a factory's model takes; others bring a
    configuration.
    """

    augment: str = "none"
    views: int | None = None  # of each train image, augmented once and for all
    size: str | None = None  # pixels: "224", or "224x192" for height and width
    mean: str | None = None  # of red, green, blue, as "0.485,0.456,0.406", or one for all
    std: str | None = None
    crop: float | None = None  # share of the shorter side that is kept; 1 squeezes into shape

    def faults(self) -> Iterator[str]:
        """What is wrong, option by option."""
        if self.augment not in AUGMENTS:
            yield f"--augment is {self.augment}; it must be one of {', '.join(AUGMENTS)}"
        if self.views is not None and self.views < 1:
            yield f"--augment-views is {self.views}; it must be 1 or more"
        if self.views is not None and self.augment == "none":
            yield "--augment-views says how many views --augment makes, and --augment is none"
        if self.size is not None and _sides(self.size) is None:
            yield f"--image-size is {self.size}; it must be pixels such as 224, or 224x192"
        for option, value, positive in (("mean", self.mean, False), ("std", self.std, True)):
            if value is not None and _numbers(value, positive=positive) is None:
                above = " above 0" if positive else ""
                yield (
                    f"--image-{option} is {value}; it must be one number{above}, or three with "
                    "commas for red, green and blue"
                )
        if self.crop is not None and not 0 < self.crop <= 1:
            yield f"--image-crop is {self.crop:g}; it must be a share above 0, at most 1"

    def given(self) -> dict[str, bool]:
        """Option -> whether it says something."""
        own = {"--augment": self.augment != "none", "--augment-views": self.views is not None}
        return own | self.of_factories()

    def of_factories(self) -> dict[str, bool]:
        """Likewise, those that only a factory's model needs."""
        values = {"size": self.size, "mean": self.mean, "std": self.std, "crop": self.crop}
        return {f"--image-{name}": value is not None for name, value in values.items()}

    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels; ConfigError where no size is given."""
        sides = None if self.size is None else _sides(self.size)
        if sides is None:
            raise ConfigError(
                "--image-size is missing: a factory's model does not say what it takes; give it, "
                "as 224 or 224x192 (height x width)"
            )
        return sides

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation by colour, of values from 0 to 1; ImageNet's by default."""
        mean = None if self.mean is None else _numbers(self.mean, positive=False)
        std = None if self.std is None else _numbers(self.std, positive=True)
        return mean or IMAGENET_MEAN, std or IMAGENET_STD

    @property
    def kept(self) -> float:
        """Share of the shorter side."""
        return IMAGENET_CROP if self.crop is None else self.crop


IMAGE_DEFAULTS: Final = ImageOptions()


def _sides(text: str) -> tuple[int, int] | None:
    height, _, width = text.partition("x")
    try:
        sides = (int(height), int(width or height))
    except ValueError:
        return None
    return sides if min(sides) >= 1 else None


def _numbers(text: str, *, positive: bool) -> tuple[float, ...] | None:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return None
    sound = all(isfinite(each) and (each > 0 or not positive) for each in numbers)
    if not sound or len(numbers) not in (1, 3):
        return None
    return tuple(numbers * 3) if len(numbers) == 1 else tuple(numbers)
