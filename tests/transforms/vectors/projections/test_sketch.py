"""Tensor sketches: linear, and of outer products."""

from __future__ import annotations

import numpy as np

from transforms.vectors.projections.sketch import Sketch


def sketch(seed: int = 0, size: int = 7) -> Sketch:
    return Sketch.draw(np.random.default_rng(seed), size, checkpoints=2, outputs=3, units=4)


def sketched(hashes: Sketch, loss_grads: np.ndarray, activations: np.ndarray) -> np.ndarray:
    return hashes.inverse(hashes.spectrum(1, loss_grads, activations))


def test_entry_by_entry_it_adds_signed_products_to_bins():
    rng = np.random.default_rng(1)
    hashes = sketch()
    loss_grads, activations = rng.normal(size=(5, 3)), rng.normal(size=(5, 4))
    expected = np.zeros((5, 7))
    for c in range(3):
        for d in range(4):
            slot = (hashes.loss_grad_bins[1, c] + hashes.activation_bins[1, d]) % 7
            sign = hashes.loss_grad_signs[1, c] * hashes.activation_signs[1, d]
            expected[:, slot] += sign * loss_grads[:, c] * activations[:, d]
    np.testing.assert_allclose(sketched(hashes, loss_grads, activations), expected, atol=1e-12)


def test_hashes_are_drawn_for_each_checkpoint():
    hashes = sketch(size=1000)
    assert hashes.loss_grad_bins.shape == (2, 3) and hashes.activation_signs.shape == (2, 4)
    assert not np.array_equal(hashes.activation_bins[0], hashes.activation_bins[1])
    assert set(np.unique(hashes.activation_signs)) <= {-1.0, 1.0}
    assert hashes.loss_grad_bins.max() < 1000
    again = sketch(size=1000)
    assert np.array_equal(hashes.loss_grad_bins, again.loss_grad_bins)
