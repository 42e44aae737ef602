"""Influence in a pipeline of your own: own_pipeline.py DATA CHECKPOINTS OUTPUT.

DATA holds the examples, train-* and test-*; OUTPUT gets what `tracin influence` writes.
"""

import sys

import apache_beam as beam

import transforms as tracin


def main(data: str, checkpoints: str, output: str) -> None:
    """Extracts both feature sets, scores all pairs and writes each test example's top 3."""
    model = tracin.load_model(tracin.ModelConfig(checkpoints), rates_needed=True)
    examples, scoring = tracin.ExampleConfig(id_key="id"), tracin.ScoringConfig(k=3)

    def extract(name: str) -> tracin.ExtractFeatures:
        output_of_set = f"{output}/{name}_features"
        return tracin.ExtractFeatures(f"{data}/{name}-*", model, output_of_set, examples)

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        test = pipeline | "ExtractTest" >> extract("test")  # FeatureSet (one)
        train = pipeline | "ExtractTrain" >> extract("train")  # FeatureSet (one)
        blocks = (test, train) | tracin.ScoreInfluence(scoring)  # (row, ScoredBlock)
        (blocks, test, train) | tracin.WriteInfluence(output, scoring)  # Manifest


main(*sys.argv[1:])
