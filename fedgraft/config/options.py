"""Typed options of registered entries, with defaults and examples; an invalid one is reported in one sentence."""

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from fedgraft.core.errors import UserError, unknown

OptionValue = bool | int | float | str | list[str]


class Options(BaseModel):
    """No options; subclasses add fields, each with a default and `examples`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


SomeOptions = TypeVar("SomeOptions", bound=Options)


def parse_options(model: type[SomeOptions], values: dict[str, Any], kind: str, name: str) -> SomeOptions:
    """Validate the options given by a user.

    Args:
        kind, name: the owner of the options, such as "method" and "fedpgp".

    Raises:
        UserError: an option does not exist, is missing or has an invalid value.
    """
    known = model.model_fields
    for key in values:
        if key not in known:
            if not known:
                raise UserError(f"The {kind} {name!r} has no options, so there is no option {key!r}.")
            raise unknown(f"option of {name!r}", key, known)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "missing":
            raise UserError(f"The {kind} {name!r} needs the option {first['loc'][0]!r}.") from error
        if not first["loc"]:
            raise UserError(f"The options of the {kind} {name!r} conflict: {first['ctx']['error']}.") from error
        raise UserError(
            f"The option {first['loc'][0]!r} of {name!r} has the value {first['input']!r}: {first['msg']}."
        ) from error
