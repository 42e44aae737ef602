"""The parsers of the commands: help, values, and mistakes in flags."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest

from pipeline.flags import parser
from pipeline.flags.declarations import kinds
from pipeline.flags.declarations.commands import COMMANDS, flags_of
from pipeline.flags.declarations.flag import Flag, commands
from tests.conftest import Outcome

Run = Callable[..., Outcome]
FEATURES = ("--examples=e", "--checkpoints=c", "--output=o")
SCORE = ("--train_features=a", "--test_features=b", "--output=o")
ROOT = pathlib.Path(__file__).parents[3]


def assert_told(outcome: Outcome, *parts: str) -> None:
    """Nothing was started, and one line says why."""
    assert outcome.status == 2, outcome
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    for part in parts:
        assert part in outcome.err, outcome.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_flag_with_what_it_does(tracin: Run, command: str) -> None:
    outcome = tracin(command, "--help")
    assert outcome.status == 0 and outcome.err == ""
    for flag in flags_of(command):
        assert (flag.value_name if flag.positional else flag.option) in outcome.out
        assert flag.help, flag.name


def test_a_missing_flag_is_named(tracin: Run) -> None:
    assert_told(
        tracin("features", *FEATURES[:2]), "tracin features:", "--output", "tracin features --help"
    )


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("features", *FEATURES, "--lable_key=x"), "--label_key"),
        (("features", *FEATURES, "--batchsize=3"), "--batch_size"),
        (("features", *FEATURES, "--keep_key", "x"), "--keep_keys"),
        (("score", *SCORE, "--normalise=cosine"), "--normalize"),
        (("score", *SCORE, "--learning_rate=1"), "--learning_rates"),
    ],
)
def test_a_misspelt_flag_is_told_with_the_one_that_was_meant(
    tracin: Run, words: tuple[str, ...], meant: str
) -> None:
    assert_told(
        tracin(*words),
        words[-1].split("=")[0] if "=" in words[-1] else words[-2],
        f"did you mean {meant}?",
    )


def test_flags_are_not_guessed_from_their_beginnings(tracin: Run) -> None:
    # argparse would take --batch for --batch_size.
    assert_told(tracin("features", *FEATURES, "--batch_siz=3"), "did you mean --batch_size?")


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (("features", *FEATURES, "--batch_size=0"), "--batch_size"),
        (("features", *FEATURES, "--batch_size=many"), "--batch_size"),
        (("features", *FEATURES, "--labels=guessed"), "--labels"),
        (("features", *FEATURES, "--max_rejected_fraction=1.5"), "--max_rejected_fraction"),
        (("features", *FEATURES, "--max_rejected_fraction=nan"), "--max_rejected_fraction"),
        (("features", *FEATURES, "--include_bias=maybe"), "--include_bias"),
        (("features", *FEATURES, "--learning_rates=0.1;0.2"), "--learning_rates"),
        (("features", *FEATURES, "--accelerator=nvidia-l4"), "--accelerator"),
        (("features", *FEATURES, "--accelerator=type:nvidia-l4"), "--accelerator"),
        (("score", *SCORE, "--k=0"), "--k"),
        (("score", *SCORE, "--k=2.5"), "--k"),
        (("score", *SCORE, "--memory_gb=0"), "--memory_gb"),
        (("score", *SCORE, "--memory_gb=inf"), "--memory_gb"),
        (("score", *SCORE, "--normalize=l2"), "--normalize"),
    ],
)
def test_a_value_out_of_range_is_told_with_its_flag(
    tracin: Run, words: tuple[str, ...], flag: str
) -> None:
    assert_told(tracin(*words), flag, words[-1].split("=")[1])


TABLE = "some-project:some_dataset.some_table"


@pytest.mark.parametrize(
    "table",
    [
        "some_dataset.some_table",
        "some-project:some_table",
        "Project:d.t",
        "some-project:d-d.t",
        "p1-project:d.t.u",
        "",
    ],
)
def test_a_table_is_named_in_full(tracin: Run, table: str) -> None:
    assert_told(
        tracin("score", *SCORE, f"--output_table={table}"),
        "--output_table",
        "expected PROJECT:DATASET.TABLE",
        repr(table),
    )


@pytest.mark.parametrize("date", ["today", "2026-02-30", "20260331", "2026-03-31T00:00"])
def test_a_date_is_a_day(tracin: Run, date: str) -> None:
    words = ("score", *SCORE, f"--output_table={TABLE}", f"--run_date={date}")
    assert_told(tracin(*words), "--run_date", "expected a date such as 2026-03-31", repr(date))


def test_what_a_table_needs_is_told(tracin: Run) -> None:
    assert_told(
        tracin("score", *SCORE, f"--output_table={TABLE}"),
        "--output_table needs an --output on gs://",
        "found 'o'",
    )
    assert_told(
        tracin("score", *SCORE, "--run_date=2026-03-31"),
        "--run_date dates the rows of a table: name it with --output_table",
    )
    args, left = parser.parse(
        "audit",
        [
            "--features=f",
            "--output=gs://some-bucket/o",
            f"--output_table={TABLE}",
            "--run_date=2026-03-31",
        ],
    )
    assert (args.output_table, str(args.run_date), left) == (TABLE, "2026-03-31", [])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], False),
        (["--overwrite"], True),
        (["--overwrite=true"], True),
        (["--overwrite=False"], False),
    ],
)
def test_a_switch_is_given_alone_or_with_a_value(words: list[str], expected: bool) -> None:
    # A Flex Template's launcher can give no flag without a value.
    args, left = parser.parse("features", [*FEATURES, *words])
    assert args.overwrite is expected and left == []


def test_what_is_not_ours_is_left_for_beam() -> None:
    args, left = parser.parse(
        "features", [*FEATURES, "--runner=FlinkRunner", "--input_keys=a, b,", "--parallelism=3"]
    )
    assert left == ["--runner=FlinkRunner", "--parallelism=3"]
    assert args.input_keys == ("a", "b") and args.learning_rates is None


def test_a_jobs_labels_are_left_for_beam_as_a_templates_launcher_gives_them() -> None:
    words = ["--labels=team=vision", '--labels={"cost": "42"}', "--labels=predicted", "--label=a=b"]
    args, left = parser.parse("features", [*FEATURES, *words])
    assert args.labels == "predicted"
    assert left == ["--label=team=vision", '--label={"cost": "42"}', "--label=a=b"]
    _, left = parser.parse("score", [*SCORE, "--labels=team=vision"])
    assert left == ["--labels=team=vision"]


def test_no_other_flag_is_called_as_one_of_beams() -> None:
    from apache_beam.options.pipeline_options import PipelineOptions

    def is_beams(flag: Flag) -> bool:
        try:
            known = PipelineOptions([f"{flag.option}=1"]).get_all_options(drop_default=True)
        except SystemExit:
            # Beam has the flag, and cannot use this value.
            return True
        return bool(known)

    flags = {
        flag.option: flag
        for command in COMMANDS
        for flag in flags_of(command)
        if not flag.positional
    }
    assert is_beams(Flag("job_name", kinds.NAME, "", {}))
    assert {option for option, flag in flags.items() if is_beams(flag)} == {"--labels"}


def test_rates_keep_their_order() -> None:
    args, _ = parser.parse("features", [*FEATURES, "--learning_rates=0.1,1e-3,2"])
    assert args.learning_rates == (0.1, 1e-3, 2.0)


OLD_NAME = (
    Flag("units", kinds.COUNT, "numbers", commands("show"), aliases=("width", "columns")),
    Flag("name", kinds.NAME, "a name", commands("show")),
)


@pytest.mark.parametrize("words", [["--width=3"], ["--columns", "3"], ["--units=3"]])
def test_an_earlier_name_of_a_flag_works(words: list[str]) -> None:
    args, left = parser.parse("show", [*words, "--name=width"], OLD_NAME)
    assert (args.units, args.name, left) == (3, "width", [])


def test_an_earlier_name_is_left_out_of_the_help() -> None:
    told = parser.parser("show", OLD_NAME).format_help()
    assert "--units N" in told and "width" not in told and "columns" not in told


def test_a_bad_value_of_an_earlier_name_is_told_with_the_present_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parser.parse("show", ["--width=none"], OLD_NAME)
    assert "--units: expected a whole number" in capsys.readouterr().err
