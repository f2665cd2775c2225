"""``kdbench score --table FILE.csv``: anybody's own numbers, read without guessing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from survey_models import GOLDEN, GOLDEN_TEACHER

import kdbench.cli
from kdbench.errors import KdbenchError
from kdbench_survey_metric.cohort import Cohort
from kdbench_survey_metric.table import read_table

Write = Callable[..., Path]

GOLDEN_TABLE = "\n".join(
    [
        "name,size,accuracy,role",
        f"ResNet44,100,{GOLDEN_TEACHER},teacher",
        *(f"{name},{size},{accuracy},student" for name, (size, accuracy, _) in GOLDEN.items()),
    ]
)
GOOD = "name,size,accuracy\nteacher,1000,0.9\na,200,0.8\n"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str | bytes) -> Path:
        path = tmp_path / "numbers.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def read(path: Path, **options: Any) -> Cohort:
    return read_table(path, **{"size_unit": "parameters", "accuracy_unit": "fraction", **options})


def scored(capsys: pytest.CaptureFixture[str], path: Path, *args: str) -> Any:
    with pytest.raises(SystemExit) as exit:
        kdbench.cli.main(["score", "--table", str(path), "--json", *args])
    out, err = capsys.readouterr()
    assert exit.value.code == 0, err
    return json.loads(out)


def test_the_golden_rows_of_the_sheet(capsys: pytest.CaptureFixture[str], write: Write):
    found = scored(capsys, write(GOLDEN_TABLE), "--accuracy-unit", "percent")
    rows = {row["name"]: row for row in found["rows"]}
    for name, (_, _, reported) in GOLDEN.items():
        assert rows[name]["score"]["value"] == pytest.approx(reported, abs=5e-4)
    assert found["crossovers"] == pytest.approx([0.0954, 0.2242, 0.7052], abs=1e-3)
    assert [segment["winners"] for segment in found["winners"]] == [["62.84"], ["35.36"], ["15.25"], ["3.74"]]
    assert [rows[name]["rank"] for name in GOLDEN] == [4, 2, 1, 3]
    assert rows["ResNet44"]["score"]["value"] == 0.5
    assert rows["constant predictor"]["score"]["type"] == "unknown"


def test_the_golden_rows_on_the_terminal(capsys: pytest.CaptureFixture[str], write: Write):
    with pytest.raises(SystemExit):
        kdbench.cli.main(["score", "--table", str(write(GOLDEN_TABLE)), "--accuracy-unit", "percent"])
    out = capsys.readouterr().out
    ranked = [line.split()[:5] for line in out.splitlines() if line.startswith(tuple(GOLDEN))]
    assert ranked == [
        ["15.25", "1", "0.1525", "62.87", "0.1382"],
        ["35.36", "2", "0.3536", "67.04", "0.2097"],
        ["3.74", "3", "0.0374", "43.11", "0.2183"],
        ["62.84", "4", "0.6284", "69.12", "0.3326"],
    ]
    assert "62.84 up to 0.0954, 35.36 up to 0.2242, 15.25 up to 0.7052, 3.74 up to 1" in " ".join(out.split())
    header = next(line for line in out.splitlines() if "DS-chance" in line)
    assert header.split() == ["rank", "size", "accuracy", "DS", "DS-chance", "dDS", "gap", "closed", "front"]


def test_plain_accuracies_and_the_majority(capsys: pytest.CaptureFixture[str], write: Write):
    path = write("name,size,accuracy,role,plain\nbig,1000,0.9,teacher,\na,200,0.8,,0.7\nb,100,0.6,student,\n")
    found = scored(capsys, path, "--majority", "0.4")
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["a"]["gain"]["value"] == pytest.approx(0.5 * 0.1 / 0.9)
    assert rows["a"]["gap_closed"]["value"] == pytest.approx(0.5)
    assert rows["a"]["chance_adjusted"]["value"] == pytest.approx(0.1 + 0.5 * (1 - 0.4 / 0.5))
    assert rows["b"]["gain"]["type"] == "unknown"
    assert rows["constant predictor"]["score"]["value"] == pytest.approx(0.5 * (1 - 0.4 / 0.9))


@pytest.mark.parametrize("missing", ["", "-", "  "])
def test_what_is_missing_is_unknown_and_never_0(capsys: pytest.CaptureFixture[str], write: Write, missing: str):
    path = write(
        f"name,size,accuracy,plain\nteacher,1000,0.9,\na,{missing},0.8,0.7\nb,100,{missing},\nc,100,0.6,{missing}\n"
    )
    rows = {row["name"]: row for row in scored(capsys, path)["rows"]}
    for name, reason in (("a", "the size of 'a' is unknown"), ("b", "the accuracy of 'b' is unknown")):
        assert rows[name]["score"] == {"type": "unknown", "reason": reason}
        assert rows[name]["rank"] is None
        assert rows[name]["front"] == "unknown"
    assert rows["a"]["gain"]["value"] == pytest.approx(0.5 * 0.1 / 0.9)  # it needs no size
    assert rows["c"]["rank"] == 1


def test_a_teacher_without_a_size_leaves_every_score_unknown(capsys: pytest.CaptureFixture[str], write: Write):
    found = scored(capsys, write("name,size,accuracy\nteacher,,0.9\na,200,0.8\n"))
    assert {row["score"]["type"] for row in found["rows"]} == {"unknown"}
    assert found["winners"] == []


@pytest.mark.parametrize(
    ("text", "wanted", "expected"),
    [
        ("name,size,accuracy\nteacher,1000,0.9\na,200,0.8\n", None, "teacher"),
        ("name,size,accuracy\nbig,1000,0.9\na,200,0.8\n", "big", "big"),
        ("name,size,accuracy\nteacher,1000,0.9\na,200,0.8\n", "a", "a"),
        ("name,size,accuracy,role\nbig,1000,0.9,teacher\nteacher,200,0.8,student\n", None, "big"),
        ("role,accuracy,name,size\nteacher,0.9,big,1000\n,0.8,a,200\n", "big", "big"),
    ],
)
def test_the_teacher_is_named_or_has_its_role(write: Write, text: str, wanted: str | None, expected: str):
    cohort = read(write(text), teacher=wanted)
    assert cohort.teacher.name == expected
    assert len(cohort.students) == 1


def test_units_are_those_declared(write: Write):
    cohort = read(write("name,size,accuracy\nteacher,1000,90\na,200,80\n"), size_unit="MACs", accuracy_unit="percent")
    assert (str(cohort.teacher.size), str(cohort.students[0].accuracy)) == ("1,000 MACs", "80 %")


def test_a_file_as_a_spreadsheet_writes_it(write: Write):
    """A byte order mark, lines that end as on Windows, blank lines, spaces, quotes, and a comma in a name."""
    text = 'name, size ,accuracy\r\n\r\nteacher, 1e3 ,0.9\r\n"a, pruned",200,0.8\r\n,,\r\n'
    cohort = read(write(b"\xef\xbb\xbf" + text.encode()))
    assert [student.name for student in cohort.students] == ["a, pruned"]
    assert str(cohort.teacher.size) == "1,000 parameters"


@pytest.mark.parametrize(
    ("text", "what", "place"),
    [
        (GOOD + "b,many,0.7\n", "'many' is not a number", "line 4, column 'size'"),
        (GOOD + 'b,"1,000",0.7\n', "'1,000' is not a number", "line 4, column 'size'"),
        (GOOD + "b,1_00,0.7\n", "'1_00' is not a number", "line 4, column 'size'"),
        (GOOD + "b,\u0661\u0660,0.7\n", "'\u0661\u0660' is not a number", "line 4, column 'size'"),
        (GOOD + "b,1e999,0.7\n", "'1e999' is not a number", "line 4, column 'size'"),
        (GOOD + "b,100,nan\n", "'nan' is not a number", "line 4, column 'accuracy'"),
        (GOOD + "b,inf,0.7\n", "'inf' is not a number", "line 4, column 'size'"),
        (GOOD + "b,0,0.7\n", "size is 0, not above 0", "line 4, column 'size'"),
        (GOOD + "b,-3,0.7\n", "size is -3, not above 0", "line 4, column 'size'"),
        (GOOD + "b,100,95\n", "accuracy is 95, above 1", "line 4, column 'accuracy'"),
        (GOOD + "b,100,-0.1\n", "accuracy is -0.1, below 0", "line 4, column 'accuracy'"),
        (GOOD + "a,100,0.7\n", "'a' is already on line 3", "line 4, column 'name'"),
        (GOOD + ",100,0.7\n", "the model has no name", "line 4, column 'name'"),
        (GOOD + "b,100\n", "2 fields for 3 columns", "line 4"),
        (GOOD + "b,1,000,0.7\n", "4 fields for 3 columns", "line 4"),
        ("name,size,accuracy\nteacher,1000,0\na,1,0.5\n", "the teacher's accuracy is 0", "line 2, column 'accuracy'"),
        ("name,size,accuracy,plain\nteacher,9,0.9,0.8\na,1,0.5,\n", "the teacher has an accuracy without a teacher",
         "line 2, column 'plain'"),
        ("name,size,accuracy,plain\nteacher,9,0.9,\na,1,0.5,x\n", "'x' is not a number", "line 3, column 'plain'"),
        ("name,size,accuracy,role\na,9,0.9,teacher\nb,1,0.5,teacher\n", "'b' is a second teacher beside 'a'",
         "line 3, column 'role'"),
        ("name,size,accuracy,role\na,9,0.9,teecher\nb,1,0.5,\n", "unknown role 'teecher'", "line 2, column 'role'"),
        ("name,size,accuracy,role\nteacher,9,0.9,student\nb,1,0.5,\n", "'teacher' is a student, not the teacher",
         "line 2, column 'role'"),
        ("name,sise,accuracy\n", "unknown column 'sise'", "line 1"),
        ("name,size\n", "there is no column 'accuracy'", "line 1"),
        ("name,size,size,accuracy\n", "column 'size' stands there 2 times", "line 1"),
        ("", "there is no column 'name'", "line 1"),
        ("name,size,accuracy\na,9,0.9\nb,1,0.5\n", "no line is the teacher's", ""),
        ("name,size,accuracy\nteacher,9,0.9\n", "there is no student in the table", ""),
        ('name,size,accuracy\n"teacher,9,0.9\n', "the table does not read as CSV", ""),
        (b"name,size,accuracy\nteacher,9,0.9\n\xff\xfe,1,0.5\n", "the table is not text in UTF-8", ""),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_with_line_and_column(write: Write, text: str | bytes, what: str, place: str):
    path = write(text)
    with pytest.raises(KdbenchError) as error:
        read(path)
    assert error.value.what.startswith(what)
    assert error.value.where == (f"{path}, {place}" if place else str(path))


def test_line_numbers_count_lines_that_a_field_runs_over(write: Write):
    with pytest.raises(KdbenchError) as error:
        read(write('name,size,accuracy\nteacher,9,0.9\n\n"a\nb",1,0.5\nc,x,0.5\n'))
    assert (error.value.where or "").endswith("line 6, column 'size'")


def test_names_that_the_teacher_option_gets_wrong(write: Write):
    path = write("name,size,accuracy,role\nbig,1000,0.9,teacher\na,200,0.8,\n")
    with pytest.raises(KdbenchError, match=r"unknown teacher 'bag'; did you mean 'big'\?"):
        read(path, teacher="bag")
    with pytest.raises(KdbenchError, match="--teacher says 'a', the table says otherwise") as error:
        read(path, teacher="a")
    assert error.value.where == f"{path}, line 2, column 'role'"


@pytest.mark.parametrize(
    ("majority", "message"),
    [(1.5, "accuracy is 1.5, above 1"), (-1.0, "accuracy is -1, below 0"), (float("nan"), "accuracy is nan")],
)
def test_a_majority_is_an_accuracy(write: Write, majority: float, message: str):
    with pytest.raises(KdbenchError, match=message) as error:
        read(write(GOOD), majority=majority)
    assert error.value.where == "--majority"


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(KdbenchError, match="the table cannot be read: No such file or directory") as error:
        read(tmp_path / "nowhere.csv")
    assert error.value.where == str(tmp_path / "nowhere.csv")


def test_a_student_may_not_be_called_what_another_row_is(capsys: pytest.CaptureFixture[str], write: Write):
    path = write("name,size,accuracy\nteacher,1000,0.9\nconstant predictor,200,0.8\n")
    with pytest.raises(SystemExit) as exit:
        kdbench.cli.main(["score", "--table", str(path)])
    assert exit.value.code == 1
    assert "two rows are called 'constant predictor'" in capsys.readouterr().err


def test_percent_that_looks_like_fractions_is_warned_of(capsys: pytest.CaptureFixture[str], write: Write):
    found = scored(capsys, write(GOOD), "--accuracy-unit", "percent")
    assert any("is it a fraction?" in note for note in found["notes"])
