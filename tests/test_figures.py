"""Drawings for reports."""

import re

from edgewright.figures import line_figure


def test_whole_numbers_alone_are_on_an_axis_of_epochs() -> None:
    for epochs in (1, 2, 30):
        points = [(float(epoch), 0.5) for epoch in range(1, epochs + 1)]
        drawn = line_figure({"loss": points}, x_label="epoch", y_label="loss", caption="")
        axis = drawn.svg[
            drawn.svg.index("matplotlib.axis_1") : drawn.svg.index("matplotlib.axis_2")
        ]
        ticks = re.findall(r">([\d.]+)</text>", axis)
        assert ticks
        assert all(tick.isdecimal() for tick in ticks), ticks
