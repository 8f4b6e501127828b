"""What a user writes in one line is read as it was meant, and what is no term is refused."""

import pytest

from fedgraft.config.notation import Term, parse_terms, split
from fedgraft.core.errors import UserError


def test_terms_and_their_options() -> None:
    assert parse_terms("") == []
    assert parse_terms("median") == [Term("median")]
    assert parse_terms("local-dp( delta=1e-6 ) + trimmed-mean(fraction=0.2)") == [
        Term("local-dp", {"delta": 1e-6}),
        Term("trimmed-mean", {"fraction": 0.2}),
    ]
    assert parse_terms("a(c=word, d=1e+3, e=true)") == [Term("a", {"c": "word", "d": 1000.0, "e": True})]
    assert split("a,b(c=1,d=2),e", ",") == ["a", "b(c=1,d=2)", "e"]


@pytest.mark.parametrize("text", ["median(", "median)", "median+", "+median", "2", "median(fraction)", "a b"])
def test_what_is_no_term_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_terms(text)
