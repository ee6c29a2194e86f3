"""The one tree of errors, as a whole."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from edgewright import errors
from edgewright.errors import EdgewrightError

TREE = [
    each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, EdgewrightError)
]
# What constructors take beside a message.
MADE_FROM: dict[type[EdgewrightError], dict[str, Any]] = {
    errors.InputError: {"field": "texts[3]"},
    errors.OverloadedError: {"retry_after_s": 0.25},
    errors.CallerLimitError: {"retry_after_s": 0.25},
}
WAYS: list[Callable[[Any], Any]] = [
    copy.copy,
    copy.deepcopy,
    *(lambda each, way=way: pickle.loads(pickle.dumps(each, way)) for way in range(6)),
]


@pytest.mark.parametrize("kind", TREE)
def test_an_error_is_the_same_after_a_copy_and_in_another_process(
    kind: type[EdgewrightError],
) -> None:
    error = kind("naïve.csv, row 3", **MADE_FROM.get(kind, {}))
    error.add_note("in the process that proves")
    for way in WAYS:
        same = way(error)
        assert type(same) is kind
        assert (str(same), same.args) == (str(error), error.args)
        assert vars(same) == vars(error)


def test_all_faults_of_a_configuration_stay_apart() -> None:
    faults = ("--port is taken", "--threads is 0")
    error = errors.ConfigError(list(faults))
    assert error.faults == faults
    for way in WAYS:
        assert way(error).faults == faults
