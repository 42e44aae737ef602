"""A night's run: each step is launched and followed until its result is there."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Callable
from typing import Any

from pipeline.nightly.argument import NightlyConfig
from pipeline.nightly.plan import Previous, Step, job_name, launch_parameter, plan_steps
from pipeline.nightly.services import SERVICE_ERRORS, Dataflow, Results
from transforms.core.errors import first_line

OUTCOME_FILE = "night.json"

# Nobody audits monthly and wants tonight's features copied from another season's.
_DAYS_BACK = 60
_SECONDS_BETWEEN_LOOKS = 60
_ENDED = {f"JOB_STATE_{end}" for end in ("DONE", "FAILED", "CANCELLED", "UPDATED", "DRAINED")}


class NightFailed(Exception):
    """A step cannot be completed; the message is one line."""


@dataclasses.dataclass
class Outcome:
    """What has become of a night; `night.json` in its directory holds it.

    Attributes:
        date: of the night.
        results: its directory, `gs://…`.
        status: `running`, and at the end `done`, `failed` or `drift`.
        message: one line.
        execution: who asked for it, so that a schedule recognises its own.
        previous: directory of the night that it is compared with; empty without one.
        steps: the end of each step: `done`, `already complete`, or `crossed` where its job failed
            and its result is complete, as an audit's that crosses a threshold.
        jobs: of each step the last job: `id`, `attempt`. A run that takes up an interrupted one
            follows it to its end, because only this tells drift.
    """

    date: str
    results: str
    status: str = "running"
    message: str = ""
    execution: str = ""
    previous: str = ""
    steps: dict[str, str] = dataclasses.field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


class NightlyRun:
    """One run of a night.

    Args:
        config: of the night.
        dataflow: where jobs are launched.
        results: the bucket.
        sleep: waits so many seconds.
        clock: seconds since some moment.
        execution: a name of what asked for the run. A second run of the same execution repeats the
            outcome of the first, because a container that is started again must not turn drift
            into an audit that is already complete.
        emit: prints one line.
    """

    def __init__(
        self,
        config: NightlyConfig,
        dataflow: Dataflow,
        results: Results,
        sleep: Callable[[float], None],
        clock: Callable[[], float],
        execution: str = "",
        emit: Callable[[str], None] = print,
    ) -> None:
        self._config = config
        self._dataflow = dataflow
        self._results = results
        self._sleep = sleep
        self._clock = clock
        self._execution = execution
        self._emit = emit
        self._outcome = Outcome(config.date, config.root, execution=execution)

    def run(self) -> Outcome:
        """Runs what is not complete, and stores the outcome.

        Raises:
            SERVICE_ERRORS: the outcome can be neither read nor stored.
        """
        if self._take_up():
            return self._outcome
        try:
            self._store()
            self._run_steps()
        except NightFailed as failed:
            self._end("failed", str(failed))
        except SERVICE_ERRORS as error:
            self._end("failed", f"the night of {self._config.date} failed: {first_line(error)}")
        return self._outcome

    def describe(self) -> None:
        """Prints what `run` would launch, and launches and writes nothing."""
        previous = self._find_previous()
        self._emit(f"compared with: {previous.directory if previous else 'nothing'}")
        for step in plan_steps(self._config, previous):
            if self._is_complete(step):
                self._emit(f"{step.name}: already complete")
            else:
                request = json.dumps(launch_parameter(self._config, step, 1), indent=2)
                self._emit(f"{step.name}: would launch {request}")

    def _take_up(self) -> bool:
        """Takes up the outcome of an interrupted run; returns whether this execution has ended."""
        stored = self._results.read(self._config.directory + OUTCOME_FILE)
        if stored is None:
            return False
        outcome = Outcome(**stored)
        if outcome.status == "running":
            self._emit(f"an interrupted run of {self._config.date} is taken up")
            self._outcome = dataclasses.replace(outcome, execution=self._execution)
        elif self._execution and outcome.execution == self._execution:
            self._emit(f"this execution has ended before: {outcome.message}")
            self._outcome = outcome
            return True
        return False

    def _run_steps(self) -> None:
        previous = self._find_previous()
        self._outcome.previous = previous.directory if previous else ""
        self._emit(f"compared with: {self._outcome.previous or 'nothing'}")
        for step in plan_steps(self._config, previous):
            if step.name not in self._outcome.steps:
                self._outcome.steps[step.name] = self._run_step(step)
                self._emit(f"{step.name}: {self._outcome.steps[step.name]}")
        date, root = self._config.date, self._config.root
        if self._outcome.steps["audit"] == "crossed":
            self._end(
                "drift",
                f"drift; the audit of {date} is complete and crosses a threshold, "
                f"see {root}audit/report.html",
            )
        else:
            self._end("done", f"the night of {date} is complete, see {root}audit/report.html")

    def _find_previous(self) -> Previous | None:
        """Finds the newest night before this one whose audit is complete.

        It looks rather than trusts a note of the last night: a night that failed leaves no wrong
        note, and an old date can be run again.
        """
        config = self._config
        earliest = datetime.date.fromisoformat(config.date) - datetime.timedelta(days=_DAYS_BACK)
        first, last = f"{config.prefix}/{earliest.isoformat()}/", config.directory
        for directory in reversed(self._results.directories(config.prefix)):
            if first <= directory < last and self._results.exists(
                f"{directory}audit/manifest.json"
            ):
                names = ("train_features", "test_features")
                sets = (
                    name
                    for name in names
                    if self._results.exists(f"{directory}{name}/manifest.json")
                )
                return Previous(directory, frozenset(sets))
        return None

    def _is_complete(self, step: Step) -> bool:
        return self._results.exists(f"{self._config.directory}{step.name}/manifest.json")

    def _run_step(self, step: Step) -> str:
        """Runs a step's jobs until one succeeds; returns the step's end."""
        config = self._config
        job = self._outcome.jobs.get(step.name)
        # A launched program that has nothing to do writes no graph, and Dataflow calls that a
        # failure. So nothing is launched for a complete result. But the job of an interrupted run
        # is followed, because only its state tells whether it failed after its result was complete.
        if job is None and self._is_complete(step):
            return "already complete"
        attempt = job["attempt"] if job else self._first_attempt(step)
        while True:
            name = job_name(config, step, attempt)
            identifier = job["id"] if job else self._launch(step, attempt)
            state = self._follow(step, name, identifier)
            see = f"see job {name} ({identifier})"
            if state == "JOB_STATE_DONE":
                return "done"
            complete = state != "JOB_STATE_CANCELLED" and self._is_complete(step)
            # A job that writes a table, too, may have failed at that; another one writes its rows.
            if complete and "output_table" not in step.parameters:
                return "crossed"
            if state == "JOB_STATE_CANCELLED" or attempt >= config.attempts:
                break
            attempt, job = attempt + 1, None
        if complete:
            raise NightFailed(
                f"{step.name} of {config.date} is complete, but crosses a threshold or has no "
                f"rows in its table, {see}"
            )
        raise NightFailed(f"{step.name} of {config.date} ended as {state}, {see}")

    def _first_attempt(self, step: Step) -> int:
        """Returns the attempt whose job an earlier run has left running; 1 without one."""
        active = self._dataflow.active_jobs()
        attempts = range(self._config.attempts, 0, -1)
        return next((n for n in attempts if job_name(self._config, step, n) in active), 1)

    def _launch(self, step: Step, attempt: int) -> str:
        """Launches a job, notes it, and returns its id.

        A request whose answer was lost is sent again, and an earlier run may have ended while its
        job went on. Dataflow then refuses a second job of the name, and the first is the one.
        """
        name = job_name(self._config, step, attempt)
        job = self._dataflow.launch(launch_parameter(self._config, step, attempt))
        if job:
            self._emit(f"{step.name}: launched job {name} ({job})")
        else:
            job = self._dataflow.active_jobs().get(name)
            if job is None:
                raise NightFailed(
                    f"a job named {name} was said to be running and is not among the running jobs"
                )
            self._emit(f"{step.name}: job {name} ({job}) is running already")
        self._outcome.jobs[step.name] = {"id": job, "attempt": attempt}
        self._store()
        return job

    def _follow(self, step: Step, name: str, job: str) -> str:
        """Waits for a job's end; returns its last state."""
        deadline = self._clock() + self._config.hours * 3600
        before = ""
        while True:
            self._sleep(_SECONDS_BETWEEN_LOOKS)
            state = self._dataflow.state(job)
            if state != before:
                self._emit(f"{step.name}: job {name} ({job}) is {state}")
            if state in _ENDED:
                return state
            if self._clock() >= deadline:
                raise NightFailed(
                    f"job {name} ({job}) takes longer than it may, and is still running"
                )
            before = state

    def _end(self, status: str, message: str) -> None:
        self._outcome.status, self._outcome.message = status, message
        self._store()

    def _store(self) -> None:
        self._results.write(
            self._config.directory + OUTCOME_FILE, dataclasses.asdict(self._outcome)
        )
