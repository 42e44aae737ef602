"""The nightly run: features of the training and the test set, influence and audit, each a Dataflow
job of its Flex Template. `python -m pipeline.nightly` runs it, and a schedule calls that.
"""
