"""The scenarios, one after another in the order in which they run."""

from benchmarks.scenarios import (
    claims,
    durability,
    embeddings,
    live,
    llama,
    prefixes,
    rates,
    saturation,
    shapes,
    sharing,
    tail,
    throughput,
    validation,
    volume,
)
from benchmarks.scenarios.scenario import Scenario

ALL: dict[str, Scenario] = {
    scenario.name: scenario
    for room in (
        throughput,
        tail,
        volume,
        validation,
        shapes,
        prefixes,
        llama,
        embeddings,
        live,
        durability,
        sharing,
        saturation,
        rates,
        claims,
    )
    for scenario in room.SCENARIOS
}
