"""`tracin export`: the features of a set as vectors for nearest-neighbour libraries."""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Sequence
from typing import Any

import apache_beam as beam

from pipeline.flags import parser
from pipeline.running import progress, runner
from pipeline.terminal import report
from transforms.core.errors import InputError
from transforms.storage import filesystems, manifests
from transforms.storage.feature_manifest import FeatureManifest, usable_rates
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import Manifest
from transforms.storage.read_feature_set import ReadFeatureSet
from transforms.vectors import faiss_index, projections
from transforms.vectors.files import WriteVectors, read_projection, rows_per_file, write_vectors
from transforms.vectors.fit import FitProjection, ProjectionWanted
from transforms.vectors.projections import Projection, Scaling

# Of vectors, where nothing else is said: with so many, `benchmarks.neighbours` found all of the
# exact top 50 among the first 200.
_DIMENSIONS = 1024
# Vectors of more numbers are hardly meant: half a megabyte each.
_LARGE = 1 << 17

PROJECTING = (
    progress.Stage(
        "Sum moments", "examples-summed", "examples-to-fit", "examples-summed", "examples"
    ),
    progress.Stage(
        "Measure energies", "examples-measured", "examples-to-fit", "examples-measured", "examples"
    ),
    progress.Stage(
        "Project", "examples-projected", "examples-planned", "examples-projected", "examples"
    ),
)


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return runner.exit_with("export", lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    args, flags = parser.parse("export", argv)
    started = time.monotonic()
    beam_options = runner.beam_options(flags)
    found = manifests.read(args.features, FeatureManifest, "features")
    check_not_empty(found, "features", args.features)
    if "faiss" in args.formats:
        faiss_index.require()
    made: Projection | None = None
    if args.projection_of:
        made, source = read_other_projection(
            args.projection_of, found, args.features, args.normalize
        )
        settings: dict[str, Any] = {
            "projection_of": source.fingerprint,
            "normalize": "cosine" if made.scaling.unit else "none",
        }
    else:
        wanted = projection_wanted(args, found, "features", args.normalize or "none")
        settings = projection_settings(wanted, args.normalize or "none")
    settings |= {
        "features": found.fingerprint,
        "model": found.model_fingerprint,
        "formats": sorted(args.formats),
    }
    draft = Manifest("vectors", manifests.fingerprint(settings), settings, (), {})
    if manifests.is_complete(args.output, draft, args.overwrite):
        print(f"{args.output} is complete with the same settings: nothing to do")
        return
    filesystems.check_writable(args.output)

    write = functools.partial(write_vectors, directory=args.output, formats=args.formats)

    def build(pipeline: beam.Pipeline) -> None:
        sets = pipeline | "ReadFeatures" >> ReadFeatureSet(
            args.features, "features", found.fingerprint
        )  # FeatureSet
        if args.projection_of:
            projection = (
                sets
                | "NameProjection" >> beam.Map(lambda _: args.projection_of)  # directory
                | "ReadProjection"
                >> beam.Map(
                    lambda directory: read_other_projection(
                        directory, found, args.features, args.normalize
                    )[0]
                )  # Projection
            )
        else:
            projection = sets | "FitProjection" >> FitProjection(wanted)  # Projection
        (sets, projection) | "WriteVectors" >> WriteVectors(
            args.output, draft, args.overwrite, rows_per_file, write
        )  # Manifest

    fits = not made and args.projection in projections.FITTED
    if runner.run_graph(build, beam_options, PROJECTING if fits else PROJECTING[-1:]) is None:
        print("the graph is built; nothing has run")
        return
    written = runner.read_back_kind(args.output, "vectors")
    print(report.vectors(args.output, written, read_projection(args.output, written)))
    print(report.done(started))


def check_not_empty(found: FeatureManifest, flag: str, directory: str) -> None:
    """Makes sure that there is something to make vectors of.

    Raises:
        InputError: the set holds no example.
    """
    if not found.examples:
        raise InputError(
            f"--{flag}={directory!r} holds no example: there is nothing to make vectors of"
        )


def projection_wanted(
    args: argparse.Namespace, found: FeatureManifest, flag: str, normalize: str
) -> ProjectionWanted:
    """What the flags ask for, of the features of a training set.

    Raises:
        InputError: no such vectors can be made, or they would be larger than anybody can mean.
    """
    shape = FeatureSet(getattr(args, flag), found).shape
    exact = shape.checkpoints * shape.outputs * shape.units
    dimensions = exact if args.projection == "exact" else args.dimensions or min(_DIMENSIONS, exact)
    try:
        projections.check_dimensions(
            args.projection, dimensions, shape.checkpoints, shape.outputs, shape.units
        )
    except ValueError as error:
        raise InputError(f"--dimensions={args.dimensions}: {error} (--projection=exact)") from error
    if dimensions > _LARGE and not args.allow_large_vectors:
        each, all_of_them = (
            report.size(4 * dimensions),
            report.size(4 * dimensions * found.examples),
        )
        raise InputError(
            f"vectors of {dimensions:,} numbers take {each} an example, {all_of_them} in all: "
            "choose fewer by --projection=auto and --dimensions, or pass --allow_large_vectors"
        )
    return ProjectionWanted(
        args.projection,
        dimensions,
        args.seed,
        Scaling(usable_rates(found, args.learning_rates), normalize != "none"),
    )


def projection_settings(wanted: ProjectionWanted, normalize: str) -> dict[str, Any]:
    """What identifies the projection of a feature set, for a manifest."""
    return {
        "learning_rates": list(wanted.scaling.learning_rates),
        "normalize": normalize,
        "projection": wanted.method,
        "dimensions": wanted.dimensions,
        "seed": wanted.seed,
    }


def read_other_projection(
    directory: str, found: FeatureManifest, name: str, normalize: str | None
) -> tuple[Projection, Manifest]:
    """The projection that other vectors, or an index, were made with, and their manifest;
    `normalize` in the place of theirs, if not None.

    Raises:
        InputError: there is none, or it is for features of another model.
    """
    source = manifests.read_kind(directory, "projection_of", "vectors", "index")
    if source.settings["model"] != found.model_fingerprint:
        raise InputError(
            f"--projection_of={directory!r} is for features of another model than those of "
            f"{name!r}: extract both with the same checkpoints, layer, loss and bias"
        )
    made = read_projection(directory, source)
    return (made if normalize is None else made.with_unit(normalize != "none")), source


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
