"""The options of a method or of a part of a strategy: typed, with defaults, checked with a sentence."""

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from fedgraft.errors import UserError, unknown


class Options(BaseModel):
    """No options; subclasses add fields with defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


SomeOptions = TypeVar("SomeOptions", bound=Options)


def parse_options(
    model: type[SomeOptions], values: dict[str, Any], kind: str, name: str, what: str = "option"
) -> SomeOptions:
    """Check the options given by a user.

    Args:
        kind, name: of what has the options, such as "method" and "fedpgp".
        what: a key that is not known was meant to be.

    Raises:
        UserError: an option does not exist or has a wrong value.
    """
    known = model.model_fields
    for key in values:
        if key not in known:
            if not known:
                raise UserError(f"The {kind} {name!r} has no options, and {key!r} is no {what}.")
            raise unknown(f"{what} of {name!r}", key, known)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"The option {first['loc'][0]!r} of {name!r} has the value {first['input']!r}: {first['msg']}."
        ) from error
