"""Influence as files: rows in the test set's order, as JSON lines and as Parquet, committed by a
manifest.

| field | content |
|---|---|
| `test_id`, `test_label`, `test_prediction`, `test_probability` | the test example; the probability is null for a regression |
| `self_influence` | the influence of the test example on itself |
| `proponents`, `opponents` | lists of `{train_id, train_label, score}`, strongest first |

Where scores are summed over the positions of examples, an example has as many labels as positions.
Its row tells numbers instead: `test_positions`, `test_wrong_positions` and
`test_label_probability`, and `train_positions` of its candidates.

`report.html`: for a person, the worst-predicted test examples beside their candidates.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from transforms.core.topk import Ranking
from transforms.influence import traces
from transforms.influence.blocks import ScoredBlock, SummedBlock
from transforms.influence.traces import Trace
from transforms.runtime import counters
from transforms.scoring.gradients import UNKNOWN
from transforms.storage import filesystems, manifests
from transforms.storage.filesystems import StoredFile
from transforms.storage.manifests import Manifest
from transforms.storage.tabular import label_array, label_type, string_array, to_jsonl


def schema(task: str, outputs: int, sum_positions: bool = False) -> pa.Schema:
    """The Parquet schema of influence rows; where positions are summed, it is the same for all
    tasks.
    """
    if sum_positions:
        summed = pa.list_(
            pa.struct(
                [
                    ("train_id", pa.string()),
                    ("train_positions", pa.int64()),
                    ("score", pa.float64()),
                ]
            )
        )
        return pa.schema(
            [
                ("test_id", pa.string()),
                ("test_positions", pa.int64()),
                ("test_wrong_positions", pa.int64()),
                ("test_label_probability", pa.float64()),
                ("self_influence", pa.float64()),
                ("proponents", summed),
                ("opponents", summed),
            ]
        )
    label = label_type(task, outputs)
    candidates = pa.list_(
        pa.struct([("train_id", pa.string()), ("train_label", label), ("score", pa.float64())])
    )
    return pa.schema(
        [
            ("test_id", pa.string()),
            ("test_label", label),
            ("test_prediction", label),
            ("test_probability", pa.float64()),
            ("self_influence", pa.float64()),
            ("proponents", candidates),
            ("opponents", candidates),
        ]
    )


def to_table(block: ScoredBlock | SummedBlock, rows: pa.Schema) -> pa.Table:
    """The rows of a block as a table."""
    n = len(block.test_ids)
    told: list[pa.Array]
    if isinstance(block, SummedBlock):
        probabilities = block.label_probabilities
        told = [pa.array(block.positions), pa.array(block.wrong, mask=block.wrong == UNKNOWN)]
    else:
        label = rows.field("test_label").type
        probabilities = block.probabilities.astype(np.float64)
        told = [label_array(block.labels, label), label_array(block.predictions, label)]
    return pa.table(
        [
            string_array(block.test_ids),
            *told,
            pa.array(probabilities, mask=np.isnan(probabilities)),
            pa.array(block.self_influence),
            _candidates(block.best.proponents, n, rows.field("proponents").type),
            _candidates(block.best.opponents, n, rows.field("opponents").type),
        ],
        schema=rows,
    )


def _candidates(ranking: Ranking, n: int, kind: pa.DataType) -> pa.Array:
    fields = [kind.value_type.field(i) for i in range(kind.value_type.num_fields)]
    # The second is the label, or what stands for it.
    arrays = [
        string_array(ranking.ids),
        label_array(ranking.labels, fields[1].type),
        pa.array(ranking.scores),
    ]
    return pa.ListArray.from_arrays(
        ranking.offsets(n).astype(np.int32),
        pa.StructArray.from_arrays(arrays, fields=fields),
        type=kind,
    )


@dataclasses.dataclass(frozen=True)
class WrittenRows:
    """The two files of the same rows, their place among the others, and the worst-predicted of
    them.
    """

    shard: int
    jsonl: StoredFile
    parquet: StoredFile
    worst: list[Trace]


def write_rows(
    directory: str,
    shard: int,
    blocks: Iterable[tuple[int, ScoredBlock | SummedBlock]],
    rows: pa.Schema,
) -> WrittenRows:
    """Writes the rows of one output file, given the blocks that it consists of, each with its first
    row's number.
    """
    ordered = [block for _, block in sorted(blocks, key=lambda pair: pair[0])]
    table = pa.concat_tables([to_table(block, rows) for block in ordered]).combine_chunks()
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=table.num_rows)
    counters.add("rows-written", table.num_rows)
    return WrittenRows(
        shard,
        filesystems.write(
            directory, f"influence-{shard:05d}.jsonl", to_jsonl(table), table.num_rows
        ),
        filesystems.write(
            directory, f"influence-{shard:05d}.parquet", buffer.getvalue(), table.num_rows
        ),
        traces.of_rows(table, ordered),
    )


def read_rows(directory: str) -> list[dict[str, Any]]:
    """The rows of a committed directory, in order."""
    found = manifests.read(directory, Manifest, "output")
    return [
        orjson.loads(line)
        for file in found.files
        if file.name.endswith(".jsonl")
        for line in filesystems.read_verified(directory, file).splitlines()
    ]
