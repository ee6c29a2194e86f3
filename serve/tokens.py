"""Bearer tokens: who may do what, kept as hashes.

A file has a line for each token, ``name sha256 rights``; empty lines and those that begin with #
are left out. A token has 256 random bits, so that its plain SHA-256 tells nothing: there is no
guessing it, as there is of a password, and so nothing for a slow hash to slow down.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from edgewright.errors import ConfigError

PREFIX: Final = "ew_"  # so that scanners for secrets know one
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_MOST_FAULTS: Final = 10  # that are told of a file, which may be another altogether
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Right(StrEnum):
    """What a token is good for."""

    CALL = "call"  # models, and asking about them
    FEEDBACK = "feedback"
    METRICS = "metrics"
    ADMIN = "admin"


@dataclass(frozen=True)
class Token:
    """One line of the file; ``digest`` is the token's SHA-256."""

    name: str
    digest: bytes
    rights: frozenset[Right]

    def line(self) -> str:
        """As it stands in the file."""
        rights = ",".join(each for each in Right if each in self.rights)
        return f"{self.name} {self.digest.hex()} {rights}"


class Tokens:
    """Every token that is known."""

    def __init__(self, tokens: Iterable[Token]) -> None:
        self._tokens = tuple(tokens)

    @property
    def names(self) -> set[str]:
        """Whose they are."""
        return {each.name for each in self._tokens}

    def find(self, secret: str) -> Token | None:
        """Whose it is. Every hash is compared, in constant time, so that time tells nothing."""
        digest = digest_of(secret)
        found = None
        for token in self._tokens:
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found


def digest_of(secret: str) -> bytes:
    """SHA-256 of a token."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def new_token(name: str, rights: Iterable[Right]) -> tuple[str, Token]:
    """A random secret, and what a server keeps of it.

    Raises:
        ConfigError: what is wrong with the name.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"--name {name!r}: use up to 64 of A-Z a-z 0-9 . _ @ -, beginning with no sign"
        )
    secret = PREFIX + secrets.token_urlsafe(32)
    return secret, Token(name, digest_of(secret), frozenset(rights))


def read_tokens(path: Path, content: bytes) -> Tokens:
    """The tokens of ``content``, which is that of ``path``.

    Raises:
        ConfigError: every line that is none; what stands in it is not repeated.
    """
    tokens, faults = [], []
    lines = content.decode("utf-8-sig", "replace").splitlines()
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            tokens.append(_token(words))
        except ValueError as error:
            faults.append(f"--tokens {path}, line {number}: {error}")
    faults += [f"--tokens {path}: {each}" for each in _twice(tokens)]
    if not tokens and not faults:
        faults.append(f"--tokens {path} holds no token; `edgewright token new` makes one")
    if len(faults) > _MOST_FAULTS:
        faults[_MOST_FAULTS:] = [f"--tokens {path}: {len(faults) - _MOST_FAULTS} more faults"]
    if faults:
        raise ConfigError(faults)
    return Tokens(tokens)


def _token(words: list[str]) -> Token:
    if len(words) != 3:
        raise ValueError("`name sha256 rights` is expected, as `edgewright token new` writes it")
    name, digest, rights = words
    if not _NAME.fullmatch(name):
        raise ValueError("the name is up to 64 of A-Z a-z 0-9 . _ @ -")
    if not _SHA256.fullmatch(digest):
        raise ValueError(f"the hash of {name} is not 64 hexadecimal digits, in small letters")
    known = {str(each) for each in Right}
    unknown = set(rights.split(",")) - known
    if unknown:
        raise ValueError(
            f"{name} has a right that is none; rights are {', '.join(Right)}, with commas between"
        )
    return Token(name, bytes.fromhex(digest), frozenset(map(Right, rights.split(","))))


def _twice(tokens: Iterable[Token]) -> Iterable[str]:
    digests: dict[bytes, str] = {}
    for token in tokens:
        if token.digest in digests:
            yield f"{digests[token.digest]} and {token.name} have the same token"
        digests[token.digest] = token.name
