"""A store of an older version: read as it is, brought up to date by the next server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from edgewright.cli import run
from edgewright.serve import feedback_schema
from edgewright.serve.feedback_records import Outcome
from edgewright.serve.feedback_report import report
from edgewright.serve.feedback_rows import Selection
from edgewright.serve.feedback_schema import SCHEMA_VERSION, holds_images
from edgewright.serve.feedback_store import FeedbackStore

from .old_store import PREDICTION, write_old_store
from .test_feedback_store import entry, prediction, rows

VERSION = "SELECT version FROM edgewright_schema"
IMAGES = "SELECT sha256, content FROM edgewright_images"


@pytest.fixture
def old_url(store_url: str) -> str:
    write_old_store(store_url)
    return store_url


def test_a_store_of_the_older_version_is_brought_up_to_date(old_url: str) -> None:
    for _ in range(2):
        with FeedbackStore.open(old_url) as store:
            assert rows(store, VERSION) == [(SCHEMA_VERSION,)]
            store.add_predictions([prediction("p2", image=b"a picture")])
            assert store.add_feedback([entry("e2", "p1")])[0] is not Outcome.UNMATCHED
            query = "SELECT prediction_id, text, image IS NULL FROM edgewright_predictions"
            assert sorted(rows(store, query)) == [("p1", "United won", True), ("p2", None, False)]
            assert [bytes(content) for _, content in rows(store, IMAGES)] == [b"a picture"]


def test_it_has_what_a_new_one_has(old_url: str, tmp_path: Path) -> None:
    with FeedbackStore.open(old_url) as store, store.engine.connect() as connection:
        upgraded = feedback_schema.inspect(connection)
        for table in feedback_schema.METADATA.sorted_tables:
            columns = {each["name"]: each["nullable"] for each in upgraded.get_columns(table.name)}
            assert columns == {each.name: each.nullable for each in table.columns}
            indexes = {each["name"] for each in upgraded.get_indexes(table.name)}
            assert indexes == {each.name for each in table.indexes}


def test_replicas_that_start_at_once_do_it_once(old_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(FeedbackStore.open, [old_url] * 4))
        list(
            pool.map(
                lambda pair: pair[1].add_predictions([prediction(f"q{pair[0]}", image=b"one")]),
                enumerate(stores),
            )
        )
    assert rows(stores[0], VERSION) == [(SCHEMA_VERSION,)]
    assert len(rows(stores[0], IMAGES)) == 1
    for store in stores:
        store.close()


def test_a_server_of_the_older_version_goes_on_beside_it(old_url: str) -> None:
    with FeedbackStore.open(old_url) as store:
        store.transaction(lambda c: c.exec_driver_sql(PREDICTION.format("p9")))
        assert report(store, Selection())["predictions"] == 2


def test_those_who_read_leave_it_as_it_is(old_url: str, tmp_path: Path) -> None:
    file = tmp_path / "out.parquet"
    assert run(["feedback", "export", old_url, "-o", str(file)]) == 0
    assert pq.read_table(file)["text"].to_pylist() == ["United won"]
    with FeedbackStore.open(old_url, create=False) as store:
        figures = report(store, Selection())
        assert (figures["predictions"], figures["predictions_with_input"]) == (1, 1)
        assert rows(store, VERSION) == [(1,)]
        assert not store.transaction(holds_images)


def test_what_is_interrupted_is_not_done_by_half(
    old_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(feedback_schema, "update", fail)
        with pytest.raises(KeyboardInterrupt):
            FeedbackStore.open(old_url)
    with FeedbackStore.open(old_url, create=False) as store:
        assert rows(store, VERSION) == [(1,)]
        assert not store.transaction(holds_images)
    with FeedbackStore.open(old_url) as store:
        assert rows(store, VERSION) == [(SCHEMA_VERSION,)]
