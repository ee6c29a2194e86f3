"""Models are found, loaded, or refused by name with what to do."""

import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import VOCABULARY, bert_config, tiny_classifier

from edgewright.errors import ConfigError
from edgewright.finetune.models import load_classifier
from edgewright.pretrained import load_config, locate_model, max_positions, weights_sha256

LABELS = ("a", "b", "c")


@pytest.fixture
def folder(model_folder, tmp_path):
    """A copy that may be spoilt."""
    return shutil.copytree(model_folder, tmp_path / "model")


def load(folder, labels=LABELS, seed=0):
    return load_classifier(folder, load_config(folder, "m"), labels, seed=seed, name="m")


def test_a_folder_is_used_where_it_lies(model_folder):
    assert locate_model(str(model_folder), None) == model_folder


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/models/x", "a/b/c"])
def test_a_missing_folder_is_named(name):
    with pytest.raises(ConfigError, match=f"--model {name}: no such folder"):
        locate_model(name, None)


def test_a_file_is_no_model(data_file):
    with pytest.raises(ConfigError, match="no such folder"):
        locate_model(str(data_file), None)


def test_an_id_that_cannot_be_fetched_points_to_local_folders(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"nobody/nothing.*cannot be fetched.*path of a folder"):
        locate_model("nobody/nothing", None)


def test_an_id_is_fetched_at_its_revision_without_pickles(model_folder, monkeypatch):
    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return str(model_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert locate_model("someone/bert", "v2") == model_folder
    assert (asked["name"], asked["revision"]) == ("someone/bert", "v2")
    assert asked["allow_patterns"] == ["*.json", "*.txt", "*.model", "*.safetensors"]
    assert asked["ignore_patterns"] == ["*/*"]


def test_a_revision_of_a_folder_is_refused(model_folder):
    with pytest.raises(ConfigError, match="--revision main"):
        locate_model(str(model_folder), "main")


def test_weights_in_a_pickle_are_refused_by_name(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin.*never loaded.*safe_serialization"):
        locate_model(str(folder), None)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(ConfigError, match=f"holds no {missing}"):
        locate_model(str(folder), None)


def test_an_artifact_is_refused_with_the_option_to_use(folder):
    (folder / "seal.json").write_text("{}")
    with pytest.raises(ConfigError, match="--from"):
        locate_model(str(folder), None)


def test_an_encoder_decoder_is_refused_by_name(tmp_path):
    transformers.BartConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="bart has an encoder and a decoder"):
        load_config(tmp_path, "m")


@pytest.mark.parametrize("content", ["{", "{}", '{"model_type": "unheard-of"}'])
def test_an_unusable_config_is_an_error(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"cannot read its config\.json"):
        load_config(folder, "m")


def test_a_model_with_code_of_its_own_is_refused(folder):
    (folder / "config.json").write_text(
        '{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}'
    )
    (folder / "mine.py").write_text("raise SystemExit('code was run')")
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(folder, "m")


def test_torn_weights_are_an_error(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ConfigError, match="cannot load"):
        load(folder)


def test_an_encoder_with_missing_weights_is_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"lack 1 tensors .*layer\.1\.output\.dense\.weight"):
        load(folder)


def test_a_head_is_drawn_by_the_seed_and_the_encoder_is_what_was_stored(model_folder):
    before = torch.get_rng_state()
    one, again, other = load(model_folder), load(model_folder), load(model_folder, seed=1)
    assert torch.equal(one.classifier.weight, again.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    stored = load_file(model_folder / "model.safetensors")
    for name, tensor in one.bert.state_dict().items():
        assert torch.equal(tensor, stored[name])
    assert torch.equal(torch.get_rng_state(), before)
    assert one.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert one.config.label2id == {"a": 0, "b": 1, "c": 2}


def test_a_head_of_another_size_is_replaced(tmp_path):
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(bert_config(2, num_labels=7))
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.classifier.weight.shape == (3, 32)
    assert torch.equal(loaded.bert.pooler.dense.weight, model.bert.pooler.dense.weight)


def test_weights_stored_in_half_precision_come_as_fp32(tmp_path):
    transformers.BertModel(bert_config(1)).to(torch.bfloat16).save_pretrained(tmp_path)
    assert {p.dtype for p in load(tmp_path).parameters()} == {torch.float32}


def test_the_weights_identify_the_model(model_folder, folder, tmp_path):
    assert weights_sha256(folder) == weights_sha256(model_folder)
    sharded = tmp_path / "sharded"
    transformers.BertModel.from_pretrained(folder).save_pretrained(sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    locate_model(str(sharded), None)
    digest = weights_sha256(sharded)
    shard = sorted(sharded.glob("model-*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert weights_sha256(sharded) != digest


@pytest.mark.parametrize(
    ("kind", "positions"),
    [("bert", 40), ("distilbert", 40), ("electra", 40), ("roberta", 38), ("mpnet", 38)],
)
def test_positions_after_the_padding_are_left_out(kind, positions):
    model = tiny_classifier(kind, layers=1)
    assert max_positions(model) == positions
    ids = torch.full((1, positions), len(VOCABULARY) - 1)
    model(input_ids=ids, attention_mask=torch.ones_like(ids))
    with pytest.raises((IndexError, RuntimeError)):
        model(
            input_ids=torch.cat([ids, ids], 1), attention_mask=torch.ones(1, 2 * positions).long()
        )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"problem_type": "multi_label_classification"}, "multi-label classification"),
        ({"problem_type": "regression"}, "regression"),
        ({"num_labels": 1}, "regression"),
    ],
)
def test_a_head_of_another_problem_is_refused_with_the_way_to_a_new_one(folder, changes, told):
    bert_config(**changes).save_pretrained(folder)
    with pytest.raises(
        ConfigError, match=f"config.json says {told}, .*new head, take problem_type"
    ):
        load_config(folder, "m")
    bert_config(problem_type="single_label_classification").save_pretrained(folder)
    assert load(folder).config.problem_type == "single_label_classification"


def test_a_head_that_grew_can_be_loaded_again_with_the_rows_it_had(tmp_path):
    three = tiny_classifier("bert")
    three.config.id2label = dict(enumerate(LABELS))
    three.save_pretrained(tmp_path)
    config = load_config(tmp_path, "m")
    for _ in range(2):
        four = load_classifier(tmp_path, config, (*LABELS, "d"), seed=0, name="m")
        assert torch.equal(four.classifier.weight[:3], three.classifier.weight)
