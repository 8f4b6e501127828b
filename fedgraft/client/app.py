"""The Flower ClientApp: hello, train and evaluate."""

import os
from collections.abc import Callable

import numpy as np
import torch
from flwr.app import Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedgraft.client.evaluation import ScopeResult
from fedgraft.client.site import Site, evaluate_sites, reason_of, sites_for, train_sites
from fedgraft.messages import (
    COUNTS,
    JOB,
    METRICS,
    NUM_EXAMPLES,
    SHARED,
    Arrays,
    Job,
    for_sites,
    from_array_record,
    pack,
    sites_of,
    to_array_record,
)
from fedgraft.strategies.answers import Answer

app = ClientApp()
_FAILED = 100
"""Error code of a site that names what went wrong; Flower's own codes are below."""


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Which sites this node holds: every n-th from its own number on where there are n nodes."""
    if "partition-id" not in context.node_config:
        reason = 'this SuperNode was started without --node-config "partition-id=N", the number of its site'
        return Message(Error(_FAILED, reason), reply_to=message)
    first = int(str(context.node_config["partition-id"]))
    count = Job.from_record(message.content.config_records[JOB]).config.sites
    nodes = int(str(context.node_config.get("num-partitions", count)))
    held = range(first, max(count, first + 1), nodes)
    return Message(for_sites(RecordDict(), held), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round and answer with each site's shared parameters, example count and loss."""

    def work(sites: list[Site], shared: Arrays, job: Job) -> dict[int, RecordDict | str]:
        return {site: _trained(answer) for site, answer in train_sites(sites, shared, job.round).items()}

    return _answered(message, work)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate every scope and answer with each site's counts, and its confusion counts where the job asks for them."""

    def work(sites: list[Site], shared: Arrays, job: Job) -> dict[int, RecordDict | str]:
        results = evaluate_sites(sites, shared, job.round)
        return {site: _measured(result, job.detailed) for site, result in results.items()}

    return _answered(message, work)


def _trained(answer: Answer | str) -> RecordDict | str:
    if isinstance(answer, str):
        return answer
    metrics = MetricRecord({NUM_EXAMPLES: answer.num_examples, "loss": answer.loss, "seconds": answer.seconds})
    return RecordDict({SHARED: to_array_record(answer.arrays), METRICS: metrics})


def _measured(results: dict[str, ScopeResult] | str, detailed: bool) -> RecordDict | str:
    if isinstance(results, str):
        return results
    content = RecordDict({METRICS: MetricRecord({name: [r.correct, r.total] for name, r in results.items()})})
    if detailed:
        content[COUNTS] = to_array_record({name: r.confusion.astype(np.float32) for name, r in results.items()})
    return content


def _answered(message: Message, work: Callable[[list[Site], Arrays, Job], dict[int, RecordDict | str]]) -> Message:
    _use_own_cpus()
    try:
        job = Job.from_record(message.content.config_records[JOB])
        shared = from_array_record(message.content.array_records[SHARED])
        answers = work(sites_for(job, sites_of(message.content)), shared, job)
        return Message(pack(answers), reply_to=message)
    except Exception as error:  # a node's failure is an answer: the round goes on without its sites
        return Message(Error(_FAILED, reason_of(error)), reply_to=message)


def _use_own_cpus() -> None:
    """As many torch threads as the Ray actor has CPUs; Ray sets OMP_NUM_THREADS to that number."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
