"""What the report draws of a run that is given."""

from __future__ import annotations

import re
from types import SimpleNamespace

from edgewright.finetune.evaluate import Scores
from edgewright.finetune.recipe import Epoch, Fit
from edgewright.finetune.report import _learning
from edgewright.report import Figure


def test_no_share_of_a_perfect_validation_lies_above_one() -> None:
    perfect = Scores(n=9, correct=9, loss=0.1, accuracy=1.0, macro_f1=1.0)
    epochs = tuple(Epoch(number, 1e-3, 0.2, perfect) for number in (1, 2))
    fit = Fit(epochs, epochs[0], batch_size=16, stopped_early=False)
    story = SimpleNamespace(learnt=SimpleNamespace(fit=fit), summary={"lora": None})
    figures = [each for each in _learning(story).blocks if isinstance(each, Figure)]
    (shares,) = [each.svg for each in figures if each.caption == "Validation by epoch."]
    ticks = re.findall(r">([\d.]+)</text>", shares[shares.index("matplotlib.axis_2") :])
    assert max(map(float, ticks)) == 1.0
