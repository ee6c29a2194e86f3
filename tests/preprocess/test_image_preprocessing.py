"""Image preprocessing equals transformers' own, to the bit, here and where only [serve] is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from image_cases import image_files, photographs, reference_rgb, saved
from lean import lean_python, run_lean

from edgewright.errors import ArtifactNotFoundError, ConfigError, InputError, IntegrityError
from edgewright.preprocess import (
    SETTINGS_FILE,
    DecodedRow,
    ImagePreprocessor,
    ImageSettings,
    LazyRow,
    TextPreprocessor,
    load_preprocessor,
)
from edgewright.preprocess.processors import (
    image_preprocessor,
    plain_preprocessor,
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FAMILIES: dict[str, Callable[[], Any]] = {
    "resnet": lambda: transformers.ConvNextImageProcessor(
        size={"shortest_edge": 64}, crop_pct=0.875
    ),
    "convnext": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 384}),
    "vit": lambda: transformers.ViTImageProcessor(size={"height": 64, "width": 48}),
    "deit": lambda: transformers.DeiTImageProcessor(
        size={"height": 72, "width": 72}, crop_size={"height": 64, "width": 64}
    ),
    "mobilenet_v2": lambda: transformers.MobileNetV2ImageProcessor(
        size={"shortest_edge": 75}, crop_size={"height": 65, "width": 64}
    ),
    "efficientnet": lambda: transformers.EfficientNetImageProcessor(
        size={"height": 65, "width": 64}
    ),
    "efficientnet, cut": lambda: transformers.EfficientNetImageProcessor(
        size={"height": 50, "width": 60},
        do_center_crop=True,
        crop_size={"height": 71, "width": 71},
        rescale_offset=True,
    ),
    "mobilevit": lambda: transformers.MobileViTImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}
    ),
    "cut alone": lambda: transformers.BitImageProcessor(
        do_resize=False, crop_size={"height": 40, "width": 91}
    ),
}


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[ImagePreprocessor, Any]]:
    """Ours, read from the configuration on disk, and theirs."""
    pairs = {}
    for name, make in FAMILIES.items():
        folder = tmp_path_factory.mktemp("processor")
        make().save_pretrained(folder)
        pairs[name] = (image_preprocessor(str(folder)), make())
    return pairs


def theirs(processor: Any, data: bytes) -> np.ndarray:
    return processor(reference_rgb(data), return_tensors="np", input_data_format="channels_last")[
        "pixel_values"
    ]


def too_thin(name: str, data: bytes, ours: ImagePreprocessor) -> bool:
    """Whether transformers would make gigabytes of it."""
    width, height = reference_rgb(data).size
    return len(ours.settings.resize) == 1 and max(width, height) / min(width, height) > 100


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_equals_transformers(
    families: dict[str, tuple[ImagePreprocessor, Any]], family: str
) -> None:
    ours, processor = families[family]
    for name, data in image_files(51, seed=3, largest=120):
        if not too_thin(name, data, ours):
            found = ours([data]).arrays["pixel_values"]
            assert found.dtype == np.float32
            assert np.array_equal(found, theirs(processor, data)), name


@pytest.mark.slow
def test_two_thousand_files_equal_transformers_where_only_serve_is_installed(
    families: dict[str, tuple[ImagePreprocessor, Any]], tmp_path: Path
) -> None:
    expected = []
    names = list(families)
    for name, (ours, _) in families.items():
        ours.save(tmp_path / name)
    for index, (description, data) in enumerate(image_files(2000, seed=4)):
        family = names[index % len(names)]
        ours, processor = families[family]
        if too_thin(description, data, ours):
            family = "vit"
            processor = families[family][1]
        (tmp_path / f"{index}.image").write_bytes(data)
        digest = hashlib.sha256(theirs(processor, data).tobytes()).hexdigest()
        expected.append([family, f"{index}.image", digest, description])
    (tmp_path / "expected.json").write_text(json.dumps(expected))
    script = tmp_path / "compare.py"
    script.write_text(
        "import hashlib, json, sys\nfrom pathlib import Path\n"
        "from edgewright.preprocess import load_preprocessor\n"
        "folder = Path(sys.argv[1])\n"
        "expected = json.loads((folder / 'expected.json').read_text())\n"
        "loaded = {name: load_preprocessor(folder / name) for name, *_ in expected}\n"
        "for name, file, digest, description in expected:\n"
        "    values = loaded[name]([(folder / file).read_bytes()]).arrays['pixel_values']\n"
        "    assert hashlib.sha256(values.tobytes()).hexdigest() == digest, (name, description)\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()\n"
        "print(len(expected))\n"
    )
    assert int(run_lean(lean_python("serve"), script, tmp_path)) == 2000


def test_a_batch_is_its_rows(families: dict[str, tuple[ImagePreprocessor, Any]]) -> None:
    files = [data for _, data in image_files(6, largest=60)]
    for ours, _ in families.values():
        together = ours(files).arrays["pixel_values"]
        assert together.shape == (6, *ours.input_shape[1:])
        for index, data in enumerate(files):
            assert np.array_equal(together[index], ours([data]).arrays["pixel_values"][0])


def test_a_lazy_row_is_the_decoded_one(
    families: dict[str, tuple[ImagePreprocessor, Any]], tmp_path: Path
) -> None:
    ours, _ = families["resnet"]
    (tmp_path / "it.png").write_bytes(data := saved(photographs()[0], "PNG"))
    lazy = LazyRow(ours, (tmp_path / "it.png").read_bytes, "it.png")
    (decoded,) = ours.encode([data])
    assert (len(lazy), lazy.truncated) == (len(decoded), decoded.truncated) == (64, False)
    assert np.array_equal(lazy.pixels, decoded.pixels)


def test_the_image_at_fault_is_named_by_its_place(
    families: dict[str, tuple[ImagePreprocessor, Any]],
) -> None:
    ours, _ = families["resnet"]
    good = saved(photographs()[0], "JPEG")
    with pytest.raises(InputError, match=r"images\[1\] cannot be decoded: .*truncated") as raised:
        ours.encode([good, good[:3000]])
    assert raised.value.field == "images[1]"
    with pytest.raises(InputError, match=r"images\[0\] is of type str; it must be bytes"):
        ours.encode(["cat.jpg"])
    with pytest.raises(InputError, match="the batch is empty"):
        ours.encode([])


def test_an_image_too_thin_to_resize_is_refused(
    families: dict[str, tuple[ImagePreprocessor, Any]],
) -> None:
    thin = saved(photographs()[0].resize((60_000, 1)), "PNG")
    with pytest.raises(InputError, match=r"images\[0\]: 60000 x 1 is too long and thin"):
        families["resnet"][0].encode([thin])


def test_another_length_than_the_height_is_refused(
    families: dict[str, tuple[ImagePreprocessor, Any]],
) -> None:
    ours, _ = families["vit"]
    rows = [DecodedRow(np.zeros((64, 48, 3), np.uint8))]
    assert ours.pad(rows, 64).arrays["pixel_values"].shape == (1, 3, 64, 48)
    with pytest.raises(ConfigError, match="64 x 48 pixels only, so a workload's length is 64"):
        ours.pad(rows, 32)


def test_what_is_saved_is_plain_and_comes_back(tmp_path: Path) -> None:
    made = plain_preprocessor((224, 192), IMAGENET_MEAN, IMAGENET_STD, 0.875)
    made.save(tmp_path)
    record = json.loads((tmp_path / SETTINGS_FILE).read_text())
    assert (record["kind"], record["resize"], record["crop"]) == ("image", [256], [224, 192])
    loaded = load_preprocessor(tmp_path)
    assert isinstance(loaded, ImagePreprocessor)
    assert loaded.settings == made.settings
    with pytest.raises(ArtifactNotFoundError, match="of kind 'image'; expected text"):
        TextPreprocessor.load(tmp_path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"resize": [0]}, r"resize is \(0,\)"),
        ({"resize": [224], "crop": []}, "gives pictures of any shape"),
        ({"crop": [10**6, 1]}, "crop is"),
        ({"resample": "magic"}, "resample is 'magic'; it must be one of nearest"),
        ({"std": [1, 0, 1]}, "std is .* three numbers above 0"),
        ({"mean": [1, 2]}, "mean is"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"channels": "rbg"}, "channels is 'rbg'; it must be rgb or bgr"),
        ({"surprise": 1}, "unknown entries surprise"),
        ({"format_version": 9}, "format_version 9"),
    ],
)
def test_malformed_settings_are_refused_by_name(
    tmp_path: Path, entries: dict[str, Any], message: str
) -> None:
    plain_preprocessor((8, 8), IMAGENET_MEAN, IMAGENET_STD, 1).save(tmp_path)
    record = json.loads((tmp_path / SETTINGS_FILE).read_text())
    (tmp_path / SETTINGS_FILE).write_text(json.dumps({**record, **entries}))
    with pytest.raises(IntegrityError, match=message) as raised:
        load_preprocessor(tmp_path)
    assert SETTINGS_FILE in str(raised.value)


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / SETTINGS_FILE).write_text('{"kind": "sound"}')
    with pytest.raises(ArtifactNotFoundError, match="of kind 'sound'; expected text or image"):
        load_preprocessor(tmp_path)


def test_a_processor_that_does_more_is_refused(tmp_path: Path) -> None:
    transformers.PoolFormerImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"PoolFormerImageProcessor, gives other values"):
        image_preprocessor(str(tmp_path))


def test_a_folder_without_a_processor_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot load the image processor of .*preprocessor_"):
        image_preprocessor(str(tmp_path))


def test_settings_tell_every_fault_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        ImageSettings((1, 2, 3), (5,), resample="", channels="")
    assert len(raised.value.faults) == 4
