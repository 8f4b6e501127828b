"""What a deployed site accepts in a server's message at all, before its policy is asked: a job is data from a stranger.

Nothing in a job may name something on the site's disk or in a network, and no number or text in it may be so large
that the site spends memory or disk on it without end.
"""

import json
import re
from collections.abc import Iterator
from math import prod
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from fedgraft.config.notation import parse_terms
from fedgraft.config.run_config import RunConfig
from fedgraft.core.refusals import Refusal, refusing
from fedgraft.flower.messages import JOB, SITES, Job, sites_of
from fedgraft.methods.plan import Plan

MAX_SITES = 1_000_000
MAX_ATTEMPTS = 10_000
"""Starts of a server for one run."""
MAX_ARRAYS = 10_000
MAX_CONFIGURATION = 256 * 1024
"""Characters of a configuration."""
MAX_STRATEGY = 2000
"""Characters of a strategy, which takes time to read that grows faster than its length."""
MAX_OPTIONS, MAX_OPTION, MAX_TEXT = 100, 4096, 200
"""Options in a table, the largest whole number among them, and the characters of a text or a name."""
MAX_PRODUCT = 2**20
"""Of all whole numbers in a table of options: together they give the size of what a method trains."""
MAX_CLASSES = 10_000
_CLASSES = "class_names"
"""The option of every protocol for deployments that holds class names, which may contain any character."""
_RUN_NAME = re.compile(r"\w[\w.-]{0,99}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_PATH = re.compile(r"[/\\~]|\.\.|^\.|:")
"""What turns a text into a path, an address or the ID of a model."""


def read_job(content: RecordDict) -> Job:
    """The job in a message; raises `Refusal` if it cannot be read or is of an incompatible version."""
    record = content.config_records.get(JOB, ConfigRecord())
    if len(str(record.get("config", ""))) > MAX_CONFIGURATION:
        raise _outside(f"its configuration has more than {MAX_CONFIGURATION} characters")
    try:
        if len(str(json.loads(str(record["config"])).get("strategy", ""))) > MAX_STRATEGY:
            raise _outside(f"its strategy has more than {MAX_STRATEGY} characters")
        with refusing("configuration"):
            return Job.from_record(record)
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise Refusal("configuration", detail=f"the job cannot be read: {error}") from error


def check_job(job: Job, content: RecordDict) -> None:
    """Raise `Refusal` for a message outside the bounds."""
    if not _RUN_NAME.fullmatch(job.run):
        raise Refusal("run-name", detail=f"the server calls the run {job.run[:MAX_TEXT]!r}")
    arrays = [name for record in content.array_records.values() for name in record]
    numbers = (
        ("round", job.round, job.config.rounds),
        ("attempt", job.attempt, MAX_ATTEMPTS),
        ("number of sites", job.config.sites, MAX_SITES),
        ("number of arrays", len(arrays), MAX_ARRAYS),
    )
    for what, value, most in numbers:
        if not 0 <= value <= most:
            raise _outside(f"its {what} is {value}, not one from 0 to {most}")
    if not _FINGERPRINT.fullmatch(job.fingerprint):
        raise _outside("its fingerprint is not 64 hexadecimal digits")
    if any(len(name) > MAX_TEXT for name in (job.version, *arrays)):
        raise _outside(f"a name in it has more than {MAX_TEXT} characters")
    if SITES in content.metric_records:
        _check_sites(sites_of(content), job.config)
    for name, value in _options(job.config):
        _check_option(name, value)


def check_fold(job: Job, plan: Plan) -> None:
    """Raise `Refusal` for a fold that the run does not have."""
    if not 0 <= job.fold < len(plan.announced.folds):
        raise _outside(f"its fold is {job.fold}, but the run has {len(plan.announced.folds)}")


def _check_sites(sites: list[int], config: RunConfig) -> None:
    if len(sites) != 1 or not 0 <= sites[0] < config.sites:
        raise _outside(f"it addresses {len(sites)} sites, not one of 0 to {config.sites - 1}")


def _options(config: RunConfig) -> Iterator[tuple[str, Any]]:
    """All options that the server chooses, whoever they belong to."""
    terms = [term.options for term in parse_terms(config.strategy)]
    for table in (config.method_options, config.protocol_options, config.backbone_options, *terms):
        if len(table) > MAX_OPTIONS:
            raise _outside(f"it has {len(table)} options")
        yield from table.items()
        if prod(max(1, abs(value)) for value in table.values() if isinstance(value, int)) > MAX_PRODUCT:
            raise _outside(f"the product of its options is larger than {MAX_PRODUCT}")


def _check_option(name: str, value: Any) -> None:
    """Raise `Refusal` for a number without measure, or for a text that may name something outside the message."""
    if len(name) > MAX_TEXT:
        raise _outside("an option has a name without end")
    if isinstance(value, int) and abs(value) > MAX_OPTION:
        raise _outside(f"the option {name!r} is larger than {MAX_OPTION}")
    if isinstance(value, list):
        if len(value) > MAX_CLASSES:
            raise _outside(f"the option {name!r} has more than {MAX_CLASSES} values")
        for part in value:
            _check_text(name, part)
    elif isinstance(value, str):
        _check_text(name, value)


def _check_text(name: str, text: str) -> None:
    if len(text) > MAX_TEXT:
        raise _outside(f"the option {name!r} has a text of more than {MAX_TEXT} characters")
    if name != _CLASSES and _PATH.search(text):
        raise _outside(f"the option {name!r} could name a file or an address, which a site never takes from a server")


def _outside(what: str) -> Refusal:
    """A refusal whose public text is made of the message's own numbers and names."""
    return Refusal("bounds", f"the message is outside the bounds that a site accepts: {what}")
