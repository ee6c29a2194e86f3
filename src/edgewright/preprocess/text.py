"""Texts to token arrays.

It needs ``tokenizers`` and ``numpy`` alone. What comes out equals, to the bit, what
``tokenizer(texts, padding=True, truncation=True, max_length=M, return_tensors="np")`` of
transformers gives for the tokenizer it was made from.

Two files hold it inside an artifact: ``tokenizer.json`` (vocabulary and rules, in the format of the
``tokenizers`` library) and ``preprocess.json`` (lengths, sides and padding: ``TextSettings``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgewright.errors import BackendUnavailableError, ConfigError, InputError, IntegrityError
from edgewright.kinds import TEXT, Kind
from edgewright.preprocess.encoding import Encoding
from edgewright.preprocess.settings_file import (
    FORMAT_VERSION,
    SETTINGS_FILE,
    read_settings,
    read_text,
    write_settings,
)

__all__ = [
    "FORMAT_VERSION", "SETTINGS_FILE", "TEXT_INPUTS", "TOKENIZER_FILE", "TextPreprocessor",
    "TextSettings", "TokenRow", "padded_tokens",
]  # fmt: skip

TOKENIZER_FILE = "tokenizer.json"
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")

# The library's own record of a text of 1,000 words takes 130 kB (measured with MiniLM's), for it
# holds what is cut off: of 100,000 together 13 GB, where a row of 128 tokens takes 2 kB.
_TEXTS_AT_ONCE = 1024
_LONGEST = 2**31 - 1  # tokens; transformers writes 10**30 where a tokenizer declares no limit
_PROBES = [
    "",
    "The quick brown fox, aged 3, jumped over 12 lazy dogs.",
    "  Ünïcödé\t\ufb01ne\r\nİstanbul 東京 \U0001f469\u200d\U0001f467 ",
    "[CLS] [SEP] [MASK] <s> </s> <pad> <unk>",
    "word " * 2000,
]


@dataclass(frozen=True)
class TextSettings:
    """What ``tokenizer.json`` leaves open, lengths in tokens; ConfigError tells every fault."""

    input_names: tuple[str, ...]  # in the model's order
    max_length: int
    model_max_length: int | None  # what tokenizer and model allow, None where neither says
    pad_token_id: int
    pad_type_id: int = 0
    padding_side: str = "right"
    truncation_side: str = "right"
    truncation_strategy: str = "longest_first"
    split_special_tokens: bool = False

    def __post_init__(self) -> None:
        names, limit = self.input_names, self.model_max_length
        known = {"input_ids"} <= set(names) <= set(TEXT_INPUTS)
        lengths = f"1 to {_LONGEST} tokens"
        rules: dict[str, tuple[bool, str]] = {
            "input_names": (
                known and len(set(names)) == len(names),
                f"input_ids and others of {', '.join(TEXT_INPUTS)}, each once",
            ),
            "max_length": (_is_whole(self.max_length, least=1), lengths),
            "model_max_length": (limit is None or _is_whole(limit, least=1), lengths),
            "pad_token_id": (_is_whole(self.pad_token_id, least=0), "a whole number from 0"),
            "pad_type_id": (_is_whole(self.pad_type_id, least=0), "a whole number from 0"),
            "padding_side": (self.padding_side in ("left", "right"), "left or right"),
            "truncation_side": (self.truncation_side in ("left", "right"), "left or right"),
            "truncation_strategy": (self.truncation_strategy == "longest_first", "longest_first"),
            "split_special_tokens": (type(self.split_special_tokens) is bool, "true or false"),
        }
        faults = [
            f"{name} is {getattr(self, name)!r}; it must be {expected}"
            for name, (holds, expected) in rules.items()
            if not holds
        ]
        if not faults and limit is not None and self.max_length > limit:
            faults = [f"max_length is {self.max_length}; the model takes at most {limit} tokens"]
        if faults:
            raise ConfigError(faults)


@dataclass(frozen=True, eq=False, slots=True)
class TokenRow:
    """One text as tokens, truncated but not padded; ``len(row)`` is its number of tokens.

    ``input_ids`` and ``token_type_ids`` are int64 of shape (tokens,).
    """

    input_ids: NDArray[np.int64]
    token_type_ids: NDArray[np.int64]
    truncated: bool

    def __len__(self) -> int:
        return len(self.input_ids)


def padded_tokens(lengths: Sequence[int]) -> int:
    """Tokens a model computes for rows of these lengths in one batch: rows times the longest."""
    return len(lengths) * max(lengths, default=0)


class TextPreprocessor:
    """Texts to token arrays. Safe to share between threads: nothing changes after construction.

    Empty and blank texts are accepted, as transformers accepts them; whether one is a sensible
    request is the caller's to decide. With a tokenizer that adds no special tokens such a text
    has no tokens at all. NUL and every other code point but a lone surrogate are accepted too.

    The work runs outside the GIL on the threads of ``tokenizers``; set ``RAYON_NUM_THREADS`` or
    ``TOKENIZERS_PARALLELISM=false`` in the environment of the process to hold it to fewer.
    """

    kind: Kind = TEXT
    input_dtype = "int64"
    input_shape = (-1, -1)

    def __init__(self, settings: TextSettings, tokenizer_json: str) -> None:
        """Raise ConfigError when the tokenizer cannot be used, or not with these settings."""
        self.settings = settings
        self.max_length = settings.max_length
        self.input_names = settings.input_names
        # Kept, for writing it anew can change the last digit of a score (see ``save``).
        self._tokenizer_json = tokenizer_json
        self._tokenizer = _parse_tokenizer(tokenizer_json)
        _check_fit(settings, self._tokenizer)
        self._tokenizer.no_padding()
        strategy, side = settings.truncation_strategy, settings.truncation_side
        self._tokenizer.enable_truncation(self.max_length, strategy=strategy, direction=side)
        # Not part of tokenizer.json, so it must be set at every load.
        self._tokenizer.encode_special_tokens = settings.split_special_tokens

    @cached_property
    def largest_token_id(self) -> int:
        """The highest id of its vocabulary, added tokens included."""
        return int(max(self._tokenizer.get_vocab(with_added_tokens=True).values()))

    @cached_property
    def unknown_token_id(self) -> int | None:
        """What stands for whatever is not in the vocabulary; None where there is no such thing."""
        model = json.loads(self._tokenizer_json)["model"]
        if "unk_id" in model:  # Unigram's; others name the token
            return cast(int | None, model["unk_id"])
        name = model.get("unk_token")
        return None if name is None else self._tokenizer.token_to_id(name)

    @cached_property
    def special_tokens(self) -> int:
        """How many tokens every row has beside those of its text."""
        return int(self._tokenizer.num_special_tokens_to_add(False))

    def with_settings(self, settings: TextSettings) -> TextPreprocessor:
        """The same tokenizer used otherwise; ConfigError where it cannot be."""
        return TextPreprocessor(settings, self._tokenizer_json)

    def __call__(self, texts: Sequence[str], length: int | None = None) -> Encoding:
        """Tokenise and pad, to the longest row or to ``length``; raises as encode and pad do."""
        return self.pad(self.encode(texts), length)

    def encode(self, texts: Sequence[str]) -> list[TokenRow]:
        """Tokenise and truncate, one row per text; InputError names the text at fault."""
        texts = _checked(texts)
        rows: list[TokenRow] = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            # Not ``encode``, even for one text: it holds the GIL, a second for a few megabytes.
            encodings = self._tokenizer.encode_batch_fast(texts[start : start + _TEXTS_AT_ONCE])
            rows += [self._row(encoding) for encoding in encodings]
        return rows

    def pad(self, rows: Sequence[TokenRow], length: int | None = None) -> Encoding:
        """Put rows into one batch, as wide as the longest of them or ``length``.

        Raises InputError when there is no row, ConfigError when ``length`` is below the longest.
        """
        if not rows:
            raise InputError("the batch is empty; give at least one text", field="texts")
        longest = max(len(row) for row in rows)
        width = longest if length is None else length
        if width < longest:
            raise ConfigError(
                f"cannot pad to {width} tokens: the longest row has {longest}; pad to that or more"
            )
        shape = (len(rows), width)
        ids = np.full(shape, self.settings.pad_token_id, np.int64)
        types = np.full(shape, self.settings.pad_type_id, np.int64)
        mask = np.zeros(shape, np.int64)
        for index, row in enumerate(rows):
            start = width - len(row) if self.settings.padding_side == "left" else 0
            where = slice(start, start + len(row))
            ids[index, where] = row.input_ids
            types[index, where] = row.token_type_ids
            mask[index, where] = 1
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return Encoding(
            {name: arrays[name] for name in self.input_names},
            np.array([row.truncated for row in rows], np.bool_),
        )

    def cut(self, row: TokenRow, length: int) -> TokenRow:
        """The first ``length`` tokens of a row."""
        return TokenRow(row.input_ids[:length], row.token_type_ids[:length], row.truncated)

    def save(self, folder: Path) -> None:
        """Write preprocess.json and tokenizer.json into ``folder``: the same bytes every time.

        The tokenizer's text is written as it was read. ``tokenizers`` reads a decimal score with
        an error of up to one unit in the last place, so that reading and writing is no identity.
        """
        write_settings(folder / SETTINGS_FILE, TEXT, asdict(self.settings))
        (folder / TOKENIZER_FILE).write_bytes(self._tokenizer_json.encode())

    @classmethod
    def load(cls, folder: Path) -> TextPreprocessor:
        """Read what ``save`` wrote.

        Raises ArtifactNotFoundError when a file is missing or holds another kind of
        preprocessing, IntegrityError when one is malformed; both name the file.
        """
        settings = _read_settings(folder / SETTINGS_FILE)
        path = folder / TOKENIZER_FILE
        try:
            return cls(settings, read_text(path))
        except ConfigError as error:
            raise IntegrityError(f"{path} does not fit {SETTINGS_FILE}: {error}") from error

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        max_length: int | None,
        max_positions: int | None = None,
        revision: str | None = None,
    ) -> TextPreprocessor:
        """Take the preprocessing of a Hugging Face model, by hub id or local folder.

        ``max_length`` None or 0 means as long as allowed; a larger one is lowered to what is
        allowed: the least of the tokenizer's ``model_max_length`` and ``max_positions``, the rows
        of the model's position table that text can use (RoBERTa's are two fewer than its
        ``max_position_embeddings``: positions start after the padding id).

        Needs transformers (BackendUnavailableError). ConfigError when the tokenizer cannot be
        loaded, has no fast form or no padding token, runs code of its own, or draws at random.
        """
        tokenizer = _load_fast_tokenizer(name_or_path, revision)
        try:
            settings = _settings_of(tokenizer, max_length, max_positions)
            preprocessor = cls(settings, _tokenizer_json(tokenizer))
        except ConfigError as error:
            faults = [f"the tokenizer of {name_or_path}: {fault}" for fault in error.faults]
            raise ConfigError(faults) from error
        _refuse_difference(preprocessor, tokenizer, name_or_path)
        return preprocessor

    def _row(self, encoding: Any) -> TokenRow:
        ids = np.array(encoding.ids, np.int64)
        # ``overflowing`` copies every piece that was cut off; only a full row can have one.
        truncated = len(ids) >= self.max_length and bool(encoding.overflowing)
        return TokenRow(ids, np.array(encoding.type_ids, np.int64), truncated)


def _is_whole(value: object, *, least: int) -> bool:
    return type(value) is int and least <= value <= _LONGEST


def _checked(texts: Sequence[Any]) -> list[str]:
    """The texts as a list, every one a str that has a UTF-8 form."""
    if isinstance(texts, str):
        raise InputError("got one text where a list of texts is expected; wrap it in [ ]")
    for index, text in enumerate(texts):
        field = f"texts[{index}]"
        if not isinstance(text, str):
            kind = type(text).__name__
            raise InputError(f"text {index} is of type {kind}; it must be a str", field=field)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"text {index} has a lone surrogate at character {error.start}"
            raise InputError(f"{message}; decode its source as UTF-8", field=field) from error
    if len(texts) == 0:
        raise InputError("the batch is empty; give at least one text", field="texts")
    return list(texts)


def _parse_tokenizer(tokenizer_json: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(tokenizer_json)
        tokenizer.encode_batch_fast(_PROBES)  # A missing [UNK] shows in use only.
    except Exception as error:  # The library raises bare Exception, nothing narrower.
        raise ConfigError(f"{TOKENIZER_FILE} cannot be used: {error}") from error
    return tokenizer


def _check_fit(settings: TextSettings, tokenizer: Tokenizer) -> None:
    faults = []
    special = tokenizer.num_special_tokens_to_add(False)
    if settings.max_length <= special:
        message = f"max_length is {settings.max_length}, and {special} tokens of a row are special"
        faults.append(f"{message}; it must be {special + 1} or more")
    if tokenizer.id_to_token(settings.pad_token_id) is None:
        faults.append(f"pad_token_id is {settings.pad_token_id}, which is not in the vocabulary")
    if faults:
        raise ConfigError(faults)


def _read_settings(path: Path) -> TextSettings:
    record = read_settings(path, TEXT, {field.name for field in fields(TextSettings)})
    names = record.pop("input_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise IntegrityError(f"{path}: input_names must be a list of strings")
    try:
        return TextSettings(tuple(names), **record)
    except ConfigError as error:
        raise IntegrityError(f"{path}: {error}") from error


def _load_fast_tokenizer(name_or_path: str, revision: str | None) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        message = f"reading the tokenizer of {name_or_path} needs transformers"
        raise BackendUnavailableError(f"{message}; pip install 'edgewright[train]'") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name_or_path, use_fast=True, revision=revision or "main", trust_remote_code=False
        )
    except Exception as error:  # transformers lets through whatever its parsers raise.
        message = f"cannot load the tokenizer of {name_or_path}: {error}"
        raise ConfigError(f"{message}; give a hub id or a folder with tokenizer.json") from error
    if not tokenizer.is_fast:
        raise ConfigError(
            f"the tokenizer of {name_or_path}, {type(tokenizer).__name__}, has no fast form "
            "(tokenizer.json), which serving needs; choose a model whose tokenizer has one"
        )
    return tokenizer


def _settings_of(tokenizer: Any, max_length: int | None, max_positions: int | None) -> TextSettings:
    if tokenizer.pad_token_id is None:
        raise ConfigError("it has no padding token; set pad_token in its tokenizer_config.json")
    declared = (tokenizer.model_max_length, max_positions)
    limits = [limit for limit in declared if limit is not None and limit <= _LONGEST]
    limit = min(limits, default=None)
    if not max_length and limit is None:
        raise ConfigError("neither it nor the model says how long a text may be; set max_length")
    return TextSettings(
        input_names=tuple(tokenizer.model_input_names),
        max_length=min(max_length or _LONGEST, limit or _LONGEST),
        model_max_length=limit,
        pad_token_id=tokenizer.pad_token_id,
        pad_type_id=tokenizer.pad_token_type_id,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        split_special_tokens=tokenizer.split_special_tokens,
    )


def _tokenizer_json(tokenizer: Any) -> str:
    """The rules as text, without truncation and padding: ``TextSettings`` alone decides those."""
    try:
        text = tokenizer.backend_tokenizer.to_str()
    except Exception as error:  # Bare Exception, where a component is written in Python.
        raise ConfigError(f"it runs code of its own and cannot be stored: {error}") from error
    plain = _parse_tokenizer(text)
    plain.no_truncation()
    plain.no_padding()
    bare: str = plain.to_str()
    if json.loads(bare)["model"].get("dropout"):
        raise ConfigError("its BPE drops merges at random; set dropout to null in tokenizer.json")
    return bare


def _refuse_difference(preprocessor: TextPreprocessor, tokenizer: Any, name: str) -> None:
    """A tokenizer class may do more in Python than its tokenizer.json says; find out now."""
    cut = {"truncation": True, "max_length": preprocessor.max_length}
    theirs = tokenizer(_PROBES, padding=True, return_tensors="np", **cut)
    ours = preprocessor(_PROBES).arrays
    differing = [key for key in ours if not np.array_equal(ours[key], theirs[key])]
    if differing or ours.keys() != theirs.keys():
        raise ConfigError(
            f"the tokenizer of {name}, {type(tokenizer).__name__}, gives other "
            f"{', '.join(differing) or 'inputs'} than its tokenizer.json; choose another model"
        )
