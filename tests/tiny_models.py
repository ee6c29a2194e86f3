"""Tiny models of real architectures, a tokenizer of real form, and texts that can be learnt."""

import csv
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

TOPICS = {
    "sports": "match goal team player coach league cup score win referee",
    "tech": "software chip phone network computer code server data laptop robot",
    "food": "bread soup cheese recipe oven butter apple dinner salt pepper",
}
COMMON = "the a of and to in with for on was is new old big small very after before"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = SPECIAL + sorted({*COMMON.split(), *" ".join(TOPICS.values()).split()})

_SIZES = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}


def make_rows(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """(text, label): words of the label's topic among common ones, 5 to 25 words."""
    rng = np.random.default_rng(seed)
    names = list(TOPICS)
    rows = []
    for index in range(count):
        label = names[index % len(names)]
        words = [
            *rng.choice(TOPICS[label].split(), 3),
            *rng.choice(COMMON.split(), rng.integers(2, 22)),
        ]
        rows.append((" ".join(rng.permutation(words)), label))
    return rows


def write_csv(path: Path, rows, header=("text", "label")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def save_tokenizer(folder: Path, **options) -> None:
    tokenizer = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = transformers.BertTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=40, **options
    )
    fast.save_pretrained(folder)


def bert_config(layers: int = 4, **changes) -> transformers.BertConfig:
    return transformers.BertConfig(num_hidden_layers=layers, **{**_SIZES, **changes})


def tiny_classifier(kind: str, layers: int = 4, labels: int = 3) -> torch.nn.Module:
    """A random text classifier of an architecture, in eval mode."""
    sizes = {"num_hidden_layers": layers, "num_labels": labels, **_SIZES}
    distil = {
        "vocab_size": len(VOCABULARY), "dim": 32, "n_heads": 2, "hidden_dim": 64,
        "n_layers": layers, "max_position_embeddings": 40, "num_labels": labels,
    }  # fmt: skip
    relative = {
        "relative_attention": True, "position_biased_input": False, "pos_att_type": "p2c|c2p",
        "norm_rel_ebd": "layer_norm",
    }  # fmt: skip
    configs = {
        "bert": lambda: transformers.BertConfig(**sizes),
        "roberta": lambda: transformers.RobertaConfig(**sizes),
        "electra": lambda: transformers.ElectraConfig(embedding_size=16, **sizes),
        "distilbert": lambda: transformers.DistilBertConfig(**distil),
        "mpnet": lambda: transformers.MPNetConfig(**sizes),
        "deberta-v2": lambda: transformers.DebertaV2Config(**relative, **sizes),
        "modernbert": lambda: transformers.ModernBertConfig(
            pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3, **sizes
        ),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=len(VOCABULARY),
            n_embd=32,
            n_head=2,
            n_layer=layers,
            n_positions=40,
            num_labels=labels,
        ),
        "albert": lambda: transformers.AlbertConfig(embedding_size=16, **sizes),
    }
    torch.manual_seed(0)
    config = configs[kind]()
    return transformers.AutoModelForSequenceClassification.from_config(config).eval()
