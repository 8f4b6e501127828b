"""manifest.json as exports write it. Its JSON schema is published in schemas/ and tested against these models."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fedgraft.device.class_bank import LABELS_LIMIT
from fedgraft.device.manifest import (
    LARGEST_DIM,
    LARGEST_VERSION,
    LEAST_GOLDEN_AGREEMENT,
    LEAST_GOLDEN_COSINE,
    MOST_GOLDEN_IMAGES,
    OTHER_LIMIT,
    SIZE_LIMITS,
)
from fedgraft.edge_export.number_formats import NUMBER_FORMATS, find_format

SCHEMA = Path(__file__).parent / "schemas" / "manifest.schema.json"
Sha256 = Field(pattern="^[0-9a-f]{64}$")
Percent = Annotated[float, Field(ge=0, le=100)]
Cosine = Annotated[float, Field(ge=-1.01, le=1.01)]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
_LARGEST_FILE = max(OTHER_LIMIT, *SIZE_LIMITS.values())
FormatName = Annotated[
    str, AfterValidator(lambda name: find_format(name).name), Field(json_schema_extra={"enum": list(NUMBER_FORMATS)})
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class FileRecord(_Part):
    """A file of the bundle."""

    sha256: str = Sha256
    bytes: int = Field(ge=0, le=_LARGEST_FILE)


class PortRecord(_Part):
    """An input or output of the model; a dimension given by name may have any size."""

    name: str
    dtype: Literal["float32"]
    shape: list[int | str]


class ModelRecord(_Part):
    """The encoder."""

    quantization: FormatName
    opset: int = Field(ge=1, le=1000)
    ir_version: int = Field(ge=1, le=1000)
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
    parameters: Count
    nonzero: Count
    spec: dict[str, str | int | float]
    heads: list[Count] | None = Field(None, description="kept in each layer; null where a tower has none")
    units: list[Count] | None = Field(
        None, description="MLP units kept in each layer, or hidden channels of each block; null as above"
    )
    keep_patches: str = Field("", description="the patches left behind some layers, as 0.5@4,0.5@8; empty for all")


class RunRecord(_Part):
    """Whose prompt the class bank was made from."""

    name: str
    method: str
    data: str
    protocol: str
    seed: int = Field(ge=0)
    fold: str | None
    round: Count
    site: str = Field(description='"global", the number of a site, or the name of a deployed one')
    retuned_epochs: Count = Field(description="of the prompt on the ticket, after the run")
    templates: list[str]


class SaturationRecord(_Part):
    """The same measurement as an x86 processor without VNNI computes it, where 8-bit products can saturate."""

    pairs: Count = Field(
        description="pairs of weights whose products can saturate; with 0 every processor computes the same integers, "
        "and there is nothing to emulate"
    )
    images: Count = Field(0, description="that were emulated")
    top1_agreement: Percent | None = Field(None, description="percent")
    centred_cosine: Cosine | None = None


class ParityRecord(_Part):
    """The bundle's model against its own torch ticket, on real images."""

    images: int = Field(ge=1, le=2**53 - 1)
    top1_agreement: Percent = Field(description="percent")
    required_agreement: Percent = Field(description="percent")
    centred_cosine: Cosine = Field(description="mean cosine after subtracting the mean embedding")
    required_cosine: Cosine | None = Field(None, description="of the centred cosine; null in bundles of before 0.2")
    max_difference: float = Field(ge=0, le=2.01, description="of any component of an embedding")
    held_out: bool | None = Field(None, description="whether no image had a part in training or in quantization")
    kernels: str | None = Field(None, max_length=80, description="the 8-bit kernels of the processor measured on")
    saturation: SaturationRecord | None = Field(None, description="null for a model without 8-bit products")


class TargetRecord(_Part):
    """The same tower for another runtime than onnxruntime, which passed the same gate in that runtime."""

    name: str
    version: str = Field(description="of the runtime that it was made with and measured in")
    files: list[str]
    parity: ParityRecord


class GeneralizationRecord(_Part):
    """How much of the run's generalization the bundle keeps: accuracies in percent with the same prompt."""

    scope: str = Field(description="novel classes, a domain left out, or the site's own test images")
    images: Count
    dense: Percent
    bundle: Percent
    allowed_drop: Percent


class CutRecord(_Part):
    """A cut of the classifier, and its accuracy in percent in float32; null without test images."""

    dim: int = Field(ge=1, le=LARGEST_DIM)
    depth: int | None = Field(ge=1, description="layers of the image tower; null for all")
    accuracy: Percent | None


class CutsRecord(_Part):
    """What the classifier was cut to, and how every cut of it classifies the test images of a scope."""

    dim: int = Field(ge=1, le=LARGEST_DIM)
    depth: int | None = Field(ge=1, description="layers of the image tower; null for all")
    whole_dim: int = Field(ge=1, le=LARGEST_DIM)
    trained: bool = Field(description="whether the run was trained to be cut to these dimensions")
    scope: str | None = Field(description="as in generalization; null without test images")
    images: Count
    cuts: list[CutRecord]


class CalibrationRecord(_Part):
    """How cosines become probabilities, and the probability below which an image is "unknown"."""

    temperature: float = Field(ge=1e-3, le=1e3)
    unknown_below: float = Field(ge=0, le=1)
    images: Count = Field(description="number of images fitted on, none of them a test image")
    held_out: bool = Field(description="whether no site trained on those; a fit on training images is overconfident")
    ece_before: Percent | None = Field(description="expected calibration error in percent, without temperature")
    ece: Percent | None = Field(description="with temperature, on the same images")
    known_rejected: Percent | None = Field(description="percent of those images that are called unknown")


class GoldenRecord(_Part):
    """What a device's self test requires on the golden images, none of which is a site's."""

    min_cosine: float = Field(ge=LEAST_GOLDEN_COSINE, le=1, description="of the golden sample's embeddings")
    images: int = Field(0, ge=0, le=MOST_GOLDEN_IMAGES, description="besides the golden sample")
    min_centred_cosine: float | None = Field(None, ge=LEAST_GOLDEN_COSINE, le=1, description="mean over those images")
    min_agreement: float | None = Field(
        None, ge=LEAST_GOLDEN_AGREEMENT, le=100, description="percent of those images with the exporter's class"
    )


class BundleManifest(_Part):
    """A bundle, or a class bank alone for an encoder that the device already has."""

    format_version: Literal[1] = 1
    kind: Literal["bundle", "classes"]
    version: int = Field(ge=0, le=LARGEST_VERSION, description="a device never goes back to a lower one")
    encoder: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of model.onnx")
    dim: int = Field(ge=1, le=LARGEST_DIM)
    classes: int = Field(ge=2, le=LABELS_LIMIT)
    run: RunRecord
    backbone: BackboneRecord
    ticket: TicketRecord
    model: ModelRecord
    parity: ParityRecord
    targets: list[TargetRecord] = Field(default_factory=list, description="beside model.onnx")
    generalization: GeneralizationRecord | None
    cuts: CutsRecord | None = None
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
