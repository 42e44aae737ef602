"""A model's loss as a function of the logits of its last dense layer.

`compiled_losses.resolve` makes a `loss.Loss` of a compiled or named Keras loss; the loss gradient δ
is computed in `loss_gradients`.
"""
