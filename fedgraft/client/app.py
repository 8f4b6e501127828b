"""The Flower ClientApp: hello, train and evaluate."""

import os
from collections.abc import Callable

import numpy as np
import torch
from flwr.app import Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedgraft.client.site import Site, site_for
from fedgraft.errors import UserError
from fedgraft.messages import COUNTS, JOB, METRICS, NUM_EXAMPLES, SHARED, Job, from_array_record, to_array_record

app = ClientApp()
_FAILED = 100
"""Error code of a site that names what went wrong; Flower's own codes are below."""


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Which site this node is."""
    if "partition-id" not in context.node_config:
        reason = 'this SuperNode was started without --node-config "partition-id=N", the number of its site'
        return Message(Error(_FAILED, reason), reply_to=message)
    site = int(str(context.node_config["partition-id"]))
    return Message(RecordDict({METRICS: MetricRecord({"site": site})}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round and answer with the shared parameters, the example count and the loss."""

    def work(site: Site, job: Job) -> RecordDict:
        answer = site.train(from_array_record(message.content.array_records[SHARED]), job.round)
        metrics = MetricRecord({NUM_EXAMPLES: answer.num_examples, "loss": answer.loss})
        return RecordDict({SHARED: to_array_record(answer.arrays), METRICS: metrics})

    return _answered(message, context, work)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate every scope and answer with counts, and with confusion counts where the job asks for them."""

    def work(site: Site, job: Job) -> RecordDict:
        results = site.evaluate(from_array_record(message.content.array_records[SHARED]), job.round)
        counts = MetricRecord({name: [result.correct, result.total] for name, result in results.items()})
        content = RecordDict({METRICS: counts})
        if job.detailed:
            confusions = {name: result.confusion.astype(np.float32) for name, result in results.items()}
            content[COUNTS] = to_array_record(confusions)
        return content

    return _answered(message, context, work)


def _answered(message: Message, context: Context, work: Callable[[Site, Job], RecordDict]) -> Message:
    _use_own_cpus()
    try:
        job = Job.from_record(message.content.config_records[JOB])
        return Message(work(site_for(job, int(str(context.node_config["partition-id"]))), job), reply_to=message)
    except Exception as error:  # a site's failure is an answer: the round goes on without it
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        return Message(Error(_FAILED, reason), reply_to=message)


def _use_own_cpus() -> None:
    """As many torch threads as the Ray actor has CPUs; Ray sets OMP_NUM_THREADS to that number."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
