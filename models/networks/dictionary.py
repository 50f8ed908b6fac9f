"""The compositional dictionary network: a U-Net whose deepest features are words of a learnt dictionary.

Each place of the deepest level is replaced by the nearest of K codewords, so that every answer is composed of parts
that were seen in training. Gradients pass the choice as if it were not there (straight-through); the dictionary learns
by ||sg[z] - e||^2 + beta ||z - sg[e]||^2, z the feature, e its codeword, sg no gradient. With a topological prior the
codes are also drawn at random, near words more often than far ones, and what is decoded from the draw is scored by the
Betti numbers it should have: the dictionary and the choice drift to words whose compositions are of the right topology.
Answers are always of the nearest words: no randomness outside training. Source: van den Oord et al., "Neural Discrete
Representation Learning", NeurIPS 2017, inside a segmentation network, as the compositional dictionary networks for
topology-aware segmentation do; the prior of `models.losses.persistence.betti_prior`.
"""

import torch
import torch.nn.functional as F
from torch import nn

from models.errors import InvalidInput
from models.losses.persistence import betti_prior
from models.networks.unet import UNet

MEMORY = 0.99
"""Factor by which the counted use of a word fades at each step."""
DEAD = 0.1
"""Part of its fair share of use below which a word is dead."""


class Dictionary(nn.Module):
    """K codewords of a width, and which of them are in use.

    A word whose use, counted over the last hundred steps or so, falls below DEAD of its fair share is dead: it is moved
    onto a feature of the batch, drawn at random. At the first step all are, so the dictionary begins as features of the
    first batch.
    """

    def __init__(self, codes, width):
        super().__init__()
        self.words = nn.Parameter(torch.randn(codes, width))
        self.register_buffer("use", torch.zeros(codes))

    def distances(self, features):
        """(M, width) float32 to (M, K): squared distances to all words."""
        return features.square().sum(1, keepdim=True) - 2 * features @ self.words.T + self.words.square().sum(1)

    def nearest(self, features):
        """(M, width) to the number (M,) of the nearest word; of equally near ones the first."""
        return (self.words.square().sum(1) - 2 * features @ self.words.T).argmin(1)

    @torch.no_grad()
    def revive(self, features):
        """Move dead words onto features of the batch."""
        share = 1 / len(self.use)
        drawn = torch.randint(len(features), (len(self.use),)).to(features.device)
        dead = self.use < DEAD * share
        self.words[dead] = features[drawn][dead]
        self.use[dead] = share

    @torch.no_grad()
    def count(self, chosen):
        """Remember which words a batch used."""
        self.use.lerp_(chosen.bincount(minlength=len(self.use)) / len(chosen), 1 - MEMORY)

    def draw(self, features, temperature):
        """(M, width) to words (M, width) drawn with probability softmax(-distance / (temperature * mean nearest
        distance)).

        The draw is hard, its gradient that of the soft choice (straight-through Gumbel-softmax); it reaches features
        and words.
        """
        distances = self.distances(features)
        scale = distances.detach().amin(1).mean().clamp(min=1e-6)
        uniform = torch.rand(distances.shape).clamp(1e-7, 1 - 1e-7).to(distances.device)
        soft = (-distances / (temperature * scale) - (-uniform.log()).log()).softmax(1)
        hard = F.one_hot(soft.argmax(1), soft.shape[1])
        return (hard + soft - soft.detach()) @ self.words


class DictionaryUNet(nn.Module):
    """A U-Net with a vector-quantised deepest level.

    channels           as for the U-Net; with one level only the finest features are quantised
    dimensions         2 or 3
    codes              words in the dictionary
    commitment         beta: how strongly features are pulled to their words, beside words to their features (weight 1)
    dictionary_weight  weight of the dictionary's loss
    priors             as of `betti_prior`: Betti numbers of unions of classes; None: no topological prior and no draws
    prior_weight       weight of the prior
    prior_from_step    first step at which draws are scored; before, decodings have no shape to speak of
    temperature        of the draws: 0.1 chooses a word half as far again as the nearest 150 times less often
    """

    def __init__(
        self,
        channels_in,
        channels_out,
        *,
        channels=(32, 64, 128),
        dimensions=2,
        codes=64,
        commitment=0.2,
        dictionary_weight=1.0,
        priors=None,
        prior_weight=0.01,
        prior_from_step=1000,
        temperature=0.1,
    ):
        super().__init__()
        if codes < 2:
            raise InvalidInput(f"codes is {codes}; a dictionary has 2 words or more.")
        if min(commitment, dictionary_weight, prior_weight) < 0 or temperature <= 0:
            raise InvalidInput(
                f"commitment {commitment}, dictionary_weight {dictionary_weight} and prior_weight {prior_weight} must"
                f" be at least 0, temperature {temperature} above 0."
            )
        if odd := [
            prior
            for prior in priors or ()
            if len(prior["betti"]) != dimensions or not set(prior["classes"]) <= set(range(1, max(channels_out, 2)))
        ]:
            raise InvalidInput(
                f"Prior {odd[0]} does not fit: give {dimensions} Betti numbers and classes from 1 to"
                f" {max(channels_out, 2) - 1}."
            )
        self.unet = UNet(channels_in, channels_out, channels=channels, dimensions=dimensions)
        self.dictionary = Dictionary(codes, channels[-1])
        self.commitment, self.dictionary_weight = commitment, dictionary_weight
        self.priors, self.prior_weight, self.prior_from_step, self.temperature = (
            priors,
            prior_weight,
            prior_from_step,
            temperature,
        )
        self.dimensions, self.multiple, self.receptive_field = dimensions, self.unet.multiple, self.unet.receptive_field

    learns_without_labels = True

    def forward(self, image):
        """(N, channels_in, ...) to logits (N, channels_out, ...) composed of the nearest words."""
        *skips, deepest = self.unet.encode(image)
        rows = _rows(deepest)
        return self.unet.decode(
            [*skips, _places(F.embedding(self.dictionary.nearest(rows), self.dictionary.words), deepest)]
        )

    def learn(self, image, target, *, ignore, step):
        """Logits, and the terms {dictionary} and, where a prior counts, {betti_prior}; neither looks at the target."""
        *skips, deepest = self.unet.encode(image)
        with torch.autocast(image.device.type, enabled=False):  # half precision cannot tell near words apart
            rows = _rows(deepest.float())
            self.dictionary.revive(rows.detach())
            chosen = self.dictionary.nearest(rows.detach())
            self.dictionary.count(chosen)
            words = self.dictionary.words[chosen]
            apart = (rows.detach() - words).square() + self.commitment * (rows - words.detach()).square()
            passed = _places(rows + (words - rows).detach(), deepest)
        logits = self.unet.decode([*skips, passed])
        terms = {"dictionary": self.dictionary_weight * apart.view(len(image), -1).mean(1)}
        if self.priors and step >= self.prior_from_step:
            terms["betti_prior"] = self.prior_weight * self._prior_of_a_draw(skips, deepest, target)
        return logits, terms

    def _prior_of_a_draw(self, skips, deepest, target):
        """Cost (N,) of the Betti numbers of what a draw of the codes is decoded to."""
        with torch.autocast(deepest.device.type, enabled=False):
            drawn = _places(self.dictionary.draw(_rows(deepest.float()), self.temperature), deepest)
        # As when the network is used: by its running statistics, which draws must not change.
        self.unet.decoder.eval()
        logits = self.unet.decode([*skips, drawn])
        self.unet.decoder.train()
        return betti_prior(logits.float(), target, priors=self.priors, reduction="sum")


def _rows(features):
    """(N, width, ...) to (N * places, width)."""
    return features.movedim(1, -1).flatten(0, -2)


def _places(rows, like):
    """The inverse of `_rows`, for features of the shape of `like`."""
    return rows.view(like.shape[0], *like.shape[2:], like.shape[1]).movedim(
        -1, 1
    )  # `len` would fix the batch of an exported network
