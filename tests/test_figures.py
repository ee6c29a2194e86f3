"""Drawings for reports."""

import re

from edgewright.figures import line_figure
from edgewright.report import (
    DataTable,
    Figure,
    Headline,
    Paragraph,
    Section,
    TextRow,
    TextRows,
    Tone,
    render_report,
)


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


def test_an_axis_of_shares_ends_at_one() -> None:
    for lowest in (0.5, 0.99, 1.0):
        points = {"accuracy": [(1.0, lowest), (2.0, 1.0)]}
        drawn = line_figure(points, x_label="epoch", y_label="share", caption="", most_y=1.0)
        ticks = re.findall(r">([\d.]+)</text>", drawn.svg[drawn.svg.index("matplotlib.axis_2") :])
        assert max(map(float, ticks)) == 1.0, ticks


def test_no_line_of_a_report_ends_within_the_name_of_an_option() -> None:
    """A browser ends a line behind a hyphen, so that "--splits" was cut in two."""
    told = "--splits <b> buys --class-weights"
    blocks = (
        Paragraph(told),
        DataTable(["what"], [[told]], told),
        Figure("", told),
        TextRows([TextRow("", ())], told),
    )
    page = render_report(
        title="",
        subtitle="",
        headline=Headline("", Tone.GOOD, told),
        sections=[Section("", blocks, told)],
        manifest_sha256="",
    ).decode()
    whole = (
        '<span class="option">--splits</span> &lt;b&gt; buys '
        '<span class="option">--class-weights</span>'
    )
    assert page.count(whole) == 2 + len(blocks) + 1, "headline and intro; a table also in a cell"
    assert ".option { white-space: nowrap; }" in page
