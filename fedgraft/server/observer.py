"""Who is told how a run goes on: progress bars, plain lines, or nobody."""


class Observer:
    """Hears of progress; every method may be overridden, none does anything here."""

    def filling(self, done: int, total: int) -> None:
        """Images have passed the image tower."""

    def notice(self, sentence: str) -> None:
        """Something that the user should know."""

    def fold_begins(self, name: str | None, number: int, count: int) -> None:
        """A federation begins; there are several when domains are left out one by one."""

    def round_ends(self, server_round: int, rounds: int, metrics: dict[str, float]) -> None:
        """A round was checkpointed and evaluated; accuracies in percent by scope, and the training loss."""

    def left_out(self, server_round: int, site: int, reason: str) -> None:
        """A site's answer did not count."""
