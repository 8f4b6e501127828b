"""Which site gets which example: flwr-datasets' partitioners, applied to positions instead of images."""

import warnings
from collections.abc import Sequence

import numpy as np

from fedgraft.core.errors import UserError
from fedgraft.data.examples import IntArray

_MIN_PER_SITE = 4


def partition(
    kind: str, labels: IntArray, sites: int, seed: int, alpha: float = 0.5, classes_per_site: int = 2
) -> list[IntArray]:
    """Assign the positions of `labels` to sites without overlap, one sorted array per site.

    Args:
        kind: "iid", "dirichlet" (alpha over each class) or "pathological" (classes_per_site classes each).

    Raises:
        UserError: the examples cannot be partitioned this way.
    """
    from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner, Partitioner, PathologicalPartitioner

    if len(labels) < sites * _MIN_PER_SITE:
        raise UserError(f"{_examples(len(labels))} are too few for {_sites(sites)}; {_advice(len(labels))}.")
    makers = {
        "iid": lambda: IidPartitioner(sites),
        "dirichlet": lambda: DirichletPartitioner(sites, "label", alpha, min_partition_size=_MIN_PER_SITE, seed=seed),
        "pathological": lambda: PathologicalPartitioner(sites, "label", classes_per_site, "deterministic", seed=seed),
    }
    partitioner: Partitioner = makers[kind]()
    return _positions(partitioner, labels, np.random.default_rng(seed).permutation(len(labels)), sites, kind)


def by_domain(
    domains: IntArray,
    kept: Sequence[int],
    sites: int,
    seed: int,
    labels: IntArray | None = None,
    alpha: float = 0.5,
) -> list[tuple[int, IntArray]]:
    """The domain and the sorted positions of each site; site i is in kept domain i modulo their number.

    Args:
        labels: of the examples, to divide a domain by drawn proportions of its classes; without, evenly.
        alpha: concentration of those proportions.

    Raises:
        UserError: there are fewer sites than domains, or more than their examples allow.
    """
    if sites < len(kept):
        raise UserError(f"{_sites(sites)} cannot cover {len(kept)} domains; give at least {len(kept)}.")
    assigned: list[tuple[int, IntArray]] = [(0, np.empty(0, np.int64))] * sites
    for place, domain in enumerate(kept):
        members = np.flatnonzero(domains == domain)
        holders = range(place, sites, len(kept))
        if len(members) < len(holders) * _MIN_PER_SITE:
            found = f"A domain of {_examples(len(members))} is too small for {len(holders)} of the {_sites(sites)}"
            raise UserError(f"{found}; {_advice(len(members), len(kept))}.")
        kind, dealt = ("iid", members) if labels is None else ("dirichlet", labels[members])
        parts = [np.arange(len(members))] if len(holders) == 1 else partition(kind, dealt, len(holders), seed, alpha)
        for site, part in zip(holders, parts, strict=True):
            assigned[site] = (domain, members[part])
    return assigned


def _advice(examples: int, domains: int = 1) -> str:
    """How many sites so many examples of each domain allow, or that they are too few for any."""
    if most := examples // _MIN_PER_SITE * domains:
        return f"give at most {_sites(most)}"
    return f"a site needs {_MIN_PER_SITE} at least, so add images"


def _examples(count: int) -> str:
    return f"{count} example{'' if count == 1 else 's'}"


def _sites(count: int) -> str:
    return f"{count} site{'' if count == 1 else 's'}"


def _positions(partitioner: "object", labels: IntArray, order: IntArray, sites: int, kind: str) -> list[IntArray]:
    import datasets

    datasets.disable_progress_bars()
    table = datasets.Dataset.from_dict({"label": labels[order].tolist(), "position": order.tolist()})
    try:
        with warnings.catch_warnings(action="ignore"):
            partitioner.dataset = table  # type: ignore[attr-defined]
            parts = [partitioner.load_partition(site)["position"] for site in range(sites)]  # type: ignore[attr-defined]
    except ValueError as error:
        raise UserError(f"The examples cannot be divided among {sites} sites by {kind!r}: {error}") from error
    return [np.sort(np.asarray(part, np.int64)) for part in parts]
