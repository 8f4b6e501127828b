"""The site's side: Flower ClientApp, local training, a site's data and its durable personal state."""
