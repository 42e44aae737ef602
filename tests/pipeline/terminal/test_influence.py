"""A result of scoring in the terminal: the fate of all pairs."""

from __future__ import annotations

from pipeline.terminal.influence import skipped


def test_what_became_of_the_pairs_is_told_in_shares():
    counts = {
        "pairs-zero": 0,
        "pairs-blocks": 700_000,
        "pairs-loss_gradients": 299_900,
        "pairs-products": 100,
        "pairs-scored-exactly": 4_321,
        "bytes-shuffled": 12_345,
    }
    assert skipped(counts, 1_000_000) == (
        "1,000,000 pairs: 70.0 % skipped in blocks, 30.0 % sieved by loss gradients, under 0.1 % "
        "multiplied whole; 4,321 scored exactly; 12.3 KB left the tiles"
    )
    assert skipped({**counts, "tests-again": 2}, 1_000_000).endswith(
        "left the tiles; 2 test examples searched again"
    )


def test_a_runner_without_counters_is_told_of():
    told = "1,000 pairs; what became of them is not known on this runner, which tells of "
    assert skipped({}, 1000) == told + "0"
    assert skipped({"pairs-blocks": 400}, 1000) == told + "400"
