"""Prompts in both towers: a context and deep prompts of the text tower beside visual prompts."""

from abc import abstractmethod

from pydantic import Field
from torch import Tensor

from fedgraft.backbones.abilities import Needs
from fedgraft.methods.prompts import ContextOptions
from fedgraft.methods.visual_prompts import DEPTH_HELP, VisualPromptAdapter, VisualPromptOptions


class DualPromptOptions(VisualPromptOptions, ContextOptions):
    """Length and depth of the prompts, the same in both towers."""

    n_ctx: int = Field(2, ge=1, description="prompts before a layer, in either tower", examples=[4])
    ctx_init: str = Field("", description="words that initialize the context and its length", examples=["a photo of a"])
    depth: int = Field(0, ge=0, description=DEPTH_HELP, examples=[1])


class DualPromptAdapter(VisualPromptAdapter):
    """A method whose classes and images have prompts of their own."""

    options: DualPromptOptions

    @classmethod
    def needs(cls, options: VisualPromptOptions) -> Needs:
        """Prompts at that depth in both towers."""
        assert isinstance(options, DualPromptOptions)
        return Needs(
            placement=options.placement,
            context=0 if options.ctx_init else options.n_ctx,
            text_depth=options.depth or 2,
            visual_prompts=options.n_ctx,
            visual_depth=options.depth or 2,
            cut=True,
        )

    @abstractmethod
    def text_prompts(self) -> tuple[Tensor, Tensor | None]:
        """The context (1, n_ctx, width) and the prompts of later layers, (1, depth - 1, n_ctx, width) or None."""

    def class_features(self, classes: tuple[int, ...]) -> Tensor:
        """The prompted class names."""
        context, deep = self.text_prompts()
        text, tokens = self.vocabulary.backbone.text, self.vocabulary.tokens(classes)
        return text.encode_prompts(context, tokens, deep, self.options.placement)[0]
