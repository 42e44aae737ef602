"""The graph that `tracin influence` builds: what is fused, what is shuffled, what it carries."""

from __future__ import annotations

import copy
import pathlib
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.portability import common_urns
from apache_beam.runners.portability.fn_api_runner import fn_runner

from pipeline.commands.influence import Influence
from pipeline.flags import parser
from pipeline.running.beam_options import beam_options
from pipeline.running.command import Invocation
from tests.conftest import Tiny, write_records

ACCELERATOR = "type:nvidia-l4;count:1"


def build(tiny: Tiny, directory: pathlib.Path, payloads: list[bytes], *flags: str) -> Any:
    """The graph as it is handed to a runner, with `payloads` as training and as test examples."""
    write_records(directory / "train-0", payloads)
    write_records(directory / "test-0", payloads)
    words = [f"--{name}_examples={directory}/{name}-*" for name in ("train", "test")]
    words += [f"--checkpoints={tiny.glob}", f"--output={directory}/out", "--id_key=id", *flags]
    args, beams = parser.parse("influence", words)
    options = beam_options(beams)
    pipeline = beam.Pipeline(options=options)
    Influence.prepare(Invocation(args, beams, options, 0.0)).build(pipeline)
    return pipeline.to_runner_api()


@pytest.fixture(scope="module")
def graph(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build(tiny, tmp_path_factory.mktemp("graph"), tiny.payloads())


@pytest.fixture(scope="module")
def accelerated(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build(
        tiny,
        tmp_path_factory.mktemp("accelerated"),
        tiny.payloads(),
        f"--accelerator={ACCELERATOR}",
    )


@pytest.mark.parametrize("name", ["Train", "Test"])
@pytest.mark.parametrize("kind", ["graph", "accelerated"])
def test_reading_extracting_and_writing_are_one_stage(request, kind, name):
    graph = request.getfixturevalue(kind)
    _, stages = fn_runner.FnApiRunner().create_stages(copy.deepcopy(graph))
    fused = [{transform.unique_name for transform in stage.transforms} for stage in stages]
    (stage,) = (
        names
        for names in fused
        if any(f"Extract{name}Features/ComputeFeatureSet/ReadExamples" in one for one in names)
    )
    for part in (
        "ReadExamples/ReadFiles",
        "ExtractFeatures/RunCheckpoints",
        "WriteFeatures/WriteFiles",
    ):
        assert any(f"Extract{name}Features/ComputeFeatureSet/{part}" in one for one in stage), part


def hinted(graph: Any) -> set[str]:
    """The steps whose workers are to have an accelerator."""
    urn = common_urns.resource_hints.ACCELERATOR.urn
    environments = graph.components.environments
    found = {
        name: environments[t.environment_id].resource_hints.get(urn)
        for name, t in named(graph).items()
        if t.environment_id
    }
    assert set(found.values()) <= {None, ACCELERATOR.encode()}
    return {name for name, hint in found.items() if hint}


def named(graph: Any) -> dict[str, Any]:
    return {
        transform.unique_name: transform
        for transform in graph.components.transforms.values()
        if not transform.subtransforms
    }


def test_accelerators_are_bought_for_the_model_alone(graph, accelerated):
    assert hinted(graph) == set()
    assert hinted(accelerated) == {
        f"Extract{name}Features/ComputeFeatureSet/{step}"
        for name in ("Train", "Test")
        for step in (
            "ReadExamples/ReadFiles",
            "ExtractFeatures/RunCheckpoints",
            "WriteFeatures/WriteFiles/ParDo(_WriteDoFn)",
        )
    }
    assert named(graph).keys() == named(accelerated).keys()


def test_only_small_things_are_grouped(graph):
    grouped = {
        transform.unique_name.removesuffix("/GroupByKey").removesuffix("/ReshufflePerKey")
        for transform in graph.components.transforms.values()
        if transform.spec.urn == common_urns.primitives.GROUP_BY_KEY.urn
    }
    assert grouped == {
        # Names of files, and hashes of ids.
        "ExtractTrainFeatures/ComputeFeatureSet/SpreadFiles",
        "ExtractTestFeatures/ComputeFeatureSet/SpreadFiles",
        "ExtractTrainFeatures/ComputeFeatureSet/WriteFeatures/GroupIdHashes",
        "ExtractTestFeatures/ComputeFeatureSet/WriteFeatures/GroupIdHashes",
        # Manifests.
        "ExtractTrainFeatures/PublishFeatureSet",
        "ExtractTestFeatures/PublishFeatureSet",
        # Tiles, their candidates, and the candidates of one output file.
        *(
            f"ScoreInfluence/{step}"
            for step in (
                "SpreadFirstTiles",
                "SpreadTiles",
                "MergeTopK",
                "SpreadAgain",
                "MergeAgain",
            )
        ),
        "WriteInfluence/GroupByFile",
        # Names of feature files, and where the few examples of the report came from.
        *(
            f"WriteInfluence/See{name}Examples/{step}"
            for name in ("Test", "Train")
            for step in ("SpreadSearched", "GroupBySource")
        ),
    }


def test_planning_waits_for_both_manifests(graph):
    transforms = graph.components.transforms.values()
    producers = {
        output: t.unique_name
        for t in transforms
        if not t.subtransforms
        for output in t.outputs.values()
    }
    (plan,) = (t for t in transforms if t.unique_name == "ScoreInfluence/PlanTiles/CutTiles")
    waited = sorted(
        "/".join(producers[collection].split("/")[:2]) for collection in plan.inputs.values()
    )
    assert waited == [
        "ExtractTestFeatures/PublishFeatureSet",
        "ExtractTrainFeatures/PublishFeatureSet",
    ]
    for name in ("Test", "Train"):
        (named,) = (
            t for t in transforms if t.unique_name == f"Extract{name}Features/NameFeatureSet"
        )
        assert [producers[collection] for collection in named.inputs.values()] == [
            f"Extract{name}Features/ComputeFeatureSet/WriteFeatures/CommitFeatures"
        ]


def test_every_step_of_ours_has_a_name(graph):
    # Beam names an unnamed step after its code, and a job's monitoring shows that. Below these
    # steps the names are Beam's own.
    beams = (
        "ListFiles/",
        "SpreadFiles/",
        "FindFinished/",
        "PublishFeatureSet/",
        "StartWriting/",
        "WriteFiles/",
        "StartCommit/",
        "SpreadFirstTiles/",
        "SpreadTiles/",
        "MergeTopK/",
        "CheckThresholds/",
        "SpreadAgain/",
        "MergeAgain/",
        "StartReport/",
        "StartSearch/",
        "SpreadSearched/",
    )
    names = [transform.unique_name for transform in graph.components.transforms.values()]
    ours = [name for name in names if not any(part in name for part in beams)]
    assert len(ours) > 20
    assert [name for name in ours if "(" in name] == []


def test_the_graph_does_not_grow_with_the_examples(graph, tiny, tmp_path_factory):
    # Else a graph of a billion examples could not be submitted. The directory's name is as long as
    # that of the other graph, which holds it many times.
    small = build(tiny, tmp_path_factory.mktemp("small"), tiny.payloads()[:1])
    assert len(graph.SerializeToString()) == pytest.approx(len(small.SerializeToString()), abs=500)
