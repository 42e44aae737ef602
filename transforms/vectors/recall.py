"""The recall of a search by an index, measured on a sample of test examples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import orjson

from transforms.influence.protocol import ScoredBlock
from transforms.influence.records import RecordBlock
from transforms.influence.score import MergeTopK
from transforms.scoring.search.exact_search import ExactSearch
from transforms.storage.feature_set import FeatureSet
from transforms.vectors.files import Shard, plan_shards
from transforms.vectors.search import SearchPlan, TestBlock, plan_blocks

RECALL_FILE = "recall.json"

# Training examples of a range that is searched exactly for the sample: enough work for one step,
# and many ranges of a large set.
_EXACT_ROWS = 100_000


def report_note(plan: SearchPlan) -> str:
    """Returns the note of a result's report that an index chose its candidates."""
    missed = (
        f"{RECALL_FILE} tells what part of the exact answer was found"
        if plan.sample
        else "what was missed has not been measured"
    )
    return (
        "Proponents and opponents were looked for by an index, and those that it did not "
        f"offer are missing: {missed}."
    )


def sampled_rows(blocks: Sequence[TestBlock], sample: int) -> np.ndarray:
    """Returns the rows of the test set to search for exactly, evenly spread over those of all
    blocks: [at most `sample`] int64.
    """
    ordered = [block.rows for block in sorted(blocks, key=lambda block: block.start)]
    rows = np.concatenate([np.zeros(0, np.int64), *ordered])
    if not len(rows):
        return rows
    spread = np.linspace(0, len(rows) - 1, min(len(rows), sample))
    return rows[np.unique(spread.astype(np.int64))]


def search_exactly(
    shard: Shard, test: FeatureSet, train: FeatureSet, plan: SearchPlan, blocks: Sequence[TestBlock]
) -> Iterator[tuple[None, ScoredBlock]]:
    """Searches a range of training examples exactly for the sampled test examples; yields nothing
    where there are none.
    """
    rows = sampled_rows(blocks, plan.sample)
    if not len(rows):
        return
    tests = test.take(rows)
    search = ExactSearch(tests, plan.scoring)
    for span in shard.spans:
        for _ in search.scan(train.read([span])):
            pass
    yield None, RecordBlock.of(tests, search.result(), plan.scoring)


def ids_by_test(block: ScoredBlock) -> dict[bytes, tuple[set[bytes], set[bytes]]]:
    """Returns the ids of each test example's proponents and opponents, by test id."""
    signs = (block.best.proponents, block.best.opponents)
    borders = [ranking.offsets(len(block.test_ids)) for ranking in signs]
    ids = {}
    for i, test_id in enumerate(block.test_ids.tolist()):
        proponents, opponents = (
            set(ranking.ids[offsets[i] : offsets[i + 1]].tolist())
            for ranking, offsets in zip(signs, borders, strict=True)
        )
        ids[test_id] = proponents, opponents
    return ids


def recalls(block: ScoredBlock, exact: Sequence[ScoredBlock]) -> tuple[list[float], list[float]]:
    """Returns the recall of each sampled test example of a block: the part of its exact proponents
    that the block has, where it has some, and the same of opponents.
    """
    ids = ids_by_test(block)
    of_signs: tuple[list[float], list[float]] = ([], [])
    for exact_block in exact:
        for test_id, expected in ids_by_test(exact_block).items():
            if test_id not in ids:
                continue
            for sign, of_sign in enumerate(of_signs):
                if expected[sign]:
                    matches = expected[sign] & ids[test_id][sign]
                    of_sign.append(len(matches) / len(expected[sign]))
    return of_signs


def recall(parts: Sequence[tuple[list[float], list[float]]], k: int, tests: int) -> dict[str, Any]:
    """Summarises the recalls of all blocks: their mean and the lowest, by sign; None where no
    sampled test example has an exact answer of that sign.
    """
    summary: dict[str, Any] = {"k": k, "tests": tests}
    for sign, name in enumerate(("proponents", "opponents")):
        shares = [share for part in parts for share in part[sign]]
        summary[name] = (
            {"recall": math.fsum(shares) / len(shares), "lowest": min(shares)} if shares else None
        )
    return summary


@dataclasses.dataclass
class MeasureRecall(beam.PTransform):
    """Measures the recall of a search on a sample of its test examples: ((test, train), (row,
    ScoredBlock)) → (name, content) of a file.

    Attributes:
        plan: the search.
    """

    plan: SearchPlan

    def _summarise(
        self,
        _: None,
        parts: Sequence[tuple[list[float], list[float]]],
        exact: Sequence[ScoredBlock],
    ) -> tuple[str, bytes]:
        tests = sum(len(block.test_ids) for block in exact)
        return RECALL_FILE, orjson.dumps(
            recall(parts, self.plan.config.k, tests),
            option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
        )

    def expand(
        self, sources: tuple[tuple[beam.PCollection, beam.PCollection], beam.PCollection]
    ) -> beam.PCollection:
        (test, train), searched = sources
        blocks = test | "PlanSampledBlocks" >> beam.FlatMap(plan_blocks, self.plan)  # TestBlock
        exact = (
            train
            | "PlanRanges" >> beam.FlatMap(plan_shards, _EXACT_ROWS)  # Shard
            | "SpreadRanges" >> beam.Reshuffle()  # Shard
            | "SearchExactly"
            >> beam.FlatMap(
                search_exactly,
                beam.pvalue.AsSingleton(test),
                beam.pvalue.AsSingleton(train),
                self.plan,
                beam.pvalue.AsList(blocks),
            )  # (None, ScoredBlock)
            | "MergeExactly"
            >> beam.CombinePerKey(MergeTopK(self.plan.config.k))  # (None, ScoredBlock)
            | "DropKey" >> beam.Values()  # ScoredBlock
        )
        shares = searched | "CompareBlocks" >> beam.Map(
            lambda numbered, expected: recalls(numbered[1], expected), beam.pvalue.AsList(exact)
        )  # ([recall], [recall])
        return (
            test.pipeline
            | "StartMeasuring" >> beam.Create([None])
            | "SummariseRecall"
            >> beam.Map(
                self._summarise, beam.pvalue.AsList(shares), beam.pvalue.AsList(exact)
            )  # (name, content)
        )
