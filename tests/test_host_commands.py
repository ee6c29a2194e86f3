"""``edgewright tune``: what this host measures and counts of a bundle, and who follows it."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from serve.bundles import LABELS, Recipe, make_bundle, other_variant, preprocessor, random_texts

from edgewright.backends import get_backend
from edgewright.bundle import Against, Bundle, Verdict
from edgewright.cli import run
from edgewright.latency import Latency, Timing
from edgewright.proof import host_trial
from edgewright.serve.host_choice import ChosenBy, HostOptions, choose

FP32, WEAK = "onnxruntime-fp32", "onnxruntime-weak"
SAME = "onnxruntime-same-under-a-name-of-some-length"
RECIPE = Recipe(
    isa="x86_64-elsewhere",
    chosen=WEAK,
    extra=(other_variant(SAME), other_variant(WEAK)),
    weak=(WEAK,),
)


def timings(runs: Any, *_: Any, **__: Any) -> dict[str, Timing]:
    """In place of timing: WEAK is three times as fast as fp32, SAME twice."""
    speeds = {FP32: 1.0, SAME: 2.0, WEAK: 3.0}
    return {
        name: Timing(
            {"1x4": Latency(1 / speed, None, None, 9)},
            1 / speed,
            speed,
            0.95 * speed,
            1.05 * speed,
        )
        for name, speed in speeds.items()
        if name in runs
    }


@dataclass
class Tune:
    """The command on one bundle, with a state folder of its own."""

    bundle: Path
    state: Path
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *options: str, code: int = 0) -> tuple[str, str]:
        assert run(["tune", str(self.bundle), "--state-dir", str(self.state), *options]) == code
        out, err = self.capsys.readouterr()
        return out, err

    def json(self, *options: str) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self(*options, "--json")[0])
        return told

    def served(self) -> tuple[str, ChosenBy]:
        choice = choose(Bundle.open(self.bundle), None, HostOptions(self.state))
        return choice.variant.name, choice.by


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("tune") / "bundle", RECIPE)


@pytest.fixture
def tune(
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Tune:
    monkeypatch.setattr(host_trial, "compare", timings)
    return Tune(bundle, tmp_path / "state", capsys)


def write_rows(file: Path, texts: Sequence[str], labels: Sequence[str]) -> Path:
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *zip(texts, labels, strict=True)])
    return file


def fp32_answers(bundle: Path, texts: Sequence[str]) -> list[str]:
    session = get_backend("onnxruntime").load(bundle / "variants" / "fp32.onnx", threads=1)
    logits = session.run(preprocessor()(texts).arrays)["logits"]
    return [LABELS[label] for label in logits.argmax(axis=1).tolist()]


@pytest.fixture(scope="module")
def field_rows(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows whose labels are what fp32 answers: whoever differs from it has lost a row."""
    texts = random_texts(900)
    file = tmp_path_factory.mktemp("field") / "field.csv"
    return write_rows(file, texts, fp32_answers(bundle, texts))


def by_name(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in record["variants"]}


def test_without_data_the_fastest_is_chosen_and_nothing_is_claimed_of_it(tune: Tune) -> None:
    told = tune.json()
    assert told["chosen"] == WEAK
    assert {each["verdict"] for each in told["variants"]} == {"UNVERIFIED"}
    assert by_name(told)[WEAK]["speed"]["speedup_interval"] == pytest.approx([2.85, 3.15])
    assert Path(told["record"]).is_relative_to(tune.state)


def test_it_is_told_in_words_too(tune: Tune) -> None:
    out, err = tune()
    assert f"  * {WEAK}" in out
    assert "3.00x fp32 (2.85 to 3.15)  UNVERIFIED" in out
    assert f"optimize chose {WEAK}" in out
    assert f"measuring {FP32}, {SAME}, {WEAK} at " in err
    assert len({line.index(" ms ") for line in out.splitlines() if "x fp32" in line}) == 1


def test_inspect_puts_the_variants_in_columns(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(bundle)]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if " MB  " in line]
    assert len(told) == 3
    assert len({line.index(" MB ") for line in told}) == 1


@pytest.mark.parametrize(
    ("against", "words"),
    [
        (Against.LABELS, "loses at most 1.00 points of accuracy"),
        (Against.REFERENCE, "answers at most 1.00% of rows otherwise than the model"),
    ],
)
def test_inspect_tells_what_a_certificate_bounds(
    against: Against,
    words: str,
    bundle: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = Bundle.open(bundle)
    (first, *_) = opened.variants
    assert first.certificate is not None
    given = replace(first.certificate, against=against, loss_upper_bound=0.01)
    shown = replace(first, certificate=given)
    proven = replace(opened, variants=(shown,), choice={"variant": shown.name})
    monkeypatch.setattr(Bundle, "open", lambda _path: proven)
    assert run(["inspect", str(bundle)]) == 0
    assert f"PASS, {words} (n={given.n})" in capsys.readouterr().out


def test_on_the_certified_host_a_pass_that_holds_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_trial, "compare", timings)
    here = Tune(make_bundle(tmp_path / "bundle"), tmp_path / "state", capsys)
    assert by_name(here.json())[FP32]["verdict"] == "PASS"


def test_rows_prove_one_variant_and_rule_another_out(tune: Tune, field_rows: Path) -> None:
    told = tune.json("--data", str(field_rows))
    same, weak = (by_name(told)[name]["recount"] for name in (SAME, WEAK))
    assert by_name(told)[SAME]["verdict"] == "VERIFIED"
    assert (same["lost"], same["won"]) == (0, 0)
    assert 0 < same["loss_upper_bound"] <= 0.01
    assert by_name(told)[WEAK]["verdict"] == "FAIL"
    assert weak["lost"] > 0.01 * weak["n"]
    assert weak["loss_lower_bound"] > 0.01
    assert (weak["error_rate"], same["error_rate"]) == (
        0.03,
        0.01,
    )  # the fastest has the first slot
    assert by_name(told)[FP32]["recount"] is None
    assert told["chosen"] == SAME


def test_the_server_follows_what_was_counted(tune: Tune, field_rows: Path) -> None:
    tune("--data", str(field_rows))
    assert tune.served() == (SAME, ChosenBy.HOST)
    choice = choose(Bundle.open(tune.bundle), None, HostOptions(tune.state))
    assert choice.recount is not None
    assert choice.recount.verdict is Verdict.VERIFIED


def test_what_was_counted_outlives_measuring_again(tune: Tune, field_rows: Path) -> None:
    tune("--data", str(field_rows))
    assert by_name(tune.json())[SAME]["verdict"] == "VERIFIED"
    assert tune.json()["chosen"] == SAME


def test_the_same_rows_give_the_same_counts_without_being_asked_again(
    tune: Tune, field_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tune.json("--data", str(field_rows))

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("rows were asked again")

    monkeypatch.setattr("edgewright.proof.host_recount.predict_logits", refuse)
    assert tune.json("--data", str(field_rows))["variants"] == first["variants"]


def test_too_few_rows_prove_nothing_and_it_says_how_many_would(
    tune: Tune, bundle: Path, tmp_path: Path
) -> None:
    texts = random_texts(60)
    rows = write_rows(tmp_path / "few.csv", texts, fp32_answers(bundle, texts))
    out, err = tune("--data", str(rows))
    assert "even a variant that never differs from fp32 needs 349" in err
    assert "VERIFIED" not in out.replace("UNVERIFIED", "")
    assert "rows would pass" in out


def test_a_class_without_rows_is_told(tune: Tune, bundle: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "one.csv", ["bank shares", "vote law"], ["sport", "politics"])
    assert "no row has the label business" in tune("--data", str(rows))[1]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("text,label\nbank shares,weather\n", "labels that the model does not know"),
        ("text,label\nbank shares,\n", "row 1"),
        ("words,topic\n", "Its columns are"),
        (None, "there is no such file"),
    ],
    ids=["unknown label", "no label", "no column", "no file"],
)
def test_rows_that_cannot_be_used_are_refused_before_anything_is_measured(
    tune: Tune, tmp_path: Path, rows: str | None, said: str
) -> None:
    file = tmp_path / "rows.csv"
    if rows is not None:
        file.write_text(rows)
    _, err = tune("--data", str(file), code=2)
    assert said in err
    assert not tune.state.exists()


def test_images_for_a_model_of_texts_are_refused(tune: Tune, tmp_path: Path) -> None:
    for label in LABELS:
        (tmp_path / "pets" / label).mkdir(parents=True)
        (tmp_path / "pets" / label / "1.png").write_bytes(b"")
    _, err = tune("--data", str(tmp_path / "pets"), code=2)
    assert "holds images" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--workload", "1x"), "workload '1x'"),
        (("--workload", "1x99"), "reads at most 16 tokens, so give shapes such as 1x16"),
        (("--threads", "0"), "--threads"),
        (("--seconds", "0"), "--seconds is 0; it must be above 0 seconds"),
        (("--seconds", "inf"), "--seconds is inf; it must be above 0 seconds"),
        (("--seconds", "nan"), "--seconds is nan; it must be above 0 seconds"),
        (("--label-column", "class"), "where in --data the rows are; give --data too"),
    ],
)
def test_options_that_cannot_work_are_exit_2(
    tune: Tune, options: tuple[str, ...], said: str
) -> None:
    assert said in tune(*options, code=2)[1]


def test_a_state_folder_that_cannot_be_written_is_named(tune: Tune) -> None:
    tune.state.write_text("in the way")
    told = tune(code=2)[1]
    assert "give a folder that can with --state-dir" in told
    assert "measuring" not in told, "minutes are spent on what cannot be kept"


def test_a_damaged_record_is_left_aside_with_a_warning(tune: Tune) -> None:
    file = Path(tune.json()["record"])
    file.write_bytes(b"{")
    told = tune()[1]
    assert f"warning: what this host measured of {tune.bundle} is left aside: {file} " in told
    assert tune()[1].count("warning") == 0


def test_the_workload_that_is_given_is_the_one_timed(tune: Tune) -> None:
    assert tune.json("--workload", "1x4,8x16:3")["workload"] == "1x4:1.0,8x16:3.0"


def test_a_bundle_without_fp32_cannot_be_counted_against(
    tmp_path: Path, tune: Tune, field_rows: Path
) -> None:
    recipe = Recipe(
        isa="x86_64-elsewhere", chosen=SAME, extra=(other_variant(SAME),), wrong_goldens=(FP32,)
    )
    tune.bundle = make_bundle(tmp_path / "bundle", recipe)
    assert "nothing to count losses against" in tune("--data", str(field_rows), code=2)[1]


def test_it_times_for_real(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No stand-in."""
    told = Tune(bundle, tmp_path / "state", capsys).json("--seconds", "8")
    assert all(each["speed"]["workload_ms"] > 0 for each in told["variants"])
    assert by_name(told)[FP32]["speed"]["speedup"] == 1.0


def test_inspect_tells_whose_choice_it_is(tune: Tune, field_rows: Path) -> None:
    inspect = ["inspect", str(tune.bundle), "--state-dir", str(tune.state)]
    assert run(inspect) == 0
    assert "this host  has measured nothing" in tune.capsys.readouterr().out
    tune("--data", str(field_rows))
    tune("--threads", "2")
    assert run(inspect) == 0
    told = tune.capsys.readouterr().out
    assert f"this host  chose {SAME} " in told
    assert "threads 1): 2.00x fp32, VERIFIED" in told
    assert f"this host  chose {WEAK} " in told
    assert "threads 2): 3.00x fp32, UNVERIFIED" in told
    assert run([*inspect, "--json"]) == 0
    value = json.loads(tune.capsys.readouterr().out)
    assert value["chosen"] == WEAK
    assert [record["chosen"] for record in value["host_records"]] == [SAME, WEAK]
