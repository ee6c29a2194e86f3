import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edgewright.errors import ConfigError
from edgewright.finetune.cli import finetune
from edgewright.finetune.config import DEFAULT_MODEL, FinetuneConfig, parse_freeze


def test_all_faults_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        FinetuneConfig(epochs=0, lr=-1.0, metric="f1", splits="50/50", freeze=-1, warmup=2.0)
    message = "\n".join(caught.value.faults)
    for name in (
        "DATA",
        "--epochs is 0",
        "--lr is -1.0",
        "--metric is f1",
        "50/50",
        "--freeze is -1",
        "--warmup",
    ):
        assert name in message
    assert len(caught.value.faults) == 7


@pytest.mark.parametrize(
    "fault",
    [
        {"batch_size": 0}, {"accumulate": 0}, {"max_length": 0}, {"weight_decay": -0.1},
        {"clip_norm": -1.0}, {"patience": 0}, {"seed": -1}, {"threads": 0}, {"lr": float("nan")},
        {"lr": float("inf")}, {"freeze": 1.5}, {"freeze": float("nan")}, {"precision": "int8"},
        {"device": "tpu"}, {"class_weights": "some"}, {"epochs": -3}, {"lr": 0.0},
    ],
)  # fmt: skip
def test_each_number_and_choice_is_checked(fault):
    (name,) = fault
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} is"):
        FinetuneConfig(data="x.csv", **fault)


@pytest.mark.parametrize("option", ["model", "revision", "splits"])
def test_what_a_checkpoint_has_recorded_cannot_be_given_again(option):
    value = "56/8/4/4/20/8" if option == "splits" else "x"
    with pytest.raises(ConfigError, match=f"--{option} does not go with --from"):
        FinetuneConfig(from_checkpoint="c", **{option: value})


def test_a_checkpoint_may_come_without_data():
    config = FinetuneConfig(from_checkpoint="c", add=("more.csv",))
    assert config.with_defaults() == config
    assert FinetuneConfig(data="x.csv").with_defaults().model == DEFAULT_MODEL


configs = st.builds(
    FinetuneConfig,
    data=st.just("x.csv"),
    add=st.lists(st.sampled_from(["a", "b"]), max_size=2).map(tuple),
    freeze=st.integers(0, 20) | st.floats(0, 1),
    lr=st.none() | st.floats(1e-9, 1),
    epochs=st.integers(1, 9),
    text_column=st.none() | st.text(min_size=1, max_size=5),
    class_weights=st.sampled_from(["none", "balanced"]),
)


@given(configs)
def test_a_config_survives_its_yaml_file(config):
    again = FinetuneConfig.from_mapping(yaml.safe_load(yaml.safe_dump(config.to_mapping())))
    assert again == config
    assert type(again.freeze) is type(config.freeze)


def test_options_left_open_are_not_written():
    written = FinetuneConfig(data="x.csv").to_mapping()
    assert not {"add", "from", "model", "lr", "text-column"} & written.keys()


def test_every_option_of_the_config_is_one_of_the_command():
    options = {max(p.opts, key=len).lstrip("-") for p in finetune.params}
    written = FinetuneConfig(data="d", add=("a",), from_checkpoint="c").to_mapping().keys()
    assert written <= options


def test_an_unknown_option_in_a_mapping_is_named():
    with pytest.raises(ConfigError, match="no option 'epoch' in finetune"):
        FinetuneConfig.from_mapping({"data": "x", "epoch": 3})


@pytest.mark.parametrize(
    ("text", "value"), [("4", 4), ("0", 0), ("0.5", 0.5), ("1", 1), ("1.0", 1.0), (".25", 0.25)]
)
def test_a_dot_makes_a_share_of_the_blocks(text, value):
    parsed = parse_freeze(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["", "half", "50%", "0,5", "1.2.3"])
def test_what_is_neither_is_refused(text):
    with pytest.raises(ConfigError, match="a number of blocks such as 4"):
        parse_freeze(text)
