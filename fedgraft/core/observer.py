"""Progress callbacks, for progress bars, plain lines, or nothing."""


class Observer:
    """Progress callbacks; each may be overridden, and does nothing by default."""

    def on_images(self, done: int, total: int) -> None:
        """Images have been encoded."""

    def on_notice(self, sentence: str) -> None:
        """Something that the user should know."""

    def on_fold_start(self, name: str | None, number: int, count: int) -> None:
        """A federation begins; there are several if domains are left out one by one."""

    def on_round_end(self, server_round: int, rounds: int, metrics: dict[str, float]) -> None:
        """A round was checkpointed and evaluated: accuracies in percent by scope, and the training loss."""

    def on_site_left_out(self, server_round: int, site: int, reason: str) -> None:
        """A site's answer does not count."""
