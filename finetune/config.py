"""What one fine-tuning run is asked to do: the options of ``edgewright finetune``, checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from edgewright.errors import ConfigError
from edgewright.examples import SplitShares
from edgewright.finetune.image_options import IMAGE_DEFAULTS, ImageOptions
from edgewright.kinds import IMAGE, TEXT, Kind

DEFAULT_MODEL: Final = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_SPLITS: Final = "56/8/4/4/20/8"
DEFAULT_MAX_LENGTH: Final = 128  # tokens, special ones included
# Half the blocks: on BBC News 4 of 6 frozen blocks lost nothing against none, at half the time.
DEFAULT_FREEZE: Final = 0.5
LR_PARTLY_FROZEN: Final = 1e-4
LR_FULL: Final = 2e-5
# Convolutions bear, and want, larger steps than encoders of texts. Where batch normalisations hold
# their scale, so do all of them together: four epochs on 80 digits, means of three seeds, gave
# EfficientNet-Lite0 an accuracy of .56 at 1e-3 and of .32 at 2e-4, MobileNetV2 of .88 and .67.
LR_IMAGES_PARTLY_FROZEN: Final = 1e-3
LR_IMAGES_FULL: Final = 2e-4
# Ten times that of the weights: on BBC News 1e-3 gave MiniLM the accuracy of --freeze 3 without
# adapters, 2e-4 two points less.
LR_LORA: Final = 1e-3

CLASS_WEIGHTS: Final = ("none", "balanced")
METRICS: Final = ("accuracy", "macro_f1", "loss")
PRECISIONS: Final = ("auto", "fp32", "bf16", "fp16")
DEVICES: Final = ("auto", "cpu", "cuda")
CACHES: Final = ("auto", "on", "off")
AUTO_FREEZE: Final = "auto"
AUDITS: Final = ("full", "fast", "off")
CALIBRATIONS: Final = ("temperature", "none")
FORGETTINGS: Final = ("full", "fast", "off")

_OPTION_OF: Final = {"from_checkpoint": "from"}  # where the option's name is a Python keyword
_RECORDED: Final = "the checkpoint of --from has recorded it"


@dataclass(frozen=True)
class FinetuneConfig:
    """Options of one run; None means "choose". ConfigError tells every fault at once.

    ``freeze`` is a number of blocks (int), a share of them (float, 0.0 to 1.0) or "auto", which
    tries several. None is half of them, or with ``from_checkpoint`` as many as there. ``add`` holds
    further files of examples. With ``from_checkpoint`` the model, its labels and the splits of its
    examples come from that checkpoint, and ``data`` may be left out.
    """

    data: str | None = None
    add: tuple[str, ...] = ()
    from_checkpoint: str | None = None
    new_labels: bool = False  # whether ``add`` may hold classes that ``from_checkpoint`` lacks
    model: str | None = None
    revision: str | None = None
    data_revision: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    image_column: str | None = None
    validation: str | None = None
    test: str | None = None
    splits: str | None = None
    max_length: int | None = None
    freeze: int | float | str | None = None
    lora: int | None = None  # rank of the adapters; None trains the weights themselves
    head_first: bool = True  # start a new head from a linear probe
    cache: str = "auto"  # the frozen part's activations
    cache_dir: str | None = None
    epochs: int = 5
    lr: float | None = None
    batch_size: int = 16  # rows of one forward and backward pass
    accumulate: int = 1  # passes of one optimiser step
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.01
    layer_decay: float = 1.0  # of the learning rate, from block to block, last to first
    clip_norm: float = 1.0  # largest norm of all gradients together; 0 does not clip
    class_weights: str = "none"
    metric: str = "accuracy"
    patience: int = 2  # epochs without a better metric before training stops
    calibrate: str = "temperature"
    forgetting: str = "fast"
    old: str | None = None  # examples of what ``from_checkpoint`` was trained for
    interpolate: float | None = None  # share of the new weights in what is written
    precision: str = "auto"
    device: str = "auto"
    seed: int = 0
    threads: int | None = None
    audit: str = "full"
    strict: bool = False  # refuse examples that break a rule of the audit
    augment: str = IMAGE_DEFAULTS.augment
    augment_views: int | None = None  # views of each train image, which epochs show in turn
    blocks: str | None = None  # dotted paths, with commas, of a factory's lists of blocks
    image_size: str | None = None
    image_mean: str | None = None
    image_std: str | None = None
    image_crop: float | None = None

    def __post_init__(self) -> None:
        faults = [*self._source_faults(), *self._number_faults(), *self._choice_faults()]
        faults += self.images.faults()
        if self.old is not None and self.forgetting == "off":
            faults.append("--old is read to measure forgetting, and --forgetting is off")
        if faults:
            raise ConfigError(faults)

    @property
    def sources(self) -> tuple[str, ...]:
        """Where the run's examples are read, in the order of the options."""
        given = (self.data, *self.add, self.validation, self.test)
        return tuple(source for source in given if source is not None)

    @property
    def images(self) -> ImageOptions:
        """The options that are for images alone."""
        return ImageOptions(
            self.augment,
            self.augment_views,
            self.image_size,
            self.image_mean,
            self.image_std,
            self.image_crop,
        )

    def with_defaults(self, kind: Kind = TEXT) -> FinetuneConfig:
        """The same run with the defaults of a new or a continued model filled in.

        ``max_length`` and ``splits`` stay None where the checkpoint of ``--from`` decides.

        Raises:
            ConfigError: an option does not go with examples of this kind.
        """
        self._refuse_options_of_another(kind)
        if self.from_checkpoint is not None:
            return self
        started = replace(
            self,
            freeze=DEFAULT_FREEZE if self.freeze is None else self.freeze,
            splits=self.splits or DEFAULT_SPLITS,
        )
        if kind is IMAGE:
            return started
        return replace(
            started,
            model=self.model or DEFAULT_MODEL,
            max_length=DEFAULT_MAX_LENGTH if self.max_length is None else self.max_length,
        )

    def rate(self, kind: Kind, frozen: int, *, normalises: bool = False) -> float:
        """The highest learning rate, as given or by what trains.

        Args:
            kind: of the examples.
            frozen: how many blocks do not train.
            normalises: whether batch normalisations do.
        """
        if self.lr is not None:
            return self.lr
        if self.lora is not None:
            return LR_LORA
        if kind is IMAGE:
            return LR_IMAGES_PARTLY_FROZEN if frozen or normalises else LR_IMAGES_FULL
        return LR_PARTLY_FROZEN if frozen else LR_FULL

    def to_mapping(self) -> dict[str, Any]:
        """Option name -> value, as ``--config`` reads it; options left to choose are absent."""
        values = {option_name(field.name): getattr(self, field.name) for field in fields(self)}
        return {
            option: list(value) if isinstance(value, tuple) else value
            for option, value in values.items()
            if value is not None and value != ()
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> FinetuneConfig:
        """The inverse of ``to_mapping``; ConfigError names the options that do not exist."""
        names = {option_name(field.name): field.name for field in fields(cls)}
        unknown = sorted(mapping.keys() - names.keys())
        if unknown:
            known = ", ".join(sorted(names))
            raise ConfigError(
                [f"no option {each!r} in finetune; there are: {known}" for each in unknown]
            )
        values = {names[option]: value for option, value in mapping.items()}
        values["add"] = tuple(values.get("add", ()))
        return cls(**values)

    def _source_faults(self) -> Iterator[str]:
        if self.from_checkpoint is None:
            if self.data is None:
                yield "DATA is missing: give a file of examples, or a checkpoint with --from"
            if self.new_labels:
                yield "--new-labels goes with --from: without it every label is new"
            if self.old is not None:
                yield "--old goes with --from: without it there are no earlier labels to forget"
            return
        for name in ("model", "revision", "splits", "blocks"):
            if getattr(self, name) is not None:
                yield f"--{name} does not go with --from: {_RECORDED}"

    def _refuse_options_of_another(self, kind: Kind) -> None:
        if kind is IMAGE:
            given = {"--max-length": self.max_length is not None}
        else:
            given = self.images.given() | {"--blocks": self.blocks is not None}
        faults = [
            f"{option} does not go with {kind.many}, which the examples are"
            for option, is_given in given.items()
            if is_given
        ]
        if faults:
            raise ConfigError(faults)

    def _number_faults(self) -> Iterator[str]:
        rules: dict[str, tuple[bool, str]] = {
            "freeze": _freeze_rule(self.freeze),
            "lora": (self.lora is None or self.lora >= 1, "a rank of 1 or more"),
            "epochs": (self.epochs >= 1, "1 or more"),
            "lr": (self.lr is None or 0 < self.lr < float("inf"), "above 0"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "accumulate": (self.accumulate >= 1, "1 or more"),
            "max_length": (self.max_length is None or self.max_length >= 1, "1 or more"),
            "warmup": (0 <= self.warmup <= 1, "a share of the steps, from 0 to 1"),
            "weight_decay": (0 <= self.weight_decay < float("inf"), "0 or more"),
            "layer_decay": (0 < self.layer_decay <= 1, "above 0 and at most 1 (no decay)"),
            "clip_norm": (0 <= self.clip_norm < float("inf"), "0 (no clipping) or more"),
            "patience": (self.patience >= 1, "1 or more"),
            "interpolate": (
                self.interpolate is None or 0 <= self.interpolate <= 1,
                "from 0 (the old weights) to 1 (the new ones)",
            ),
            "seed": (0 <= self.seed < 2**32, "from 0 to 4294967295"),
            "threads": (self.threads is None or self.threads >= 1, "1 or more"),
        }
        for name, (holds, expected) in rules.items():
            if not holds:
                yield f"--{option_name(name)} is {getattr(self, name)}; it must be {expected}"

    def _choice_faults(self) -> Iterator[str]:
        choices = {
            "class_weights": CLASS_WEIGHTS,
            "metric": METRICS,
            "precision": PRECISIONS,
            "device": DEVICES,
            "cache": CACHES,
            "audit": AUDITS,
            "calibrate": CALIBRATIONS,
            "forgetting": FORGETTINGS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                listed = ", ".join(allowed)
                yield f"--{option_name(name)} is {getattr(self, name)}; it must be one of {listed}"
        if self.cache == "on" and self.augment != "none" and self.augment_views is None:
            yield (
                f"--cache on keeps what is shown, and --augment {self.augment} shows other images "
                "in every epoch; give --augment-views, as 4, for that many of each in turn"
            )
        if self.strict and self.audit == "off":
            yield "--strict goes by what the audit finds: leave --audit off out, or use fast"
        if self.splits is not None:
            try:
                SplitShares.parse(self.splits)
            except ConfigError as error:
                yield from error.faults


def option_name(field: str) -> str:
    """The command-line option, without dashes, that fills a field of ``FinetuneConfig``."""
    return _OPTION_OF.get(field, field.replace("_", "-"))


def parse_freeze(text: str) -> int | float | str:
    """A number of blocks ("4"), with a dot a share of them ("0.5"), or "auto".

    Raises:
        ConfigError: it is none of them.
    """
    if text == AUTO_FREEZE:
        return text
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise ConfigError(
            f"--freeze is {text!r}; it must be a number of blocks such as 4, with a dot a share "
            f"of them such as 0.5, or {AUTO_FREEZE}"
        ) from None


def _freeze_rule(freeze: int | float | str | None) -> tuple[bool, str]:
    if isinstance(freeze, float):
        return (
            0.0 <= freeze <= 1.0,
            "a share of the blocks from 0.0 to 1.0 (whole numbers are blocks)",
        )
    if isinstance(freeze, int):
        return freeze >= 0, "0 blocks or more"
    return freeze in (None, AUTO_FREEZE), f"a number of blocks, a share, or {AUTO_FREEZE}"
