"""BigQuery on this machine: as much of its API as writing a table asks for, with jobs that are
really carried out.

The client library finds it by BIGQUERY_EMULATOR_HOST. Statements are read by SQLGlot as BigQuery's
and run by DuckDB; files are read from the stand-in for Cloud Storage. What BigQuery is stricter in
is checked here: types are never converted, a job's name is used once, jobs and tables are in one
location, and no list holds null.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import sqlglot

from tests.fakes.object_store import BUCKET, Fault, Store

PROJECT, DATASET, LOCATION = "some-project", "some_dataset", "europe-west1"
_TYPES = {
    "STRING": "VARCHAR",
    "INTEGER": "BIGINT",
    "FLOAT": "DOUBLE",
    "BOOLEAN": "BOOLEAN",
    "DATE": "DATE",
}
_REASONS = {403: "accessDenied", 404: "notFound"}
_ARROW = (pa.string(), pa.int64(), pa.float64())


class Refused(Exception):
    """What a request or a job ends with: status, reason, message."""


class Warehouse:
    """The tables, the jobs, and the faults to come.

    Attributes:
        host: where it listens.
        store: where files are.
        tables: the resource of each table, by its name in SQL.
        jobs: the resources of all jobs, by name.
        faults: requests that are still to be answered wrongly; see `object_store.Fault`.
        failures: the errors, `(reason, message)`, that the next MERGE jobs end with, nothing done.
        looks: how often a MERGE job is looked at before it has ended.
        requests: all requests, as `METHOD path?query`.
    """

    def __init__(self, host: str, store: Store) -> None:
        self.host = host
        self.store = store
        self.tables: dict[str, dict[str, Any]] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.faults: list[Fault] = []
        self.failures: list[tuple[str, str]] = []
        self.looks = 0
        self.requests: list[str] = []
        self._database = duckdb.connect()
        self._database.execute(
            f'ATTACH \':memory:\' AS "{PROJECT}"; CREATE SCHEMA "{PROJECT}".{DATASET}'
        )
        self._lock = threading.RLock()

    def rows(self, table: str) -> list[dict[str, Any]]:
        """All rows of a table, in the order of their writing."""
        with self._lock:
            return self.ask(f"SELECT * FROM `{PROJECT}.{DATASET}.{table}`")

    def ask(self, sql: str) -> list[dict[str, Any]]:
        """Returns the rows of a BigQuery statement without parameters."""
        with self._lock:
            relation = self._database.sql(_translated(sql))
            return relation.to_arrow_table().to_pylist() if relation else []

    def merges(self) -> list[dict[str, Any]]:
        """The jobs that write, in order."""
        return [
            job
            for job in self.jobs.values()
            if job["configuration"]["query"]["query"].startswith("MERGE")
        ]

    def clear(self) -> None:
        """Forgets all."""
        for name in self.tables:
            self.ask(f"DROP TABLE `{name}`")
        for kept in (self.tables, self.jobs, self.faults, self.failures, self.requests):
            kept.clear()
        self.looks = 0

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> Any:
        """Carries a request out.

        Raises:
            Refused: it cannot be.
        """
        with self._lock:
            project, kind, *names = path.removeprefix("/bigquery/v2/projects/").split("/")
            if project != PROJECT:
                raise Refused(404, "notFound", f"Not found: Project {project}")
            if kind == "datasets":
                if names[0] != DATASET:
                    raise Refused(404, "notFound", f"Not found: Dataset {project}:{names[0]}")
                if len(names) == 1:
                    return {
                        "datasetReference": {"projectId": project, "datasetId": DATASET},
                        "location": LOCATION,
                    }
                return (
                    self._create(body)
                    if method == "POST"
                    else self._table(f"{project}.{DATASET}.{names[2]}")
                )
            if method == "POST":
                return self._insert(body)
            if query["location"] != [LOCATION] or names[0] not in self.jobs:
                raise Refused(404, "notFound", f"Not found: Job {project}:{names[0]}")
            return self._look(names[0]) if kind == "jobs" else self.jobs[names[0]]["results"]

    def _table(self, name: str) -> dict[str, Any]:
        if name not in self.tables:
            raise Refused(404, "notFound", f"Not found: Table {name.replace('.', ':', 1)}")
        return self.tables[name]

    def _create(self, table: dict[str, Any]) -> dict[str, Any]:
        reference = table["tableReference"]
        name = f"{reference['projectId']}.{reference['datasetId']}.{reference['tableId']}"
        if name in self.tables:
            raise Refused(409, "duplicate", f"Already Exists: Table {name}")
        columns = table["schema"]["fields"]
        (dated,) = (
            column for column in columns if column["name"] == table["timePartitioning"]["field"]
        )
        assert dated["type"] == "DATE" and set(table["clustering"]["fields"]) <= {
            column["name"] for column in columns
        }
        definitions = ", ".join(
            f'"{column["name"]}" {_type(column)}'
            f"{' NOT NULL' if column['mode'] == 'REQUIRED' else ''}"
            for column in columns
        )
        self._database.execute(
            f'CREATE TABLE "{PROJECT}".{DATASET}."{reference["tableId"]}" ({definitions})'
        )
        self.tables[name] = {**table, "type": "TABLE", "location": LOCATION}
        return self.tables[name]

    def _insert(self, job: dict[str, Any]) -> dict[str, Any]:
        reference = job["jobReference"]
        name = reference["jobId"]
        assert re.fullmatch(r"[\w-]{1,1024}", name)
        if reference["location"] != LOCATION:
            raise Refused(
                404,
                "notFound",
                f"Not found: Dataset {PROJECT}:{DATASET} was not found in location "
                f"{reference['location']}",
            )
        if name in self.jobs:
            raise Refused(409, "duplicate", f"Already Exists: Job {PROJECT}:{LOCATION}.{name}")
        kept = {**job, "status": {"state": "DONE"}, "statistics": {}, "looks": 0}
        self.jobs[name] = kept
        query = job["configuration"]["query"]
        assert (
            query["useLegacySql"] is False
            and "writeDisposition" not in query
            and "destinationTable" not in query
        )
        try:
            if query["query"].startswith("MERGE"):
                if self.failures:
                    raise Refused(0, *self.failures.pop(0))
                self._merge(query)
                kept["looks"] = self.looks
            else:
                ((count,),) = self._database.execute(
                    _translated(query["query"]), _parameters(query["query"], query)
                ).fetchall()
                schema = {"fields": [{"name": "found", "type": "INTEGER", "mode": "NULLABLE"}]}
                rows = [{"f": [{"v": str(count)}]}]
                kept["results"] = {
                    "jobComplete": True,
                    "jobReference": reference,
                    "schema": schema,
                    "rows": rows,
                    "totalRows": "1",
                }
        except (Refused, duckdb.Error) as error:
            _, reason, message = (
                error.args if isinstance(error, Refused) else (0, "invalidQuery", str(error))
            )
            kept["status"]["errorResult"] = {"reason": reason, "message": message}
        return {**kept, "status": {"state": "RUNNING"}}

    def _look(self, name: str) -> dict[str, Any]:
        job = self.jobs[name]
        if job["looks"]:
            job["looks"] -= 1
            return {**job, "status": {"state": "RUNNING"}}
        return job

    def _merge(self, query: dict[str, Any]) -> None:
        merge = re.search(
            r"^MERGE INTO `([^`]+)`.*^USING \((SELECT .*)\) AS \w+$.*INSERT \((.*?)\) VALUES",
            query["query"],
            re.MULTILINE | re.DOTALL,
        )
        assert merge
        table = self._table(merge[1])
        for name, source in query["tableDefinitions"].items():
            self._database.register(name, self._external(source))
        expected = {column["name"]: _type(column) for column in table["schema"]["fields"]}
        made = self._database.sql(_translated(merge[2]), params=_parameters(merge[2], query))
        types = {name: str(kind) for name, kind in zip(made.columns, made.types, strict=True)}
        names = [name.strip("`") for name in merge[3].split(", ")]
        if set(names) != set(types):
            raise Refused(0, "invalidQuery", f"{names} are inserted, {list(types)} are there")
        wrong = [
            f"{name} is {types[name]}, and {expected.get(name)} in the table"
            for name in names
            if types[name] != expected.get(name)
        ]
        if wrong:
            raise Refused(0, "invalidQuery", "; ".join(wrong))
        self._database.begin()
        try:
            self._database.execute(_translated(query["query"]), _parameters(query["query"], query))
            _check_lists(self.ask(f"SELECT * FROM `{merge[1]}`"))
        except BaseException:
            self._database.rollback()
            raise
        self._database.commit()

    def _external(self, source: dict[str, Any]) -> pa.Table:
        assert source["sourceFormat"] == "PARQUET" and source["parquetOptions"] == {
            "enableListInference": True
        }
        parts = []
        for uri in source["sourceUris"]:
            assert uri.startswith(f"gs://{BUCKET}/") and "*" not in uri
            status, _, content = self.store.ask(
                "GET", f"/{BUCKET}/{quote(uri.removeprefix(f'gs://{BUCKET}/'))}"
            )
            if status != 200:
                raise Refused(0, "notFound", f"Not found: URI {uri}")
            parts.append(pq.read_table(io.BytesIO(content)))
            for column in parts[-1].schema:
                _check_arrow(column.type)
        return pa.concat_tables(parts)


def _translated(sql: str) -> str:
    (statement,) = sqlglot.transpile(
        sql, read="bigquery", write="duckdb", error_level=sqlglot.ErrorLevel.RAISE
    )
    return statement


def _parameters(sql: str, query: dict[str, Any]) -> dict[str, Any]:
    """Those of a query's parameters that a part of it names."""
    kinds = {"STRING": str, "DATE": datetime.date.fromisoformat}
    named = [one for one in query["queryParameters"] if f"@{one['name']}" in sql]
    return {
        one["name"]: kinds[one["parameterType"]["type"]](one["parameterValue"]["value"])
        for one in named
    }


def _type(column: dict[str, Any]) -> str:
    """A column's type in DuckDB's words."""
    if column["type"] == "RECORD":
        inside = ", ".join(f"{_quoted(one['name'])} {_type(one)}" for one in column["fields"])
        kind = f"STRUCT({inside})"
    else:
        kind = _TYPES[column["type"]]
    return f"{kind}[]" if column["mode"] == "REPEATED" else kind


def _quoted(name: str) -> str:
    return (
        f'"{name}"'
        if duckdb.execute(
            "SELECT COUNT(*) FROM duckdb_keywords() WHERE keyword_name = ?", [name]
        ).fetchall()[0][0]
        else name
    )


def _check_arrow(kind: pa.DataType, in_list: bool = False) -> None:
    """Makes sure that BigQuery reads a Parquet file's column as what it is: no list is in a list,
    but by a structure.
    """
    if pa.types.is_list(kind):
        assert not in_list
        _check_arrow(kind.value_type, in_list=True)
    elif pa.types.is_struct(kind):
        for i in range(kind.num_fields):
            _check_arrow(kind.field(i).type)
    else:
        assert kind in _ARROW, kind


def _check_lists(value: Any) -> None:
    if isinstance(value, dict):
        value = list(value.values())
    elif isinstance(value, list) and None in value:
        raise Refused(0, "invalidQuery", "Array cannot have a null element")
    for one in value if isinstance(value, list) else []:
        _check_lists(one)


class _Handler(BaseHTTPRequestHandler):
    warehouse: Warehouse

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = f"{self.command} {unquote(self.path)}"
        self.warehouse.requests.append(request)
        fault = next(
            (one for one in self.warehouse.faults if one.times and re.search(one.on, request)), None
        )
        if fault:
            fault.times -= 1
        if fault and isinstance(fault.what, int):
            self._send(
                fault.what, _error(fault.what, _REASONS.get(fault.what, "backendError"), "not now")
            )
            return
        url = urlsplit(self.path)
        try:
            answer = self.warehouse.answer(
                self.command,
                unquote(url.path),
                parse_qs(url.query),
                json.loads(body) if body else None,
            )
            status = 200
        except Refused as error:
            status, answer = error.args[0], _error(*error.args)
        if fault and fault.what == "lost":
            self.connection.close()
        else:
            self._send(status, answer)

    do_GET = do_POST = _handle

    def _send(self, status: int, answer: Any) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _error(status: int, reason: str, message: str) -> dict[str, Any]:
    return {
        "error": {
            "code": status,
            "message": message,
            "errors": [{"reason": reason, "message": message}],
        }
    }


@contextlib.contextmanager
def running(store: Store) -> Iterator[Warehouse]:
    """The service, with an empty dataset."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    warehouse = _Handler.warehouse = Warehouse(f"127.0.0.1:{server.server_address[1]}", store)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield warehouse
    finally:
        server.shutdown()
        server.server_close()
