"""What a search by an index missed, measured on a sample of test examples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import orjson

from transforms.influence.blocks import MergeTopK, ScoredBlock
from transforms.scoring.exact_search import Search
from transforms.storage.feature_set import FeatureSet
from transforms.vectors.files import Shard, plan_shards
from transforms.vectors.search import SearchPlan, TestBlock, plan_blocks

RECALL_FILE = "recall.json"

# Training examples of a range that is searched exactly for the sample.
_EXACT_ROWS = 100_000


def sampled_rows(blocks: Sequence[TestBlock], sample: int) -> np.ndarray:
    """The rows of the test set for which the exact answer is computed, evenly spread over those
    that are searched for.
    """
    rows = (
        np.concatenate([block.rows for block in sorted(blocks, key=lambda block: block.start)])
        if blocks
        else np.zeros(0, np.int64)
    )
    return (
        rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), sample)).astype(np.int64))]
        if len(rows)
        else rows
    )


def search_exactly(
    shard: Shard, test: FeatureSet, train: FeatureSet, plan: SearchPlan, blocks: Sequence[TestBlock]
) -> Iterator[tuple[None, ScoredBlock]]:
    """The best training examples of a range for the sampled test examples, exactly; nothing where
    there are none.
    """
    rows = sampled_rows(blocks, plan.sample)
    if not len(rows):
        return
    tests = test.take(rows)
    found = Search(tests, plan.scoring)
    for span in shard.spans:
        for _ in found.scan(train.read([span])):
            pass
    yield None, ScoredBlock.of(tests, found.result(), plan.scoring)


def ids_by_test(block: ScoredBlock) -> dict[bytes, tuple[set[bytes], set[bytes]]]:
    """The ids of each test example's proponents and opponents."""
    found = {}
    borders = [
        ranking.offsets(len(block.test_ids))
        for ranking in (block.best.proponents, block.best.opponents)
    ]
    for i, test_id in enumerate(block.test_ids.tolist()):
        proponents, opponents = (
            set(ranking.ids[offsets[i] : offsets[i + 1]].tolist())
            for ranking, offsets in zip(
                (block.best.proponents, block.best.opponents), borders, strict=True
            )
        )
        found[test_id] = proponents, opponents
    return found


def shares_found(
    block: ScoredBlock, exact: Sequence[ScoredBlock]
) -> tuple[list[float], list[float]]:
    """What part of each sampled test example's exact proponents a block has found, of those
    examples that are in it and have some; and likewise of opponents.
    """
    found = ids_by_test(block)
    shares: tuple[list[float], list[float]] = ([], [])
    for test_id, wanted in (
        pair for one in exact for pair in ids_by_test(one).items() if pair[0] in found
    ):
        for sign, listed in enumerate(shares):
            if wanted[sign]:
                listed.append(len(wanted[sign] & found[test_id][sign]) / len(wanted[sign]))
    return shares


def recall(parts: Sequence[tuple[list[float], list[float]]], k: int, tests: int) -> dict[str, Any]:
    """The mean and the lowest of the shares that blocks tell of, by sign; None where no sampled
    test example has a list of that sign.
    """
    told: dict[str, Any] = {"k": k, "tests": tests}
    for sign, name in enumerate(("proponents", "opponents")):
        shares = [share for part in parts for share in part[sign]]
        told[name] = (
            {"recall": math.fsum(shares) / len(shares), "lowest": min(shares)} if shares else None
        )
    return told


@dataclasses.dataclass
class MeasureRecall(beam.PTransform):
    """Tells what part of the exact answer for a sample was found: ((test, train), (row,
    ScoredBlock)) → (name, content) of a file.

    Attributes:
        plan: what was asked for.
    """

    plan: SearchPlan

    def _tell(
        self,
        _: None,
        parts: Sequence[tuple[list[float], list[float]]],
        exact: Sequence[ScoredBlock],
    ) -> tuple[str, bytes]:
        told = recall(parts, self.plan.scoring.k, sum(len(block.test_ids) for block in exact))
        return RECALL_FILE, orjson.dumps(
            told, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
        )

    def expand(
        self, sources: tuple[tuple[beam.PCollection, beam.PCollection], beam.PCollection]
    ) -> beam.PCollection:
        (test, train), found = sources
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
            >> beam.CombinePerKey(MergeTopK(self.plan.scoring.k))  # (None, ScoredBlock)
            | "DropKey" >> beam.Values()  # ScoredBlock
        )
        shares = found | "CompareBlocks" >> beam.Map(
            lambda numbered, wanted: shares_found(numbered[1], wanted), beam.pvalue.AsList(exact)
        )  # ([share], [share])
        return (
            test.pipeline
            | "StartMeasuring" >> beam.Create([None])
            | "TellRecall"
            >> beam.Map(
                self._tell, beam.pvalue.AsList(shares), beam.pvalue.AsList(exact)
            )  # (name, content)
        )
