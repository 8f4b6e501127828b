"""What a site does with each kind of message, content in and content out, in simulations and deployments alike."""

import os
from collections.abc import Callable

import numpy as np
import torch
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedgraft.client.evaluation import ScopeResult
from fedgraft.client.loaded_run import LoadedRun
from fedgraft.client.secure_answers import begin_round, secure_rule
from fedgraft.client.site import Site, evaluate_sites, sites_for, train_sites
from fedgraft.core.errors import UserError
from fedgraft.flower import messages
from fedgraft.flower.messages import Arrays, Job, from_array_record, pack, sites_of, to_array_record
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.secagg.records import SECAGG

RunOf = Callable[[Job], LoadedRun]
"""Finds or loads the run that a job is for."""


def train(content: RecordDict, run_of: RunOf) -> RecordDict:
    """Train one round and answer with each site's shared parameters, example count and loss.

    If the job asks for it, the answer also holds what `evaluate` would have returned for the round before.
    """
    sites, shared, own, job = _read(content, run_of)
    run, rule = sites[0].run, secure_rule(sites[0].run)
    measured = evaluate_sites(sites, shared, job.round - 1, own) if job.measure else {}
    answers: dict[int, RecordDict | str] = {}
    for site, answer in train_sites(sites, shared, job.round, own).items():
        if isinstance(answer, str):
            answers[site] = answer
            continue
        try:
            released = _shown(answer) if rule is None else _hidden(answer, begin_round(run, rule, answer, shared, job))
            answers[site] = _trained(released, measured.get(site))
        except UserError as error:
            answers[site] = run.reason(error)
    return pack(answers)


def evaluate(content: RecordDict, run_of: RunOf) -> RecordDict:
    """Evaluate every scope and answer with each site's counts, and its confusion counts if the job asks for them."""
    sites, shared, own, job = _read(content, run_of)
    results = evaluate_sites(sites, shared, job.round, own)
    return pack({site: _measured(result, job.detailed) for site, result in results.items()})


def _read(content: RecordDict, run_of: RunOf) -> tuple[list[Site], Arrays, dict[int, Arrays], Job]:
    """The sites that a message is for, what all of them receive, what single ones receive besides, and the job."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # Ray sets it to the actor's CPUs
    job = Job.from_record(content.config_records[messages.JOB])
    shared = from_array_record(content.array_records[messages.SHARED])
    numbers = sites_of(content)
    records = {site: content.array_records.get(f"{site}/{messages.SHARED}") for site in numbers}
    own = {site: from_array_record(record) for site, record in records.items() if record is not None}
    return sites_for(run_of(job), job, numbers), shared, own, job


def _shown(answer: Answer) -> RecordDict:
    """An answer whose update the server sees."""
    metrics = MetricRecord({messages.NUM_EXAMPLES: answer.num_examples, "loss": answer.loss, "seconds": answer.seconds})
    return RecordDict({messages.SHARED: to_array_record(answer.arrays), messages.METRICS: metrics})


def _hidden(answer: Answer, keys: ConfigRecord) -> RecordDict:
    """An answer whose update, loss and example count go into a sum."""
    return RecordDict({SECAGG: keys, messages.METRICS: MetricRecord({"seconds": answer.seconds})})


def _trained(content: RecordDict, measured: dict[str, ScopeResult] | str | None) -> RecordDict:
    """An answer with what was measured before training."""
    if isinstance(measured, dict):
        content[messages.MEASURED] = _counts(measured)
    elif measured is not None:
        content[messages.UNMEASURED] = ConfigRecord({"reason": measured})
    return content


def _measured(results: dict[str, ScopeResult] | str, detailed: bool) -> RecordDict | str:
    if isinstance(results, str):
        return results
    content = RecordDict({messages.METRICS: _counts(results)})
    if detailed:
        content[messages.COUNTS] = to_array_record(
            {name: r.confusion.astype(np.float32) for name, r in results.items()}
        )
    return content


def _counts(results: dict[str, ScopeResult]) -> MetricRecord:
    return MetricRecord({name: [result.correct, result.total] for name, result in results.items()})
