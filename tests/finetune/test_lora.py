"""Adapters train beside weights that stay, and are no more to be seen in what is written."""

import hashlib
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from made_up_rows import MadeUpRows
from safetensors.torch import load_file
from tiny_models import tiny_classifier
from torch import nn

from edgewright.checkpoint import Checkpoint
from edgewright.errors import BackendUnavailableError, ConfigError
from edgewright.finetune import depth, pipeline
from edgewright.finetune.config import LR_LORA, FinetuneConfig
from edgewright.finetune.depth import choose_depth
from edgewright.finetune.first_token import compute_every_token, compute_first_token_only
from edgewright.finetune.freeze import find_blocks, freeze, thaw
from edgewright.finetune.lora import Adapters
from edgewright.finetune.recipe import Recipe
from edgewright.finetune.task import Task
from edgewright.finetune.train import fit
from edgewright.kinds import IMAGE, TEXT
from edgewright.optimize.export import export_onnx
from edgewright.optimize.origin import Origin
from edgewright.output import Output

# transformers' DeBERTa and ModernBERT use torch.jit when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script")

KINDS = ["bert", "roberta", "distilbert", "deberta-v2"]
OTHERS = ["electra", "mpnet", "modernbert", "gpt2"]
CPU = torch.device("cpu")
ROWS = MadeUpRows()
INPUTS = ROWS.inputs(range(6))


def adapted(kind: str, frozen: int = 2, rank: int = 4, seed: int = 0):
    """A tiny model, held and with adapters; and these, and the frozen part."""
    model = tiny_classifier(kind)
    model.config.pad_token_id = 0
    part = freeze(model, frozen, INPUTS)
    return model, Adapters.attach(model, rank, frozen=frozen, seed=seed), part


def learn(model, epochs: int = 8):
    recipe = Recipe(epochs=epochs, lr=1e-2, batch_size=8)
    return fit(model, ROWS, recipe, CPU, validate=lambda: None)


def shake(model) -> None:
    """Give adapters, which answer 0 at first, something to say."""
    torch.manual_seed(1)
    for name, each in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(each, std=0.1)


def logits(model) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(**INPUTS).logits


def digests(model) -> dict[str, str]:
    """Of each tensor, under the name that it has without adapters."""
    return {
        name.replace(".base_layer", ""): hashlib.sha256(each.numpy().tobytes()).hexdigest()
        for name, each in model.state_dict().items()
        if "lora_" not in name
    }


def is_head(name: str) -> bool:
    return any(word in name for word in ("classifier", "pooler", "score", "head."))


@pytest.mark.parametrize("kind", KINDS)
def test_training_moves_adapters_and_head_and_no_other_weight(kind):
    model, adapters, _ = adapted(kind)
    before = digests(model)
    outcome = learn(model)
    assert outcome.epochs[-1].train_loss < 0.7 * outcome.epochs[0].train_loss
    moved = {name for name, digest in digests(model).items() if digest != before[name]}
    assert moved == {name for name in before if is_head(name)}
    training = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert all(each.grad is not None for each in training.values())
    assert {name for name in training if "lora_" not in name} == moved
    assert sum(each.numel() for each in training.values()) == adapters.trained
    assert sum("lora_A" in name for name in training) == adapters.layers
    held = [each for each in model.parameters() if not each.requires_grad]
    assert all(each.grad is None for each in held)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_answer_as_the_adapters_did(kind):
    model, adapters, part = adapted(kind)
    names = list(tiny_classifier(kind).state_dict())
    untrained, before = logits(model), digests(model)
    learn(model, epochs=2)
    unmerged = logits(model)
    assert (unmerged - untrained).abs().max() > 1e-2
    adapters.merge()
    thaw(part)
    torch.testing.assert_close(logits(model), unmerged, rtol=0, atol=1e-5)
    assert list(model.state_dict()) == names
    assert all(each.requires_grad for each in model.parameters())
    assert not hasattr(model, "peft_config")
    moved = {name for name, digest in digests(model).items() if digest != before[name]}
    matrices = {name for name in moved if not is_head(name)}
    assert len(matrices) == adapters.layers
    assert all(name.endswith(".weight") for name in matrices)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_architectures_take_adapters_too(kind):
    model, adapters, _ = adapted(kind, frozen=3)
    shake(model)
    unmerged = logits(model)
    adapters.merge()
    torch.testing.assert_close(logits(model), unmerged, rtol=0, atol=1e-5)
    assert list(model.state_dict()) == list(tiny_classifier(kind).state_dict())


def test_an_image_classifier_takes_adapters_too():
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        image_size=16, patch_size=8, num_labels=3,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    pixels = torch.rand(2, 3, 16, 16)
    before = model(pixel_values=pixels).logits.detach()
    adapters = Adapters.attach(model, 2, frozen=1, seed=0)
    shake(model)
    unmerged = model(pixel_values=pixels).logits
    assert (unmerged - before).abs().max() > 1e-4
    adapters.merge()
    torch.testing.assert_close(model(pixel_values=pixels).logits, unmerged, rtol=0, atol=1e-5)


def test_new_adapters_change_no_answer_and_lie_behind_the_frozen_blocks():
    plain, (model, adapters, _) = tiny_classifier("bert"), adapted("bert", frozen=3)
    torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=0)
    held = [any("lora_" in name for name in block.state_dict()) for block in find_blocks(model)]
    assert held == [False, False, False, True]
    assert adapters.record() == {
        "rank": 4, "alpha": 8, "blocks": 1, "layers": 6,
        "trained_parameters": 6 * 4 * 64 + 2 * 4 * 32 + 32 * 33 + 3 * 33,
    }  # fmt: skip


def test_adapters_that_are_removed_leave_the_weights_as_they_were():
    model, adapters, part = adapted("bert", frozen=0)
    before = digests(model)
    shake(model)
    adapters.remove()
    assert digests(model) == before == digests(tiny_classifier("bert"))
    assert all(each.requires_grad for each in model.parameters())
    assert part.parameters == ()


def test_adapters_are_drawn_by_the_seed_alone():
    one, again, other = (adapted("bert", seed=seed)[0].state_dict() for seed in (1, 1, 2))
    drawn = [name for name in one if "lora_A" in name]
    assert all(torch.equal(one[name], again[name]) for name in drawn)
    assert not any(torch.equal(one[name], other[name]) for name in drawn)


def test_the_global_generator_is_left_as_it_was():
    model = tiny_classifier("bert")
    before = torch.get_rng_state()
    Adapters.attach(model, 4, frozen=0, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_the_last_block_is_shortened_with_adapters_in_it(kind):
    model, _, _ = adapted(kind)
    shake(model)
    every = logits(model)
    assert compute_first_token_only(model, INPUTS)
    torch.testing.assert_close(logits(model), every, rtol=0, atol=1e-6)
    learn(model, epochs=1)
    short = logits(model)
    compute_every_token(model)
    torch.testing.assert_close(logits(model), short, rtol=0, atol=1e-6)


def test_frozen_blocks_leave_no_place_for_adapters():
    model = tiny_classifier("bert")
    with pytest.raises(ConfigError, match="all 4 blocks are frozen.*freeze at most 3"):
        Adapters.attach(model, 4, frozen=4, seed=0)


def test_shared_blocks_are_refused_in_words_of_the_option():
    with pytest.raises(ConfigError, match="^--lora: Albert.*no list of separate blocks"):
        Adapters.attach(tiny_classifier("albert"), 4, frozen=0, seed=0)


@pytest.mark.parametrize(
    "block", [nn.Conv2d(3, 3, 1), nn.TransformerEncoderLayer(8, 2), nn.MultiheadAttention(8, 2)]
)
def test_blocks_without_a_linear_layer_that_is_called_are_refused(block):
    model = nn.Module()
    model.blocks = nn.ModuleList([block])
    model.config = SimpleNamespace(num_hidden_layers=1)
    with pytest.raises(ConfigError, match="no linear layer for an adapter in the 1 blocks"):
        Adapters.attach(model, 4, frozen=0, seed=0)


def test_a_missing_library_is_named_with_the_way_to_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(BackendUnavailableError, match=r"--lora needs peft; .*edgewright\[train\]"):
        Adapters.attach(tiny_classifier("bert"), 4, frozen=0, seed=0)


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one_is_refused(rank):
    with pytest.raises(ConfigError, match=f"--lora is {rank}; it must be a rank of 1 or more"):
        FinetuneConfig(data="x.csv", lora=rank)


def test_adapters_have_a_rate_of_their_own():
    assert FinetuneConfig(data="x.csv", lora=8).rate(TEXT, 0) == LR_LORA
    assert FinetuneConfig(data="x.csv", lora=8).rate(IMAGE, 2) == LR_LORA
    assert FinetuneConfig(data="x.csv", lora=8, lr=3e-4).rate(TEXT, 2) == 3e-4


def test_a_run_tells_what_it_trained_and_writes_an_ordinary_model(finetune, model_folder, tmp_path):
    run = finetune("--freeze", 2, "--lora", 4)
    assert run.code == 0, run.err
    trained = 2 * (4 * 4 * 64 + 2 * 4 * 96) + 32 * 33 + 3 * 33
    told = f"rank 4 in 2 blocks, {trained:,} parameters trained"
    assert f"LoRA            {told}, merged" in run.out
    assert f"LoRA {told}" in run.err
    made = Checkpoint.open(tmp_path / "out")
    assert told in (made.path / "report.html").read_text()
    assert made.artifact.manifest["config"]["lora"] == 4
    assert "peft" in made.artifact.manifest["packages"]
    recorded = json.loads((made.path / "metrics.json").read_bytes())["lora"]
    assert (recorded["rank"], recorded["trained_parameters"]) == (4, trained)
    before = load_file(model_folder / "model.safetensors")
    after = load_file(made.model_folder / "model.safetensors")
    encoder = {name.removeprefix("bert."): each for name, each in after.items()}
    assert encoder.keys() - {"classifier.weight", "classifier.bias"} == before.keys()
    moved = {name for name in before if not torch.equal(before[name], encoder[name])}
    assert {name for name in moved if "pooler" not in name} == {
        f"encoder.layer.{block}.{layer}.weight"
        for block in (2, 3)
        for layer in (
            "attention.self.query", "attention.self.key", "attention.self.value",
            "attention.output.dense", "intermediate.dense", "output.dense",
        )
    }  # fmt: skip


def test_a_run_without_adapters_says_nothing_of_them(finetune, tmp_path):
    run = finetune("--json")
    assert run.json["lora"] is None
    made = Checkpoint.open(tmp_path / "out")
    assert "lora" not in made.artifact.manifest["config"]
    assert "peft" not in made.artifact.manifest["packages"]
    assert "LoRA" not in (made.path / "report.html").read_text()


def test_the_same_run_gives_the_same_bytes(finetune):
    options = ("--lora", 2, "--freeze", 0, "--json")
    one, again = finetune(*options, out="one"), finetune(*options, out="again")
    assert one.json["manifest_sha256"] == again.json["manifest_sha256"]


RELOAD = """
import sys
import numpy as np, torch, transformers
model = transformers.AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
inputs = {name: torch.from_numpy(array) for name, array in np.load(sys.argv[2]).items()}
with torch.no_grad():
    np.save(sys.argv[3], model(**inputs).logits.numpy())
assert not [name for name in sys.modules if name.partition(".")[0] in ("peft", "edgewright")]
"""


def test_a_fresh_process_with_transformers_alone_gives_the_same_logits(
    finetune, tmp_path, monkeypatch
):
    """Head included: a head that was lost would be drawn anew there."""
    kept = []

    def write(target, contents, **options):
        kept.append(logits(contents.model).numpy())
        return write_checkpoint(target, contents, **options)

    write_checkpoint = pipeline.write_checkpoint
    monkeypatch.setattr(pipeline, "write_checkpoint", write)
    assert finetune("--lora", 4, "--freeze", 1, "--lr", "5e-3", "--epochs", 3).code == 0
    np.savez(tmp_path / "inputs.npz", **{name: each.numpy() for name, each in INPUTS.items()})
    files = [tmp_path / "out" / "model", tmp_path / "inputs.npz", tmp_path / "logits.npy"]
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, *map(str, files)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    again = np.load(files[-1])
    np.testing.assert_allclose(again, kept[0], rtol=1e-5, atol=1e-6)
    assert again.std(axis=0).min() > 1e-3  # the rows do get different answers


def test_the_cache_of_the_frozen_blocks_serves_adapters_alike(finetune, tmp_path):
    options = ("--lora", 4, "--freeze", 2, "--json", "--cache-dir", tmp_path / "cache")
    assert finetune(*options, "--cache", "on", out="cached").code == 0
    assert finetune(*options, "--cache", "off", out="live").code == 0
    used = json.loads((tmp_path / "cached" / "measurements.json").read_bytes())["activation_cache"]
    assert used["used"]
    cached, live = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("cached", "live")
    )
    for name, tensor in live.items():
        torch.testing.assert_close(cached[name], tensor, rtol=0, atol=2e-3, msg=name)


def test_adapters_are_merged_before_weights_are_mixed(finetune, model_folder, tmp_path):
    run = finetune("--lora", 4, "--freeze", 0, "--interpolate", 0, "--lr", "5e-3", "--json")
    assert run.code == 0, run.err
    after = load_file(tmp_path / "out" / "model" / "model.safetensors")
    for name, tensor in load_file(model_folder / "model.safetensors").items():
        torch.testing.assert_close(after[f"bert.{name}"], tensor, rtol=0, atol=0, msg=name)


def test_training_goes_on_from_a_merged_checkpoint_with_new_adapters(finetune, tmp_path):
    assert finetune("--lora", 4, "--freeze", 2).code == 0
    start = ("--from", tmp_path / "out", "--json")
    run = finetune(*start, "--lora", 2, data=None, model=None, out="next")
    assert run.code == 0, run.err
    assert (run.json["lora"]["rank"], run.json["frozen"]) == (2, 2)
    plain = finetune(*start, data=None, model=None, out="plain")
    assert plain.json["lora"] is None


def test_depths_compete_with_adapters_and_one_block_is_left_to_them(
    model_folder, data_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(depth, "RUNGS", ((16, 2), (32, 1)))
    config = FinetuneConfig(
        data=str(data_file), model=str(model_folder), freeze="auto", threads=1, max_length=32,
        cache_dir=str(tmp_path), lora=4, head_first=False,
    )  # fmt: skip
    task = Task.prepare(config, Output(quiet=True))
    before, attached = digests(task.model), []

    def attach(model, rank, *, frozen, seed):
        attached.append(frozen)
        return real(model, rank, frozen=frozen, seed=seed)

    real = Adapters.attach
    monkeypatch.setattr(Adapters, "attach", attach)
    choice = choose_depth(task, Output(quiet=True))
    assert [each.blocks for each in choice.candidates] == [0, 1, 2, 3]
    assert set(attached) == {0, 1, 2, 3}
    assert digests(task.model) == before
    assert all(each.requires_grad for each in task.model.parameters())


def test_a_merged_checkpoint_is_exported_like_any_other(finetune, tmp_path):
    assert finetune("--lora", 4, "--freeze", 2).code == 0
    made = Checkpoint.open(tmp_path / "out")
    rows = made.preprocessor().encode(made.examples().split("test").texts[:4])
    export = export_onnx(Origin.of_checkpoint(made), tmp_path, rows)
    assert export.max_difference < 1e-4
    assert b"lora" not in export.path.read_bytes()
