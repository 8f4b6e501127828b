"""Flower's noise formulas of differential privacy."""

from typing import Any


def noise_deviation(noise_multiplier: float, clipping_norm: float, sampled: int) -> float:
    """Standard deviation of the noise on the mean of clipped updates."""
    from flwr.supercore.differential_privacy import compute_stdv

    return compute_stdv(noise_multiplier, clipping_norm, sampled)


def adaptive_noise(noise_multiplier: float, sampled: int, count_deviation: float) -> tuple[float, float]:
    """The count's standard deviation and the sum's multiplier that together cost as much as the given multiplier."""
    from flwr.supercore.differential_privacy import compute_adaptive_noise_params

    deviations: Any = compute_adaptive_noise_params(noise_multiplier, sampled, count_deviation)
    return float(deviations[0]), float(deviations[1])
