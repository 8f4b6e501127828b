"""Settings of a run before validation: from TOML files and `--set key=value`, laid over each other."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedgraft.config.notation import read_value
from fedgraft.config.registry import METHODS, PROTOCOLS, SOURCES, Registered
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError, unknown

Settings = dict[str, Any]
TABLES = {"method": "method_options", "protocol": "protocol_options", "data": "data_options"}
"""The tables of options that `--set` writes, by the configuration key that names their owner."""
_LEGACY = {"partition", "alpha", "classes_per_site", "domains", "class_names"}


def read_toml(path: Path) -> Settings:
    """The settings of a TOML file; those of a run of fedgraft 0.1.0 in today's form.

    Raises:
        UserError: it does not exist or is not TOML.
    """
    try:
        return upgraded(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise UserError(f"The configuration file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"The configuration file {path} is not TOML: {error}.") from error


def upgraded(settings: Settings) -> Settings:
    """Settings that fedgraft 0.1.0 may have written, where every run had the options of all protocols and sources."""
    if not settings.keys() >= _LEGACY:
        return settings
    kept = {key: value for key, value in settings.items() if key not in _LEGACY}
    for table in TABLES.values():
        kept.setdefault(table, {})
    protocol = PROTOCOLS.load(str(settings["protocol"]))
    source = SOURCES.load(str(settings["data"]).partition(":")[0])
    for key in sorted(_LEGACY):
        for entry, table in ((protocol, "protocol_options"), (source, "data_options")):
            if key in entry.options.model_fields:
                kept[table] = {**kept[table], key: settings[key]}
    return kept


def parse_assignments(assignments: Iterable[str]) -> Settings:
    """Settings from `key=value` words; values are read as TOML, or else as text.

    Raises:
        UserError: a word has no "=".
    """
    settings: Settings = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise UserError(f"--set takes key=value, not {assignment!r}; for example --set lr=0.01.")
        settings[key] = read_value(text)
    return settings


def merged(*layers: Settings) -> Settings:
    """Settings with later layers over earlier ones; tables of options are merged key by key.

    Raises:
        UserError: something else is given for a table of options.
    """
    result: Settings = {}
    for layer in layers:
        for key, value in layer.items():
            if key in RunConfig.model_fields and key.endswith("_options"):
                if not isinstance(value, dict):
                    raise UserError(f"{key} must be a table of options, not {value!r}.")
                value = {**result.get(key, {}), **value}
            result[key] = value
    return result


def sorted_into_tables(settings: Settings, methods: Iterable[str] = ()) -> Settings:
    """Settings with loose option keys moved into the tables of their owners.

    A key may name its owner, as `method.alpha` does; it must if several owners have the option.

    Args:
        methods: the methods of a comparison, in place of the one in the settings.

    Raises:
        UserError: no owner has such an option, or several have it.
    """
    loose = {key: value for key, value in settings.items() if key not in RunConfig.model_fields}
    kept = {key: value for key, value in settings.items() if key in RunConfig.model_fields}
    if not loose:
        return kept
    owners = _owners(kept, methods)
    for key, value in loose.items():
        named, _, option = key.rpartition(".")
        found = [owner for owner in owners if option in owners[owner] and named in ("", owner)]
        if len(found) > 1:
            raise UserError(f"{key!r} is an option of the {' and of the '.join(found)}; write {found[0]}.{key}=...")
        if not found:
            known = [*RunConfig.model_fields, *(name for options in owners.values() for name in options)]
            raise unknown("configuration key or option", key, dict.fromkeys(known))
        table = TABLES[found[0]]
        kept[table] = {**kept.get(table, {}), option: value}
    return kept


def _owners(settings: Settings, methods: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """The options of the settings' method or methods, protocol and source."""

    def named(key: str) -> str:
        return str(settings.get(key, RunConfig.model_fields[key].default)).partition(":")[0]

    chosen: dict[str, list[Registered]] = {
        "method": [METHODS.load(name) for name in methods or [named("method")]],
        "protocol": [PROTOCOLS.load(named("protocol"))],
        "data": [SOURCES.load(named("data"))],
    }
    return {
        key: {name: field for entry in entries for name, field in entry.options.model_fields.items()}
        for key, entries in chosen.items()
    }
