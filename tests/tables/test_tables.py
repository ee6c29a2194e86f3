"""Reading tables of every kind, finding their columns, and refusing bad rows by number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edgewright.errors import ConfigError, DataError
from edgewright.tables import read_table
from edgewright.tables.columns import Columns

ROWS = {"text": ["good film", "bad film", "so so"], "label": ["pos", "neg", "neg"]}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def refusal(source: str | Path, columns: Columns | None = None) -> str:
    with pytest.raises(DataError) as caught:
        read_table(source, columns)
    return str(caught.value)


class TestKinds:
    @pytest.fixture
    def records(self) -> list[dict[str, str]]:
        return [dict(zip(ROWS, row, strict=True)) for row in zip(*ROWS.values(), strict=True)]

    def check(self, source: str | Path) -> None:
        table = read_table(source)
        assert (table.texts, table.labels) == (ROWS["text"], ROWS["label"])
        assert (table.splits, table.source) == (None, str(source))
        assert (table.text_column, table.label_column) == ("text", "label")

    @pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t"), ("CSV", ",")])
    def test_delimited(self, tmp_path: Path, suffix: str, separator: str) -> None:
        lines = [separator.join(row) for row in zip(*ROWS.values(), strict=True)]
        head = separator.join(ROWS)
        self.check(write(tmp_path / f"a.{suffix}", "\n".join([head, *lines])))

    @pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "json"])
    def test_json_lines(self, tmp_path: Path, records: list[Any], suffix: str) -> None:
        self.check(write_jsonl(tmp_path / f"a.{suffix}", records))

    def test_json_array(self, tmp_path: Path, records: list[Any]) -> None:
        self.check(write(tmp_path / "a.json", json.dumps(records, indent=2)))

    def test_parquet(self, tmp_path: Path) -> None:
        self.check(write_parquet(tmp_path / "a.parquet", ROWS))

    def test_parquet_of_large_and_dictionary_strings(self, tmp_path: Path) -> None:
        columns = {
            "text": pa.array(ROWS["text"], pa.large_string()),
            "label": pa.array(ROWS["label"]).dictionary_encode(),
        }
        self.check(write_parquet(tmp_path / "a.parquet", columns))

    def test_dataset_folder(self, tmp_path: Path) -> None:
        datasets.Dataset.from_dict(ROWS).save_to_disk(tmp_path / "ds")
        self.check(tmp_path / "ds")

    def test_rows_chosen_from_a_dataset_are_read_and_no_others(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chosen = datasets.Dataset.from_dict(ROWS).select([2, 0])
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: chosen)
        assert read_table("someone/reviews").texts == ["so so", "good film"]

    def test_class_names_come_in_place_of_numbers(self, tmp_path: Path) -> None:
        features = datasets.Features(
            text=datasets.Value("string"), label=datasets.ClassLabel(names=["neg", "pos"])
        )
        numbered = {"text": ["a", "b"], "label": [1, 0]}
        dataset = datasets.Dataset.from_dict(numbered, features=features)
        dataset.save_to_disk(tmp_path / "ds")
        dataset.to_parquet(tmp_path / "a.parquet")
        assert read_table(tmp_path / "ds").labels == ["pos", "neg"]
        assert read_table(tmp_path / "a.parquet").labels == ["pos", "neg"]

    def test_dataset_dict_comes_in_given_splits(self, tmp_path: Path) -> None:
        train, rest = datasets.Dataset.from_dict(ROWS), datasets.Dataset.from_dict(ROWS)
        unlabelled = datasets.Dataset.from_dict({"text": ["x"], "label": [None]})
        datasets.DatasetDict(
            train=train, dev=rest, test=unlabelled, unsupervised=rest
        ).save_to_disk(tmp_path / "ds")
        table = read_table(tmp_path / "ds")
        assert table.texts == ROWS["text"] * 2
        assert table.splits == ["train"] * 3 + ["validation"] * 3
        assert "read splits train, dev; left out test, unsupervised" in table.notes[0]
        assert table.place(4) == f"{tmp_path / 'ds'}: split 'dev', row 2"

    def test_dataset_dict_without_train_says_what_it_has(self, tmp_path: Path) -> None:
        part = datasets.Dataset.from_dict(ROWS)
        datasets.DatasetDict(first=part, second=part).save_to_disk(tmp_path / "ds")
        assert "no split named 'train', only first, second" in refusal(tmp_path / "ds")

    def test_dataset_dict_takes_no_split_column(self, tmp_path: Path) -> None:
        datasets.DatasetDict(train=datasets.Dataset.from_dict(ROWS)).save_to_disk(tmp_path / "ds")
        assert "leave --split-column out" in refusal(tmp_path / "ds", Columns(split="label"))

    def test_hub_ids_are_loaded_at_their_revision(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[Any] = []

        def load_dataset(*args: Any, **options: Any) -> Any:
            calls.append((args, options))
            return datasets.DatasetDict(train=datasets.Dataset.from_dict(ROWS))

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        assert read_table("someone/reviews", revision="v2").texts == ROWS["text"]
        assert read_table("glue:sst2").labels == ROWS["label"]
        assert calls == [
            (("someone/reviews", None), {"revision": "v2"}),
            (("glue", "sst2"), {"revision": None}),
        ]

    def test_a_hub_that_cannot_be_reached_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        told = refusal("someone/no-such-dataset")
        assert told.startswith("someone/no-such-dataset: there is no such file or folder here")
        assert told.endswith("Check the path, or the id and the network")

    def test_a_hub_dataset_that_cannot_be_built_is_told(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def load_dataset(*_: Any, **__: Any) -> Any:
            raise datasets.exceptions.DatasetGenerationError("broken shard")

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        assert "it cannot be loaded: broken shard" in refusal("someone/reviews")


class TestColumns:
    @pytest.mark.parametrize("text", ["text", "Sentence", "content", "review"])
    @pytest.mark.parametrize("label", ["label", "Category", "class", "target"])
    def test_usual_names_are_found(self, tmp_path: Path, text: str, label: str) -> None:
        table = read_table(write(tmp_path / "a.csv", f"id,{label},{text}\n1,x,y\n"))
        assert (table.texts, table.labels) == (["y"], ["x"])

    def test_named_columns_are_taken(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "title,text,label\na,b,c\n")
        table = read_table(path, Columns(text="title", label="text"))
        assert (table.texts, table.labels) == (["a"], ["b"])

    def test_a_column_named_for_one_role_is_not_taken_for_the_other(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "text,review,label\na,b,c\n")
        assert read_table(path, Columns(label="review")).texts == ["a"]

    @pytest.mark.parametrize(
        ("header", "columns", "says"),
        [
            (
                "headline,text",
                Columns(),
                "no label column .*--label-column NAME.*'headline', 'text'",
            ),
            ("a,b", Columns(), "no text column .*--text-column NAME.*; no label column"),
            ("text,body,label", Columns(), "several columns could be the text, 'text', 'body'"),
            ("text,label", Columns(text="txt"), r"no column 'txt' \(--text-column\)"),
            ("text,label", Columns(split="fold"), r"no column 'fold' \(--split-column\)"),
            ("a,b,label", Columns(text="a,b"), "text pairs .*a,b.* are not supported"),
            ("premise,hypothesis,label", Columns(), "Text pairs .premise, hypothesis. are not"),
        ],
    )
    def test_doubt_is_settled_by_the_caller(
        self, tmp_path: Path, header: str, columns: Columns, says: str
    ) -> None:
        path = write(tmp_path / "a.csv", f"{header}\n{','.join('x' for _ in header.split(','))}\n")
        with pytest.raises(DataError, match=says):
            read_table(path, columns)

    def test_one_column_cannot_have_two_roles(self) -> None:
        with pytest.raises(ConfigError, match="'text' is named for two roles"):
            Columns(text="text", label="text")
        with pytest.raises(ConfigError, match="--label-column is empty"):
            Columns(label=" ")


class TestLabels:
    def test_integers_booleans_and_whole_floats_are_names_of_classes(self, tmp_path: Path) -> None:
        rows = [{"text": "x", "label": label} for label in (7, True, 2.0, " a b ")]
        labels = read_table(write_jsonl(tmp_path / "a.jsonl", rows)).labels
        assert labels == ["7", "true", "2", "a b"]

    def test_fractions_are_refused_in_every_format(self, tmp_path: Path) -> None:
        rows = [{"text": "x", "label": 1}, {"text": "y", "label": 1.5}]
        assert "row 2 (line 2) is the fraction 1.5" in refusal(
            write_jsonl(tmp_path / "a.jsonl", rows)
        )
        path = write_parquet(tmp_path / "a.parquet", {"text": ["x", "y"], "label": [1.0, 1.5]})
        assert "row 2 is the fraction 1.5" in refusal(path)
        path = write(tmp_path / "a.csv", "text,label\nx,1\ny,1.5\n")
        assert "row 2 (line 3), column 'label': labels are fractions such as 1.5" in refusal(path)

    def test_lists_are_refused_as_multi_label(self, tmp_path: Path) -> None:
        rows = [{"text": "x", "label": ["a", "b"]}]
        assert "multi-label classification is not supported" in refusal(
            write_jsonl(tmp_path / "a.jsonl", rows)
        )
        path = write_parquet(tmp_path / "a.parquet", {"text": ["x"], "label": [["a"]]})
        assert "multi-label classification is not supported" in refusal(path)

    def test_a_list_in_one_row_is_refused_by_its_place(self, tmp_path: Path) -> None:
        rows = [{"text": "x", "label": "a"}, {"text": "y", "label": ["b"]}]
        told = refusal(write_jsonl(tmp_path / "a.jsonl", rows))
        assert "column 'label': row 2 (line 2) is a list: multi-label" in told
        array = write(tmp_path / "a.json", json.dumps(rows))
        assert "row 2 is a list: multi-label" in refusal(array)

    @pytest.mark.parametrize(
        "kind",
        [pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.string(), 1),
         pa.list_view(pa.string())],
    )  # fmt: skip
    def test_every_list_type_of_arrow_is_multi_label(self, tmp_path: Path, kind: Any) -> None:
        table = {"text": pa.array(["x"]), "label": pa.array([["a"]], kind)}
        schema = pa.schema([pa.field("text", pa.string()), pa.field("label", kind)])
        from edgewright.tables.arrow import _check_types
        from edgewright.tables.columns import FoundColumns

        with pytest.raises(DataError, match="multi-label classification is not supported"):
            _check_types(schema, FoundColumns("text", "label", None), "a")
        if not pa.types.is_list_view(kind):  # which parquet cannot hold
            path = write_parquet(tmp_path / "a.parquet", table)
            assert "multi-label classification is not supported" in refusal(path)

    def test_a_dataset_of_many_labels_a_row_is_refused(self, tmp_path: Path) -> None:
        names = datasets.Sequence(datasets.ClassLabel(names=["a", "b"]))
        features = datasets.Features({"text": datasets.Value("string"), "labels": names})
        made = datasets.Dataset.from_dict({"text": ["x"], "labels": [[0, 1]]}, features=features)
        made.save_to_disk(str(tmp_path / "set"))
        assert "multi-label classification is not supported" in refusal(tmp_path / "set")

    @pytest.mark.parametrize("label", ["['a', 'b']", '["a"]', "[]", "[1, 2]"])
    def test_a_list_written_out_in_a_csv_cell_is_one_too(self, tmp_path: Path, label: str) -> None:
        path = write(tmp_path / "a.tsv", f"text\tlabel\nx\ta\ny\t{label}\n")
        assert f"row 2 (line 3) is the list {label}: multi-label" in refusal(path)

    def test_separators_and_brackets_within_a_name_are_part_of_it(self, tmp_path: Path) -> None:
        names = ["a;b", "a|b", "[spam]", "[", "a & b"]
        rows = [{"text": name, "label": name} for name in names]
        assert read_table(write_jsonl(tmp_path / "a.jsonl", rows)).labels == names

    def test_several_label_columns_are_refused_as_multi_label(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "text,toxic,rude\nx,1,0\ny,0,1\n")
        told = refusal(path, Columns(label="toxic,rude"))
        assert "several label columns" in told
        assert "multi-label classification is not supported, name one column" in told
        assert "no column 'toxic,no'" in refusal(path, Columns(label="toxic,no"))

    def test_numbers_with_fractions_are_called_regression(self, tmp_path: Path) -> None:
        rows = [{"text": "x", "label": 0.5}]
        assert "regression is not supported" in refusal(write_jsonl(tmp_path / "a.jsonl", rows))
        for number in ("1.5", ".5", "-2e-1"):
            path = write(tmp_path / "a.csv", f"text,label\nx,1\ny,{number}\n")
            assert "regression is not supported" in refusal(path)

    def test_floats_that_are_whole_by_chance_are_called_regression(self, tmp_path: Path) -> None:
        prices = [float(100 + 7 * row) for row in range(40)]
        texts = [f"house {row}" for row in range(40)]
        path = write_parquet(tmp_path / "a.parquet", {"text": texts, "label": prices})
        assert "40 different numbers in 40 rows" in refusal(path)
        lines = "".join(f"{text},{price}\n" for text, price in zip(texts, prices, strict=True))
        assert "regression is not supported" in refusal(
            write(tmp_path / "a.csv", f"text,label\n{lines}")
        )

    def test_many_integers_and_few_floats_are_classes(self, tmp_path: Path) -> None:
        texts = [f"house {row}" for row in range(40)]
        many = write_parquet(tmp_path / "a.parquet", {"text": texts, "label": list(range(40))})
        assert len(set(read_table(many).labels)) == 40
        few = [float(row % 3) for row in range(40)]
        path = write_parquet(tmp_path / "b.parquet", {"text": texts, "label": few})
        assert set(read_table(path).labels) == {"0", "1", "2"}

    def test_a_missing_label_is_refused_by_row(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "text,label\nx,a\ny, \nz,\n")
        told = refusal(path)
        assert "column 'label': row 2 (line 3) has no label, row 3 (line 4) has no label" in told
        nan = write_parquet(tmp_path / "a.parquet", {"text": ["x"], "label": [float("nan")]})
        assert "row 1 has no label" in refusal(nan)

    def test_a_class_number_without_a_name_is_no_label(self, tmp_path: Path) -> None:
        features = datasets.Features(
            text=datasets.Value("string"), label=datasets.ClassLabel(names=["neg", "pos"])
        )
        columns = {"text": ["a", "b"], "label": [1, -1]}
        datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "ds")
        assert "column 'label': row 2 has no label" in refusal(tmp_path / "ds")


class TestTexts:
    def test_empty_texts_are_refused_the_first_five_by_row(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "text,label\nok,a\n" + '" \t ",b\n' * 7)
        told = refusal(path)
        assert "column 'text': row 2 (line 3) has an empty text" in told
        assert "row 6 (line 7) has an empty text, and 2 more rows" in told
        assert "row 7" not in told

    @pytest.mark.parametrize(
        ("value", "says"),
        [
            (3, "is a number, expected a string"),
            (None, "has no text"),
            (["a"], "is a list, expected a string"),
            ({"a": 1}, "is an object, expected a string"),
            (True, "is a boolean, expected a string"),
            ("\ud800", "holds half of a surrogate pair"),
        ],
    )
    def test_a_text_of_another_type_is_refused_by_row(
        self, tmp_path: Path, value: object, says: str
    ) -> None:
        rows = [{"text": "ok", "label": "a"}, {"text": value, "label": "a"}]
        told = refusal(write_jsonl(tmp_path / "a.jsonl", rows))
        assert f"a.jsonl: column 'text': row 2 (line 2) {says}" in told

    def test_a_text_column_of_numbers_in_parquet_is_refused(self, tmp_path: Path) -> None:
        path = write_parquet(tmp_path / "a.parquet", {"text": [1, 2], "label": ["a", "b"]})
        assert "text column 'text' is of type int64, expected strings" in refusal(path)

    def test_faults_of_text_and_label_are_told_together(self, tmp_path: Path) -> None:
        told = refusal(write(tmp_path / "a.csv", "text,label\n,a\nb,\n"))
        assert "column 'text': row 1 (line 2)" in told
        assert "column 'label': row 2 (line 3)" in told


class TestSplits:
    def test_a_split_column_gives_splits_by_their_usual_names(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "text,label,fold\na,x,Train\nb,x,dev\nc,y,test\nd,y,\n")
        table = read_table(path, Columns(split="fold"))
        assert table.splits == ["train", "validation", "test", None]

    def test_an_unknown_split_is_refused_by_row(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "text,label,fold\na,x,train\nb,x,holdout\n")
        told = refusal(path, Columns(split="fold"))
        assert "column 'fold': row 2 (line 3) says 'holdout', expected one of train" in told


class TestFiles:
    def test_a_missing_file_is_not_looked_for_on_the_hub(self, tmp_path: Path) -> None:
        for name in ("none.csv", "sub/none.parquet", "none"):
            assert "there is no such file" in refusal(tmp_path / name)
        assert "there is no such file" in refusal("none.csv")

    def test_a_file_of_unknown_kind_is_refused(self, tmp_path: Path) -> None:
        told = refusal(write(tmp_path / "a.xlsx", "x"))
        assert "unknown kind of file '.xlsx', expected one of .csv, .tsv" in told

    def test_a_folder_that_is_no_dataset_is_refused(self, tmp_path: Path) -> None:
        assert "is a folder, but none written by save_to_disk" in refusal(tmp_path)
        write(tmp_path / "manifest.json", "{}")
        assert "is an edgewright artifact" in refusal(tmp_path)
        write(tmp_path / "state.json", "{}")
        assert "cannot be read as a dataset" in refusal(tmp_path)

    @pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json"])
    def test_an_empty_file_is_refused(self, tmp_path: Path, suffix: str) -> None:
        assert "is empty" in refusal(write(tmp_path / f"a.{suffix}", ""))

    def test_a_table_without_rows_is_refused(self, tmp_path: Path) -> None:
        assert "holds no rows" in refusal(write(tmp_path / "a.csv", "text,label\n"))
        assert "holds no rows" in refusal(write(tmp_path / "a.jsonl", "\n\n"))
        assert "empty array" in refusal(write(tmp_path / "a.json", "[]"))
        empty = {"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}
        assert "holds no rows" in refusal(write_parquet(tmp_path / "a.parquet", empty))

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ('{"text": "b", "label"}', "is not JSON"),
            ("[1, 2]", "is a list, expected an object"),
            ("null", "is null, expected an object"),
            ('{"text": "b", "label": "x\0"}', "holds a NUL byte"),
            ("[" * 200_000, "is not usable JSON"),
            ('{"text": "b", "label": ' + "1" * 5000 + "}", "is not usable JSON"),
        ],
    )
    def test_broken_json_lines_are_refused_by_row_and_line(
        self, tmp_path: Path, line: str, says: str
    ) -> None:
        path = write(tmp_path / "a.jsonl", '\n{"text": "a", "label": "x"}\n\n' + line + "\n")
        assert f"a.jsonl: row 2 (line 4): {says}" in refusal(path)

    def test_a_broken_json_array_is_refused_by_line(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.json", '[\n{"text": "a"},\n{"text"}\n]')
        assert "a.json: line 3: is not JSON" in refusal(path)
        path = write(tmp_path / "b.json", '[{"text": "a", "label": "b"}, 3]')
        assert "b.json: row 2: is a number, expected an object" in refusal(path)

    def test_a_file_that_only_claims_to_be_parquet_is_refused(self, tmp_path: Path) -> None:
        assert "cannot be read as parquet" in refusal(write(tmp_path / "a.parquet", "text,label"))
        whole = write_parquet(tmp_path / "b.parquet", ROWS).read_bytes()
        assert "cannot be read as parquet" in refusal(write(tmp_path / "c.parquet", whole[:-20]))

    def test_parquet_strings_that_are_not_utf8_are_refused(self, tmp_path: Path) -> None:
        latin = pa.Array.from_buffers(
            pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xe9")]
        )
        path = write_parquet(tmp_path / "a.parquet", {"text": latin, "label": ["x"]})
        assert "not UTF-8" in refusal(path)
