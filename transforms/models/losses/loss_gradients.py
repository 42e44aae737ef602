"""The loss gradient δ = ∂ℓ/∂logits of each example, one of the two factors of its gradient.

The gradient with respect to a dense layer's kernel is the outer product h δᵀ of the layer's input h
and δ; with respect to its bias it is δ. Cross-entropies and the squared error have closed forms,
computed in float64, which keep their relative precision on confident examples. Every other Keras
loss is differentiated automatically, in float32. `Loss.loss_grads` chooses among them.

Source of the closed forms: C. M. Bishop, Pattern Recognition and Machine Learning (2006), sections
3.1 (squared error), 4.3.2 (sigmoid) and 4.3.4 (softmax).
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf


def softmax_cross_entropy(
    logits: tf.Tensor, labels: tf.Tensor, label_smoothing: float, labels_are_indices: bool
) -> tf.Tensor:
    """Returns δ = p·Σq − q of ℓ = −Σ_j q_j log p_j, where p = softmax(z) and q is the label.

    At y = argmax q the formula p_y − q_y cancels to 0 on a confident example. Since δ sums to 0,
    that component is computed as −Σ_{j≠y} δ_j.

    Args:
        logits: z `[n, C]` float64.
        labels: `[n, 1]` class indices, or `[n, C]` class probabilities.
        label_smoothing: the part of a label's probability that is spread evenly over all classes;
            without effect on class indices.
        labels_are_indices: whether `labels` are class indices.

    Returns:
        `[n, C]` float64.
    """
    outputs = logits.shape[-1]
    if labels_are_indices:
        label = tf.cast(labels[:, 0], tf.int64)
        q = at_label = tf.one_hot(label, outputs, dtype=tf.float64)
        total = tf.ones_like(logits[:, :1])
    else:
        q = tf.cast(labels, tf.float64) * (1 - label_smoothing) + label_smoothing / outputs
        at_label = tf.one_hot(tf.argmax(q, axis=1), outputs, dtype=tf.float64)
        total = tf.reduce_sum(q, axis=1, keepdims=True)
    others = (tf.nn.softmax(logits) * total - q) * (1 - at_label)
    return others - at_label * tf.reduce_sum(others, axis=1, keepdims=True)


def sigmoid_cross_entropy(
    logits: tf.Tensor, labels: tf.Tensor, label_smoothing: float
) -> tf.Tensor:
    """Returns δ = ((1 − q)·σ(z) − q·σ(−z)) / C of the mean binary cross-entropy over C outputs.

    This equals (σ(z) − q) / C, without the cancellation.

    Args:
        logits: z `[n, C]` float64.
        labels: q `[n, C]`, within 0..1.
        label_smoothing: how far labels are moved towards ½, as a fraction.

    Returns:
        `[n, C]` float64.
    """
    q = tf.cast(labels, tf.float64) * (1 - label_smoothing) + label_smoothing / 2
    return ((1 - q) * tf.sigmoid(logits) - q * tf.sigmoid(-logits)) / logits.shape[-1]


def mean_squared_error(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Returns δ = 2(z − y) / C of the mean squared error over C outputs.

    Args:
        logits: z `[n, C]` float64.
        targets: y `[n, C]`.

    Returns:
        `[n, C]` float64.
    """
    return 2 * (logits - tf.cast(targets, tf.float64)) / logits.shape[-1]


def automatic(
    values: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], logits: tf.Tensor, labels: tf.Tensor
) -> tf.Tensor:
    """Differentiates any loss whose examples do not depend on each other.

    Args:
        values: computes the losses `[n]` of logits and labels.
        logits: `[n, C]` float32.
        labels: `[n, label_width]`.

    Returns:
        δ `[n, C]` float32, 0 where the loss does not depend on the logits.
    """
    with tf.GradientTape() as tape:
        tape.watch(logits)
        # Examples are independent, so the sum's gradient is each one's own.
        total = tf.reduce_sum(values(logits, labels))
    return tape.gradient(total, logits, unconnected_gradients=tf.UnconnectedGradients.ZERO)
