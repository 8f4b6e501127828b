"""The learning rate of each epoch, counted over the whole run as CoOp and its successors count it.

Warm-up epochs have a constant rate; the schedule begins behind them, at its own first epoch, and still takes the
number of all epochs for its length (Dassl's ConstantWarmupScheduler).
"""

import math

from fedgraft.config.run_config import RunConfig


def learning_rate(config: RunConfig, epoch: int) -> float:
    """The learning rate of an epoch of the run, from 0 to rounds x local_epochs - 1."""
    if epoch < config.warmup_epochs:
        return config.warmup_lr
    passed = epoch - config.warmup_epochs
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * passed / (config.rounds * config.local_epochs))) / 2
    if config.schedule == "step":
        return config.lr * config.step_factor ** (passed // config.step_epochs)
    return config.lr
