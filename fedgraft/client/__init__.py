"""The site: Flower's ClientApp, local training, evaluation, and a deployed site's resident worker."""
