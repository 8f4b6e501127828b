"""Re-tune a site's prompt on a ticket: its own method and images, with the ticket's features for the dense ones.

Pruning moves the image features that the prompt was learnt for, most where data are few; see arXiv 2308.14969.
"""

import numpy as np
import torch

from fedgraft.methods.adapter import Adapter
from fedgraft.client.training import TrainingData, train
from fedgraft.device.preprocessing import Preprocessing
from fedgraft.edge_export.trained_run import Source
from fedgraft.edge_export.measurement_images import ExportImages
from fedgraft.edge_export.parity import torch_embeddings
from fedgraft.edge_export.tickets.ticket import Ticket
from fedgraft.core.errors import UserError
from fedgraft.methods import load_method
from fedgraft.core.randomness import generator


def retune(source: Source, known: Adapter, ticket: Ticket, images: ExportImages, epochs: int) -> None:
    """Train the adapter of the run's own classes in place for some epochs on the site's training images.

    Raises:
        UserError: there is no site, no training image, nothing to train, or the method adapts the image tower itself.
    """
    config = source.config
    method = load_method(config.method)
    if source.site is None or not len(images.training):
        raise UserError("--retune trains at a site, on its own images; give the number of a site, and no --images.")
    if not method.trains or method.adapter.image_layer(source.backbone, known.options) is not None:
        raise UserError(f"--retune trains a prompt, and the method {config.method!r} has none that is all of it.")
    classes = source.deal.folds[source.fold].train_classes
    prepare = Preprocessing.from_config(source.backbone.preprocessor_config())
    features = torch_embeddings(ticket.vision, prepare.batch(images.load(images.training)))
    names = known.vocabulary.class_names
    places = {names[label]: place for place, label in enumerate(classes)}
    labels = np.asarray([places[name] for name in images.label_names(images.training)], np.int64)
    data = TrainingData(torch.from_numpy(features)[:, None], torch.from_numpy(labels), classes)
    rng = generator(config.seed, "retune", source.fold, source.site)
    train(known, data, config.model_copy(update={"local_epochs": epochs}), rng)
