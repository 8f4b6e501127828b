"""The plain forward of a prompted text tower: every position of every class through transformers' own layers."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel


class PlainTextTower:
    """Prompts the way published implementations do it: 77 (here: all) positions for every class, padded."""

    def __init__(self, folder: str) -> None:
        self.model = CLIPModel.from_pretrained(folder, attn_implementation="eager").eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(
        self, context: Tensor, names: list[str], deep: Tensor | None = None, placement: str = "before"
    ) -> Tensor:
        """Features (C, dim) of prompted names: context (n_ctx, width), deep contexts (depth, n_ctx, width).

        In the middle, the context has its smaller half before the name; without deep contexts it may be one for each
        class, (C, n_ctx, width).
        """
        tower = self.model.text_model
        length = self.model.config.text_config.max_position_embeddings
        end = self.tokenizer.eos_token_id
        rows, begins, ends = [], [], []
        contexts = context if context.dim() == 3 else context.expand(len(names), -1, -1)
        half = context.shape[-2] // 2 if placement == "middle" else 0
        for name, context in zip(names, contexts, strict=True):
            ids = self.tokenizer(f"{name}.", add_special_tokens=False)["input_ids"] + [end]
            before = 0 if placement == "before" else len(ids) - 2
            begins.append(1 + before)
            ends.append(len(context) + len(ids))
            embedded = tower.embeddings.token_embedding(torch.tensor(ids))
            start = tower.embeddings.token_embedding(torch.tensor([self.tokenizer.bos_token_id]))
            padding = tower.embeddings.token_embedding(torch.full((length - 1 - len(context) - len(ids),), end))
            first, rest = context[:half], context[half:]
            rows.append(torch.cat([start, first, embedded[:before], rest, embedded[before:], padding]))
            begins[-1] += half
        hidden = torch.stack(rows) + tower.embeddings.position_embedding.weight[:length]
        mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
        for index, layer in enumerate(tower.encoder.layers):
            if deep is not None and 1 <= index <= len(deep):
                first, rest = deep[index - 1][:half], deep[index - 1][half:]
                hidden = torch.stack(
                    [
                        torch.cat([h[:1], first, h[1 + half : b], rest, h[b + len(rest) :]])
                        for h, b in zip(hidden, begins, strict=True)
                    ]
                )
            hidden = layer(hidden, mask)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        pooled = tower.final_layer_norm(hidden)[torch.arange(len(names)), torch.tensor(ends)]
        return F.normalize(self.model.text_projection(pooled), dim=-1)
