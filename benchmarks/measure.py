"""What the benchmarks measure with: clocks, memory, whole commands, the machine's best matrix
multiply, and the search itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from transforms.core.features import Features
    from transforms.core.topk import TopK
    from transforms.scoring.influence import Scoring

_R = TypeVar("_R")


@dataclasses.dataclass(frozen=True)
class Measured:
    """A command that ended: wall seconds, peak resident bytes, what it printed."""

    seconds: float
    peak_bytes: int
    out: str


def run(words: Sequence[str]) -> Measured:
    """Runs a command as a process of its own and measures it; ends the program if it fails.

    Call it from a small process: the system counts what the caller holds as the command's, until it
    is loaded.
    """
    with tempfile.TemporaryFile("w+") as out:
        started = time.perf_counter()
        process = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        out.seek(0)
        text = out.read()
    if status:
        raise SystemExit(f"{' '.join(words)} failed:\n{text}")
    return Measured(seconds, usage.ru_maxrss * 1024, text)


def command(*words: str) -> list[str]:
    """A `tracin` command of this environment."""
    return [sys.executable, "-m", "pipeline.cli", *words]


def in_own_process(work: Callable[..., _R], *args: object) -> _R:
    """Calls a module's function in a process of its own, which starts small and leaves nothing
    behind.
    """
    sys.stdout.flush()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median_seconds(work: Callable[[], object], runs: int) -> float:
    """Median seconds of some calls, after one to warm up."""
    work()
    return statistics.median(timed(work) for _ in range(runs))


def matmul_gflops() -> float:
    """The machine's best float32 matrix multiply of some sizes, in Gflop/s."""
    import tensorflow as tf

    best = 0.0
    for size in (2048, 3072, 4096):
        a, b = tf.random.normal((size, size)), tf.random.normal((size, size))
        seconds = min(timed(lambda a=a, b=b: tf.matmul(a, b).numpy()) for _ in range(8))
        best = max(best, 2 * size**3 / seconds / 1e9)
    return best


def peak_bytes(work: Callable[[], object]) -> int:
    """Peak resident bytes of this process in a call."""
    # Where the system does not let the peak be forgotten, it is that of all calls so far.
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    work()
    return _status("VmHWM")


class Others:
    """What other processes take of the processors while a block runs: `share`, 0 to 1."""

    def __enter__(self) -> Others:
        self._before = self._seconds()
        return self

    def __exit__(self, *_: object) -> None:
        total, idle, own = (
            now - then for now, then in zip(self._seconds(), self._before, strict=True)
        )
        self.share = max(0.0, (total - idle - own) / total) if total > 0 else 0.0

    @staticmethod
    def _seconds() -> tuple[float, float, float]:
        # user, nice, system, idle, iowait, irq, softirq, steal; what follows is contained in these.
        ticks = [
            int(word)
            for word in pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        ]
        own = os.times()
        return (
            sum(ticks) / os.sysconf("SC_CLK_TCK"),
            (ticks[3] + ticks[4]) / os.sysconf("SC_CLK_TCK"),
            own.user + own.system,
        )


def resident_bytes() -> int:
    """Resident bytes of this process now."""
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def read_features(output: pathlib.Path) -> tuple[Features, Features, tuple[float, ...]]:
    """The test and training features that `tracin influence` left in its output, and the learning
    rates.
    """
    from transforms.scoring.tiles import spans
    from transforms.storage.feature_set_checks import usable_rates
    from transforms.storage.read_feature_set import read_feature_set

    test, train = (
        read_feature_set(str(output / f"{name}_features"), f"{name}_features")
        for name in ("test", "train")
    )
    arrays = [one.read(spans(one.counts, 0, sum(one.counts))) for one in (test, train)]
    return arrays[0], arrays[1], usable_rates(train.manifest, None)


def searched(
    test: Features, train: Features, scoring: Scoring, dense: bool = False
) -> tuple[TopK, dict[str, int]]:
    """What the benchmarks of scoring time, features decoded in memory → top-k arrays; and the
    search's counts.
    """
    from transforms.scoring.search.exact_search import ExactSearch

    search = ExactSearch(test, scoring, dense=dense)
    done = sum(search.scan(train))
    found = search.result()
    if done != len(test) * len(train):
        raise SystemExit(
            f"the search tells of {done:,} pairs, there are {len(test) * len(train):,}"
        )
    return found, search.counts
