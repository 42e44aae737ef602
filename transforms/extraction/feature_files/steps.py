"""Helpers for fused Beam steps: outputs at the end of a bundle, and resource hints."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

_Step = TypeVar("_Step", bound=beam.PTransform)


def windowed(output: Any) -> Any:
    """Wraps an output, tagged or not, as `finish_bundle` has to yield it."""
    if isinstance(output, beam.pvalue.TaggedOutput):
        return beam.pvalue.TaggedOutput(output.tag, windowed(output.value))
    return WindowedValue(output, GlobalWindow().max_timestamp(), (GlobalWindow(),))


def accelerated(step: _Step, accelerator: str | None) -> _Step:
    """Gives a step a resource hint, if there is one.

    All steps of a fused chain need the same hint: between two hints a runner splits the chain and
    stores what passes.
    """
    if not accelerator:
        return step
    # Beam returns the same step.
    return cast(_Step, step.with_resource_hints(accelerator=accelerator))
