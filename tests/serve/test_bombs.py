"""Small requests that would grow: compressed messages, images, bodies; memory stays bounded."""

from __future__ import annotations

import gzip
import http.client
import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import grpc
import pytest
from PIL import Image

from edgewright.v1.prediction_pb2 import ClassifyTextRequest

from .conftest import Launch, Running

Code = grpc.StatusCode


def chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png_file(width: int, height: int, *extra: bytes, pixels: bytes = b"\0" * 64) -> bytes:
    """A grey PNG that claims a size, whatever pixels it has."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(pixels, 9))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    return start + b"".join(extra) + data + chunk(b"IEND", b"")


def squeezed(size: int) -> bytes:
    """``size`` zeros, a thousandth as long."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(1 << 20)) for _ in range(size >> 20)]
    return b"".join([*parts, packer.flush()])


def saved(kind: str, frames: int, **options: object) -> bytes:
    file = io.BytesIO()
    pictures = [Image.new("L", (64, 64), index % 256) for index in range(frames)]
    pictures[0].save(file, kind, save_all=True, append_images=pictures[1:], **options)
    return file.getvalue()


def looped_tiff() -> bytes:
    """Its one directory says that the next is itself."""
    entries = [(256, 4, 1, 60_000), (257, 4, 1, 60_000), (259, 3, 1, 1), (262, 3, 1, 1),
               (273, 4, 1, 8), (278, 4, 1, 60_000), (279, 4, 1, 10)]  # fmt: skip
    told = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", *each) for each in entries
    )
    return b"II*\0" + struct.pack("<I", 8) + told + struct.pack("<I", 8)


HUNDRED_MB = squeezed(100 << 20)
BOMBS = {
    "png of 100,000 x 100,000": png_file(100_000, 100_000),
    "png with a negative size": png_file(2**31, 2**31 - 1),
    "png cut off": png_file(64, 64)[:60],
    "gif of 65,535 x 65,535": b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(20),
    "webp of 16,383 x 16,383": b"RIFF\x1e\0\0\0WEBPVP8L\x12\0\0\0/\xff\xbf\xff\x0f" + bytes(12),
    "bmp of 2^31": b"BM" + struct.pack("<IIIIiiHHIIIIII", 64, 0, 54, 40, 2**31 - 1, -(2**31), 1, 24,
                                       0, 0, 0, 0, 0, 0),
    "tiff that follows itself": looped_tiff(),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "zip": b"PK\3\4" + bytes(100),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) (r) file\n",
}  # fmt: skip
# What is in a sound file beside its pixels is neither needed nor unpacked without end.
HARMLESS = {
    "png with 100 MB of profile": png_file(
        64, 64, chunk(b"iCCP", b"x\0\0" + HUNDRED_MB), pixels=bytes(65 * 64)
    ),
    "png with 100 MB of text": png_file(
        64, 64, chunk(b"zTXt", b"x\0\0" + HUNDRED_MB), pixels=bytes(65 * 64)
    ),
    "gif of 500 pictures": saved("GIF", 500),
    "tiff of 200 pages": saved("TIFF", 200),
    "png that is a zip as well": png_file(64, 64, pixels=bytes(65 * 64)) + b"PK\3\4" + bytes(100),
}
DECODE = """
import re, sys, warnings
from pathlib import Path
from edgewright.errors import InputError
from edgewright.preprocess.decode import rgb_pixels

def peak():  # KiB, of this program alone: getrusage's begins with that of who started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

for file in sorted(Path(sys.argv[1]).iterdir()):
    before = peak()
    try:
        warnings.simplefilter("ignore")
        told = "x".join(map(str, rgb_pixels(file.read_bytes(), "it").shape))
    except InputError as error:
        told = "InputError"
    print(file.name, told, peak() - before >> 10, sep="\\t")
"""


def decoded(folder: Path, files: dict[str, bytes]) -> dict[str, tuple[str, int]]:
    """What became of each file in a process of its own, and by how many MiB its peak grew."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", DECODE, folder], check=True, capture_output=True, text=True
    )
    rows = (line.split("\t") for line in done.stdout.splitlines())
    return {name: (told, int(grown)) for name, told, grown in rows}


def test_images_that_would_grow_are_refused_and_cost_no_memory(tmp_path: Path) -> None:
    over = png_file(10_000, 5_001, pixels=bytes(10_001 * 5_001))  # sound, and 50 KB long
    for name, (told, grown_mib) in decoded(tmp_path, {**BOMBS, "png too large": over}).items():
        assert told == "InputError", name
        assert grown_mib < 64, (name, grown_mib)


def test_what_comes_with_a_picture_is_not_unpacked_without_end(tmp_path: Path) -> None:
    for name, (told, grown_mib) in decoded(tmp_path, HARMLESS).items():
        assert told in ("64x64x3", "InputError"), name
        assert grown_mib < 64, (name, grown_mib)


def test_the_size_of_a_message_is_that_after_it_is_unpacked(launch: Launch) -> None:
    running = launch(max_message_mb=1)
    bomb = ClassifyTextRequest(texts=["x" * (64 << 20)]).SerializeToString()
    assert len(gzip.compress(bomb)) < 1 << 20
    call = running.channel.unary_unary("/edgewright.v1.PredictionService/ClassifyText")
    with pytest.raises(grpc.RpcError) as failure:
        call(bomb, compression=grpc.Compression.Gzip, timeout=60)
    assert failure.value.code() is Code.RESOURCE_EXHAUSTED
    small = ClassifyTextRequest(texts=["bank"]).SerializeToString()
    assert call(small, compression=grpc.Compression.Gzip, timeout=60)


def post(running: Running, body: bytes, **headers: str) -> tuple[int, str]:
    port = running.server.metrics_port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/v1/models/news:classify", body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, identity"])
def test_a_body_that_is_packed_is_not_unpacked(launch: Launch, encoding: str) -> None:
    running = launch()
    body = gzip.compress(json.dumps({"texts": ["x" * 1_000_000]}).encode())
    status, told = post(running, body, **{"Content-Encoding": encoding})
    assert (status, "Content-Encoding" in told) == (415, True)
    plain = json.dumps({"texts": ["bank"]}).encode()
    assert post(running, plain, **{"Content-Encoding": "identity"})[0] == 200


def test_json_that_is_nested_without_end_is_refused(launch: Launch) -> None:
    running = launch()
    for body in (
        b"[" * 1_000_000,
        b'{"texts":' * 100_000,
        b'{"texts": [1' + b"0" * 100_000 + b"]}",
    ):
        status, told = post(running, body)
        assert (status, json.loads(told)["reason"]) == (400, "INPUT_INVALID")
