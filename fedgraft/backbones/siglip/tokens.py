"""Texts as SigLIP's and SigLIP 2's text towers were trained on them.

SigLIP (Zhai et al. 2023) reads SentencePiece tokens of lower-cased text without punctuation; SigLIP 2 (Tschannen et al.
2025) reads Gemma's tokens of lower-cased text. Both end a text with an end token and pad it to all positions.
"""

import re
import string
from collections.abc import Sequence
from typing import Any

from fedgraft.core.errors import UserError

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORDS, _SENTENCE = "a b", "a, b."


class SiglipTokens:
    """Token IDs of texts.

    Args:
        name: of the backbone, for messages.
        tokenizer: of a folder, as transformers loads it.
        positions: of the text tower.

    Raises:
        UserError: the tokenizer has no token for padding or for the end, or begins a text with one.
    """

    def __init__(self, name: str, tokenizer: Any, positions: int) -> None:
        self._tokenizer, self._positions = tokenizer, positions
        bare, whole = self._ids(_WORDS), list(tokenizer(_WORDS)["input_ids"])
        end, padding = tokenizer.eos_token_id, tokenizer.pad_token_id
        if whole not in (bare, [*bare, end]) or end is None or padding is None:
            raise UserError(
                f"The tokenizer of {name!r} must have a padding token and write its end token behind a text and none "
                f"before it, as SigLIP's do; it has the padding token {tokenizer.pad_token!r} and the end token "
                f"{tokenizer.eos_token!r} and makes {tokenizer.convert_ids_to_tokens(whole)} of {_WORDS!r}."
            )
        self.end, self.padding = int(end), int(padding)
        self._punctuation = self._ids(_SENTENCE) != bare
        stop = self._ids(".") if self._punctuation else []
        self.stop = stop[0] if len(stop) == 1 else None
        """The token of the full stop behind a class name; None where there is no such token."""

    def cleaned(self, text: str) -> str:
        """The text in lower case, white space reduced to single spaces, without punctuation where the model knows none.

        What the tokenizer does of this itself is not changed by doing it before.
        """
        text = text.lower()
        if not self._punctuation:
            text = text.translate(_PUNCTUATION)
        return re.sub(r"\s+", " ", text).strip()

    def words(self, text: str) -> list[int]:
        """A text without its end token."""
        return self._ids(self.cleaned(text))

    def names(self, names: Sequence[str]) -> list[list[int]]:
        """Class names as they follow other words, each with a full stop, if the model knows one, and the end token.

        Raises:
            UserError: nothing is left of a name.
        """
        rows = []
        for name in names:
            if not (word := self.cleaned(name)):
                raise UserError(
                    f"The class name {name!r} has no letter or digit, and SigLIP's tokenizer drops punctuation; "
                    "write the name in words."
                )
            ids = self._ids(f" {word}.") if self._punctuation else self._ids(word)
            rows.append([*ids, self.end])
        return rows

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Whole texts with their end tokens, cut to the positions of the text tower."""
        return [[*self.words(text)[: self._positions - 1], self.end] for text in texts]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
