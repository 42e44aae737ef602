"""`--output_table`: rows in a table compared with those of the files, against stand-ins of BigQuery
and Cloud Storage.
"""

from __future__ import annotations

import dataclasses
import datetime
import io
import json
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.cli import main
from pipeline.running import output_table
from tests.conftest import CLASSES, Outcome, Tiny, example, write_records
from tests.fakes import google_cloud
from tests.fakes.bigquery_service import DATASET, PROJECT, Warehouse
from tests.fakes.object_store import BUCKET, Fault, Store
from transforms.influence.rows import read_rows
from transforms.storage import filesystems, manifests
from transforms.storage.manifests import Manifest
from transforms.storage.tables import bigquery_client
from transforms.storage.tables.bigquery_client import JobTuning

Run = Callable[..., Outcome]
ROOT = pathlib.Path(__file__).parents[2]
TABLE = f"{PROJECT}:{DATASET}.influence"
ADDED = ("run_id", "run_date")
MONDAY, TUESDAY = "2026-03-30", "2026-03-31"
INSERT = "^POST .*/jobs"


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Store, Warehouse]]:
    with google_cloud.running() as servers, pytest.MonkeyPatch.context() as patch:
        patch.setattr(bigquery_client, "DEFAULT_TUNING", JobTuning(pause=0.01))
        yield servers


@pytest.fixture
def store(servers: tuple[Store, Warehouse]) -> Store:
    """Cloud Storage, with nothing written yet."""
    names = servers[0].objects("out/")
    filesystems.delete(f"gs://{BUCKET}", [f"out/{name}" for name in names])
    return servers[0]


@pytest.fixture
def warehouse(servers: tuple[Store, Warehouse]) -> Warehouse:
    """BigQuery, with an empty dataset and nothing broken."""
    servers[1].clear()
    return servers[1]


@dataclasses.dataclass(frozen=True)
class Sets:
    """Examples with some wrong labels, checkpoints, and their feature sets, all on the disk."""

    directory: pathlib.Path
    checkpoints: str

    def score(self, *more: str, output: str = "out/score", k: int = 4) -> list[str]:
        words = [
            f"--{name}_features={self.directory}/{name}_features" for name in ("train", "test")
        ]
        return ["score", *words, f"--k={k}", f"--output=gs://{BUCKET}/{output}", *more]

    def audit(self, *more: str) -> list[str]:
        return [
            "audit",
            f"--features={self.directory}/train_features",
            f"--output=gs://{BUCKET}/out/audit",
            "--min_suspicion=0.1",
            *more,
        ]


@pytest.fixture(scope="module")
def sets(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Sets:
    directory = tmp_path_factory.mktemp("sets")
    labels = np.where(np.arange(40) % 5, tiny.labels, (tiny.labels + 1) % CLASSES)
    payloads = [
        example(image=x, label=int(y), id=f"ex-{i:02d}")
        for i, (x, y) in enumerate(zip(tiny.images, labels, strict=True))
    ]
    for name, part in (("train", payloads[:30]), ("test", payloads[30:])):
        write_records(directory / f"{name}-0", part)
        words = [
            f"--examples={directory}/{name}-*",
            f"--checkpoints={tiny.glob}",
            "--id_key=id",
            f"--output={directory}/{name}_features",
        ]
        assert main(["features", *words]) == 0
    return Sets(directory, tiny.glob)


def without_run(rows: list[dict[str, Any]], *more: str) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if name not in (*ADDED, *more)} for row in rows
    ]


def error_line(outcome: Outcome) -> str:
    """The one line of standard error."""
    (line,) = outcome.err.splitlines()
    return line


# Rows


def test_the_table_holds_the_rows_of_the_files(
    sets: Sets, store: Store, warehouse: Warehouse, tracin: Run
) -> None:
    outcome = tracin(*sets.score(f"--output_table={TABLE}", f"--run_date={MONDAY}"))
    assert outcome.status == 0, outcome.err
    rows = warehouse.rows("influence")
    ((run, date),) = {(row["run_id"], row["run_date"]) for row in rows}
    assert (
        run.startswith(manifests.read(f"gs://{BUCKET}/out/score", Manifest, "output").fingerprint)
        and str(date) == MONDAY
    )
    assert f"table: 10 rows of run_id {run} in {TABLE}" in outcome.out
    assert without_run(rows) == read_rows(f"gs://{BUCKET}/out/score")
    assert any(row["opponents"] for row in rows)

    made = warehouse.tables[f"{PROJECT}.{DATASET}.influence"]
    assert made["timePartitioning"] == {"type": "DAY", "field": "run_date"} and made[
        "clustering"
    ] == {"fields": ["run_id"]}
    modes = {one["name"]: (one["type"], one["mode"]) for one in made["schema"]["fields"]}
    assert modes["run_id"] == ("STRING", "REQUIRED") and modes["run_date"] == ("DATE", "REQUIRED")
    assert modes["proponents"] == modes["opponents"] == ("RECORD", "REPEATED")
    (job,) = warehouse.merges()
    assert (
        job["jobReference"]["jobId"].startswith("tracin-")
        and job["jobReference"]["projectId"] == PROJECT
    )


def test_examples_and_checkpoints_to_a_table_in_one_graph(
    sets: Sets, store: Store, warehouse: Warehouse, tracin: Run
) -> None:
    words = [f"--{name}_examples={sets.directory}/{name}-*" for name in ("train", "test")]
    output = f"gs://{BUCKET}/out/influence"
    flags = [
        *words,
        f"--checkpoints={sets.checkpoints}",
        "--id_key=id",
        "--k=4",
        f"--output={output}",
        f"--output_table={TABLE}",
    ]
    outcome = tracin("influence", *flags)
    assert outcome.status == 0, outcome.err
    rows = warehouse.rows("influence")
    assert without_run(rows) == read_rows(output) and len(rows) == 10
    today = datetime.datetime.now(datetime.timezone.utc).date()
    assert all(today - datetime.timedelta(1) <= row["run_date"] <= today for row in rows)


def test_an_audits_table_marks_the_suspects(
    sets: Sets, store: Store, warehouse: Warehouse, tracin: Run
) -> None:
    table = f"{PROJECT}:{DATASET}.audit"
    outcome = tracin(
        *sets.audit(
            f"--output_table={table}",
            f"--test_features={sets.directory}/test_features",
            f"--run_date={MONDAY}",
        )
    )
    assert outcome.status == 0, outcome.err
    rows = warehouse.rows("audit")
    objects = store.objects("out/audit/")
    written = pq.read_table(io.BytesIO(objects["examples-00000.parquet"])).to_pylist()
    assert without_run(rows, "suspect") == without_run(written, "test_influence_by_label")
    listed = {json.loads(line)["example_id"] for line in objects["suspects.jsonl"].splitlines()}
    assert {row["example_id"] for row in rows if row["suspect"]} == listed != set()
    assert 0 < len(listed) < len(rows) == 30

    # Without a test set the further column stays empty.
    outcome = tracin(*sets.audit(f"--output_table={table}", f"--run_date={TUESDAY}", "--overwrite"))
    assert outcome.status == 0, outcome.err
    again = [
        row for row in warehouse.rows("audit") if row["run_date"] == datetime.date(2026, 3, 31)
    ]
    assert len(again) == 30 and len(warehouse.rows("audit")) == 60
    assert {row["test_influence"] for row in again} == {None}


def test_a_crossed_threshold_fails_after_the_table_is_written(
    sets: Sets, store: Store, warehouse: Warehouse, tracin: Run
) -> None:
    words = sets.audit(
        f"--output_table={PROJECT}:{DATASET}.audit", "--max_suspect_fraction=0", "--fail_on_drift"
    )
    warehouse.failures.append(("accessDenied", "Access Denied"))
    outcome = tracin(*words)
    assert (outcome.status, warehouse.rows("audit")) == (1, [])
    assert "its rows were not written: Access Denied" in error_line(outcome)
    outcome = tracin(*words)
    assert outcome.status == 3 and len(warehouse.rows("audit")) == 30
    assert "crosses thresholds" in error_line(outcome)
    assert tracin(*words).status == 3 and len(warehouse.merges()) == 2

    filesystems.delete(f"gs://{BUCKET}/out/audit", ["manifest.json"])
    outcome = tracin(*words)
    assert outcome.status == 3 and len(warehouse.rows("audit")) == 30


def documented(number: int) -> str:
    """A query of the documentation, of the tables here."""
    page = (ROOT / "docs" / "formats" / "bigquery.md").read_text()
    query = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)[number]
    return query.replace("PROJECT.DATASET", f"{PROJECT}.{DATASET}")


def test_the_documented_query_of_influence_finds_whom_it_says(
    sets: Sets, store: Store, warehouse: Warehouse, tracin: Run
) -> None:
    assert tracin(*sets.score(f"--output_table={TABLE}", f"--run_date={TUESDAY}")).status == 0
    assert (
        tracin(
            *sets.score(f"--output_table={TABLE}", f"--run_date={MONDAY}", output="out/other", k=2)
        ).status
        == 0
    )
    pairs = [one for row in read_rows(f"gs://{BUCKET}/out/score") for one in row["opponents"]]
    counts = Counter(one["train_id"] for one in pairs)
    answer = warehouse.ask(documented(0))
    assert {row["train_id"]: row["test_examples"] for row in answer} == counts and len(counts) <= 20
    assert [row["test_examples"] for row in answer] == sorted(counts.values(), reverse=True)
    for row in answer:
        assert row["score"] == pytest.approx(
            sum(one["score"] for one in pairs if one["train_id"] == row["train_id"])
        )


def test_the_documented_query_of_audits_finds_suspects_that_appeared(
    sets: Sets, store: Store, warehouse: Warehouse, tracin: Run
) -> None:
    table = f"--output_table={PROJECT}:{DATASET}.audit"
    suspects = {}
    # As if more were suspect on Tuesday.
    for date, low in ((MONDAY, 0.5), (TUESDAY, 0.02)):
        outcome = tracin(
            *sets.audit(table, f"--run_date={date}", f"--min_suspicion={low}", "--overwrite")
        )
        assert outcome.status == 0, outcome.err
        suspects[date] = {
            row["example_id"]
            for row in warehouse.rows("audit")
            if str(row["run_date"]) == date and row["suspect"]
        }
    appeared = [row["example_id"] for row in warehouse.ask(documented(1))]
    assert set(appeared) == suspects[TUESDAY] - suspects[MONDAY] != set()
    assert suspects[MONDAY] != set() and len(appeared) == len(set(appeared))


# Once, and whole


def test_a_complete_run_is_no_work_and_keeps_its_date(
    sets: Sets, store: Store, warehouse: Warehouse, tracin: Run, monkeypatch
) -> None:
    words = sets.score(f"--output_table={TABLE}")
    assert tracin(*words).status == 0
    before = warehouse.rows("influence")

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime.datetime:
            return super().now(tz) + datetime.timedelta(1)

    monkeypatch.setattr(output_table.datetime, "datetime", Tomorrow)
    outcome = tracin(*words)
    assert (outcome.status, outcome.err) == (0, "")
    assert (
        outcome.out
        == f"gs://{BUCKET}/out/score is complete with the same settings: nothing to do\n"
    )
    assert warehouse.rows("influence") == before and len(warehouse.merges()) == 1


def test_neither_table_nor_date_shows_in_the_files(
    sets: Sets, store: Store, warehouse: Warehouse, tracin: Run
) -> None:
    assert tracin(*sets.score(output="out/plain")).status == 0
    assert tracin(*sets.score(f"--output_table={TABLE}", f"--run_date={MONDAY}")).status == 0
    assert store.objects("out/score/") == store.objects("out/plain/") != {}
    # Later the rows are wanted in a table as well.
    outcome = tracin(*sets.score(f"--output_table={PROJECT}:{DATASET}.other", output="out/plain"))
    assert outcome.status == 0 and "and its rows are not in" in outcome.out
    assert without_run(warehouse.rows("other")) == without_run(warehouse.rows("influence"))


def test_a_failed_job_is_reported_and_the_next_run_writes_the_rows(
    sets: Sets, store: Store, warehouse: Warehouse, tracin: Run
) -> None:
    warehouse.failures.append(("accessDenied", "Access Denied: bucket"))
    words = sets.score(f"--output_table={TABLE}")
    outcome = tracin(*words)
    assert (outcome.status, warehouse.rows("influence")) == (1, [])
    assert error_line(outcome) == (
        f"tracin score: failed: --output_table={TABLE}: gs://{BUCKET}/out/score is complete, and "
        "its rows were not written: Access Denied: bucket; run it again to write them"
    )
    written = store.objects("out/score/")
    assert "manifest.json" in written
    outcome = tracin(*words)
    assert outcome.status == 0, outcome.err
    assert without_run(warehouse.rows("influence")) == read_rows(f"gs://{BUCKET}/out/score")
    assert store.objects("out/score/") == written


@pytest.mark.parametrize(
    "failure",
    [
        ("backendError", "try again"),
        ("invalidQuery", "Could not serialize access due to concurrent update"),
    ],
)
def test_a_job_that_fails_for_the_moment_is_followed_by_another(
    sets, store, warehouse, tracin, failure
) -> None:
    warehouse.failures += [failure, failure]
    assert tracin(*sets.score(f"--output_table={TABLE}")).status == 0
    assert len(warehouse.rows("influence")) == 10
    assert [job["jobReference"]["jobId"][-2:] for job in warehouse.merges()] == ["-0", "-1", "-2"]


def test_a_job_that_always_fails_for_the_moment_is_reported(sets, store, warehouse, tracin) -> None:
    warehouse.failures += [("backendError", "try again")] * 9
    outcome = tracin(*sets.score(f"--output_table={TABLE}"))
    assert outcome.status == 1 and "its rows were not written: try again" in error_line(outcome)
    assert len(warehouse.merges()) == 3


@pytest.mark.parametrize("what", [503, "lost"])
@pytest.mark.parametrize("on", [INSERT, "^POST .*/tables", "^GET .*/tables/", "^GET .*/jobs/"])
def test_requests_that_fail_for_the_moment_write_the_rows_once(
    sets, store, warehouse, tracin, what, on
) -> None:
    warehouse.looks = 2
    warehouse.faults.append(Fault(what, on, times=2))
    outcome = tracin(*sets.score(f"--output_table={TABLE}"))
    assert outcome.status == 0, outcome.err
    assert warehouse.faults[0].times == 0
    assert len(warehouse.rows("influence")) == 10 and len(warehouse.merges()) == 1


def test_a_job_that_is_there_and_not_found_yet_is_looked_for_again(
    sets, store, warehouse, tracin
) -> None:
    warehouse.faults += [Fault("lost", INSERT), Fault(404, "^GET .*/jobs/")]
    outcome = tracin(*sets.score(f"--output_table={TABLE}"))
    assert outcome.status == 0, outcome.err
    assert [fault.times for fault in warehouse.faults] == [0, 0]
    assert len(warehouse.rows("influence")) == 10 and len(warehouse.merges()) == 1


def test_rows_that_were_deleted_since_are_written_again(sets, store, warehouse, tracin) -> None:
    words = sets.score(f"--output_table={TABLE}")
    assert tracin(*words).status == 0
    before = warehouse.rows("influence")
    warehouse.ask(f"DELETE FROM `{PROJECT}.{DATASET}.influence` WHERE test_id > 'ex-35'")
    assert tracin(*words).status == 0
    assert warehouse.rows("influence") == before


def test_each_night_has_its_rows_though_nothing_changed(
    sets: Sets, store: Store, warehouse: Warehouse, tracin: Run
) -> None:
    for date in (MONDAY, TUESDAY):
        assert (
            tracin(
                *sets.score(f"--output_table={TABLE}", f"--run_date={date}", output=f"out/{date}")
            ).status
            == 0
        )
    rows = warehouse.rows("influence")
    assert Counter(str(row["run_date"]) for row in rows) == {MONDAY: 10, TUESDAY: 10}
    assert without_run(rows[:10]) == without_run(rows[10:])
    # The same place, written otherwise, is the same run.
    assert (
        tracin(
            *sets.score(f"--output_table={TABLE}", f"--run_date={MONDAY}", output=f"out/{MONDAY}/")
        ).status
        == 0
    )
    assert warehouse.rows("influence") == rows


def test_two_runs_of_one_day_stand_side_by_side(
    sets: Sets, store: Store, warehouse: Warehouse, tracin: Run
) -> None:
    flags = (f"--output_table={TABLE}", f"--run_date={MONDAY}")
    assert tracin(*sets.score(*flags)).status == 0
    assert tracin(*sets.score(*flags, output="out/other", k=2)).status == 0
    rows = warehouse.rows("influence")
    assert {row["run_date"] for row in rows} == {datetime.date(2026, 3, 30)}
    for output in ("out/score", "out/other"):
        run = manifests.read(f"gs://{BUCKET}/{output}", Manifest, "output").fingerprint
        assert without_run([row for row in rows if row["run_id"].startswith(run)]) == read_rows(
            f"gs://{BUCKET}/{output}"
        )


def test_another_date_that_is_given_moves_the_rows(
    sets: Sets, store: Store, warehouse: Warehouse, tracin: Run
) -> None:
    for date in (MONDAY, TUESDAY, TUESDAY, MONDAY):
        assert tracin(*sets.score(f"--output_table={TABLE}", f"--run_date={date}")).status == 0
        rows = warehouse.rows("influence")
        assert {str(row["run_date"]) for row in rows} == {date} and len(rows) == 10
    assert len(warehouse.merges()) == 3


# What cannot be


def assert_refused(outcome: Outcome, store: Store, *parts: str) -> None:
    assert (outcome.status, outcome.out) == (2, "")
    for part in parts:
        assert part in error_line(outcome), outcome.err
    assert store.objects("out/") == {}


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        (f"other-project:{DATASET}.t", ["Not found: Project other-project"]),
        (
            f"{PROJECT}:other.t",
            [f"404 Not Found: Not found: Dataset {PROJECT}:other", "make the dataset first"],
        ),
    ],
)
def test_a_table_that_cannot_be_made_is_reported_before_any_work(
    sets, store, warehouse, tracin, table, parts
) -> None:
    assert_refused(
        tracin(*sets.score(f"--output_table={table}")),
        store,
        "tracin score: --output_table=" + table,
        *parts,
    )
    assert not warehouse.tables


def wrong(column: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    """Changes a column of a table, or leaves it out."""

    def change(table: dict[str, Any]) -> None:
        inside = table["schema"]["fields"]
        *outer, last = column.split(".")
        for name in outer:
            (inside,) = (one["fields"] for one in inside if one["name"] == name)
        (resource,) = (item for item in inside if item["name"] == last)
        resource.update(changes) if changes else inside.remove(resource)

    return change


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (wrong("self_influence"), ["it has no column self_influence, expected FLOAT NULLABLE"]),
        (
            wrong("test_label", type="STRING"),
            ["its column test_label is STRING NULLABLE, expected INTEGER NULLABLE"],
        ),
        (
            wrong("test_label", mode="REPEATED"),
            ["its column test_label is INTEGER REPEATED, expected INTEGER NULLABLE"],
        ),
        (
            wrong("opponents.score", type="NUMERIC"),
            ["its column opponents.score is NUMERIC NULLABLE, expected FLOAT NULLABLE"],
        ),
        (wrong("opponents.score"), ["it has no column opponents.score"]),
        (
            lambda table: table["schema"]["fields"].append(
                {"name": "more", "type": "STRING", "mode": "REQUIRED"}
            ),
            ["its column more is STRING REQUIRED, and rows have none"],
        ),
        (
            lambda table: table.pop("timePartitioning"),
            ["it is partitioned otherwise, or not at all, expected by DAY of run_date"],
        ),
        (
            lambda table: table.update(timePartitioning={"type": "DAY"}),
            ["by DAY of the time of loading"],
        ),
        (
            lambda table: table.update(timePartitioning={"type": "MONTH", "field": "run_date"}),
            ["by MONTH of run_date"],
        ),
        (
            lambda table: table.update(requirePartitionFilter=True),
            ["it wants every query to filter by its partitions"],
        ),
        (lambda table: table.update(type="VIEW"), ["it is a VIEW, expected a table"]),
    ],
)
def test_a_table_that_cannot_take_the_rows_is_reported_before_any_work(
    sets, store, warehouse, tracin, change, parts
) -> None:
    assert tracin(*sets.score(f"--output_table={TABLE}")).status == 0
    filesystems.delete(f"gs://{BUCKET}/out/score", store.objects("out/score/"))
    change(warehouse.tables[f"{PROJECT}.{DATASET}.influence"])
    warehouse.requests.clear()
    assert_refused(
        tracin(*sets.score(f"--output_table={TABLE}")),
        store,
        f"--output_table={TABLE} cannot take the rows: ",
        *parts,
    )
    assert len(warehouse.requests) == 1


def test_types_by_their_other_names_and_further_columns_are_no_difference(
    sets, store, warehouse, tracin
) -> None:
    assert tracin(*sets.score(f"--output_table={TABLE}")).status == 0
    table = warehouse.tables[f"{PROJECT}.{DATASET}.influence"]
    for column, kind in (
        ("test_label", "INT64"),
        ("self_influence", "FLOAT64"),
        ("opponents", "STRUCT"),
    ):
        wrong(column, type=kind)(table)
    table["schema"]["fields"].append({"name": "more", "type": "STRING", "mode": "NULLABLE"})
    outcome = tracin(*sets.score(f"--output_table={TABLE}"))
    assert outcome.status == 0 and "nothing to do" in outcome.out


def test_a_forbidden_request_is_reported_before_any_work(sets, store, warehouse, tracin) -> None:
    warehouse.faults.append(Fault(403, "^GET .*/tables/"))
    outcome = tracin(*sets.score(f"--output_table={TABLE}"))
    assert_refused(
        outcome, store, f"--output_table={TABLE} cannot be looked at: 403 Forbidden: not now"
    )


def test_missing_credentials_are_reported_at_once(
    sets, store, warehouse, tracin, monkeypatch
) -> None:
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError

    def nothing() -> None:
        raise DefaultCredentialsError("None were found.")

    monkeypatch.delenv("BIGQUERY_EMULATOR_HOST")
    monkeypatch.setattr(google.auth, "default", nothing)
    store.requests.clear()
    outcome = tracin(*sets.score(f"--output_table={TABLE}"))
    assert (outcome.status, store.requests) == (2, [])
    assert (
        "--output_table needs Google's credentials (None were found): run `gcloud auth"
        in error_line(outcome)
    )


def test_a_plan_names_the_step_and_what_it_needs(sets, tracin) -> None:
    job = (
        "--runner=DataflowRunner",
        f"--project={PROJECT}",
        "--region=europe-west1",
        f"--temp_location=gs://{BUCKET}/tmp",
    )
    _, *words = sets.score(f"--output_table={TABLE}")
    outcome = tracin("plan", *words, *job)
    assert outcome.status == 0, outcome.err
    assert "WriteTable" in outcome.out and "roles/bigquery.dataEditor" in outcome.out
    assert "roles/bigquery" not in tracin("plan", *sets.score()[1:], *job).out
