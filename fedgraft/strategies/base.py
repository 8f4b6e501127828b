"""The part of a Flower strategy that every rule of fedgraft shares: who trains, and which answers count."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedgraft.errors import RunFailed
from fedgraft.messages import JOB, METRICS, NUM_EXAMPLES, SHARED, Arrays, from_array_record, to_array_record
from fedgraft.randomness import generator, keyed_normal
from fedgraft.strategies.answers import Answer, LeftOut, checked
from fedgraft.strategies.composition import Addition, Composition
from fedgraft.strategies.parts import Outcome, Round, State


def asked_sites(sites: int, participation: float) -> int:
    """How many sites are asked to train in a round."""
    return max(1, round(participation * sites))


class FederatedStrategy(Strategy):
    """Samples sites from the seed, checks their answers, and aggregates them in the order of the sites.

    Args:
        site_nodes: Flower node of each site.
        seed: of the run.
        fold: name of the fold, which takes part in the draws.
        participation: fraction of the sites that train in a round, from the first round on.
        quorum: fraction of the asked sites whose answers a round needs.
        addition: what a user's strategy adds to the method's own rule.

    Attributes:
        state: what the user's strategy remembers from round to round; belongs into the checkpoint.
    """

    def __init__(
        self,
        site_nodes: Mapping[int, int],
        seed: int,
        fold: str,
        participation: float = 1.0,
        quorum: float = 0.5,
        addition: Addition | None = None,
    ) -> None:
        self.site_nodes = dict(sorted(site_nodes.items()))
        self.seed, self.fold = seed, fold
        self.participation, self.quorum = participation, quorum
        self.addition = addition
        self.composition = addition.composition if addition else Composition()
        self.state: State = {}
        self.left_out: list[LeftOut] = []
        self.counted: list[int] = []
        self._reference: Arrays = {}
        self._asked: list[int] = []

    @abstractmethod
    def aggregate(self, answers: Sequence[Answer], previous: Arrays) -> Arrays:
        """The next shared parameters from checked answers in the order of sites; a pure function."""

    def check(
        self, answers: Sequence[Answer], previous: Arrays, sizes: bool = True
    ) -> tuple[list[Answer], list[LeftOut]]:
        """`checked` against what was sent, unless the sites of a method answer with something else."""
        return checked(answers, previous, sizes)

    def measured(self, answers: Sequence[Answer], previous: Arrays, aggregated: Arrays) -> dict[str, float]:
        """What a rule says of a round beside loss and examples, for the round's row of metrics.jsonl."""
        return {}

    def participants(self, server_round: int) -> list[int]:
        """The sites that train in a round, sorted."""
        sites = list(self.site_nodes)
        count = asked_sites(len(sites), self.participation)
        rng = generator(self.seed, "participation", self.fold, server_round)
        return sorted(int(site) for site in rng.permutation(sites)[:count])

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for each participant."""
        self._reference = from_array_record(arrays)
        self._asked = self.participants(server_round)
        return self._messages(self._asked, arrays, config, MessageType.TRAIN)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for each site, whether it trained or not."""
        return self._messages(list(self.site_nodes), arrays, config, MessageType.EVALUATE)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check, leave out, aggregate.

        Raises:
            RunFailed: fewer answers count than the quorum.
        """
        answers, silent = self._answers(replies)
        rule = self.composition.rule
        kept, bad = self.check(answers, self._reference, sizes=not (rule and rule.bounds_updates))
        self.left_out = sorted([*silent, *bad], key=lambda entry: entry.site)
        self.counted = [answer.site for answer in kept]
        quorum, least = max(1, round(self.quorum * len(self._asked))), self.composition.least()
        if len(kept) < max(quorum, least):
            reasons = "; ".join(f"site {entry.site}: {entry.reason}" for entry in self.left_out)
            needed = f"the quorum is {quorum}" if quorum >= least else f"the strategy needs {least}"
            raise RunFailed(
                f"Round {server_round} has {len(kept)} sound answers of {len(self._asked)}, {needed}. {reasons}"
            )
        total = sum(answer.num_examples for answer in kept)
        loss = sum(answer.loss * answer.num_examples for answer in kept) / total
        outcome = self._next(server_round, kept)
        self.state = outcome.state
        metrics = MetricRecord({"loss": loss, NUM_EXAMPLES: total, **outcome.figures})
        return to_array_record(outcome.arrays), metrics

    def _next(self, server_round: int, answers: Sequence[Answer]) -> Outcome:
        """The method's own rule or the user's, and the steps behind it."""
        if self.addition is None:
            return self._own(answers)
        now = self._round(server_round, self.addition)
        outcome = self.composition.aggregate(answers, now, self.state)
        return self.composition.after(outcome or self._own(answers), now, self.state)

    def _own(self, answers: Sequence[Answer]) -> Outcome:
        """The method's own rule, and what it says of the round."""
        arrays = self.aggregate(answers, self._reference)
        return Outcome(arrays, figures=self.measured(answers, self._reference, arrays))

    def _round(self, server_round: int, addition: Addition) -> Round:
        place = (self.fold, server_round)
        return Round(
            number=server_round,
            previous=self._reference,
            initial=addition.initial,
            asked=len(self._asked),
            noise=lambda count, content: keyed_normal(addition.noise_key, count, "server noise", *place, content),
            rounds=addition.rounds,
            drift=addition.drift,
        )

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Evaluation is averaged over sites by the server's metrics, not by the strategy."""
        return None

    def summary(self) -> None:
        """Nothing to log; the run directory holds the configuration."""

    def _messages(self, sites: Sequence[int], arrays: ArrayRecord, config: ConfigRecord, kind: str) -> list[Message]:
        content = RecordDict({JOB: config, SHARED: arrays})
        return [Message(content, dst_node_id=self.site_nodes[site], message_type=kind) for site in sites]

    def _answers(self, replies: Iterable[Message]) -> tuple[list[Answer], list[LeftOut]]:
        """Answers by site, and the asked sites without one."""
        sites = {node: site for site, node in self.site_nodes.items()}
        answers: list[Answer] = []
        failed: dict[int, str] = {}
        for reply in replies:
            site = sites[reply.metadata.src_node_id]
            if reply.has_error():
                failed[site] = str(reply.error.reason)
                continue
            try:
                metrics = reply.content.metric_records[METRICS]
                answers.append(
                    Answer(
                        site,
                        from_array_record(reply.content.array_records[SHARED]),
                        int(str(metrics[NUM_EXAMPLES])),
                        float(str(metrics["loss"])),
                    )
                )
            except (KeyError, ValueError, TypeError) as error:
                failed[site] = f"its answer cannot be read: {error}"
        answered = {answer.site for answer in answers} | set(failed)
        failed.update({site: "it did not answer in time" for site in self._asked if site not in answered})
        return answers, [LeftOut(site, reason) for site, reason in failed.items()]
