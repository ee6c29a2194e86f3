"""What the audit finds in the tables, each case built by hand; and what it must not show."""

import json
from pathlib import Path

import pytest
from tiny_models import make_rows, write_csv

from edgewright.examples import example_id
from edgewright.finetune import strict
from edgewright.finetune.cli import finetune
from edgewright.finetune.config import FinetuneConfig
from edgewright.finetune.data import read_dataset
from edgewright.finetune.findings import MAX_GROUP_SHARE, has_dominant_group
from edgewright.finetune.strict import RULES, rules_of, violations
from edgewright.finetune.table_audit import audit_tables, is_invisible
from edgewright.kinds import TEXT

SOUND = make_rows(240)
HIDDEN = ("calibrate", "search", "certify")
TWIN = "the old league cup final was won by a new team after a very big match in the small city"


@pytest.fixture
def audit(tmp_path):
    """Audits rows written to a file; ``dataset`` of the result's attribute is what was read."""

    def run(rows, header=("text", "label"), **options):
        files = {}
        for name in ("validation", "test"):
            if name in options:
                files[name] = str(write_csv(tmp_path / f"{name}.csv", options.pop(name)))
        data = write_csv(tmp_path / "rows.csv", rows, header)
        dataset = read_dataset(FinetuneConfig(data=str(data), **files, **options), None)
        return audit_tables(dataset), dataset

    return run


def test_sound_rows_break_no_rule(audit):
    found, _ = audit(SOUND)
    assert violations(found) == {}
    assert (found.exact_duplicates.count, found.conflicts.count, found.leaks.count) == (0, 0, 0)
    assert sum(found.rows.values()) == 240
    assert found.class_rows == {"food": 80, "sports": 80, "tech": 80}


def test_repeated_rows_are_counted_and_the_most_repeated_comes_first(audit):
    shown = [(TWIN, "sports")] * 4 + [SOUND[0]] * 2 + SOUND[1:]
    found, dataset = audit([*shown, SOUND[1]])
    assert found.exact_duplicates.count == 5
    split_of = dict(zip(dataset.examples.texts, dataset.examples.splits, strict=True))
    if split_of[TWIN] not in HIDDEN:
        worst = found.exact_duplicates.worst[0]
        assert (worst.text, worst.rows, worst.labels) == (TWIN, 4, {"sports": 4})
        assert worst.places[0].endswith("rows.csv: row 1 (line 2)")


def test_white_space_alone_makes_no_other_text(audit):
    found, _ = audit([*SOUND, (f"  {SOUND[3][0].replace(' ', '  ')} ", SOUND[3][1])])
    assert found.exact_duplicates.count == 1


def test_near_duplicates_are_told_with_the_labels_they_have(audit):
    text, words = TWIN, TWIN.split()
    variants = [(" ".join([*words, end]), label)
                for end, label in (("today", "sports"), ("now", "tech"))]  # fmt: skip
    found, _ = audit([*SOUND, (text, "sports"), *variants])
    assert (found.near_duplicates.count, found.near_rows, found.largest_group) == (1, 3, 3)
    assert found.near_conflicts.count == 1


def test_texts_given_to_two_splits_are_leaks_exact_or_near(audit):
    near = f"{TWIN} today"
    found, dataset = audit(
        [*SOUND, SOUND[0], (near, "sports")], test=[SOUND[5], SOUND[6], (TWIN, "sports")]
    )
    assert found.leaks.count == 2
    assert {group.text for group in found.leaks.worst} == {SOUND[5][0], SOUND[6][0]}
    assert found.near_leaks == 1
    assert "2 texts given to two splits" in violations(found)["leakage"]
    assert "1 row resembling one given" in violations(found)["leakage"]
    assert dataset.report["leaked"] == 1


def test_a_split_column_leaks_as_files_do(audit):
    rows = [(text, label, "train" if n % 4 else "test") for n, (text, label) in enumerate(SOUND)]
    again = (SOUND[0][0], SOUND[0][1], "train")
    found, _ = audit([*rows, again], ("text", "label", "split"), split_column="split")
    assert found.leaks.count == 1
    assert audit(rows, ("text", "label", "split"), split_column="split")[0].leaks.count == 0


def test_rows_without_a_given_split_do_not_leak_into_each_other(audit):
    assert audit([*SOUND, *SOUND[:20]])[0].leaks.count == 0


@pytest.mark.parametrize(
    ("text", "empty"),
    [
        ("\u200b", True), ("\ufeff \u200d", True), ("\x00\x07", True), ("\xad", True),
        ("👍", False), ("?", False), ("مرحبا", False), ("東京", False), ("\U0001fae9", False),
        ("\u200bа", False),
    ],
)  # fmt: skip
def test_a_text_is_empty_when_nothing_can_be_seen(text, empty):
    assert is_invisible(text) is empty


def test_a_group_dominates_by_its_share_but_not_in_a_small_table():
    assert has_dominant_group(11, 100)
    assert not has_dominant_group(10, 100)
    assert not has_dominant_group(3, 10)


def one_text_in(split_wanted, dataset):
    examples = dataset.examples
    return next(
        (text, examples.label_names[label])
        for text, label, split in zip(examples.texts, examples.labels, examples.splits, strict=True)
        if split == split_wanted
    )


@pytest.mark.parametrize("split", HIDDEN)
def test_rows_of_a_hidden_split_are_counted_and_never_shown(audit, split):
    _, dataset = audit(SOUND)
    text, label = one_text_in(split, dataset)
    near = f"{text} {text} and"
    found, _ = audit([*SOUND, (text, label), (text, label), ("\u200b\u200b", label)])
    assert found.exact_duplicates.count == 2
    record = json.dumps(found.to_json(), ensure_ascii=False) + str(violations(found))
    assert text not in record
    assert example_id(text) not in record
    assert near not in record


def test_no_text_of_a_hidden_split_is_in_the_record_whatever_is_wrong(audit):
    rows = [*SOUND, *SOUND[:200], *SOUND[20:60]]
    rows += [("\u200b" + "\u200d" * n, "tech") for n in range(40)]
    found, dataset = audit(rows)
    assert found.exact_duplicates.worst
    assert found.empty.count == 40
    record = json.dumps(found.to_json(), ensure_ascii=False)
    for text, key, split in zip(
        dataset.examples.texts, dataset.examples.ids, dataset.examples.splits, strict=True
    ):
        if split in HIDDEN:
            assert key not in record
            assert is_invisible(text) or text not in record


def test_a_conflicting_text_that_resembles_a_hidden_row_is_not_shown(audit):
    long = [
        (f"{TWIN} {n} " + " ".join(f"w{n}x{k}" for k in range(20)), "sports") for n in range(40)
    ]
    _, dataset = audit([*SOUND, *long])
    hidden_text, _ = next(
        (text, split)
        for text, split in zip(dataset.examples.texts, dataset.examples.splits, strict=True)
        if split == "certify" and text.startswith(TWIN)
    )
    shown_text, _ = next(
        (text, split)
        for text, split in zip(dataset.examples.texts, dataset.examples.splits, strict=True)
        if split == "train" and text.startswith(TWIN)
    )
    both = [
        (f"{each} end", label) for each in (hidden_text, shown_text) for label in ("tech", "food")
    ]
    found, _ = audit([*SOUND, *long, *both])
    assert found.conflicts.count == 2
    assert [group.text for group in found.conflicts.worst] == [f"{shown_text} end"]
    assert found.conflicts.worst[0].labels == {"food": 1, "tech": 1}


SPOILT = {
    "conflicting-labels": ([*SOUND, (SOUND[0][0], "tech")], {}, ["1 text with more than one label"]),
    "label-twins": ([*SOUND, *[(f"{text} on", label.upper()) for text, label in SOUND]], {},
                    ["3 label twins", "'TECH' and 'tech'"]),
    "leakage": (SOUND, {"validation": SOUND[:30]}, ["30 texts given to two splits", "and 27 more"]),
    "empty-text": ([*SOUND, ("\u200b", "food")], {}, ["1 text without a visible character"]),
    "absent-class": (SOUND, {"validation": [("a goal", "sports"), ("a cup", "sports")]},
                     ["validation has no food, tech"]),
    "imbalance": ([*SOUND, *make_rows(9000, seed=1)[0::3], *make_rows(9000, seed=2)[0::3]], {},
                  ["rows of", "1 in 20"]),
    "dominant-group": ([*SOUND, *[(f"{TWIN} {n}", "sports") for n in range(40)]], {},
                       ["holds 40 rows, 14% of all"]),
}  # fmt: skip


def test_every_rule_has_a_case():
    assert set(SPOILT) == {rule.name for rule in rules_of(TEXT)}


@pytest.mark.parametrize("rule", SPOILT)
def test_each_rule_refuses_what_it_says(audit, rule):
    rows, options, words = SPOILT[rule]
    found, _ = audit(rows, **options)
    told = violations(found)
    assert rule in told
    for each in words:
        assert each in told[rule]
    sound, _ = audit(SOUND)
    assert rule not in violations(sound)


def test_the_readme_and_the_help_state_the_rules():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for rule in RULES:
        assert f"| `{rule.name}` | {rule.refuses} |" in readme
    told = next(each.help for each in finetune.params if each.name == "strict")
    assert f"more than {strict.MAX_IMBALANCE:g} rows" in told
    assert MAX_GROUP_SHARE == 0.1
    assert "over a tenth" in told
