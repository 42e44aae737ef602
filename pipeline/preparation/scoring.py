"""The flags of scoring as a configuration."""

from __future__ import annotations

import argparse

from transforms.influence.config import ScoringConfig


def scoring_config(args: argparse.Namespace) -> ScoringConfig:
    """Returns what the scoring flags ask for."""
    return ScoringConfig(
        k=args.k,
        normalize=args.normalize,
        learning_rates=args.learning_rates,
        sum_positions=args.sum_positions,
        memory_gb=args.memory_gb,
        test_rows_per_tile=args.test_rows_per_tile,
        train_rows_per_tile=args.train_rows_per_tile,
    )
