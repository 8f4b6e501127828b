"""The plain forward of a prompted SigLIP text tower: every position of every class through transformers' own model."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call


class PlainSiglip:
    """Prompts the way published implementations do it: all positions for every class, padding included.

    Args:
        model: a `SiglipModel`.
        tokenizer: of transformers.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer

    def texts(self, texts: list[str]) -> Tensor:
        """Features (T, dim) of texts as the model card has them encoded; the texts are in lower case."""
        length = self.model.config.text_config.max_position_embeddings
        ids = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return F.normalize(self.model.get_text_features(input_ids=ids["input_ids"]).pooler_output, dim=-1)

    def encode(
        self,
        context: Tensor,
        names: list[str],
        deep: Tensor | None = None,
        placement: str = "before",
        weights: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Features (C, dim) of prompted names.

        Args:
            context: (n_ctx, width), or one for each class, (C, n_ctx, width).
            deep: (depth, n_ctx, width), which replace the context before the layers 1 to depth.
            placement: in the middle, the smaller half of the context stands before the name.
            weights: that replace the model's, by their names in it.
        """
        tower = self.model.text_model
        length = self.model.config.text_config.max_position_embeddings
        contexts = context if context.dim() == 3 else context.expand(len(names), -1, -1)
        n_ctx = context.shape[-2]
        front = {"before": n_ctx, "middle": n_ctx // 2, "behind": 0}[placement]
        rows, places = [], []
        for name, own in zip(names, contexts, strict=True):
            word = self.tokenizer(f" {name.lower()}", add_special_tokens=False)["input_ids"]
            tail = self.tokenizer(".", add_special_tokens=False)["input_ids"]
            tail = [*tail, self.tokenizer.eos_token_id]
            tail += [self.tokenizer.pad_token_id] * (length - n_ctx - len(word) - len(tail))
            embed = tower.embeddings.token_embedding
            parts = [own[:front], embed(torch.tensor(word)), own[front:], embed(torch.tensor(tail))]
            rows.append(torch.cat(parts))
            places.append([*range(front), *range(front + len(word), n_ctx + len(word))])
        embedded, where = torch.stack(rows), torch.tensor(places)
        hooks = [tower.embeddings.token_embedding.register_forward_hook(lambda module, inputs, output: embedded)]
        for index in range(1, 1 + (0 if deep is None else len(deep))):
            prompts = deep[index - 1]

            def replace(module: Any, inputs: tuple[Any, ...], prompts: Tensor = prompts) -> tuple[Any, ...]:
                hidden = inputs[0].clone()
                hidden[torch.arange(len(hidden))[:, None], where] = prompts
                return (hidden, *inputs[1:])

            hooks.append(tower.encoder.layers[index].register_forward_pre_hook(replace))
        try:
            ids = torch.zeros(len(names), length, dtype=torch.long)
            named = {name.removeprefix("text_model."): weight for name, weight in (weights or {}).items()}
            pooled = functional_call(tower, named, kwargs={"input_ids": ids}).pooler_output
        finally:
            for hook in hooks:
                hook.remove()
        return F.normalize(pooled, dim=-1)
