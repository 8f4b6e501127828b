"""A run's configuration in words, for the person who decides whether a site takes part."""

import json
from typing import Any

from fedgraft.config.run_config import RunConfig
from fedgraft.runs.asked_runs import SHORT, AskedRun


def in_words(run: AskedRun) -> list[str]:
    """What a server asks for, line by line: what it means for the site, then the whole configuration.

    A server's text is escaped, so that it cannot control the terminal that shows it.
    """
    settings = run.settings
    shots = f"at most {settings['shots']} images of each class" if settings["shots"] else "all its training images"
    strategy = f" with the strategy {_shown(settings['strategy'])}" if settings["strategy"] else ""
    lines = [
        f"The run {_shown(run.name)} asks this site to train {_shown(settings['method'])}{strategy} for "
        f"{_counted(settings['rounds'], 'round')} with {_counted(settings['sites'], 'site')}.",
        f"In each round it trains {_counted(settings['local_epochs'], 'epoch')} on {shots}; "
        f"{settings['test_fraction']:.0%} of its images are held out, and after every "
        f"{_counted(settings['eval_every'], 'round').removeprefix('1 ')} the server learns how many of them were "
        "classified correctly.",
        f"Asked on {run.asked} by a server with fedgraft {_shown(run.version)}, "
        f"configuration {run.configuration[:SHORT]}, backbone {run.fingerprint[:16]}.",
    ]
    fields = RunConfig.model_fields
    return lines + [
        f"  {key} = {_shown(value)}" + (f"  ({fields[key].description})" if key in fields else "")
        for key, value in settings.items()
    ]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _shown(value: Any) -> str:
    return json.dumps(value)
