"""A site's side of secure aggregation: what it keeps of a round between the messages, and its answer to each.

After training, the site's answer has two public keys in place of its update. Three messages follow: for its shares, for
its masked vector, and for the shares that unmask the sum. It takes each of them once, in this order. A site that has
lost what it kept, because its worker was started again, refuses; in this round it has dropped out.
"""

import logging
from collections.abc import Callable
from dataclasses import replace

from flwr.app import ConfigRecord, RecordDict

from fedgraft.client.loaded_run import LoadedRun
from fedgraft.client.open_rounds import OpenRound
from fedgraft.core.errors import UserError
from fedgraft.core.randomness import keyed_normal
from fedgraft.core.refusals import Refusal
from fedgraft.flower.messages import JOB, Arrays, Job, pack, sites_of
from fedgraft.methods.plan import asked_sites
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.masked_sum import SummedAnswers
from fedgraft.strategies.secagg import records
from fedgraft.strategies.secagg.encoding import packed
from fedgraft.strategies.secagg.keys import SiteSecrets, commitment
from fedgraft.strategies.secagg.protocol import Terms, masked, partners, revealed, sealed_shares

_log = logging.getLogger("fedgraft.worker")


def secure_rule(run: LoadedRun) -> SummedAnswers | None:
    """The rule that hides the run's answers, if it has one.

    Raises:
        Refusal: it may sum, mask with, or let secrets be recovered by, fewer sites than this site accepts.
    """
    rule = run.plan.composition.rule.summed()
    if rule is None:
        return None
    least = rule.needed_answers(_asked(run))
    if least < run.smallest_sum:
        raise Refusal(
            "secure-sum",
            f"the run may sum the updates of {least} sites, and this site's smallest_sum is {run.smallest_sum}",
        )
    if rule.most_neighbours() + 1 < run.smallest_sum:
        raise Refusal(
            "secure-sum",
            f"the run lets a site mask with {rule.most_neighbours()} others, and with itself this site's smallest_sum "
            f"is {run.smallest_sum}",
        )
    if (threshold := rule.terms(_asked(run), "").threshold) < run.smallest_threshold:
        raise Refusal(
            "secure-sum",
            f"the run lets {threshold:g} of a site's share holders recover its secrets, and this site's "
            f"smallest_threshold is {run.smallest_threshold:g}",
        )
    return rule


def begin_round(run: LoadedRun, rule: SummedAnswers, answer: Answer, received: Arrays, job: Job) -> ConfigRecord:
    """Keep a site's update for the round, and return its public keys, signed if the site is a deployed one.

    Raises:
        Refusal: it cannot be summed, or the job is older than the round that the site is in.
    """
    kept = run.open_rounds.kept(job.fold, answer.site)
    if kept is not None and job.attempt and (job.attempt, job.round) < (kept.attempt, kept.round):
        raise Refusal("secure-sum", f"round {job.round} was begun by a server process that has ended since")
    key, place = run.noise_key(), (job.fold, answer.site, job.round)
    vector = rule.encoded(
        answer, received, _asked(run), lambda count, content: keyed_normal(key, count, "site noise", *place, content)
    )
    if rule.is_clipped(vector):
        _log.info("round %d: the update was longer than clipping_norm and was scaled down to it", job.round)
    secrets = SiteSecrets()
    run.open_rounds.keep(job.fold, answer.site, OpenRound(job.round, job.attempt, secrets, vector))
    public, peers = secrets.public(), run.peers
    return records.public_keys_record(public, peers.signed(answer.site, public, job.place.encode()) if peers else None)


def answer_stage(content: RecordDict, run_of: Callable[[Job], LoadedRun]) -> RecordDict:
    """The answer of each site to a stage after training."""
    job = Job.from_record(content.config_records[JOB])
    run = run_of(job)
    rule = secure_rule(run)
    if rule is None:
        raise Refusal("secure-sum", f"the strategy {job.config.strategy!r} sums no masked vectors")
    terms = rule.terms(_asked(run), job.place)
    request = content.config_records[records.SECAGG]
    answers: dict[int, RecordDict | str] = {}
    for site in sites_of(content):
        own = content.config_records.get(f"{site}/{records.SEALED}")
        try:
            record = _stage_answer(run, rule, terms, job, site, request, own)
            answers[site] = RecordDict({records.SECAGG: record})
        except UserError as error:
            answers[site] = run.reason(error)
        except (KeyError, ValueError, TypeError):
            answers[site] = "the server's message has no valid content for secure aggregation"
    return pack(answers)


def _stage_answer(
    run: LoadedRun,
    rule: SummedAnswers,
    terms: Terms,
    job: Job,
    site: int,
    request: ConfigRecord,
    own: ConfigRecord | None,
) -> ConfigRecord:
    kept = run.open_rounds.kept(job.fold, site)
    if kept is None or (kept.round, kept.attempt) != (job.round, job.attempt):
        raise Refusal("secure-sum", f"it keeps nothing of round {job.round}: its worker was started again since")
    stage = str(request["stage"])
    if stage != kept.next_stage:
        raise Refusal(
            "secure-sum",
            f"the server asks for the stage {stage!r} of round {job.round}, but {kept.next_stage!r} is next",
        )
    if stage == records.SHARES:
        keys = records.keys_of(request)
        if run.peers:
            run.peers.check(site, keys, records.statements_of(request), terms.place)
        sealed = sealed_shares(site, kept.secrets, keys, terms)
        run.open_rounds.keep(job.fold, site, replace(kept, keys=keys, next_stage=records.MASKED))
        return records.shares_answer(sealed, commitment(kept.secrets.own, terms.place))
    if stage == records.MASKED:
        if own is None:
            raise Refusal("secure-sum", "the server passes on no shares")
        received, sharers = records.sealed_of(own), records.sites_in(request, "sharers")
        if (count := len(partners(site, kept.keys, sharers, terms))) < run.smallest_sum:
            raise Refusal(
                "secure-sum",
                f"{count} sites would mask with each other, and this site's smallest_sum is {run.smallest_sum}",
            )
        vector = masked(site, kept.secrets, kept.keys, sharers, kept.vector, terms)
        known = replace(kept, vector=vector[:0], sharers=tuple(sharers), sealed=received, next_stage=records.UNMASK)
        run.open_rounds.keep(job.fold, site, known)
        return records.masked_answer(packed(vector, rule.encoding(_asked(run)).width))
    survivors, dropped = records.sites_in(request, "survivors"), records.sites_in(request, "dropped")
    if set(survivors) | set(dropped) != set(kept.sharers):
        raise Refusal("secure-sum", "the server's survivors and dropped sites are not those that shared their secrets")
    answer = revealed(site, kept.secrets, kept.keys, kept.sealed, survivors, dropped, terms)
    run.open_rounds.forget(job.fold, site)
    return records.revealed_record(answer)


def _asked(run: LoadedRun) -> int:
    return asked_sites(run.plan.config.sites, run.plan.config.participation)
