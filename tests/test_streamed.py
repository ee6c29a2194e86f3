"""What a client makes of the messages of StreamClassify, without a network."""

from __future__ import annotations

import pytest

from edgewright.errors import EdgewrightError, InputError, ServiceError
from edgewright.streamed import ClassifyForm
from edgewright.v1 import prediction_pb2 as pb


def test_items_are_numbered_through_and_large_ones_go_alone() -> None:
    form = ClassifyForm("news", 2, 1)
    first = list(form.chunks(["a", "b" * 2_000_000, b"c"]))
    assert [[index for index, _ in chunk] for chunk in first] == [[0], [1], [2]]
    assert list(form.chunks([])) == []
    ((last,),) = form.chunks(["d"])
    assert last == (3, "d")
    request = form.request([(0, "a"), (2, b"c")])
    assert (request.model, request.version, request.top_k) == ("news", 2, 1)
    assert [(e.item_id, e.WhichOneof("content")) for e in request.items] == [
        ("0", "text"), ("2", "image"),
    ]  # fmt: skip


def test_an_item_has_a_classification_or_an_error_of_its_kind() -> None:
    form = ClassifyForm("", 0, 0)
    response = pb.StreamClassifyResponse(
        answers=[
            pb.ItemAnswer(
                item_id="4",
                status=pb.ITEM_STATUS_ANSWERED,
                classification=pb.Classification(label="sport", score=0.5),
            ),
            pb.ItemAnswer(item_id="5", status=pb.ITEM_STATUS_INVALID, message="empty"),
            pb.ItemAnswer(item_id="6", status=pb.ITEM_STATUS_FAILED, message="a bug"),
            pb.ItemAnswer(item_id="7", status=99, message="from the future"),  # type: ignore[arg-type]
        ]
    )
    chunk = [(index, "x") for index in range(4, 8)]
    answers = form.answers(response, chunk, "host:1")
    assert answers[0].result().label == "sport"
    assert [type(each.error) for each in answers[1:]] == [
        InputError, EdgewrightError, EdgewrightError,
    ]  # fmt: skip
    with pytest.raises(InputError, match="item 5: empty"):
        answers[1].result()
    with pytest.raises(ServiceError, match="do not fit together"):
        form.answers(response, chunk[1:], "host:1")
