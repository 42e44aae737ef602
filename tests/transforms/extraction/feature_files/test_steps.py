"""Outputs at the end of a bundle, and resource hints."""

from __future__ import annotations

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from transforms.extraction.feature_files.steps import accelerated, windowed


def test_outputs_of_a_bundles_end_are_in_the_global_window_and_keep_their_tags() -> None:
    plain, tagged = windowed(3), windowed(beam.pvalue.TaggedOutput("ids", 4))
    assert isinstance(plain, WindowedValue) and plain.value == 3
    assert plain.windows == (GlobalWindow(),)
    assert isinstance(tagged, beam.pvalue.TaggedOutput) and tagged.tag == "ids"
    assert isinstance(tagged.value, WindowedValue) and tagged.value.value == 4


def test_a_step_gets_the_hint_that_there_is() -> None:
    hints = accelerated(beam.Map(str), "type:nvidia-l4;count:1").get_resource_hints()
    assert list(hints.values()) == [b"type:nvidia-l4;count:1"]
    assert not accelerated(beam.Map(str), None).get_resource_hints()
