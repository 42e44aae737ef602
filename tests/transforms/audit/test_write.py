"""Audits composed of the library's transforms, from committed sets to a committed directory."""

from __future__ import annotations

import json
import pathlib

import apache_beam as beam
import pyarrow.parquet as pq
import pytest

from tests.transforms.audit.sets import written
from transforms.audit.config import AuditConfig
from transforms.audit.judge import AuditLabels
from transforms.audit.write import WriteAudit
from transforms.core.errors import InputError
from transforms.storage import manifests
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import Manifest


@pytest.fixture(scope="module")
def train(tmp_path_factory) -> FeatureSet:
    # More files than make a shard of rows.
    return written(tmp_path_factory.mktemp("train"), [5] * 18)


def run(
    train: FeatureSet, output: pathlib.Path, config: AuditConfig, other: AuditConfig | None = None
) -> None:
    """Audits a set; `other` is another configuration for the writer."""
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        (
            pipeline
            | beam.Create([train])
            | AuditLabels(config, str(output))
            | WriteAudit(other or config, str(output))
        )


def rows(output: pathlib.Path, name: str) -> list[dict]:
    return [row for path in sorted(output.glob(name)) for row in pq.read_table(path).to_pylist()]


def test_planted_errors_are_found_in_a_committed_audit(train, tmp_path):
    output = tmp_path / "audit"
    run(train, output, AuditConfig())
    manifest = manifests.read(str(output), Manifest, "output")
    assert manifest.kind == "audit" and manifest.counts["examples"] == 90
    # Nothing else is left, in particular no file of examples that waited.
    names = {file.name for file in manifest.files} | {"manifest.json"}
    assert names == {path.name for path in output.iterdir()}
    assert len(list(output.glob("examples-*.parquet"))) == 2
    found = rows(output, "examples-*.parquet")
    assert [row["example_id"] for row in found] == [f"ex-{i:05d}" for i in range(90)]
    assert "record" not in found[0]
    planted = {f"ex-{i:05d}" for i in range(9, 90, 10)}
    worst = sorted(found, key=lambda row: -row["suspicion"])[: len(planted)]
    assert {row["example_id"] for row in worst} == planted
    suspects = rows(output, "suspects.parquet")
    assert len(suspects) > 3
    assert [row["suspicion"] for row in suspects] == sorted(
        (row["suspicion"] for row in found if row["suspicion"] >= 0.5), reverse=True
    )
    for name in ("suspects", "duplicates"):
        lines = (output / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == rows(output, f"{name}.parquet")
    # Its inputs are neither pictures nor kept texts.
    assert "There are no pictures" in (output / "report.html").read_text()


def test_a_crossed_threshold_fails_the_run_after_the_commit(train, tmp_path):
    config = AuditConfig(max_suspect_fraction=0.05, fail_on_drift=True)
    with pytest.raises(Exception, match=r"`max_suspect_fraction=0\.05`"):
        run(train, tmp_path, config)
    assert manifests.read(str(tmp_path), Manifest, "output").counts["crossed"] == 1


def test_both_transforms_need_the_same_configuration(train, tmp_path):
    with pytest.raises(Exception, match="pass both the same") as error:
        run(train, tmp_path, AuditConfig(), AuditConfig(min_suspicion=0.1))
    assert InputError.__name__ in repr(error.value)
    assert not (tmp_path / "manifest.json").exists()
