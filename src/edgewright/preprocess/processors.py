"""The preprocessing of a Hugging Face vision model, from its image processor's configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from PIL import Image

from edgewright.errors import BackendUnavailableError, ConfigError
from edgewright.preprocess.images import (
    PIXEL_VALUES,
    RESAMPLE,
    DecodedRow,
    ImagePreprocessor,
    ImageSettings,
)

_WARPED_FROM: Final = 384  # ConvNeXt cuts nothing from this size on
_PROBE_SIZES: Final = ((64, 64), (37, 90), (211, 48), (300, 401), (8, 8))  # height, width


def image_preprocessor(name_or_path: str, *, revision: str | None = None) -> ImagePreprocessor:
    """The preprocessing of a Hugging Face model, by hub id or local folder.

    Needs transformers (BackendUnavailableError). ConfigError when its image processor cannot be
    loaded, or does something else than resize, cut, rescale and normalise: a few are tried.
    """
    processor = _load(name_or_path, revision)
    try:
        preprocessor = ImagePreprocessor(settings_of(processor))
    except ConfigError as error:
        faults = [f"the image processor of {name_or_path}: {fault}" for fault in error.faults]
        raise ConfigError(faults) from error
    _refuse_difference(preprocessor, processor, name_or_path)
    return preprocessor


def plain_preprocessor(
    size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...], kept: float
) -> ImagePreprocessor:
    """For a model that brings no configuration: resize, cut the middle, normalise values 0 to 1.

    Args:
        size: (height, width) that the model takes.
        mean: of red, green, blue.
        std: likewise.
        kept: share of the shorter side that the cut keeps; 1 resizes without regard to proportions.
    """
    if kept == 1:
        return ImagePreprocessor(ImageSettings(size, (), mean=mean, std=std))
    shorter = round(max(size) / kept)
    return ImagePreprocessor(ImageSettings((shorter,), size, mean=mean, std=std))


def settings_of(processor: Any) -> ImageSettings:
    """What a slow image processor of transformers does, as ``ImageSettings``.

    ConfigError where its configuration gives no shape that every picture gets.
    """
    does = {name.removeprefix("do_"): bool(value) for name, value in _switches(processor)}
    resize, crop = _sizes(processor, does)
    normalises = does.get("normalize", False)
    std = _triple(processor.image_std) if normalises else (1.0, 1.0, 1.0)
    twice = bool(getattr(processor, "include_top", False))  # EfficientNet
    return ImageSettings(
        resize=resize,
        crop=crop,
        resample=_resample(processor) if resize else "bilinear",
        scale=float(processor.rescale_factor) if does.get("rescale") else 1.0,
        offset=-1.0 if does.get("rescale") and getattr(processor, "rescale_offset", False) else 0.0,
        mean=_triple(processor.image_mean) if normalises else (0.0, 0.0, 0.0),
        std=std,
        last_std=_triple(processor.image_std) if twice else (),
        channels="bgr" if does.get("flip_channel_order") else "rgb",
    )


def _load(name_or_path: str, revision: str | None) -> Any:
    try:
        from transformers import AutoImageProcessor
    except ImportError as error:
        raise BackendUnavailableError(
            f"reading the image processor of {name_or_path} needs transformers; "
            "pip install 'edgewright[train]'"
        ) from error
    try:
        return AutoImageProcessor.from_pretrained(
            name_or_path, revision=revision or "main", use_fast=False, trust_remote_code=False
        )
    except Exception as error:  # transformers lets through whatever its parsers raise
        raise ConfigError(
            f"cannot load the image processor of {name_or_path}: {error}; give a hub id or a "
            "folder with preprocessor_config.json"
        ) from error


def _switches(processor: Any) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in vars(processor).items() if name.startswith("do_"))


def _sizes(processor: Any, does: Mapping[str, bool]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(resize, crop) as ``ImageSettings`` has them."""
    size = getattr(processor, "size", None) or {}
    if type(processor).__name__.startswith("ConvNext"):
        return _convnext_sizes(size, float(processor.crop_pct)) if does.get("resize") else ((), ())
    resize = _sides(size) if does.get("resize") else ()
    crop = _sides(processor.crop_size) if does.get("center_crop") else ()
    return resize, crop


def _convnext_sizes(
    size: Mapping[str, int], crop_pct: float
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    edge = int(size["shortest_edge"])
    if edge < _WARPED_FROM:
        return (int(edge / crop_pct),), (edge, edge)
    return (edge, edge), ()


def _sides(size: Mapping[str, int]) -> tuple[int, ...]:
    if size.keys() == {"height", "width"}:
        return int(size["height"]), int(size["width"])
    if size.keys() == {"shortest_edge"}:
        return (int(size["shortest_edge"]),)
    raise ConfigError(f"its size is {dict(size)}; expected height and width, or shortest_edge")


def _resample(processor: Any) -> str:
    return next(name for name, value in RESAMPLE.items() if value == processor.resample)


def _triple(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in np.broadcast_to(np.asarray(values, np.float64), 3))


def _refuse_difference(preprocessor: ImagePreprocessor, processor: Any, name: str) -> None:
    """A class of transformers may do more than its configuration says; find out now."""
    rng = np.random.default_rng(0)
    for shape in _PROBE_SIZES:
        image = Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
        ours = preprocessor.pad([DecodedRow(preprocessor.pixels(image, "a probe"))]).arrays
        theirs = processor(image, return_tensors="np", input_data_format="channels_last")
        if not np.array_equal(ours[PIXEL_VALUES], theirs[PIXEL_VALUES]):
            raise ConfigError(
                f"the image processor of {name}, {type(processor).__name__}, gives other values "
                f"than resizing, cutting and normalising do (a picture of {shape[0]} x "
                f"{shape[1]}); choose another model"
            )
