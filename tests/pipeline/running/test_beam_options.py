"""Beam's options, from the flags that are not ours."""

from __future__ import annotations

import pytest

from pipeline.running.beam_options import beam_options, processes_per_machine
from transforms.core.errors import InputError


def test_beams_own_flags_are_taken() -> None:
    options = beam_options(["--direct_num_workers=3", "--direct_running_mode=multi_processing"])
    assert processes_per_machine(options) == 3
    assert processes_per_machine(beam_options([])) == 1
    assert (
        processes_per_machine(
            beam_options(["--direct_num_workers=0", "--direct_running_mode=multi_processing"])
        )
        is None
    )


def test_flags_of_a_runner_of_its_own_are_left_to_it() -> None:
    assert (
        beam_options(["--runner=FlinkRunner", "--their_flag=1"]).get_all_options()["runner"]
        == "FlinkRunner"
    )


def test_a_runner_that_does_not_exist_is_told() -> None:
    with pytest.raises(
        InputError, match="--runner=Nonsense is not a runner that Apache Beam knows here"
    ):
        beam_options(["--runner=Nonsense"])
