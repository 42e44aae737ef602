"""The plan of stage 2: the protocol, the grid, the tiles, the cost, and the manifest of the result.

The command line plans with these functions before a run, and the graph with the same ones while it
runs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transforms.core.errors import InputError
from transforms.core.shapes import Shape
from transforms.influence.config import ScoringConfig
from transforms.influence.protocol import ScoringProtocol
from transforms.influence.records import RecordScoring
from transforms.influence.sums import SumScoring
from transforms.runtime import counters
from transforms.scoring.costs import Cost, FeatureFiles
from transforms.scoring.influence import Scoring
from transforms.scoring.tiles import Footprint, Grid, Tile, choose_grid
from transforms.storage import feature_set_checks, manifests
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import FeatureManifest, Manifest


def protocol_of(config: ScoringConfig) -> ScoringProtocol[Any]:
    """Returns the scoring protocol that a configuration asks for."""
    return SumScoring() if config.sum_positions else RecordScoring()


def scoring_of(config: ScoringConfig, train: FeatureManifest) -> Scoring:
    """Returns the scoring of a training set.

    Raises:
        InputError: no usable learning rate is known for some checkpoint.
    """
    rates = feature_set_checks.usable_rates(train, config.learning_rates)
    return Scoring(rates, config.k, config.normalize)


def check_sets(test: FeatureSet, train: FeatureSet, config: ScoringConfig) -> None:
    """Makes sure that two feature sets can be scored against each other.

    Raises:
        InputError: they were extracted with different models, hold other records than the
            configuration asks for, the training set is empty, or a learning rate is missing.
    """
    feature_set_checks.check_same_model(
        test.manifest, train.manifest, test.directory, train.directory
    )
    if not train.manifest.examples:
        raise InputError(
            f"`train_features={train.directory!r}` holds no example: there is nothing to score "
            "against"
        )
    for feature_set in (train, test):
        protocol_of(config).check(feature_set.manifest, feature_set.directory)
    scoring_of(config, train.manifest)


def check_memory(
    config: ScoringConfig, shape: Shape, processes: int | None, largest_file: int = 0
) -> None:
    """Makes sure, before anything is computed, that the memory budget suffices.

    `processes` share a machine's memory; None for one per processor, which only workers can tell.
    `largest_file` is the size of the largest feature file in bytes, as far as it is known.

    Raises:
        InputError: it does not suffice.
    """
    if processes is not None:
        footprint = protocol_of(config).footprint(shape, config.k, largest_file)
        _choose_grid(config, footprint, (1, 1 << 40), processes)


def process_memory_bytes(config: ScoringConfig, processes: int | None) -> float:
    """Returns the memory budget of one of the processes that share a machine, in bytes."""
    return config.memory_gb * 1e9 / (processes or os.cpu_count() or 1)


def grid_of(
    test: FeatureSet, train: FeatureSet, config: ScoringConfig, processes: int | None
) -> Grid:
    """Returns the grid of two feature sets.

    Raises:
        InputError: the memory budget is too small.
    """
    protocol = protocol_of(config)
    largest = largest_file(test.manifest, train.manifest)
    footprint = protocol.footprint(train.shape, config.k, largest)
    counts = protocol.count(test.manifest), protocol.count(train.manifest)
    return _choose_grid(config, footprint, counts, processes)


def largest_file(*sets: FeatureManifest) -> int:
    """Returns the size of the largest feature file of some sets, in bytes."""
    return max((file.size for manifest in sets for file in manifest.files), default=0)


def plan_tiles(
    test: FeatureSet,
    train: FeatureSet,
    config: ScoringConfig,
    processes: int | None = 1,
    positions: Sequence[tuple[int, Any]] = (),
) -> Iterator[Tile]:
    """Returns the tiles of two feature sets, and logs and counts them.

    `positions` are, by test file, the numbers of positions of its examples, where the protocol
    counts them.

    Raises:
        InputError: the sets cannot be scored, or the memory budget is too small.
    """
    check_sets(test, train, config)
    protocol, grid = protocol_of(config), grid_of(test, train, config, processes)
    tests, trains = protocol.count(test.manifest), protocol.count(train.manifest)
    planned = list(protocol.tiles(grid, config.k, test, train, dict(positions)))
    logging.getLogger(__name__).info(
        "%d test x %d train examples: %d tiles of %d x %d",
        tests,
        trains,
        len(planned),
        grid.test_rows,
        grid.train_rows,
    )
    counters.add("pairs-planned", tests * trains)
    yield from planned


def predict_cost(
    config: ScoringConfig,
    shape: Shape,
    counts: tuple[int, int],
    test_files: Sequence[FeatureFiles],
    train_files: Sequence[FeatureFiles],
    processes: int | None = 1,
) -> Cost:
    """Predicts what a run costs; `counts` are the numbers of test and training examples.

    Raises:
        InputError: the memory budget is too small.
    """
    largest = max((alike.bytes for alike in (*test_files, *train_files)), default=0)
    protocol = protocol_of(config)
    footprint = protocol.footprint(shape, config.k, largest)
    grid = _choose_grid(config, footprint, counts, processes)
    return protocol.predict(grid, footprint, counts, test_files, train_files)


def influence_draft(
    test: FeatureManifest,
    train: FeatureManifest,
    config: ScoringConfig,
    class_names: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Manifest:
    """Returns the manifest of the result of two feature sets, its files and counts still missing.

    Memory and tiles are no part of its settings: the rows do not depend on them. `settings` are
    further ones that they depend on.

    Raises:
        InputError: no usable learning rate is known for some checkpoint.
    """
    own: dict[str, Any] = {
        "test_features": test.fingerprint,
        "train_features": train.fingerprint,
        "learning_rates": list(scoring_of(config, train).learning_rates),
        "k": config.k,
        "normalize": config.normalize,
    }
    if config.sum_positions:
        own["sum_positions"] = True
    if class_names:
        own["class_names"] = list(class_names)
    # Reports show settings in this order.
    content = {**(settings or {}), **own}
    return Manifest("influence", manifests.fingerprint(content), content, (), {})


def _choose_grid(
    config: ScoringConfig, footprint: Footprint, counts: tuple[int, int], processes: int | None
) -> Grid:
    try:
        return choose_grid(
            footprint,
            *counts,
            process_memory_bytes(config, processes),
            config.test_rows_per_tile,
            config.train_rows_per_tile,
        )
    except ValueError as error:
        raise InputError(f"`memory_gb={config.memory_gb:g}`: {error}") from error
