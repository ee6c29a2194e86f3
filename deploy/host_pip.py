"""The host's pip configuration, in the form that a build can use: one file, one bundle, folders.

A host may reach its packages by a mirror, a local index, or a proxy with a certificate of its own.
An image build on it must as well, and must keep nothing of it.
"""

from __future__ import annotations

import ast
import configparser
import io
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

CA_IN_BUILD: Final = "/run/secrets/ca-bundle"  # where the Dockerfiles mount that secret
_FINDING: Final[tuple[str, ...]] = (
    "index-url",
    "extra-index-url",
    "find-links",
    "no-index",
    "trusted-host",
)
_REACHING: Final[tuple[str, ...]] = ("proxy", "timeout", "default-timeout", "retries")
_CA_VARIABLES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_CA_DEFAULT: Final = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True)
class HostPip:
    """How the host's pip finds packages and reaches them."""

    settings: Mapping[str, str]  # option -> value, as under [global] of a pip.conf
    ca_bundle: Path | None
    folders: tuple[Path, ...]  # what local indexes need, to be mounted at the same path

    @classmethod
    def of_this_host(cls) -> HostPip:
        """What ``pip config list`` says, and the certificates that the environment names."""
        command = [sys.executable, "-m", "pip", "config", "list"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return cls.from_listing(listed, os.environ)

    @classmethod
    def from_listing(cls, listed: str, environment: Mapping[str, str]) -> HostPip:
        """From the output of ``pip config list``: ``global.index-url='…'`` and so on, by line."""
        found = _by_option(listed.splitlines())
        named = [found.get("cert"), *map(environment.get, _CA_VARIABLES), _CA_DEFAULT]
        bundles = [Path(name) for name in named if name and Path(name).is_file()]
        settings = {key: found[key] for key in (*_FINDING, *_REACHING) if key in found}
        return cls(settings, bundles[0] if bundles else None, tuple(_folders(settings)))

    def without_folders(self) -> HostPip:
        """For a build that can mount no folder: what names a local one is left out."""
        kept = {
            key: " ".join(place for place in value.split() if _local(place) is None)
            if key in _FINDING
            else value
            for key, value in self.settings.items()
        }
        return HostPip({key: value for key, value in kept.items() if value}, self.ca_bundle, ())

    def config(self) -> str:
        """The text of a pip.conf for the build."""
        parser = configparser.RawConfigParser()
        parser["global"] = dict(self.settings)
        if self.ca_bundle:
            parser["global"]["cert"] = CA_IN_BUILD
        text = io.StringIO()
        parser.write(text)
        return text.getvalue()


def _by_option(lines: Iterable[str]) -> dict[str, str]:
    """Values by option; as with pip itself a command's overrides [global], the environment both."""
    layers: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in lines:
        key, equals, value = line.partition("=")
        layer, _, option = key.rpartition(".")
        if equals and layer in layers:
            layers[layer][option] = str(ast.literal_eval(value))
    return {**layers["global"], **layers["install"], **layers[":env:"]}


def _folders(settings: Mapping[str, str]) -> list[Path]:
    places = [place for key in _FINDING for place in settings.get(key, "").split()]
    found = [folder for folder in map(_local, places) if folder and folder.exists()]
    # A local index .../simple links to the files that lie beside it.
    return sorted({path.parent if path.name == "simple" else path for path in found})


def _local(place: str) -> Path | None:
    """The path that a file: URL or an absolute path names; None for anything else."""
    if place.startswith("/"):
        return Path(place)
    url = urlsplit(place)
    return Path(url2pathname(url.path)) if url.scheme == "file" else None
