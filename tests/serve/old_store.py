"""A store as servers wrote it before there were images: schema version 1, in its own words."""

from __future__ import annotations

from sqlalchemy import create_engine

from edgewright.serve.store_url import StoreUrl

STATEMENTS = (
    "CREATE TABLE edgewright_schema (version INTEGER NOT NULL)",
    "CREATE TABLE edgewright_feedback (entry_id TEXT NOT NULL, prediction_id TEXT, "
    "label TEXT NOT NULL, text TEXT, note TEXT, model TEXT, created_us BIGINT NOT NULL, "
    "received_us BIGINT NOT NULL, PRIMARY KEY (entry_id))",
    "CREATE INDEX edgewright_feedback_prediction ON edgewright_feedback (prediction_id)",
    "CREATE INDEX edgewright_feedback_received ON edgewright_feedback (received_us)",
    "CREATE TABLE edgewright_predictions (prediction_id TEXT NOT NULL, model TEXT NOT NULL, "
    "version BIGINT NOT NULL, label TEXT NOT NULL, score FLOAT NOT NULL, scores JSON NOT NULL, "
    "text TEXT, predicted_us BIGINT NOT NULL, PRIMARY KEY (prediction_id))",
    "INSERT INTO edgewright_schema (version) VALUES (1)",
    "INSERT INTO edgewright_feedback VALUES ('e1', 'p1', 'sport', NULL, NULL, 'news', 1, 2)",
)
# What a server of that version goes on writing.
PREDICTION = (
    "INSERT INTO edgewright_predictions (prediction_id, model, version, label, score, scores, text, "
    "predicted_us) VALUES ('{}', 'news', 1, 'sport', 0.75, '{{\"sport\": 0.75}}', 'United won', 3)"
)


def write_old_store(url: str) -> None:
    """Make one with a prediction and an entry about it in an empty database."""
    engine = create_engine(StoreUrl.parse(url).url)
    with engine.begin() as connection:
        for each in (*STATEMENTS, PREDICTION.format("p1")):
            connection.exec_driver_sql(each)
    engine.dispose()
