"""What a site can check without a server: whether its images can be read, and what a round will cost."""

import resource
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from fedgraft.backbones.kept_images import keep_images
from fedgraft.client.release import class_counts
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.data.examples import DEFAULT_TEMPLATES
from fedgraft.data.sources.decoding import decode
from fedgraft.data.sources.folder_layout import list_images
from fedgraft.data.sources.labelled_files import readable
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.runs.site_policy import SitePolicy

_TIMED = 8


@dataclass(frozen=True)
class SiteCheck:
    """The result of a check.

    Attributes:
        images: number of images by the federation's class names.
        told: those of them that a server learns when it greets the site.
        fingerprint: of the backbone, as the policy names it.
        mistakes: a sentence for each image that cannot be read.
        features_seconds: time to compute all image features, once.
        round_seconds: time to train one round of the default configuration with these classes.
        memory_mb: peak memory of this process.
    """

    images: dict[str, int]
    told: dict[str, int]
    fingerprint: str
    mistakes: list[str]
    features_seconds: float
    round_seconds: float
    memory_mb: float


def check_site(
    images: Path, renamed: dict[str, str], backbone_name: str, method_name: str, policy: SitePolicy | None = None
) -> SiteCheck:
    """Read every image of a folder, and time the encoding of a few and one training step.

    Args:
        policy: the site's, which must accept the method and the backbone.

    Raises:
        UserError: there are no images, or none that can be read, or the policy refuses.
    """
    policy = policy or SitePolicy()
    plan = Plan.of(RunConfig(method=method_name, backbone=backbone_name))
    backbone = plan.load_backbone()
    policy.check(plan.config, backbone.fingerprint)
    files = list_images(images)
    counts: Counter[str] = Counter()
    mistakes, sound = [], []
    for file in files:
        try:
            decode(file.path)
        except UserError as error:
            mistakes.append(str(error))
            continue
        sound.append(file.path)
        counts[renamed.get(file.label, readable(file.label))] += 1
    if not sound:
        raise UserError(f"No image of {images} can be read. {mistakes[0]}")
    sample = [decode(path) for path in sound[:_TIMED]]
    began = time.perf_counter()
    features = keep_images(backbone, backbone.preprocess(sample), plan.representation(backbone))
    an_image = (time.perf_counter() - began) / len(sample)
    adapter = plan.adapter(Vocabulary(backbone, sorted(counts), DEFAULT_TEMPLATES), site=0)
    classes = tuple(range(len(counts)))
    labels = torch.zeros(len(features), dtype=torch.long, device=backbone.device)
    a_step = 0.0
    if plan.method.trains:
        for _ in range(2):  # the first step also computes what is frozen
            began = time.perf_counter()
            adapter.loss(features, labels, classes).backward()  # type: ignore[no-untyped-call]
            a_step = time.perf_counter() - began
    trained = sum(min(count, plan.config.shots) for count in counts.values())
    steps = plan.config.local_epochs * -(-trained // plan.config.batch_size)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    told = class_counts(counts, policy)
    found = dict(sorted(counts.items()))
    seconds = an_image * len(sound), a_step * steps
    return SiteCheck(found, told, backbone.fingerprint, mistakes, *seconds, memory)
