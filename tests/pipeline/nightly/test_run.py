"""A night's run against stand-ins for Dataflow and Cloud Storage."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.fakes.dataflow_service import HOST, LOCATION, Stopped
from tests.fakes.nights import ARGUMENT, LAST, NOW, OUTCOME, ROOT, STEPS, Ended, World
from tests.fakes.object_store import Fault, Store

TABLE = {"output_table": "some-project:nightly.audit"}


def test_a_first_night_has_nothing_to_compare_with(store: Store) -> None:
    world = World(store)
    ended = world.night()
    assert ended.status == 0
    model = {"checkpoints": "gs://data/checkpoints/*.keras", "id_key": "id"}
    assert ended.launched == [
        (
            "tracin-train-features-2026-11-25-1",
            {**model, "examples": "gs://data/train-*", "output": f"{ROOT}train_features"},
        ),
        (
            "tracin-test-features-2026-11-25-1",
            {**model, "examples": "gs://data/test-*", "output": f"{ROOT}test_features"},
        ),
        (
            "tracin-influence-2026-11-25-1",
            {
                "train_features": f"{ROOT}train_features",
                "test_features": f"{ROOT}test_features",
                "k": "20",
                "output": f"{ROOT}influence",
            },
        ),
        # No threshold that compares, and so nothing to fail at: the program would refuse both.
        (
            "tracin-audit-2026-11-25-1",
            {
                "features": f"{ROOT}train_features",
                "test_features": f"{ROOT}test_features",
                "min_suspicion": "0.6",
                "output": f"{ROOT}audit",
            },
        ),
    ]
    assert ended.outcome == {
        "date": "2026-11-25",
        "results": ROOT,
        "status": "done",
        "message": f"the night of 2026-11-25 is complete, see {ROOT}audit/report.html",
        "execution": "",
        "previous": "",
        "steps": dict.fromkeys(STEPS, "done"),
        "jobs": {step: {"id": f"job-{n}", "attempt": 1} for n, step in enumerate(STEPS)},
    }
    assert all(one["environment"] == ARGUMENT["environment"] for one in world.dataflow.launched)


def test_a_further_night_copies_and_compares(store: Store) -> None:
    ended = World(store, "2026-11-20", "2026-11-24").night()
    assert ended.status == 0
    sent = dict(ended.launched)
    assert sent["tracin-train-features-2026-11-25-1"]["base"] == f"{LAST}train_features"
    assert sent["tracin-test-features-2026-11-25-1"]["base"] == f"{LAST}test_features"
    assert "base" not in sent["tracin-influence-2026-11-25-1"]
    audit = sent["tracin-audit-2026-11-25-1"]
    assert audit["previous"] == f"{LAST}audit"
    assert {name: audit[name] for name in ARGUMENT["drift"]} == ARGUMENT["drift"]
    assert ended.outcome["previous"] == "nightly/2026-11-24/"


def test_without_a_test_set_there_is_no_influence(store: Store) -> None:
    ended = World(store, "2026-11-24").night(test=None, score=None, audit=None, drift=None)
    assert ended.status == 0
    assert [name for name, _ in ended.launched] == [
        "tracin-train-features-2026-11-25-1",
        "tracin-audit-2026-11-25-1",
    ]
    assert dict(ended.launched)["tracin-audit-2026-11-25-1"] == {
        "features": f"{ROOT}train_features",
        "previous": f"{LAST}audit",
        "output": f"{ROOT}audit",
    }


def test_a_base_that_no_longer_fits_is_dropped(store: Store) -> None:
    # As where there are new checkpoints: the program refuses the base, and the job fails before it
    # starts.
    ended = World(store, "2026-11-24", train_features=["failed"]).night()
    assert ended.status == 0
    first, second = ended.launched[:2]
    assert (first[0], second[0]) == (
        "tracin-train-features-2026-11-25-1",
        "tracin-train-features-2026-11-25-2",
    )
    assert first[1]["base"] == f"{LAST}train_features"
    assert {name: value for name, value in first[1].items() if name != "base"} == second[1]


def test_where_nights_have_other_checkpoints_nothing_is_copied(store: Store) -> None:
    ended = World(store, "2026-11-24").night(reuse=False)
    assert ended.status == 0
    assert not any("base" in parameters for _, parameters in ended.launched)
    assert dict(ended.launched)["tracin-audit-2026-11-25-1"]["previous"] == f"{LAST}audit"


@pytest.mark.parametrize("lost", ["train_features", "test_features"])
def test_a_feature_set_that_the_last_night_lacks_is_no_base(store: Store, lost: str) -> None:
    world = World(store, "2026-11-24")
    world.remove(f"nightly/2026-11-24/{lost}/manifest.json")
    ended = world.night()
    assert ended.status == 0
    bases = {
        parameters["output"].removeprefix(ROOT)
        for _, parameters in ended.launched
        if "base" in parameters
    }
    assert bases == {"train_features", "test_features"} - {lost}


def test_a_step_that_fails_again_ends_the_night(store: Store) -> None:
    world = World(store, influence=["failed", "failed"])
    ended = world.night()
    assert (ended.status, ended.outcome["status"]) == (1, "failed")
    assert ended.outcome["message"] == (
        "influence of 2026-11-25 ended as JOB_STATE_FAILED, see job tracin-influence-2026-11-25-2 "
        "(job-3)"
    )
    assert [name.split("-")[1] for name, _ in ended.launched] == [
        "train",
        "test",
        "influence",
        "influence",
    ]
    # The next run takes up where this one ended.
    again = world.night()
    assert again.status == 0
    assert [name for name, _ in again.launched] == [
        "tracin-influence-2026-11-25-1",
        "tracin-audit-2026-11-25-1",
    ]
    assert again.outcome["steps"]["train_features"] == "already complete"
    assert again.outcome["steps"]["influence"] == "done"


def test_the_number_of_attempts_is_a_setting(store: Store) -> None:
    ended = World(store, audit=["failed"] * 3).night(attempts=4)
    assert ended.status == 0 and ended.launched[-1][0] == "tracin-audit-2026-11-25-4"
    assert World(store, audit=["failed"]).night(attempts=1).status == 1


def test_what_a_person_cancelled_is_not_tried_again(store: Store) -> None:
    ended = World(store, train_features=["cancelled"]).night()
    assert ended.status == 1 and "ended as JOB_STATE_CANCELLED" in ended.outcome["message"]
    assert len(ended.launched) == 1


def test_drift_is_told_apart_from_failure(store: Store) -> None:
    world = World(store, "2026-11-24", audit=["crossed"])
    ended = world.night()
    assert (ended.status, ended.outcome["status"]) == (3, "drift")
    assert (
        ended.outcome["message"] == "drift; the audit of 2026-11-25 is complete "
        f"and crosses a threshold, see {ROOT}audit/report.html"
    )
    assert ended.outcome["steps"] == {**dict.fromkeys(STEPS, "done"), "audit": "crossed"}
    # It is told once: the job was not started again, and the same date is complete.
    assert [name for name, _ in ended.launched if "audit" in name] == ["tracin-audit-2026-11-25-1"]
    again = world.night()
    assert again.status == 0 and again.outcome["steps"]["audit"] == "already complete"


def test_rows_that_are_not_in_their_table_are_written_by_another_attempt(store: Store) -> None:
    ended = World(store, audit=["crossed", "done"]).night(audit=TABLE)
    assert ended.status == 0 and ended.outcome["steps"]["audit"] == "done"
    assert [name for name, _ in ended.launched][-2:] == [
        "tracin-audit-2026-11-25-1",
        "tracin-audit-2026-11-25-2",
    ]
    assert all(
        parameters["output_table"] == TABLE["output_table"] for _, parameters in ended.launched[-2:]
    )
    # Where that does not help, nobody can tell from outside which of the two it is.
    failed = World(store, audit=["crossed", "crossed"]).night(audit=TABLE)
    assert failed.status == 1
    assert failed.outcome["message"] == (
        "audit of 2026-11-25 is complete, but crosses a threshold or has no rows in its table, see "
        "job tracin-audit-2026-11-25-2 (job-4)"
    )


DATAFLOW_CALLS = ["POST /flexTemplates:launch", "GET /jobs$", "GET /jobs/"]
STORE_CALLS = [
    "GET .*prefix=nightly/&?",
    "GET .*manifest.json",
    "GET .*night.json",
    "POST .*upload",
]


@pytest.mark.parametrize("what", [429, 502, 503, 504, "broken", "lost"])
def test_unsteady_services_are_asked_again(store: Store, what: int | str) -> None:
    """Three wrong answers in a row, at the first, second and third call of each kind."""
    for after in range(3):
        world = World(store, "2026-11-24", audit=["crossed"])
        # An earlier execution's, so that there is an answer to break.
        earlier = {"date": "2026-11-25", "results": ROOT, "status": "failed"}
        store.put(OUTCOME, json.dumps(earlier).encode())
        world.dataflow.faults = [Fault(what, on, 3, after) for on in DATAFLOW_CALLS]
        store.faults = [Fault(what, on, 3, after) for on in STORE_CALLS]
        ended = world.night()
        assert ended.status == 3, ended.outcome
        assert [name for name, _ in ended.launched] == [
            f"tracin-{step.replace('_', '-')}-2026-11-25-1" for step in STEPS
        ]
        assert all(not fault.times for fault in world.dataflow.faults)
        # The store's directories and the stored outcome are asked for once a night.
        assert after or not any(fault.times for fault in store.faults)
        assert store.broken


def test_a_job_whose_launch_got_lost_is_found_again(store: Store) -> None:
    world = World(store)
    world.dataflow.faults = [
        Fault("lost", "launch"),
        Fault(503, "GET /jobs$", times=1, after=1),
    ]
    ended = world.night()
    assert ended.status == 0
    assert [name for name, _ in ended.launched if "train" in name] == [
        "tracin-train-features-2026-11-25-1"
    ]


@pytest.mark.parametrize(
    ("on", "what", "message"),
    [
        ("launch", 400, "the night of 2026-11-25 failed: 400 POST https://dataflow"),
        ("launch", 409, "was said to be running and is not among the running jobs"),
        ("GET /jobs/", 403, "the night of 2026-11-25 failed: 403 GET https://dataflow"),
        ("GET /jobs/", 404, "the night of 2026-11-25 failed: 404 GET https://dataflow"),
    ],
)
def test_what_is_refused_ends_the_night(store: Store, on: str, what: int, message: str) -> None:
    world = World(store)
    world.dataflow.faults = [Fault(what, on)]
    ended = world.night()
    assert ended.status == 1 and message in ended.outcome["message"]
    assert len(world.dataflow.requests) <= 4


def test_a_service_that_stays_away_ends_the_night(store: Store) -> None:
    world = World(store)
    world.dataflow.faults = [Fault(503, "GET /jobs/", times=10**9)]
    ended = world.night(patience=0.05)
    assert ended.status == 1 and "503" in ended.outcome["message"]


def test_a_store_that_refuses_ends_the_night(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(store)
    store.faults = [Fault(403, "GET .*prefix=")]
    ended = world.night()
    assert ended.status == 1 and "403" in ended.outcome["message"]
    world = World(store)
    store.faults = [Fault(403, ".", times=10**9)]
    assert world.night().status == 1
    assert "403" in capsys.readouterr().err
    assert not world.dataflow.requests


def test_a_job_that_does_not_end_ends_the_night(store: Store) -> None:
    world = World(store, train_features=["hangs"])
    ended = world.night(hours=3)
    assert ended.status == 1
    assert "takes longer than it may, and is still running" in ended.outcome["message"]
    assert ended.minutes == 180
    # The next run follows the job, and launches no second one.
    world.dataflow.jobs[0].end = "done"
    again = world.night()
    assert again.status == 0
    assert again.launched[0][0] == "tracin-test-features-2026-11-25-1"


def test_a_second_attempt_that_is_still_running_is_followed(store: Store) -> None:
    world = World(store, train_features=["failed", "hangs"])
    assert world.night(hours=1).status == 1
    # More active jobs than a page of their list has.
    world.dataflow.page = 1
    world.dataflow.jobs[1].end = "done"
    again = world.night()
    assert again.status == 0
    assert not any("train" in name for name, _ in again.launched)


def test_the_last_complete_night_before_is_compared_with(store: Store) -> None:
    world = World(store, "2026-11-22", "2026-11-23", "2026-11-26")
    world.remove("nightly/2026-11-23/audit/manifest.json")
    assert world.night().outcome["previous"] == "nightly/2026-11-22/"
    # Nobody audits monthly and wants tonight's copied from what is of another season.
    assert World(store, "2026-09-25").night().outcome["previous"] == ""
    assert World(store, "2026-09-26").night().outcome["previous"] == "nightly/2026-09-26/"
    incomplete = World(store)
    store.put("nightly/2026-11-24/train_features/manifest.json", b"{}")
    store.put("nightly/notes/audit/manifest.json", b"{}")
    assert incomplete.night().outcome["previous"] == ""


def test_another_date_can_be_run(store: Store) -> None:
    later = NOW + 2 * 86400
    assert World(store).night(now=later, date="2026-11-25").outcome["results"] == ROOT
    # A word of the command line is over the argument.
    ended = World(store).night("--date=2026-11-25", now=later, date="2026-11-20")
    assert ended.outcome["results"] == ROOT


def test_an_execution_that_is_run_again_has_the_same_outcome(store: Store) -> None:
    world = World(store, audit=["crossed"])
    assert world.night("--execution=a").status == 3
    again = world.night("--execution=a")
    assert again.status == 3 and not again.launched and again.outcome["execution"] == "a"
    other = world.night("--execution=b")
    assert other.status == 0 and other.outcome["execution"] == "b"
    world = World(store, audit=["failed", "failed"])
    assert [world.night("--execution=a").status for _ in range(2)] == [1, 1]


def stopping(store: Store, end: str) -> World:
    """A night of three jobs, whose first fails."""
    return World(store, "2026-11-24", train_features=["failed"], audit=[end])


def assert_taken_up(world: World, expected: Ended, where: str) -> None:
    """A second run of a stopped one ends as if nothing had happened."""
    assert world.outcome()["status"] == "running", where
    again = world.night("--execution=a", test=None)
    assert again.status == expected.status, where
    names = [launch["jobName"] for launch in world.dataflow.launched]
    assert names == [name for name, _ in expected.launched], where
    assert {**again.outcome, "execution": ""} == expected.outcome, where


@pytest.mark.parametrize("end", ["done", "crossed"])
def test_a_run_that_was_stopped_at_a_pause_is_taken_up(store: Store, end: str) -> None:
    expected = stopping(store, end).night(test=None)
    assert len(expected.launched) == 3 and expected.minutes == 9
    for stop in range(9):
        world, pauses = stopping(store, end), iter(range(9))

        def kill(stop: int = stop, pauses: Iterator[int] = pauses) -> None:
            if next(pauses) == stop:
                raise Stopped

        assert world.night("--execution=a", test=None, on_sleep=kill).status is None
        # Meanwhile its job comes to its end, or does not.
        for _ in range(3 if stop % 2 else 0):
            world.dataflow.session().get(f"{HOST}{LOCATION}/jobs/{world.dataflow.jobs[-1].id}")
        assert_taken_up(world, expected, f"pause {stop}")


@pytest.mark.parametrize("what", ["killed before", "killed after"])
def test_a_run_that_was_stopped_at_a_request_is_taken_up(store: Store, what: str) -> None:
    whole = stopping(store, "crossed")
    expected = whole.night(test=None)
    assert expected.status == 3 and len(whole.dataflow.requests) == 14
    for after in range(14):
        world = stopping(store, "crossed")
        world.dataflow.faults = [Fault(what, ".", after=after)]
        assert world.night("--execution=a", test=None).status is None
        assert_taken_up(world, expected, f"request {after}")


def test_a_run_that_was_stopped_before_it_noted_its_job_is_taken_up(store: Store) -> None:
    world = World(store, audit=["crossed"])
    # The audit's job is made, and the outcome with its id is not written.
    store.faults = [Fault(403, "POST .*upload", times=2, after=4)]
    assert world.night("--execution=a").status == 1
    assert world.outcome()["status"] == "running" and "audit" not in world.outcome()["jobs"]
    again = world.night("--execution=a")
    assert again.status == 3
    assert len(world.dataflow.launched) == 4


def test_one_line_is_printed_for_each_event(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    World(store, "2026-11-24", audit=["failed"]).night(test=None)
    lines = capsys.readouterr().out.splitlines()
    name = "tracin-audit-2026-11-25"
    assert lines[0] == "compared with: nightly/2026-11-24/"
    assert [line for line in lines if line.startswith("audit:")] == [
        f"audit: launched job {name}-1 (job-1)",
        f"audit: job {name}-1 (job-1) is JOB_STATE_UNKNOWN",
        f"audit: job {name}-1 (job-1) is JOB_STATE_RUNNING",
        f"audit: job {name}-1 (job-1) is JOB_STATE_FAILED",
        f"audit: launched job {name}-2 (job-2)",
        f"audit: job {name}-2 (job-2) is JOB_STATE_UNKNOWN",
        f"audit: job {name}-2 (job-2) is JOB_STATE_RUNNING",
        f"audit: job {name}-2 (job-2) is JOB_STATE_DONE",
        "audit: done",
    ]
    assert re.fullmatch(r"the night of 2026-11-25 is complete, see .*report.html", lines[-1])


def test_a_dry_run_prints_requests_and_changes_nothing(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(store, "2026-11-24")
    store.put("nightly/2026-11-25/train_features/manifest.json", b"{}")
    before = set(store.objects())
    ended = world.night("--dry_run")
    out = capsys.readouterr().out
    assert ended.status == 0 and ended.minutes == 0
    assert not world.dataflow.requests and set(store.objects()) == before
    assert "compared with: nightly/2026-11-24/" in out
    assert "train_features: already complete" in out
    for step in STEPS[1:]:
        assert f"{step}: would launch" in out
    assert f'"base": "{LAST}test_features"' in out and f'"previous": "{LAST}audit"' in out
