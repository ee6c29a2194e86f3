"""What a reader is told of a search for layers to keep in float."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from edgewright.bundle import Against
from edgewright.figures import Bar, bar_figure
from edgewright.optimize.fewest import Ending, Fewest
from edgewright.optimize.mixed_precision import Mixed
from edgewright.optimize.sensitivity import Sensitivity
from edgewright.optimize.words import counted
from edgewright.report import Block, DataTable, Paragraph, Section, Tone

_BARS: Final = 24
_LABEL_LENGTH: Final = 46  # characters; of a longer name the end tells most
_ENDINGS: Final = {
    Ending.NONE_PASSES: "With every layer group in float it still loses too much.",
    Ending.OUT_OF_EVALUATIONS: "The trials that are allowed were not enough to finish the search.",
    Ending.OUT_OF_TIME: "The time ran out before the search was finished (--mixed-seconds).",
}


def mixed_section(mixed: Mixed, against: Against = Against.LABELS) -> Section:
    """The sensitivity of every layer group, which went back to float, and the trials.

    ``against`` is what the search rows are held against.
    """
    blocks: list[Block] = [Paragraph(sentence) for sentence in _told(mixed)]
    if mixed.ranking.groups:
        blocks.append(_bars(mixed))
    if mixed.counts:
        blocks.append(_trials(mixed, against))
    intro = (
        f"{mixed.failing} lost more on the search split than is allowed. Each layer group in turn "
        "was made int8 alone, all others in float, to see how far it moves the answers. Then the "
        "fewest of the most sensitive groups were sought with which the loss is small enough."
    )
    return Section(f"Layers back in float: {mixed.failing}", blocks, intro)


def mixed_line(mixed: Mixed) -> str:
    """One line for the terminal."""
    if mixed.candidate is None:
        return f"{mixed.failing} loses too much, and layers back in float did not repair it"
    share = f"{len(mixed.float_groups)} of {len(mixed.ranking.groups)} layer groups"
    return f"{mixed.candidate.name} keeps {share} in float: {'; '.join(mixed.float_groups)}"


def _told(mixed: Mixed) -> Iterator[str]:
    search = mixed.search
    if search is None:
        yield (
            "The groups could not be ranked in the time that was allowed (--mixed-seconds)."
            if not mixed.ranking.groups
            else "There was nothing to search."
        )
        return
    if search.k is not None:
        yield f"Back in float: {'; '.join(mixed.float_groups)}."
        yield _checked(search)
    if search.ending in _ENDINGS:
        yield _ENDINGS[search.ending]


def _checked(search: Fewest) -> str:
    fewer = "none" if search.k == 1 else f"{(search.k or 1) - 1}"
    if not search.is_verified:
        return f"Fewer than {search.k} may be enough: {fewer} was not tried."
    told = f"With {search.k} the loss is small enough, with {fewer} it is not"
    if not search.is_monotone:
        return f"{told}. With more it was seen to fail again, so another choice may be as good."
    more = (search.k or 0) + 1
    return f"{told}, and with {more} it still is." if more in search.outcomes else f"{told}."


def _bars(mixed: Mixed) -> Block:
    back = set(mixed.float_groups)
    shown = mixed.ranking.groups[:_BARS]
    bars = [_bar(each, went_back=each.group in back) for each in shown]
    hidden = len(mixed.ranking.groups) - len(shown)
    rest = f"; {hidden} less sensitive ones are not shown" if hidden else ""
    return bar_figure(
        bars,
        x_label="divergence of the scores, nats (logarithmic)",
        caption=(
            f"Sensitivity of layer groups, mean over {mixed.ranking.rows} calibrate rows. "
            f"* went back to float, the others stayed int8{rest}."
        ),
    )


def _bar(each: Sensitivity, *, went_back: bool) -> Bar:
    tone = Tone.BAD if went_back else Tone.NEUTRAL
    return Bar(_label(each.group, went_back=went_back), each.divergence, tone)


def _label(group: str, *, went_back: bool) -> str:
    short = group if len(group) <= _LABEL_LENGTH else f"…{group[1 - _LABEL_LENGTH :]}"
    return f"{short} *" if went_back else short


def _trials(mixed: Mixed, against: Against) -> DataTable:
    outcomes = mixed.search.outcomes if mixed.search is not None else {}
    rows = [
        [str(k), counted(each.lost, each.won, against), "yes" if outcomes.get(k) else "no"]
        for k, each in sorted(mixed.counts.items())
    ]
    n = next(iter(mixed.counts.values())).n
    return DataTable(
        ["groups in float", "rows", "small enough"],
        rows,
        f"Trials, on {n} search rows, {mixed.seconds:.0f} s in all.",
    )
