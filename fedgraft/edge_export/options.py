"""What the user chooses for an export."""

from dataclasses import dataclass, field
from pathlib import Path

from fedgraft.core.errors import UserError
from fedgraft.device.class_bank import check_labels
from fedgraft.edge_export.number_formats import NumberFormat, number_format
from fedgraft.edge_export.towers import TicketChoice


@dataclass(frozen=True, kw_only=True)
class ClassBankOptions:
    """Whose prompt becomes a class bank, for which labels, and how it is measured and signed.

    Attributes:
        site: "global", or the number of a site.
        fold: the domain left out, for a run with several folds.
        site_folder: of a deployed site, with its personal state and images.
        images: a folder class/image to measure on instead of the run's own images.
        labels: of the class bank; the run's own by default.
        max_novel_drop: percentage points of accuracy that the bundle may lose against the dense backbone.
        unknown_rate: fraction of known images that may be called unknown.
        most_images: in each of the sets that are measured.
        version: of the bundle; 1 by default, and for a class bank one more than that of its bundle.
        licence: of the weights.
        key: the signing key; the user's own by default.
        force: write what a gate refuses.
    """

    site: str = "global"
    fold: str | None = None
    site_folder: Path | None = None
    images: Path | None = None
    labels: tuple[str, ...] | None = None
    max_novel_drop: float = 5.0
    unknown_rate: float = 0.05
    most_images: int = 256
    version: int | None = None
    licence: str | None = None
    key: Path | None = None
    force: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: a number is out of range, or the labels cannot be used.
        """
        if not 0 <= self.max_novel_drop <= 100:
            raise UserError(f"--max-novel-drop is between 0 and 100 percentage points, not {self.max_novel_drop:g}.")
        if not 0 <= self.unknown_rate < 1:
            raise UserError(f"--unknown-rate is a fraction from 0 to less than 1, not {self.unknown_rate:g}.")
        if self.most_images < 1 or (self.version is not None and self.version < 0):
            raise UserError("The number of images must be at least 1, and the bundle's version at least 0.")
        if self.labels is not None:
            try:
                check_labels(self.labels)
            except ValueError as error:
                raise UserError(f"The labels {', '.join(map(str, self.labels))!r} cannot be used: {error}.") from error


@dataclass(frozen=True, kw_only=True)
class BundleOptions(ClassBankOptions):
    """The options of a whole bundle: those of its class bank, and the encoder's.

    Attributes:
        ticket: which image tower.
        quantization: name of the number format.
        retune_epochs: of the site's prompt on its own images, with the ticket's features.
        web: add a page that runs the bundle in a browser.
    """

    ticket: TicketChoice = field(default_factory=TicketChoice)
    quantization: str = "none"
    retune_epochs: int = 0
    web: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: as for a class bank, or there is no such number format.
        """
        super().__post_init__()
        number_format(self.quantization)
        if self.retune_epochs < 0:
            raise UserError(f"--retune is a number of epochs, not {self.retune_epochs}.")

    @property
    def number_format(self) -> NumberFormat:
        """The encoder's number format."""
        return number_format(self.quantization)


def parse_labels(text: str) -> tuple[str, ...]:
    """Labels separated by commas, or from a file with one per line.

    Raises:
        UserError: the file cannot be read.
    """
    path = Path(text)
    try:
        if path.is_file():
            return tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
        return tuple(label.strip() for label in text.split(","))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The labels cannot be read from {text}: {error}.") from error
