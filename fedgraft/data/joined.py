"""Several data sets in one table of examples, each with its own classes, templates and test images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fedgraft.core.errors import UserError
from fedgraft.data.examples import DataSet, Examples, IntArray


@dataclass(frozen=True)
class Block:
    """A data set in a joined table: its classes, as positions in the class names, and its examples' positions."""

    name: str
    classes: tuple[int, ...]
    positions: IntArray


def join(data_sets: Sequence[DataSet]) -> Examples:
    """One table of all examples; classes, domains and examples of a data set follow those of the one before it.

    Raises:
        UserError: there are fewer than two data sets, or two have one name.
    """
    names = [each.name for each in data_sets]
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"Data sets that are joined need different names, at least two; these are {', '.join(names)}.")
    tables = [each.examples for each in data_sets]
    ends = np.cumsum([len(table) for table in tables])
    first_class = np.cumsum([0, *(len(table.class_names) for table in tables)])
    first_domain = np.cumsum([0, *(len(table.domain_names) for table in tables)])

    def load(index: int) -> Image.Image:
        number = int(np.searchsorted(ends, index, side="right"))
        return tables[number].load(index - int(ends[number]) + len(tables[number]))

    return Examples(
        class_names=tuple(name for table in tables for name in table.class_names),
        labels=np.concatenate([t.labels + first for t, first in zip(tables, first_class, strict=False)]),
        domain_names=tuple(_domain(each, name) for each in data_sets for name in each.examples.domain_names),
        domains=np.concatenate([t.domains + first for t, first in zip(tables, first_domain, strict=False)]),
        keys=np.concatenate([table.keys for table in tables]),
        load=load,
        skipped=tuple(f"{each.name}: {line}" for each in data_sets for line in each.examples.skipped),
        templates=tables[0].templates,
        class_protocol_domains=tuple(
            _domain(each, name)
            for each in data_sets
            for name in each.examples.class_protocol_domains or each.examples.domain_names
        ),
        repeated_names=True,
        data_sets=tuple(data_sets),
    )


def blocks(examples: Examples) -> list[Block]:
    """The data sets of a joined table; raises UserError if it is a single one."""
    if not examples.data_sets:
        raise UserError(
            "This protocol needs several data sets; name them as --data several:A+B, for example "
            "several:digits+characters."
        )
    made, first_class, first = [], 0, 0
    for each in examples.data_sets:
        classes = tuple(range(first_class, first_class + len(each.examples.class_names)))
        made.append(Block(each.name, classes, np.arange(first, first + len(each.examples))))
        first_class, first = first_class + len(classes), first + len(each.examples)
    return made


def class_templates(examples: Examples) -> tuple[tuple[str, ...], ...]:
    """The templates of each class of a joined table; empty for a single data set."""
    return tuple(each.examples.templates for each in examples.data_sets for _ in each.examples.class_names)


def _domain(data_set: DataSet, domain: str) -> str:
    """The name of a data set's domain among those of all."""
    return data_set.name if len(data_set.examples.domain_names) == 1 else f"{data_set.name}/{domain}"
