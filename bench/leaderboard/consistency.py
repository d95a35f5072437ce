"""Checks that the parts of a record agree with each other and with the registry."""

from __future__ import annotations

from collections.abc import Iterator

from bench.records.energy import ENERGY_MODEL
from bench.records.record import Options, Record, SnnAccuracy, differences, part
from bench.registry.datasets import DATA
from bench.registry.methods import METHODS
from bench.registry.nets import ARCHITECTURES

# The registry rounds the number of weights and gives it for ten classes.
TOLERATED_WEIGHTS = 0.1


def contradictions(record: Record) -> Iterator[str]:
    """Yields the contradictions in a record; none for a record as a run writes it."""
    config = record.recipe.config
    yield from _recipe(record, config)
    yield from _method(record, part(config, "source"))
    theirs, first = record.training.imported, config
    while source := part(first, "source"):  # a tuned net has one of its own
        first = source
    if first.get("imported") != (theirs and theirs.sha256):
        yield "training.imported is not the file that recipe.config names"
    if not record.conversion.causal and not any(point.wait for point in record.snn):
        yield "snn: no layer waits although the conversion is not causal; evaluate the network again"
    data, net = DATA.get(record.data.name), ARCHITECTURES.get(record.arch.name)
    if data is not None and record.data.num_classes != data.num_classes:
        yield f"data.num_classes is {record.data.num_classes}; {record.data.name} has {data.num_classes}"
    if net is not None and abs(record.arch.parameters / 1e6 - net.weights) > TOLERATED_WEIGHTS * net.weights:
        yield f"arch.parameters is {record.arch.parameters}; {record.arch.name} has about {net.weights} million"
    if record.energy_model not in (None, ENERGY_MODEL.name):
        yield f"energy_model is {record.energy_model}; energies are compared by {ENERGY_MODEL.name} only"
    if record.seed >= 2**32:
        yield f"seed is {record.seed}, which fit refuses"
    for where, accuracy in (("ann", record.ann), *((f"snn T={point.T}", point) for point in record.snn)):
        if accuracy.top1 > accuracy.top5:
            yield f"{where}: top1 {accuracy.top1} is above top5 {accuracy.top5}"
        fractions = {"top1": accuracy.top1, "top5": accuracy.top5}
        if isinstance(accuracy, SnnAccuracy) and accuracy.quantised_top1 is not None:
            fractions["quantised_top1"] = accuracy.quantised_top1
        images = record.protocol.num_eval_samples
        for name, fraction in fractions.items():
            drawn = isinstance(accuracy, SnnAccuracy) and not name.startswith("quantised")
            answers = images * ((record.conversion.draws or 1) if drawn else 1)
            if abs(fraction * answers - round(fraction * answers)) > 1e-6 * answers:
                yield f"{where}: {name} {fraction} is not a whole number of {images} images"


def _recipe(record: Record, config: Options) -> Iterator[str]:
    for where, said, configured in (
        ("method.name", record.method.name, config.get("method")),
        ("arch.name", record.arch.name, config.get("arch")),
        ("data.name", record.data.name, part(config, "data").get("name")),
    ):
        if said != configured:
            yield f"{where} is {said}, but recipe.config has {configured}"
    if differ := differences(part(config, "model"), record.method.options):
        yield f"method.options: {', '.join(differ)} differ from recipe.config"


def _method(record: Record, source: Options) -> Iterator[str]:
    entry = METHODS.get(record.method.name)
    if entry is None:
        yield f"method.name: unknown method {record.method.name}; choose from {', '.join(METHODS)}"
        return
    if record.method.paper != entry.paper:
        yield f"method.paper is {record.method.paper}; the paper of {record.method.name} is {entry.paper}"
    if record.conversion.retrained != (entry.source is None):
        yield f"conversion.retrained is {record.conversion.retrained}; {record.method.name} {entry.origin}"
    if record.conversion.source_sha256 != source.get("sha256"):
        yield "conversion.source_sha256 is not that of recipe.config.source"
    if entry.source is not None and record.conversion.source_sha256 is None:
        yield f"conversion.source_sha256: {record.method.name} {entry.origin}, but the record names none"
