"""Figures of benchmarks as files, which the documentation's tables are made from.

A benchmark that is run with `--results=benchmarks/results` writes its tables to
`benchmarks/results/NAME.json`; tables of other workloads that stand there stay.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import sys
from collections.abc import Sequence

_VARIABLE = "TRACIN_BENCHMARK_RESULTS"


def parse_args(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parses a benchmark's flags, with `--results` besides, which its worker processes inherit."""
    parser.add_argument(
        "--results", type=pathlib.Path, metavar="DIR", help="write the tables to DIR/NAME.json"
    )
    args = parser.parse_args()
    if args.results:
        os.environ[_VARIABLE] = str(args.results.resolve())
        os.environ[f"{_VARIABLE}_COMMAND"] = _command()
    return args


def _command() -> str:
    module = pathlib.Path(sys.argv[0]).stem
    flags = [word for word in sys.argv[1:] if word.startswith("--") and "results" not in word]
    return " ".join(["python -m", f"benchmarks.{module}", *flags])


def record(
    benchmark: str, table: str, columns: Sequence[str], rows: Sequence[Sequence[object]]
) -> None:
    """Writes a table of a benchmark, if results are asked for.

    Args:
        benchmark: the benchmark's name, that of the file.
        table: the table's name within it.
        columns: headings.
        rows: numbers and texts, as they are to be printed.
    """
    directory = os.environ.get(_VARIABLE)
    if not directory:
        return
    path = pathlib.Path(directory) / f"{benchmark}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.loads(path.read_text()) if path.exists() else {"tables": {}}
    content["tables"][table] = {
        "command": os.environ[f"{_VARIABLE}_COMMAND"],
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": _machine(),
        "columns": list(columns),
        "rows": [list(row) for row in rows],
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def _machine() -> dict[str, object]:
    try:
        info = pathlib.Path("/proc/cpuinfo").read_text()
        processor = re.findall(r"model name\s*: (.*)", info)[0]
    except (OSError, IndexError):
        processor = platform.processor()
    return {
        "processor": processor,
        "processors": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
