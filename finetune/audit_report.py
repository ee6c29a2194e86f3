"""The audit's part of the report: what to look at before believing any figure."""

from __future__ import annotations

from typing import Final

from edgewright.finetune.audit import Audit, FeatureAudit
from edgewright.finetune.findings import SHOWN, Found
from edgewright.finetune.strict import rules_of, violations
from edgewright.kinds import TEXT
from edgewright.report import Block, DataTable, Paragraph, Section, TextRows
from edgewright.shown_example import shown_example

_ERRORS: Final = 12
_GROUPS: Final = 4


def audit_sections(audit: Audit | None) -> list[Section]:
    """Counts, the rules of --strict, and the worst cases as they are; none where it was off."""
    if audit is None:
        return []
    blocks: list[Block] = [_counts(audit), *_label_errors(audit), *_worst(audit)]
    if audit.features is not None:
        blocks += _outliers(audit.features, audit)
    blocks.append(_rules(audit))
    kind = audit.tables.kind
    intro = (
        f"What may be wrong with the examples. Nothing was removed for it but {kind.many} set "
        f"aside for two labels or two splits. {kind.many.capitalize()} shown are of train, "
        "validation and test, or set aside."
    )
    return [Section("Data audit", blocks, intro)]


def _counts(audit: Audit) -> DataTable:
    tables = audit.tables
    one, many = tables.kind.name, tables.kind.many
    rows: list[tuple[str, int | str, str]] = [
        (f"rows that repeat {one}s", tables.exact_duplicates.count, f"each {one} is kept once"),
        ("groups of near-duplicates", tables.near_duplicates.count, _near_words(audit)),
        ("of those with more than one label", tables.near_conflicts.count, ""),
        (f"{many} with more than one label", tables.conflicts.count, "set aside, or known already"),
        (f"{many} given to two splits", tables.leaks.count, "kept in the one held out"),
        ("rows resembling another split's", tables.near_leaks, "set aside"),
        ("label twins", len(tables.label_twins), _twin_words(audit)),
        (_empty_words(audit), tables.empty.count, ""),
        *_length_rows(audit),
        ("largest class to smallest", f"{tables.imbalance:.1f}", _class_words(audit)),
    ]
    if audit.features is not None:
        errors, outliers = audit.features.label_errors, audit.features.outliers
        rows += [
            ("likely label errors", len(errors.ranked), _judged_words(audit.features)),
            ("outliers", outliers.beyond, f"of {outliers.judged} rows"),
        ]
    return DataTable(
        ["what", "how many", ""], [[what, str(count), words] for what, count, words in rows]
    )


def _empty_words(audit: Audit) -> str:
    if audit.tables.kind is TEXT:
        return "texts without a visible character"
    return f"{audit.tables.kind.many} of one colour"


def _length_rows(audit: Audit) -> list[tuple[str, int | str, str]]:
    lengths = audit.lengths
    if lengths is None:
        return []
    limit = f"{lengths.limit} tokens"
    nearly = sum(lengths.nearly.values())
    return [
        ("texts cut at the limit", sum(lengths.truncated.values()), limit),
        ("texts nearly that long", nearly, f"above nine tenths of {limit}"),
    ]


def _near_words(audit: Audit) -> str:
    tables = audit.tables
    if not tables.near_duplicates.count:
        return ""
    return f"{tables.near_rows} rows, {tables.largest_group} in the largest; a group shares a split"


def _twin_words(audit: Audit) -> str:
    return "; ".join(" = ".join(names) for names in audit.tables.label_twins[:_GROUPS])


def _class_words(audit: Audit) -> str:
    tables = audit.tables
    most, least = tables.commonest, tables.rarest
    return f"{most} {tables.class_rows[most]}, {least} {tables.class_rows[least]}"


def _judged_words(features: FeatureAudit) -> str:
    errors = features.label_errors
    words = f"of {errors.judged} rows judged"
    if features.rows.of > len(features.rows.ids):
        words += f", drawn from {features.rows.of}"
    if errors.small_classes:
        words += f"; {len(errors.small_classes)} classes are too small to judge"
    return words


def _label_errors(audit: Audit) -> list[Block]:
    if audit.features is None:
        return [Paragraph("--audit fast: label errors and outliers were not looked for.")]
    rows, errors = audit.features.rows, audit.features.label_errors
    names = audit.label_names
    if errors.agreement is None:
        return [Paragraph("Too few rows of each class to look for label errors.")]
    if not errors.is_skilled:
        return [
            Paragraph(
                f"The pre-trained encoder tells these classes too badly apart (a probe gives "
                f"{errors.agreement:.1%} of the labels) to say which labels are wrong."
            )
        ]
    shown = [
        shown_example(
            rows.contents[each.row],
            [
                ("label", f"{names[each.label]} ({each.label_probability:.2f})"),
                ("suggested", f"{names[each.suggested]} ({each.suggested_probability:.2f})"),
                ("split", rows.splits[each.row]),
            ],
        )
        for each in errors.ranked[:_ERRORS]
    ]
    caption = (
        f"Likely label errors, the likeliest first ({len(shown)} of {len(errors.ranked)}): what a "
        "linear probe on the pre-trained encoder, cross-validated, makes of rows it has not seen. "
        f"It agrees with {errors.agreement:.1%} of the labels."
    )
    return [TextRows(shown, caption)] if shown else [Paragraph("No label looks wrong.")]


def _worst(audit: Audit) -> list[Block]:
    tables = audit.tables
    one, many = tables.kind.name, tables.kind.many.capitalize()
    kinds = {
        f"{many} with more than one label.": tables.conflicts,
        f"{many} given to two splits.": tables.leaks,
        "Near-duplicates with more than one label.": tables.near_conflicts,
        f"{_empty_words(audit).capitalize()}.": tables.empty,
        f"{many} read most often.": tables.exact_duplicates,
        f"Largest groups of near-duplicates, by their first {one}.": tables.near_duplicates,
    }
    return [_groups(found, caption) for caption, found in kinds.items() if found.worst]


def _groups(found: Found, caption: str) -> TextRows:
    rows = []
    for group in found.worst[:_GROUPS]:
        labels = ", ".join(f"{name} {count}" for name, count in group.labels.items())
        cells = [("rows", str(group.rows)), ("labels", labels), ("split", group.split)]
        if group.places:
            cells.append(("first", "; ".join(group.places[:2])))
        rows.append(shown_example(group.content, cells))
    return TextRows(rows, f"{caption} {len(rows)} of {found.count}.", limit=200)


def _outliers(features: FeatureAudit, audit: Audit) -> list[Block]:
    rows, outliers = features.rows, features.outliers
    shown = [
        shown_example(
            rows.contents[row],
            [
                ("label", audit.label_names[int(rows.labels[row])]),
                ("distance", f"{distance:.2f}"),
                ("split", rows.splits[row]),
            ],
        )
        for row, distance in list(zip(outliers.rows, outliers.distances, strict=True))[:_GROUPS]
    ]
    caption = (
        "The rows farthest from all others in the encoder's space, by 1 - cosine to the tenth "
        f"nearest; {outliers.beyond} lie beyond the usual fence."
    )
    return [TextRows(shown, caption, limit=200)] if shown else []


def _rules(audit: Audit) -> DataTable:
    found = violations(audit.tables)
    hidden = [split for split in audit.tables.absent if split not in SHOWN]
    caption = "The rules of --strict, which refuses to train where one is violated."
    if hidden:
        caption += f" Splits left to optimize that lack a class: {', '.join(hidden)}."
    rows = [
        [rule.name, rule.refuses, "violated" if rule.name in found else "holds"]
        for rule in rules_of(audit.tables.kind)
    ]
    return DataTable(["rule", "refuses", "here"], rows, caption)
