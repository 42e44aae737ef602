"""What a person is told in words: the checkpoints of a run, and what it read, set aside and
wrote.
"""

from __future__ import annotations

import json
import posixpath
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transforms.storage.feature_manifest import FeatureManifest
from transforms.storage.manifests import Manifest

# They bring TensorFlow, which `tracin plan` does not wait for.
if TYPE_CHECKING:
    from pipeline.commands.plan import Plan
    from transforms.extraction.load_model import LoadedModel
    from transforms.vectors.projections.projection import Projection

_TOLD_CONFUSIONS = 5


def checkpoints(model: LoadedModel) -> str:
    """The checkpoints in their order, with steps and learning rates."""
    loaded = model.loaded
    output = "" if loaded.output is None else f"output {loaded.output!r}, "
    lines = [
        f"{_count(len(model.infos), 'checkpoint')}, {output}last dense layer {loaded.layer!r}, "
        f"loss {loaded.loss.description}:"
    ]
    for info, rate in zip(model.infos, model.learning_rates, strict=True):
        step = "" if info.step is None else f"  step {info.step:,}"
        told = (
            f"  learning rate {rate:g}"
            if rate is not None
            else f"  no learning rate ({info.note or 'unknown'})"
        )
        lines.append(f"  {posixpath.basename(info.path)}{step}{told}")
    return "\n".join(lines)


def features(directory: str, manifest: FeatureManifest, name: str = "") -> str:
    """What became of a set of examples."""
    stored = sum(file.size for file in manifest.files)
    held = f"{manifest.counts['examples']:,} examples" + (
        f" of {manifest.examples:,} positions" if manifest.per_token else ""
    )
    lines = [
        f"{name or 'features'}: {held}, {size(stored)} in {_count(len(manifest.files), 'file')} at "
        f"{directory}"
    ]
    if manifest.rejected:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest.rejected.items())
        lines.append(
            f"  {sum(manifest.rejected.values()):,} rejected ({reasons}): see "
            f"{posixpath.join(directory, 'rejected-*.jsonl')}"
        )
    return "\n".join(lines)


def influence(directory: str, manifest: Manifest) -> str:
    """What scoring wrote."""
    stored = sum(file.size for file in manifest.files if file.name.startswith("influence-"))
    lines = [
        f"influence: {_count(manifest.counts['rows'], 'row')} as JSON lines and as Parquet, "
        f"{size(stored)} at {directory}"
    ]
    # Results of earlier versions have none.
    if any(file.name == "report.html" for file in manifest.files):
        lines.append(f"  open {posixpath.join(directory, 'report.html')} in a browser")
    return "\n".join(lines)


def table(name: str, rows: int, run_id: str) -> str:
    """What a table holds of a run."""
    return f"table: {_count(rows, 'row')} of run_id {run_id} in {name}"


def audit(directory: str, summary: Mapping[str, Any]) -> str:
    """What an audit found, and the labels that most of it is about."""
    suspects = (
        f"{_count(summary['suspects'], 'suspect')} (suspicion of "
        f"{summary['min_suspicion']:g} or more)"
    )
    expected = f"about {summary['expected_wrong_labels']:,.0f} wrong labels expected"
    lines = [
        f"audit: {_count(summary['examples'], 'example')}, {suspects}, {expected}, at {directory}"
    ]
    if summary["listed_suspects"] < summary["suspects"]:
        lines.append(
            f"  {summary['listed_suspects']:,} of them are listed: see --max_suspects_per_class"
        )
    for row in summary["confusions"][:_TOLD_CONFUSIONS]:
        what = f"labelled {row['label']}, "
        what += (
            "may be another"
            if row["suggested_label"] == row["label"]
            else f"look like {row['suggested_label']}"
        )
        lines.append(f"  {row['suspects']:,} {what}")
    # Audits of earlier versions looked for none.
    duplicates = summary.get("duplicates")
    if duplicates and not duplicates["conflicting_groups"]:
        lines.append("  no duplicates whose labels conflict")
    elif duplicates:
        told = (
            f"{duplicates['conflicting_examples']:,} examples in "
            f"{_count(duplicates['conflicting_groups'], 'group')}"
        )
        lines.append(f"  {told} of duplicates whose labels conflict")
    if left_out := summary.get("test", {}).get("slice_keys_left_out"):
        lines.append(f"  too many values to be slices, left out: {', '.join(left_out)}")
    lines += [
        f"  {row['what']} is {row['found']:.4g}, more than --{row['threshold']}={row['limit']:g}"
        for row in summary["crossed"]
    ]
    lines.append(f"  open {posixpath.join(directory, 'report.html')} in a browser")
    if "drift" in summary:
        lines.append(f"since {summary['drift']['previous']['directory']}:")
        for what in ("examples", "suspects"):
            lines.append(
                f"  {what}: "
                + ", ".join(f"{count:,} {name}" for name, count in summary["drift"][what].items())
            )
        known = [row for row in summary["drift"]["classes"] if row["distance"] is not None]
        if known:
            most = max(known, key=lambda row: row["distance"])
            told = f"distance {most['distance']:.3f}, p-value {most['p_value']:.2g}"
            lines.append(
                f"  self-influence shifted most among those labelled {most['label']} ({told})"
            )
    return "\n".join(lines)


def vectors(directory: str, manifest: Manifest, projection: Projection) -> str:
    """What export wrote."""
    stored = sum(file.size for file in manifest.files)
    formats = ", ".join(manifest.settings["formats"])
    return f"vectors: {_vectors(manifest, projection)}, {size(stored)} ({formats}) at {directory}"


def index(directory: str, manifest: Manifest, projection: Projection) -> str:
    """What indexing built."""
    stored, built = sum(file.size for file in manifest.files), len(manifest.files) - 1
    return (
        f"index: {_vectors(manifest, projection)}, {size(stored)} in "
        f"{_count(built, 'index file')} at {directory}"
    )


def _vectors(manifest: Manifest, projection: Projection) -> str:
    counts = manifest.counts
    sketched = (
        f"{projection.kept:,} coordinates and a sketch of {projection.sketch.size:,}"
        if projection.sketch
        else "coordinates"
    )
    zero = f", {counts['zero']:,} of them zero" if counts["zero"] else ""
    return (
        f"{_count(counts['vectors'], 'vector')}{zero} of {projection.dimensions:,} numbers "
        f"({projection.method}: {sketched})"
    )


def recall(data: bytes | None) -> str:
    """What part of the exact answer a search has found, out of the file that tells, if there is
    one.
    """
    if data is None:
        return "what the index did not find was not measured: see --recall_sample"
    told = json.loads(data)
    parts = [
        f"{100 * told[sign]['recall']:.2f} % of the {told['k']} strongest {sign} (at least "
        f"{100 * told[sign]['lowest']:.0f} %)"
        for sign in ("proponents", "opponents")
        if told[sign]
    ]
    return (
        f"found {' and '.join(parts) or 'nothing to find'}, by the exact answer for "
        f"{_count(told['tests'], 'test example')}"
    )


def skipped(counts: Mapping[str, int], pairs: int) -> str:
    """Why scoring was fast or slow: what became of all pairs, out of a run's counters."""
    known = sum(
        counts.get(f"pairs-{name}", 0) for name in ("zero", "blocks", "loss_gradients", "products")
    )
    if known != pairs:
        # Not every runner tells all of its counters.
        return (
            f"{pairs:,} pairs; what became of them is not known on this runner, which tells of "
            f"{known:,}"
        )
    told = [
        f"{_percent(counts.get(f'pairs-{name}', 0), pairs)} {words}"
        for name, words in (
            ("zero", "zero gradients"),
            ("blocks", "skipped in blocks"),
            ("loss_gradients", "sieved by loss gradients"),
            ("products", "multiplied whole"),
        )
        if counts.get(f"pairs-{name}", 0)
    ]
    scored, shuffled = counts.get("pairs-scored-exactly", 0), counts.get("bytes-shuffled", 0)
    again = (
        f"; {_count(counts['tests-again'], 'test example')} searched again"
        if counts.get("tests-again")
        else ""
    )
    return (
        f"{pairs:,} pairs: {', '.join(told)}; {scored:,} scored exactly; {size(shuffled)} left "
        f"the tiles{again}"
    )


def _percent(part: int, whole: int) -> str:
    share = 100 * part / whole
    return f"{share:.1f} %" if share >= 0.05 else "under 0.1 %"


def plan(told: Plan) -> str:
    """What a scoring run would cost, as a table."""
    cost = told.cost
    passes = "once" if cost.test_blocks == 1 else f"{cost.test_blocks:,} times"
    most = (
        ""
        if cost.test_bytes_read_at_most == cost.test_bytes_read
        else f" (at most {size(cost.test_bytes_read_at_most)})"
    )
    verdict = "within" if told.within_memory else "MORE THAN"
    machine = (
        f" ({told.processes:,} on a "
        f"machine{'' if told.processes_known else ', as this one has processors'})"
        if told.processes > 1
        else ""
    )
    rows = {
        "training examples": f"{told.train.examples:,}, {size(told.train.bytes)} in "
        f"{_count(told.train.files, 'file')}",
        "test examples": f"{told.test.examples:,}, "
        f"{size(told.test.bytes)} in {_count(told.test.files, 'file')}",
        "features": ", ".join(
            _count(n, noun)
            for n, noun in (
                (told.checkpoints, "checkpoint"),
                (told.outputs, "output"),
                (told.units, "unit"),
            )
        ),
        "pairs": f"{cost.pairs:,}",
        "arithmetic": f"at most {_scaled(cost.flops, 'flop')}, if every pair is multiplied",
        "tiles": f"{cost.tiles:,}: {_count(cost.test_blocks, 'block')} of up to "
        f"{cost.test_rows:,} test examples × "
        f"{_count(cost.train_ranges, 'range')} of up to {cost.train_rows:,} training examples",
        "chunks": f"{cost.chunks:,} of up to {cost.chunk_rows:,} training examples",
        "read": f"{size(cost.train_bytes_read + cost.test_bytes_read)}: "
        f"{size(cost.train_bytes_read)} of training features, "
        f"read {passes}, and {size(cost.test_bytes_read)}{most} of test features",
        "memory": f"{size(cost.memory_bytes)} "
        f"for scoring, {verdict} the "
        f"{size(told.memory_bytes_allowed)} of a worker process" + machine,
        "shuffled": "at "
        f"most {_count(cost.candidates, 'candidate')}, about {size(cost.shuffled_bytes)}",
        "result": f"{_count(cost.result_rows, 'row')}, at most about {size(cost.result_bytes)} "
        f"in {_count(cost.result_files, 'file')}",
    }
    return "\n".join(f"{name:<19}{text}" for name, text in rows.items())


def done(
    started: float, examples: int = 0, counts: Mapping[str, int] | None = None, scored: int = 0
) -> str:
    """How long a run took since `started` (of `time.monotonic`), of how many examples there are
    features now, how many of these were there already, by the run's counters, and how many pairs it
    scored.
    """
    already = {
        name: (counts or {}).get(name, 0) for name in ("examples-reused", "examples-unchanged")
    }
    parts = {
        "read {:,} examples": examples - sum(already.values()),
        "took over {:,} that an earlier attempt had finished": already["examples-reused"],
        "copied {:,} that did not change": already["examples-unchanged"],
        "scored {:,} pairs": scored,
    }
    told = [words.format(n) for words, n in parts.items() if n]
    return f"took {time.monotonic() - started:.1f} s" + (": " + ", ".join(told) if told else "")


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def size(count: float) -> str:
    """A number of bytes as a person reads it."""
    return f"{count:.0f} B" if count < 1000 else _scaled(count, "B")


def _scaled(value: float, unit: str) -> str:
    for prefix in ("", "K", "M", "G", "T", "P"):
        if value < 1000:
            return f"{value:.1f} {prefix}{unit}"
        value /= 1000
    return f"{value:,.1f} E{unit}"
