"""The audit in a whole run: when it happens, what it writes and says, what --strict refuses."""

import json

import numpy as np
import pytest
from tiny_models import TOPICS, make_rows, write_csv

from edgewright.checkpoint import Checkpoint
from edgewright.examples import example_id
from edgewright.finetune import pipeline, task
from edgewright.finetune.audit import AuditedRows, FeatureAudit
from edgewright.manifest import verify

SOUND = make_rows(150)
TWO_LABELS = [*SOUND, (SOUND[0][0], "tech"), ("goal \u200b score", "sports")]


def read(folder):
    return json.loads((folder / "audit.json").read_bytes())


def test_the_record_is_part_of_the_manifest_and_the_same_every_time(finetune, tmp_path):
    for out in ("one", "two"):
        assert finetune(out=out).code == 0
    files = [verify(tmp_path / out).manifest["files"]["audit.json"] for out in ("one", "two")]
    assert files[0] == files[1]


def test_full_judges_the_three_splits_that_training_reads(finetune, tmp_path):
    run = finetune("--json")
    record = read(tmp_path / "out")
    rows = run.json["rows"]
    read_rows = rows["train"] + rows["validation"] + rows["test"]
    assert record["mode"] == "full"
    assert record["features"]["rows"] == {"judged": read_rows, "of": read_rows}
    assert record["features"]["label_errors"]["judged"] == read_rows
    assert run.json["audit"]["label_errors"] == record["features"]["label_errors"]["count"]
    assert run.json["audit"]["strict"] == sorted(record["strict"])


def test_fast_asks_no_encoder_and_off_leaves_no_trace(finetune, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "edgewright.finetune.audit_task.survey", lambda *_, **__: pytest.fail("encoded")
    )
    fast = finetune("--audit", "fast", "--no-head-first", "--json", out="fast")
    assert fast.code == 0, fast.err
    assert read(tmp_path / "fast")["features"] is None
    assert fast.json["audit"]["label_errors"] is None
    assert fast.json["audit"]["exact_duplicates"] == 0
    off = finetune("--audit", "off", "--no-head-first", "--json", out="off")
    assert off.json["audit"] is None
    assert not (tmp_path / "off" / "audit.json").exists()
    report = (tmp_path / "off" / "report.html").read_text()
    assert "Data audit" not in report
    assert "Data audit" in (tmp_path / "fast" / "report.html").read_text()


def test_the_audit_changes_no_weight(finetune, tmp_path):
    for mode in ("full", "off"):
        assert finetune("--audit", mode, out=mode).code == 0
    weights = [
        verify(tmp_path / mode).manifest["files"]["model/model.safetensors"]["sha256"]
        for mode in ("full", "off")
    ]
    assert weights[0] == weights[1]


def test_findings_are_told_and_nothing_is_deleted(finetune, tmp_path):
    data = write_csv(tmp_path / "rows.csv", [*TWO_LABELS, ("\u200b", "food"), SOUND[1]])
    run = finetune(data=data)
    assert run.code == 0
    assert "--strict would refuse: conflicting-labels, empty-text" in run.err
    lines = run.err.splitlines()
    assert "rows that repeat a known text, which is kept once: 2" in lines
    assert "texts with more than one label, set aside: 1" in lines
    assert "texts in which nothing can be seen: 1" in lines
    examples = Checkpoint.open(tmp_path / "out").examples()
    assert len(examples) == 152
    assert read(tmp_path / "out")["exact_duplicates"]["count"] == 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert SOUND[0][0] in page
    assert "set aside" in page


def test_nothing_of_the_hidden_splits_is_in_record_or_report(finetune, tmp_path):
    rows = [*SOUND, *SOUND[:100], *[(text, "food") for text, _ in SOUND[100:]]]
    finetune(data=write_csv(tmp_path / "rows.csv", rows))
    examples = Checkpoint.open(tmp_path / "out").examples()
    record = (tmp_path / "out" / "audit.json").read_text()
    page = (tmp_path / "out" / "report.html").read_text()
    for split in ("calibrate", "search", "certify"):
        part = examples.split(split)
        assert len(part)
        for text, key in zip(part.texts, part.ids, strict=True):
            assert key not in record
            assert text not in record
            assert text not in page


def test_strict_refuses_before_the_model_is_loaded_and_writes_nothing(
    finetune, tmp_path, monkeypatch
):
    monkeypatch.setattr(task.Start, "load", lambda *_, **__: pytest.fail("loaded"))
    data = write_csv(tmp_path / "rows.csv", [*TWO_LABELS, ("\u200b", "food")])
    run = finetune("--strict", data=data, out="made/out")
    assert run.code == 2
    assert run.out == ""
    assert "--strict refuses these examples" in run.err
    assert "conflicting-labels: 1 text with more than one label" in run.err
    assert "row 1 (line 2)" in run.err
    assert "row 151 (line 152)" in run.err
    assert "empty-text: 1 text" in run.err
    assert "without --strict" in run.err
    assert not (tmp_path / "made").exists()


def test_strict_lets_sound_examples_through(finetune, tmp_path):
    run = finetune("--strict", "--audit", "fast", "--json")
    assert run.code == 0, run.err
    assert run.json["audit"]["strict"] == []
    assert read(tmp_path / "out")["strict"] == {}


def test_strict_without_an_audit_is_refused(finetune):
    run = finetune("--strict", "--audit", "off")
    assert run.code == 2
    assert "--strict goes by what the audit finds" in run.err


def test_going_on_without_new_examples_finds_nothing_new_to_refuse(finetune, tmp_path):
    data = write_csv(tmp_path / "rows.csv", TWO_LABELS)
    assert finetune("--audit", "off", data=data).code == 0
    again = finetune("--strict", "--from", tmp_path / "out", data=None, model=None, out="again")
    assert again.code == 0, again.err
    more = write_csv(tmp_path / "more.csv", [(SOUND[1][0], "food"), ("new bread", "food")])
    added = finetune(
        "--strict", "--from", tmp_path / "out", "--add", more, data=None, model=None, out="more"
    )
    assert added.code == 2
    assert "conflicting-labels: 1 text" in added.err


def test_a_group_of_near_duplicates_that_holds_much_is_warned_of(finetune, tmp_path):
    words = " ".join(TOPICS["tech"].split() * 3)
    rows = [*SOUND, *[(f"{words} {n}", "tech") for n in range(30)]]
    run = finetune("--audit", "off", data=write_csv(tmp_path / "rows.csv", rows))
    assert "one group of near-duplicates holds 30 of 180 rows" in run.err


def test_ten_rows_and_texts_in_any_script_end_well(finetune, tmp_path):
    texts = ["مرحبا بالعالم", "東京は大きい", "привет мир", "👍👍 🎉", "ñandú ő ß", "שלום",
             "a\u0301b", "नमस्ते", "goal", "bread"]  # fmt: skip
    rows = [(text, ("да", "нет")[n % 2]) for n, text in enumerate(texts)]
    run = finetune("--json", data=write_csv(tmp_path / "rows.csv", rows))
    assert run.code == 0, run.err
    assert run.json["audit"]["imbalance"] == 1.0
    assert read(tmp_path / "out")["features"]["outliers"]["limit"] is None


def examples_of(rows):
    from edgewright.examples import Sources, SplitShares, Table, build_examples

    texts, labels = zip(*rows, strict=True)
    table = Table(list(texts), list(labels), None, "rows.csv", "text", "label")
    return build_examples(Sources(main=table), shares=SplitShares(), seed=0)[0]


def test_more_rows_than_it_may_encode_are_drawn_by_seed_and_the_record_says_so():
    examples = examples_of(SOUND)
    rows = AuditedRows.draw(examples, seed=1, most=40)
    again = AuditedRows.draw(examples, seed=1, most=40)
    other = AuditedRows.draw(examples, seed=2, most=40)
    assert rows.ids == again.ids != other.ids
    assert len(rows.ids) == len(set(rows.ids)) == 40
    sizes = {name: len(examples.split(name)) for name in ("train", "validation", "test")}
    by_split = rows.by_split(sizes)
    taken = [examples.split(name).ids[row] for name, places in by_split.items() for row in places]
    assert taken == list(rows.ids)
    features = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    record = FeatureAudit.of(rows, features, 3, seed=0).to_json(examples.label_names)
    assert record["rows"] == {"judged": 40, "of": sum(sizes.values())}
    for each in record["label_errors"]["ranked"]:
        assert example_id(each["text"]) == each["id"]
        assert each["split"] in sizes


def test_the_audit_happens_before_training(finetune, monkeypatch):
    order = []
    audit, train = pipeline.audit_task, pipeline.train
    monkeypatch.setattr(pipeline, "audit_task", lambda *a: order.append("audit") or audit(*a))
    monkeypatch.setattr(pipeline, "train", lambda *a: order.append("train") or train(*a))
    assert finetune().code == 0
    assert order == ["audit", "train"]
