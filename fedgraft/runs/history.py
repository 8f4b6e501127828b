"""What the rows of a run say, kept up to date as they are added: accuracy by scope, training, sites left out."""

from dataclasses import dataclass

from fedgraft.core.plain_text import plain
from fedgraft.data.results import Row, is_evaluation
from fedgraft.data.split import series_name

Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Accuracy:
    """One evaluation: the accuracy of a scope after a round in percent, averaged over sites and of each site."""

    round: int
    mean: float
    sites: dict[str, float]


@dataclass(frozen=True)
class LeftOut:
    """A site whose answer a round did not use."""

    round: int
    fold: str | None
    site: str
    reason: str


class History:
    """The rows of a run so far. A row repeated by a resumed run counts once.

    Attributes:
        evaluations: by fold and scope, then by round.
        training: the rows of training by fold, then by round.
    """

    def __init__(self) -> None:
        self.evaluations: dict[tuple[str | None, str], dict[int, Accuracy]] = {}
        self.training: dict[str | None, dict[int, Row]] = {}
        self.left_out: list[LeftOut] = []
        self._scopes: dict[str, set[str]] = {}

    def add(self, row: Row) -> None:
        """Take in one valid row."""
        at, fold, scope = row["round"], row.get("fold"), row["scope"]
        if scope == "left_out":
            self.left_out.append(LeftOut(at, fold, str(row["site"]), plain(row["reason"])))
        elif scope == "train":
            self.training.setdefault(fold, {})[at] = row
        elif is_evaluation(row):
            if fold is not None:
                self._scopes.setdefault(fold, set()).add(scope)
            if row["accuracy"] is not None:
                sites = {site: float(value) for site, value in row.get("sites", {}).items() if value is not None}
                self.evaluations.setdefault((fold, scope), {})[at] = Accuracy(at, float(row["accuracy"]), sites)

    def named(self) -> dict[str, tuple[str | None, str]]:
        """Fold and scope of each series by its name: the scope, the held-out domain, or both."""
        several = any(len(scopes) > 1 for scopes in self._scopes.values())
        return {series_name(fold, scope, several): (fold, scope) for fold, scope in self.evaluations}

    def accuracy(self) -> dict[str, list[Accuracy]]:
        """The evaluations of each series in the order of their rounds."""
        return {name: [rows[at] for at in sorted(rows)] for name, rows in self._by_name()}

    def curve(self, figure: str) -> dict[str, Curve]:
        """A figure of training, such as "loss" or "drift", over the rounds that have it; by fold, if there are any."""
        curves = {
            "train" if fold is None else fold: [
                (at, float(value)) for at, row in sorted(rows.items()) if (value := row.get(figure)) is not None
            ]
            for fold, rows in self.training.items()
        }
        return {name: curve for name, curve in curves.items() if curve}

    def newest_round(self, fold: str | None) -> int:
        """The newest round of a fold that has trained or was evaluated; 0 if none has."""
        evaluated = [at for (of, _), rows in self.evaluations.items() if of == fold for at in rows]
        return max([0, *self.training.get(fold, {}), *evaluated])

    def _by_name(self) -> list[tuple[str, dict[int, Accuracy]]]:
        return [(name, self.evaluations[key]) for name, key in self.named().items()]
