"""Re-tuning a site's prompt on a ticket: the run's method and the site's images, with features of the ticket's tower.

Pruning shifts the image features that the prompt was learnt for, most where data are few; see arXiv 2308.14969.
"""

import numpy as np
import torch

from fedgraft.backbones.representation import FEATURES
from fedgraft.client.training import TrainingData, train
from fedgraft.core.errors import UserError
from fedgraft.core.randomness import generator
from fedgraft.edge_export.dense_tower import ExportedTower
from fedgraft.edge_export.measure import device_preprocessing
from fedgraft.edge_export.measurement_images import MeasurementImages
from fedgraft.edge_export.parity import torch_embeddings
from fedgraft.edge_export.trained_run import TrainedRun
from fedgraft.methods.adapter import Adapter


def retune(trained: TrainedRun, adapter: Adapter, tower: ExportedTower, images: MeasurementImages, epochs: int) -> None:
    """Train the adapter of the run's own classes in place on the site's training images.

    Raises:
        UserError: there is no site, no training image, nothing to train, or the method adapts the image tower itself.
    """
    plan, backbone = trained.plan, trained.backbone
    if trained.site is None or not len(images.training):
        raise UserError("--retune trains on a site's own images; give the number of a site, and no --images.")
    if not plan.method.trains or plan.representation(backbone) != FEATURES:
        raise UserError(
            f"--retune trains on the ticket's final image features; the method {plan.config.method!r} has nothing to "
            "train on those."
        )
    classes = trained.split.folds[trained.fold].train_classes
    pixels = device_preprocessing(backbone).batch(images.load(images.training))
    features = torch.from_numpy(torch_embeddings(tower.vision, pixels))
    labels = torch.from_numpy(np.searchsorted(classes, images.examples.labels[images.training]))
    data = TrainingData(features[:, None].to(backbone.device), labels.to(backbone.device), classes)
    rng = generator(plan.config.seed, "retune", trained.fold, trained.site)
    constant = {"local_epochs": epochs, "schedule": "constant", "warmup_epochs": 0}
    train(adapter, data, plan.config.model_copy(update=constant), rng)
