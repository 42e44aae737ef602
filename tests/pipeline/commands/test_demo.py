"""The demo, run once as a user runs it, and its parts."""

import contextlib
import importlib.util
import io
import shlex
import struct
from types import SimpleNamespace

import pytest

from pipeline.commands import demo
from pipeline.demonstration import digits, findings
from pipeline.flags import parser
from transforms.influence.rows import read_rows


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    directory = tmp_path_factory.mktemp("demo")
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(told):
        patch.setenv("COLUMNS", "80")
        for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
            patch.delenv(name, raising=False)
        status = demo.run([f"--output={directory}"])
    assert status == 0
    return SimpleNamespace(directory=directory, told=told.getvalue())


@pytest.fixture(scope="module")
def parts():
    return digits.load()


def test_self_influence_finds_the_planted_labels(story, parts):
    train, _ = parts
    inspection = findings.inspect(
        *findings.read_features(f"{story.directory}/influence/train_features"), train
    )
    assert inspection.found[-1] == 140
    assert inspection.found[inspection.first(0.1)] >= 0.5 * 140
    assert inspection.found[inspection.first(0.2)] >= 0.6 * 140
    assert train.planted[inspection.order[:5]].all()


def test_rows_are_those_of_the_test_digits(story, parts):
    train, test = parts
    rows = read_rows(f"{story.directory}/influence")
    assert [row["test_id"] for row in rows] == list(test.ids)
    assert [row["test_label"] for row in rows] == test.truth.tolist()
    given = dict(zip(train.ids, train.labels.tolist(), strict=True))
    for row in rows:
        for candidate in row["proponents"] + row["opponents"]:
            assert candidate["train_label"] == given[candidate["train_id"]]


def test_worst_digits_are_those_with_the_least_likely_truth(story, parts):
    train, test = parts
    features, _ = findings.read_features(f"{story.directory}/influence/test_features")
    rows = {row["test_id"]: row for row in read_rows(f"{story.directory}/influence")}
    traced = findings.trace_worst(features, rows, train, test)
    probabilities = [one.label_probability for one in traced]
    assert probabilities == sorted(features.label_probabilities[:, -1])[:5]
    for one in traced:
        assert one.prediction != test.truth[one.row]
        row = rows[test.ids[one.row]]
        assert [train.ids[candidate.row] for candidate in one.opponents] == [
            candidate["train_id"] for candidate in row["opponents"]
        ]


def test_what_is_told(story):
    lines = story.told.splitlines()
    for piece in (
        "140 training labels (10%) are now wrong",
        "kept 6 checkpoints",
        "proponents",
        "opponents",
        "read as",
        "labelled",
        "WRONG: a",
        "of 140 (",
        "demo.png",
        "influence-00000.jsonl",
        "tracin score",
    ):
        assert piece in story.told, piece
    assert any(set("▀▄█") & set(line) for line in lines)
    assert "\x1b" not in story.told
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("test digit")) :]
    ids = next(line for line in table if line.startswith("test-"))
    assert ids.count("train-") == 6
    assert max(len(line) for line in table if str(story.directory) not in line) <= 80


def test_told_command_is_one_that_the_command_line_takes(story):
    told = story.told[story.told.index("  tracin influence") :].split("\n\n")[0]
    words = shlex.split(told.replace("\\\n", " "))
    assert words[:2] == ["tracin", "influence"]
    args, left = parser.parse("influence", words[2:])
    assert left == []
    assert not args.overwrite and args.id_key == "id" and args.k == 5
    assert args.output == f"{story.directory}/influence"


def test_picture(story):
    data = (story.directory / "demo.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    assert 1200 <= width <= 2600 and 600 <= height <= 1600
    assert 50_000 < len(data) < 2_000_000


def test_complete_demo_is_left_alone(story, capfd):
    before = {path: path.stat().st_mtime_ns for path in story.directory.rglob("*")}
    assert demo.run([f"--output={story.directory}"]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert "--overwrite" in captured.err
    assert {path: path.stat().st_mtime_ns for path in story.directory.rglob("*")} == before


@pytest.mark.parametrize("output", ["gs://bucket/demo", "a,b"])
def test_output_that_flags_cannot_name_is_refused(output, capfd):
    assert demo.run([f"--output={output}"]) == 2
    assert "--output=" in capfd.readouterr().err


def test_unknown_flag_is_refused_before_any_work(tmp_path, capfd):
    assert demo.run([f"--output={tmp_path}", "--no_such_thing=1"]) == 2
    assert "--no_such_thing" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["sklearn", "matplotlib"])
def test_missing_package_is_one_line(missing, tmp_path, monkeypatch, capfd):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else find(name)
    )
    assert demo.run([f"--output={tmp_path}"]) == 2
    captured = capfd.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert "pip install 'tracin-beam[demo]'" in captured.err
