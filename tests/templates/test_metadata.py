"""What Dataflow is told of the templates is what the programs take, in both directions."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from pipeline.flags import parser
from pipeline.flags.declarations import commands
from pipeline.flags.declarations.flag import Flag
from templates import metadata

# Of google.dataflow.v1beta3's ParameterMetadata, TemplateMetadata, ContainerSpec and
# FlexTemplateRuntimeEnvironment; Dataflow refuses a file with a field that it does not know.
PARAMETER = {
    "name",
    "label",
    "helpText",
    "isOptional",
    "regexes",
    "paramType",
    "groupName",
    "enumOptions",
    "defaultValue",
}
TYPES = {
    "TEXT",
    "GCS_READ_FILE",
    "GCS_READ_FOLDER",
    "GCS_WRITE_FOLDER",
    "BOOLEAN",
    "ENUM",
    "NUMBER",
    "BIGQUERY_TABLE",
}
TEMPLATE = {"name", "description", "streaming", "parameters"}
SPEC = {"image", "sdkInfo", "metadata", "defaultEnvironment"}
ENVIRONMENT = {"sdkContainerImage", "additionalExperiments"}

# What each flag takes and refuses as a parameter, told apart from how the parameters are made.
ONE = (["a", "per_image", "two words"], ["", "a\nb"])
LIST = (["a", "a,b", "module.a,module.b"], ["", "a,,b", ",", "a\nb"])
FOLDER = (
    ["gs://bucket/a", "gs://bucket/a/b=c/2026-11-25"],
    ["", "a", "/a", "gs://", "gs://bucket/a*", "s3://b/a", "gs://b/a\n"],
)
GLOBS = (
    [
        "gs://b/a-*",
        "gs://b/[ab]/train-?,gs://c/train-*",
        "gs://b/a, gs://b/c",
        "gs://b/model.weights.h5",
    ],
    ["", "a-*", "gs://b/a,c", "gs://b/a,", "/data/a", "gs://b/a\nb"],
)
SWITCH = (["true", "false"], ["", "maybe", "2"])
FRACTION = (["0", "1", "0.5", ".5", "0.01", "1.0", "5e-05"], ["", "-1", "1.5", "half", "2"])
COUNT = (["1", "10", "123456"], ["", "0", "-1", "1.5", "many"])
RATES = (["0.1", "0.1,0.01,1e-4", "1"], ["", "fast", "0.1,", "0.1;0.2"])
TAKES: dict[str, tuple[list[str], list[str]]] = {
    **dict.fromkeys(("train_examples", "test_examples", "examples", "checkpoints"), GLOBS),
    **dict.fromkeys(
        ("output", "base", "train_features", "test_features", "features", "previous"), FOLDER
    ),
    "class_names": (["gs://b/names.txt"], ["", "names.txt", "gs://b/*"]),
    **dict.fromkeys(
        (
            "overwrite",
            "allow_truncated_files",
            "per_token",
            "sum_positions",
            "include_bias",
            "fail_on_drift",
        ),
        SWITCH,
    ),
    **dict.fromkeys(("input_keys", "keep_keys", "slice_keys", "import"), LIST),
    **dict.fromkeys(("label_key", "id_key", "layer", "output_name"), ONE),
    "loss": (["SparseCategoricalCrossentropy(from_logits=True)"], ["", "a\nb"]),
    "parse_fn": (["module:function", "a.b:c"], ["", "module", "module:", ":f", "a b:c"]),
    "model": (["gs://b/model.keras", "a.b:build"], ["", "model.keras", "build"]),
    **dict.fromkeys(
        ("labels", "train_labels", "test_labels"), (["given", "predicted"], ["", "true"])
    ),
    "feature_dtype": (["float32", "bfloat16", "float16"], ["", "float64"]),
    "share_checkpoints": (["process", "machine"], ["", "thread"]),
    "normalize": (["none", "cosine", "relatif"], ["", "l2"]),
    **dict.fromkeys(
        (
            "max_rejected_fraction",
            "min_similarity",
            "min_suspicion",
            "max_suspect_fraction",
            "max_shift",
        ),
        FRACTION,
    ),
    **dict.fromkeys(
        ("batch_size", "k", "test_rows_per_tile", "train_rows_per_tile", "max_suspects_per_class"),
        COUNT,
    ),
    "max_appeared_suspects": (["0", "1", "10"], ["", "-1", "0.5"]),
    "memory_gb": (["2", "0.5", "12.25"], ["", "0", "0.0", "-1", "much"]),
    "learning_rates": RATES,
    "output_table": (
        ["some-project:nightly.audit", "example.com:some-project:a_b.c-d"],
        [
            "",
            "nightly.audit",
            "some-project.nightly.audit",
            "some-project:nightly",
            "some-project:night ly.audit",
        ],
    ),
    "run_date": (["2026-11-25"], ["", "today", "25.11.2026", "2026-11-25T02:00:00Z"]),
    "accelerator": (
        ["type:nvidia-l4;count:1", "type:nvidia-tesla-t4;count:2;install-nvidia-driver"],
        ["", "nvidia-l4", "type:a;count:0"],
    ),
}


def flags(command: str) -> dict[str, Flag]:
    """The flags of a command, by name."""
    return {flag.name: flag for flag in commands.flags_of(command)}


def committed(command: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((metadata.DIRECTORY / f"{command}.json").read_text())
    return content


@pytest.mark.parametrize("command", metadata.COMMANDS)
def test_the_files_are_what_the_flags_make_them(command: str) -> None:
    written = (metadata.DIRECTORY / f"{command}.json").read_text()
    assert written == metadata.text(metadata.metadata(command)), "run: make templates"


def test_there_is_a_file_for_each_template_and_no_other() -> None:
    assert {path.stem for path in metadata.DIRECTORY.iterdir()} == set(metadata.COMMANDS)
    assert set(commands.COMMANDS) - set(metadata.COMMANDS) == {
        "export",
        "index",
        "search",
        "show",
        "plan",
        "demo",
    }


@pytest.mark.parametrize("command", metadata.COMMANDS)
def test_every_flag_is_a_parameter_and_every_parameter_a_flag(command: str) -> None:
    content = committed(command)
    assert set(content) == TEMPLATE and content["streaming"] is False
    told = [one["name"] for one in content["parameters"]]
    assert len(told) == len(set(told))
    assert set(told) == set(flags(command))


@pytest.mark.parametrize("command", metadata.COMMANDS)
def test_parameters_say_what_the_flags_say(command: str) -> None:
    help_text = " ".join(parser.parser(command).format_help().split())
    told = committed(command)["parameters"]
    for one in told:
        flag = flags(command)[one["name"]]
        assert set(one) <= PARAMETER and one["paramType"] in TYPES
        assert one["isOptional"] is not flag.required
        assert f" {one['groupName'].lower()}: " in help_text
        assert one["label"]
        # The parser's help, not the declaration: both must say the same.
        assert one["helpText"].removesuffix(".")[1:] in help_text
        choices = [option["value"] for option in one.get("enumOptions", [])]
        assert choices == list(flag.kind.choices) and bool(choices) == (one["paramType"] == "ENUM")
    required = {one["name"] for one in told if not one["isOptional"]}
    assert "output" in required
    assert {one["paramType"] for one in told if one["name"] == "output"} == {"GCS_WRITE_FOLDER"}


@pytest.mark.parametrize("command", metadata.COMMANDS)
def test_defaults_are_those_of_the_flags(command: str) -> None:
    own = parser.parser(command)
    required = [f"{flag.option}=gs://b/a" for flag in flags(command).values() if flag.required]
    plain = vars(own.parse_args(required))
    # A console sends what it has filled in.
    filled = [
        f"--{one['name']}={one['defaultValue']}"
        for one in committed(command)["parameters"]
        if "defaultValue" in one
    ]
    assert vars(own.parse_args(required + filled)) == plain
    given = {one["name"] for one in committed(command)["parameters"] if "defaultValue" in one}
    assert given == {
        name for name, flag in flags(command).items() if flag.default not in (None, ())
    }


@pytest.mark.parametrize("command", metadata.COMMANDS)
def test_values_are_accepted_that_the_program_takes_and_refused_that_it_does_not(
    command: str,
) -> None:
    for one in committed(command)["parameters"]:
        name, (regex,) = one["name"], one["regexes"]
        valid, invalid = TAKES[name]
        for value in valid:
            assert re.search(regex, value), (name, value)
            # Alone, with nothing that other flags would need.
            flag = flags(command)[name]
            assert flag.kind.parse(value) is not None
            assert not flag.kind.choices or value in flag.kind.choices
        for value in invalid:
            # Python's $ matches before a last line feed, which RE2's and Java's do not with all of
            # a value.
            assert not re.fullmatch(regex, value), (name, value)
        assert (
            not one["isOptional"]
            or "defaultValue" not in one
            or re.fullmatch(regex, one["defaultValue"])
        )


def test_regexes_keep_to_what_all_engines_know() -> None:
    for command in metadata.COMMANDS:
        for one in committed(command)["parameters"]:
            (regex,) = one["regexes"]
            assert regex[0] == "^" and regex[-1] == "$"
            assert "(?" not in regex and not re.search(r"\\[1-9]", regex)


def test_a_template_names_its_image_and_what_is_so_for_its_jobs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert metadata.main(["--spec", "audit", "--image", "a/b:1-audit"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert set(content) == SPEC and set(content["defaultEnvironment"]) == ENVIRONMENT
    assert content["image"] == content["defaultEnvironment"]["sdkContainerImage"] == "a/b:1-audit"
    assert content["sdkInfo"] == {"language": "PYTHON"}
    assert content["metadata"] == committed("audit")
    assert (
        metadata.main(["--spec", "score", "--image", "a/b:1-score", "--worker_image", "a/gpu:1"])
        == 0
    )
    content = json.loads(capsys.readouterr().out)
    assert (content["image"], content["defaultEnvironment"]["sdkContainerImage"]) == (
        "a/b:1-score",
        "a/gpu:1",
    )
    with pytest.raises(SystemExit):
        metadata.main(["--spec", "audit"])
    assert "--spec needs --image" in capsys.readouterr().err
