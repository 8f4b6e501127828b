"""What secure aggregation costs in a round, beside plain averaging: `python -m benchmarks.secure_aggregation`.

The updates are random, in the shapes of rank-4 adapters of both towers of CLIP ViT-B/16, taken from the library's own
list of maps. All sites and the server work in this process, one after the other, with every message written and read as
bytes; there is no network. Seconds are this work's alone: of each site (the slowest one), of all sites together, and of
the server. CPU seconds are the process's own, which other programs disturb less. Bytes are those of all messages of the
round, in both directions. Some sites drop out, either before their masked vectors arrive, when the server has the most
to compute, or after.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from flwr.app import MetricRecord, RecordDict
from transformers import CLIPConfig, CLIPModel

from fedgraft.backbones import Backbone
from fedgraft.backbones.clip.family import clip_linear_maps
from fedgraft.client.loaded_run import LoadedRun
from fedgraft.client.open_rounds import RoundsInMemory
from fedgraft.client.secure_answers import answer_stage, begin_round
from fedgraft.config.run_config import RunConfig
from fedgraft.core.randomness import public_key
from fedgraft.flower.internals import record_bytes, record_from_bytes
from fedgraft.flower.messages import (
    JOB,
    METRICS,
    NUM_EXAMPLES,
    SHARED,
    Arrays,
    Job,
    for_sites,
    from_array_record,
    pack,
    to_array_record,
    unpack,
)
from fedgraft.methods.lora import LowRank
from fedgraft.methods.lora_options import LoraOptions
from fedgraft.methods.lora_targets import adapted_maps
from fedgraft.methods.plan import Plan
from fedgraft.server.rounds import RoundDriver, RoundResult
from fedgraft.server.router import Reply, Router
from fedgraft.server.secure_round import SecureRound
from fedgraft.strategies.answers import Answer

_STAGES = ("train", "shares", "masked", "unmask")


def adapter_shapes(targets: str) -> Arrays:
    """Zeros in the shapes of the adapters' shared parameters."""
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(vision_config={"patch_size": 16}))
    backbone = cast(
        Backbone, SimpleNamespace(name="ViT-B/16", linear_maps=lambda tower: clip_linear_maps(model, tower))
    )
    options = LoraOptions(rank=4, targets=targets, tower="both")
    generator, arrays = torch.Generator().manual_seed(0), {}
    for tower in options.towers:
        for name, (_, weight) in adapted_maps(backbone, options, tower).items():
            factors = LowRank(weight.shape, options.rank, generator, frozenset())
            for factor in ("lora_A", "lora_B"):
                arrays[f"{name}.{factor}"] = getattr(factors, factor).detach().numpy()
    return arrays


class Measured:
    """Sites behind a router that measures what they compute and what travels.

    Args:
        rule: the one that hides answers; None for plain averaging.
        gone: how many of the last sites drop out, and at which stage.
    """

    def __init__(self, plan: Plan, shared: Arrays, gone: tuple[int, str]) -> None:
        self._plan, self._shared = plan, shared
        self._gone, self._when = set(range(plan.config.sites - gone[0], plan.config.sites)), _STAGES.index(gone[1])
        self._stage = 0
        self.seconds: dict[int, float] = defaultdict(float)
        self.bytes = 0
        rng = np.random.default_rng(0)
        self._updates = {
            site: {name: rng.normal(0, 1e-3, array.shape).astype(np.float32) for name, array in shared.items()}
            for site in range(plan.config.sites)
        }
        self._runs = {site: self._loaded() for site in self._updates}

    def _loaded(self) -> LoadedRun:
        key = public_key(0)
        parts = SimpleNamespace(
            plan=self._plan, open_rounds=RoundsInMemory(), smallest_sum=3, peers=None, noise_key=lambda: key
        )
        return cast(LoadedRun, parts)

    def ask(
        self, kind: str, content: RecordDict, sites: Sequence[int], own: Mapping[int, RecordDict] | None = None
    ) -> list[Reply]:
        """What the sites answer."""
        replies = []
        for site in sites:
            data = record_bytes(for_sites(content, [site], own))
            self.bytes += len(data)
            if site in self._gone and self._stage >= self._when:
                continue
            began = time.perf_counter()
            answer = record_bytes(self._answered(kind, site, record_from_bytes(data)))
            self.seconds[site] += time.perf_counter() - began
            self.bytes += len(answer)
            replied = unpack(record_from_bytes(answer))[site]
            replies.append(Reply(site, error=replied) if isinstance(replied, str) else Reply(site, replied))
        self._stage += 1
        return replies

    def _answered(self, kind: str, site: int, content: RecordDict) -> RecordDict:
        if kind != "train":
            return answer_stage(content, lambda job: self._runs[site])
        received = from_array_record(content.array_records[SHARED])
        arrays = {name: array + self._updates[site][name] for name, array in received.items()}
        rule, metrics = self._plan.composition.rule.summed(), {NUM_EXAMPLES: 100 + site, "loss": 0.5, "seconds": 0.0}
        if rule is not None:
            job = Job.from_record(content.config_records[JOB])
            keys = begin_round(self._runs[site], rule, Answer(site, arrays, 100 + site, 0.5), received, job)
            return pack({site: RecordDict({"secagg": keys, METRICS: MetricRecord({"seconds": 0.0})})})
        return pack({site: RecordDict({SHARED: to_array_record(arrays), METRICS: MetricRecord({**metrics})})})


def measure(strategy: str, shared: Arrays, args: argparse.Namespace, when: str) -> tuple[dict[str, float], Arrays]:
    """One round: its figures, and the parameters after it."""
    config = RunConfig.build(
        {"method": "fedit", "strategy": strategy, "sites": args.sites, "method_options": {"tower": "both"}}
    )
    plan = Plan.of(config)
    sites = Measured(plan, shared, (args.dropped, when))
    driver = RoundDriver(plan, "", shared, public_key(0), drift=lambda arrays: 0.0)
    job, asked = Job(config, "run", "0" * 64, 0, 1), driver.participants(1)
    began, cpu = time.perf_counter(), time.process_time()
    content = RecordDict({JOB: job.to_record(), SHARED: to_array_record(shared)})
    replies = sites.ask("train", content, asked)
    result = _concluded(driver, plan, cast(Router, sites), job, asked, shared, replies)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    of_sites = sum(sites.seconds.values())
    figures = {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "slowest_site_seconds": max(sites.seconds.values()),
        "all_sites_seconds": of_sites,
        "server_seconds": seconds - of_sites,
        "bytes": sites.bytes,
        "counted": len(result.counted),
    }
    return figures, result.arrays


def _concluded(
    driver: RoundDriver,
    plan: Plan,
    router: Router,
    job: Job,
    asked: list[int],
    shared: Arrays,
    replies: list[Reply],
) -> RoundResult:
    rule = plan.composition.rule.summed()
    if rule is None:
        return driver.conclude(1, shared, replies, {})
    require: Callable[[int, Any], None] = lambda sound, left_out: driver.require_quorum(1, sound, left_out)  # noqa: E731
    total = SecureRound(rule, router, job, asked, rule.vector_size(shared), require).total(replies)
    return driver.conclude_sum(1, shared, rule, total, {})


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sites", type=int, default=10)
    parser.add_argument("--dropped", type=int, default=2)
    parser.add_argument("--targets", default="q_proj,v_proj")
    parser.add_argument("--strategy", default="secagg")
    args = parser.parse_args()
    shared = adapter_shapes(args.targets)
    found: dict[str, Any] = {"parameters": sum(array.size for array in shared.values()), **vars(args)}
    measure("fedavg", shared, args, "train")  # imports and first allocations
    for name, stage in (("dropped before their vectors arrive", "masked"), ("dropped after", "unmask")):
        plain, expected = measure("fedavg", shared, args, "shares" if stage == "unmask" else "train")
        secure, arrays = measure(args.strategy, shared, args, stage)
        found[name] = {
            "plain": plain,
            "secure": secure,
            "overhead_seconds": secure["seconds"] - plain["seconds"],
            "overhead_cpu_seconds": secure["cpu_seconds"] - plain["cpu_seconds"],
            "bytes_ratio": secure["bytes"] / plain["bytes"],
            "largest_difference": max(float(np.abs(arrays[key] - expected[key]).max()) for key in shared),
        }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
