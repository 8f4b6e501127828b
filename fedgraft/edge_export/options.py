"""What the user chooses for an export. Imports neither torch nor onnx: command-line options are made of it."""

from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator

from fedgraft.config.options import Options, parse_options
from fedgraft.core.errors import UserError
from fedgraft.edge_export.patch_steps import parse_steps


class ClassBankOptions(Options):
    """Whose prompt becomes a class bank, for which labels, and how it is measured and signed."""

    site: str | None = Field(
        None,
        description="the number of a site, or global for the prompt that all share; global by default, or the site "
        "whose folder is given",
    )
    fold: str | None = Field(None, description="the domain left out, for a run with several folds")
    site_folder: Path | None = Field(None, description="a deployed site's folder, on its own machine")
    images: Path | None = Field(None, description="images class/image to measure on, instead of the run's own")
    labels: tuple[str, ...] | None = Field(None, description="the classes; the run's own by default")
    max_novel_drop: float = Field(5.0, ge=0, le=100, description="percentage points of novel accuracy it may lose")
    unknown_rate: float = Field(0.05, ge=0, lt=1, description="fraction of known images that may be called unknown")
    most_images: int = Field(256, ge=1, description="the most images in each of the sets to measure on")
    bundle_version: int | None = Field(
        None,
        ge=0,
        le=2**53 - 1,
        description="devices never go back; 1 by default, or one more than the bundle of --classes-for",
    )
    licence: str | None = Field(None, description="licence of the weights, for the manifest")
    key: Path | None = Field(None, description="the signing key, created if missing; the user's own by default")
    force: bool = Field(False, description="write what a gate refuses")

    @field_validator("labels")
    @classmethod
    def _are_labels(cls, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
        from fedgraft.device.class_bank import check_labels

        return None if labels is None else check_labels(labels)

    @classmethod
    def build(cls, settings: dict[str, Any]) -> Self:
        """Check settings; raises UserError for an unknown option, or a value of the wrong type or out of range."""
        return parse_options(cls, settings, "command", "export")


class BundleOptions(ClassBankOptions):
    """The options of a whole bundle: those of its class bank, and the encoder's."""

    sparsity: float = Field(0.0, description="fraction of the image tower to remove; 0 keeps it dense")
    ticket: str = Field("natural", description="a ticket's folder, or natural or robust to draw one")
    pattern: str = Field("structured", description="what a drawn ticket removes: structured, rows, n:m, unstructured")
    ticket_seed: int = Field(0, ge=0, description="seed of a drawn ticket")
    distillation_steps: int | None = Field(None, ge=0, description="of a drawn ticket; as `ticket draw` by default")
    keep_patches: str = Field(
        "",
        description="merge patches that are alike: the fraction left in some layers, as 0.5@4,0.5@8; all by default",
        examples=["0.5@4,0.5@8"],
    )
    quantize: str = Field("none", description="number format: none, int8, int8-static, fp16")
    target: str = Field("onnx", description="also for other runtimes, beside ONNX: openvino, executorch")
    opset: int = Field(18, ge=17, le=23, description="version of ONNX's operators; 17 for old runtimes")
    golden_images: Path | None = Field(None, description="images class/image that devices get for their self test")
    retune: int = Field(0, ge=0, description="epochs of training the site's prompt on the ticket")
    dim: int | None = Field(None, ge=1, description="leading dimensions of the features to keep; all by default")
    depth: int | None = Field(None, ge=1, description="layers of the image tower to keep; all by default")
    web: bool = Field(False, description="add a page that runs the bundle in a browser")

    @field_validator("keep_patches")
    @classmethod
    def _are_steps(cls, text: str) -> str:
        return ",".join(map(str, parse_steps(text)))


def parse_labels(text: str) -> tuple[str, ...]:
    """Labels separated by commas, or from a file with one per line; raises UserError if the file cannot be read."""
    path = Path(text)
    try:
        if path.is_file():
            return tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
        return tuple(label.strip() for label in text.split(","))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The labels cannot be read from {text}: {error}.") from error
