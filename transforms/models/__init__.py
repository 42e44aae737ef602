"""Models that users bring: their checkpoints, last dense layer and loss.

`checkpoints.load` gives logits and activations h; `losses` gives the loss gradient δ at the logits.
"""
