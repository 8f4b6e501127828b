"""The options of low-rank adapters: size, scaling and location."""

import math
from typing import Literal

from pydantic import Field, field_validator

from fedgraft.backbones.deltas import Tower
from fedgraft.config.options import Options


class LoraOptions(Options):
    """Size and location of the adapters."""

    rank: int = Field(4, ge=1, description="rank of every change", examples=[8])
    ranks: str = Field("", description="ranks dealt to the sites in turn, in place of rank", examples=["8,4,2"])
    alpha: float = Field(8.0, gt=0, description="a change is scaled by alpha / rank", examples=[16.0])
    alpha_per_rank: float = Field(
        0.0, ge=0, description="alpha is this times a site's rank, in place of alpha", examples=[1.0]
    )
    rslora: bool = Field(False, description="scaled by alpha / sqrt(rank), as in rsLoRA", examples=[True])
    targets: str = Field("q_proj,v_proj", description="PEFT's target_modules, or all-linear", examples=["all-linear"])
    tower: Literal["text", "image", "both"] = Field("text", description="the tower that is adapted", examples=["image"])
    templates: int = Field(1, ge=0, description="number of the source's templates to use; 0 uses all", examples=[0])
    layers: int = Field(0, ge=0, description="number of last layers to adapt; 0 adapts all", examples=[1])

    @field_validator("ranks")
    @classmethod
    def _ranks_are_numbers(cls, text: str) -> str:
        if text and not all(part.strip().isdigit() and int(part) >= 1 for part in text.split(",")):
            raise ValueError("ranks are positive whole numbers separated by commas, such as 4,8,2")
        return text

    def scaling(self, rank: int) -> float:
        """The factor on B A of a site: alpha / rank, or alpha / sqrt(rank) as in rsLoRA (Kalajdzievski 2023)."""
        alpha = self.alpha_per_rank * rank or self.alpha
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    @property
    def towers(self) -> tuple[Tower, ...]:
        """The towers that are adapted."""
        return ("text", "image") if self.tower == "both" else (self.tower,)

    def site_ranks(self) -> list[int]:
        """The ranks that are dealt to the sites in turn."""
        return [int(part) for part in self.ranks.split(",")] if self.ranks else [self.rank]

    def rank_of(self, site: int | None) -> int:
        """The rank of a site; for the server, the largest."""
        dealt = self.site_ranks()
        return max(dealt) if site is None else dealt[site % len(dealt)]


class OneRankOptions(LoraOptions):
    """For rules that average the factors."""

    ranks: str = Field("", description="the same rank for every site", examples=["8,8"])

    @field_validator("ranks")
    @classmethod
    def _ranks_are_one(cls, text: str) -> str:
        if len(several := {int(part) for part in text.split(",") if part}) > 1:
            raise ValueError(
                f"factors of the ranks {', '.join(map(str, sorted(several)))} have no mean; give all sites one rank, "
                "or use flora or flexlora, which allow different ranks"
            )
        return text


class DoraOptions(OneRankOptions):
    """For rules that average whatever is shared."""

    dora: bool = Field(False, description="learn each row's magnitude apart, as in DoRA", examples=[True])
