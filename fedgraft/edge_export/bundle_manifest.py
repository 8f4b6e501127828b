"""manifest.json as exports write it. Its JSON schema is published in schemas/ and tested against these models."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fedgraft.edge_export.number_formats import NUMBER_FORMATS, find_format

SCHEMA = Path(__file__).parent / "schemas" / "manifest.schema.json"
Sha256 = Field(pattern="^[0-9a-f]{64}$")
FormatName = Annotated[
    str, AfterValidator(lambda name: find_format(name).name), Field(json_schema_extra={"enum": list(NUMBER_FORMATS)})
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class FileRecord(_Part):
    """A file of the bundle."""

    sha256: str = Sha256
    bytes: int = Field(ge=0)


class PortRecord(_Part):
    """An input or output of the model; a dimension given by name may have any size."""

    name: str
    dtype: Literal["float32"]
    shape: list[int | str]


class ModelRecord(_Part):
    """The encoder."""

    quantization: FormatName
    opset: int
    ir_version: int
    domains: list[str] = Field(description="operator sets beyond ONNX's own")
    input: PortRecord
    output: PortRecord
    minimum_onnxruntime: str


class BackboneRecord(_Part):
    """The dense backbone."""

    name: str
    fingerprint: str = Sha256


class TicketRecord(_Part):
    """What the encoder was pruned to; `spec` records how, with sparsity 0 for a dense one."""

    fingerprint: str = Sha256
    parameters: int
    nonzero: int
    spec: dict[str, str | int | float]
    heads: list[int] | None = Field(None, description="kept in each layer; null for a tower that cannot be pruned")
    units: list[int] | None = Field(None, description="MLP units kept in each layer; null as above")


class RunRecord(_Part):
    """Whose prompt the class bank was made from."""

    name: str
    method: str
    data: str
    protocol: str
    seed: int
    fold: str | None
    round: int
    site: str = Field(description='"global" or the number of a site')
    retuned_epochs: int = Field(ge=0, description="of the prompt on the ticket, after the run")
    templates: list[str]


class ParityRecord(_Part):
    """The bundle's model against its own torch ticket, on real images."""

    images: int = Field(ge=1)
    top1_agreement: float = Field(description="percent")
    required_agreement: float = Field(description="percent")
    centred_cosine: float = Field(description="mean cosine after subtracting the mean embedding")
    max_difference: float = Field(description="of any component of an embedding")


class GeneralizationRecord(_Part):
    """How much of the run's generalization the bundle keeps: accuracies in percent with the same prompt."""

    scope: str = Field(description="novel classes, a domain left out, or the site's own test images")
    images: int
    dense: float
    bundle: float
    allowed_drop: float


class CalibrationRecord(_Part):
    """How cosines become probabilities, and the probability below which an image is "unknown"."""

    temperature: float
    unknown_below: float
    images: int = Field(description="number of images fitted on, none of them a test image")
    held_out: bool = Field(description="whether no site trained on those; a fit on training images is overconfident")
    ece_before: float | None = Field(description="expected calibration error in percent, without temperature")
    ece: float | None = Field(description="with temperature, on the same images")
    known_rejected: float | None = Field(description="percent of those images that are called unknown")


class GoldenRecord(_Part):
    """The golden sample: a synthetic image, since no image may leave its site, and its embedding."""

    min_cosine: float


class BundleManifest(_Part):
    """A bundle, or a class bank alone for an encoder that the device already has."""

    format_version: Literal[1] = 1
    kind: Literal["bundle", "classes"]
    version: int = Field(ge=0, description="a device never goes back to a lower one")
    encoder: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of model.onnx")
    dim: int = Field(ge=1)
    classes: int = Field(ge=2)
    run: RunRecord
    backbone: BackboneRecord
    ticket: TicketRecord
    model: ModelRecord
    parity: ParityRecord
    generalization: GeneralizationRecord | None
    calibration: CalibrationRecord
    golden: GoldenRecord | None
    licence: str | None = Field(description="of the weights, as stated by the exporter")
    forced: list[str] = Field(description="the gates that --force overrode")
    made_with: dict[str, str] = Field(description="versions of packages")
    files: dict[str, FileRecord]


def manifest_schema() -> str:
    """The JSON schema (2020-12) of manifest.json."""
    schema: dict[str, Any] = BundleManifest.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"
