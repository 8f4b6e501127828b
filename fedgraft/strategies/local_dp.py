"""Local differential privacy: every site clips its update and adds noise to it before it leaves the site.

    answer = received + clip(u, C) + z C N(0, I)

Only the site itself needs to be trusted, and the noise of a mean over m sites is sqrt(m) times that of central-dp with
the same multiplier. Whatever a site holds, its update lies within a ball of radius C, so the updates of any two data
sets differ by at most 2 C, and epsilon is computed with z / 2.
"""

from fedgraft.flower.messages import Arrays
from fedgraft.strategies.components import Noise, SiteTransform, StrategyComponent, apply_update, update_of
from fedgraft.strategies.privacy import GaussianOptions, Privacy, clipped, content, noised


class LocalDP(SiteTransform):
    """Clipping and noise at the site."""

    options: GaussianOptions

    def privacy(self) -> Privacy:
        """For every round in which the site takes part."""
        options = self.options
        relation = "other data of a site"
        return Privacy("local-dp", relation, options.noise_multiplier, 2.0, options.clipping_norm, options.delta)

    def release(self, trained: Arrays, received: Arrays, noise: Noise) -> Arrays:
        """The received parameters plus the clipped and noised update."""
        options = self.options
        update = clipped(update_of(trained, received), options.clipping_norm)
        normal = noise(sum(array.size for array in update.values()), content(update))
        return apply_update(received, noised(update, options.noise_multiplier * options.clipping_norm, normal))


STRATEGY = StrategyComponent("local-dp", "each site clips its update and adds noise", LocalDP, options=GaussianOptions)
