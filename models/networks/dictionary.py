"""The compositional dictionary network: a U-Net whose deepest features are words of a learnt dictionary.

Each place of the deepest level is replaced by the nearest of K codewords, so that every answer is composed of parts
that were seen in training. Gradients pass the choice as if it were not there (straight-through). A word is the moving
average of the features that chose it, and features are pulled to their words by beta ||z - sg[e]||^2, z the feature, e
its word, sg no gradient. With a topological prior the codes are also drawn at random, near words more often than far
ones, and what is decoded from the draw is scored by the Betti numbers it should have: encoder and decoder drift to
compositions of the right topology. Answers are always of the nearest words: no randomness outside training. Source: van
den Oord et al., "Neural Discrete Representation Learning", NeurIPS 2017 (appendix A.1 for the moving averages), inside
a segmentation network, as the compositional dictionary networks for topology-aware segmentation do; the priors of
`models.losses.persistence`.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from models.errors import InvalidInput
from models.losses.persistence import betti_prior, window_prior
from models.losses.pixels import labelled
from models.networks.unet import UNet

MEMORY = 0.99
"""Factor by which counted use and remembered features fade at each step."""
DEAD = 0.1
"""Part of its fair share of use below which a word is dead."""
ROUNDS = 10
"""Rounds of k-means at the start."""


class Dictionary(nn.Module):
    """K codewords of a width, and which of them are in use.

    They start as centres of the first batch (k-means) and follow the moving average of the features that choose them. A
    word whose use, counted over the last hundred steps or so, falls below DEAD of its fair share is dead: it is moved
    onto a feature of the batch, drawn at random, each another as long as there are enough.

    words  (K, width) float32, no parameters: nothing but their averages moves them
    """

    words: torch.Tensor
    use: torch.Tensor
    mass: torch.Tensor

    def __init__(self, codes, width):
        super().__init__()
        self.register_buffer("words", torch.randn(codes, width))
        self.register_buffer("use", torch.zeros(codes))
        self.register_buffer("mass", torch.zeros(codes, width))
        self.turned = False

    def distances(self, features: torch.Tensor) -> torch.Tensor:
        """(M, width) float32 to (M, K): squared distances to all words."""
        return features.square().sum(1, keepdim=True) - 2 * features @ self.words.T + self.words.square().sum(1)

    def nearest(self, features: torch.Tensor) -> torch.Tensor:
        """(M, width) to the number (M,) of the nearest word; of equally near ones the first."""
        return (self.words.square().sum(1) - 2 * features @ self.words.T).argmin(1)

    def _drawn(self, features, count):
        """(count, width) features of the batch, all different as far as there are enough."""
        order = torch.randperm(len(features)).to(features.device)
        return features[order[torch.arange(count, device=features.device) % len(order)]]

    @torch.no_grad()
    def start(self, features: torch.Tensor) -> None:
        """Take the centres of the batch for words."""
        self.words.copy_(self._drawn(features, len(self.words)))
        for _ in range(ROUNDS):
            chosen = self.nearest(features)
            counts = chosen.bincount(minlength=len(self.words))[:, None]
            sums = torch.zeros_like(self.words).index_add(0, chosen, features)
            self.words.copy_(torch.where(counts > 0, sums / counts.clamp(min=1), self.words))
        self._remember(torch.ones_like(self.use, dtype=torch.bool))

    @torch.no_grad()
    def revive(self, features: torch.Tensor) -> None:
        """Move dead words onto features of the batch; at the first step, start."""
        if not self.use.any():
            self.start(features)
            return
        dead = self.use < DEAD / len(self.use)
        self.words[dead] = self._drawn(features, int(dead.sum()))
        self._remember(dead)

    def _remember(self, words):
        """Let these words have their fair share of use, and what they are as their average."""
        self.use[words] = 1 / len(self.use)
        self.mass[words] = self.words[words] * self.use[words, None]

    @torch.no_grad()
    def follow(self, features: torch.Tensor, chosen: torch.Tensor) -> None:
        """Move words on with the features (M, width) that chose them (M,)."""
        self.use.lerp_(chosen.bincount(minlength=len(self.use)).to(self.use) / len(chosen), 1 - MEMORY)
        self.mass.lerp_(torch.zeros_like(self.mass).index_add(0, chosen, features) / len(chosen), 1 - MEMORY)
        self.words.copy_(self.mass / self.use.clamp(min=torch.finfo(self.use.dtype).tiny)[:, None])

    def draw(self, features: torch.Tensor, temperature: float) -> torch.Tensor:
        """(M, width) to words (M, width) drawn with probability softmax(-distance / (temperature * mean nearest
        distance)).

        The draw is hard, its gradient by the features that of the soft choice (straight-through Gumbel-softmax).
        """
        distances = self.distances(features)
        scale = distances.detach().amin(1).mean().clamp(min=1e-6)
        uniform = torch.rand(distances.shape).clamp(1e-7, 1 - 1e-7).to(distances.device)
        soft = (-distances / (temperature * scale) - (-uniform.log()).log()).softmax(1)
        hard = F.one_hot(soft.argmax(1), soft.shape[1])
        return (hard + soft - soft.detach()) @ self.words

    def replace(self, features: torch.Tensor) -> torch.Tensor:
        """(M, width) to the nearest words (M, width); while `shuffled`, to those that follow them."""
        return F.embedding(self.nearest(features), self.words.roll(1, 0) if self.turned else self.words)

    @contextmanager
    def shuffled(self) -> Iterator[None]:
        """While it lasts, the nearest word is replaced by the next one of the dictionary."""
        self.turned = True
        try:
            yield
        finally:
            self.turned = False


class DictionaryUNet(nn.Module):
    """A U-Net with a vector-quantised deepest level.

    channels         as for the U-Net; with one level only the finest features are quantised
    dimensions       2 or 3
    codes            words in the dictionary
    skips            how many skip connections pass, the deepest ones; None: all. What passes there is not made of
                     words, so a network that has it need not use them: see `shuffled_words`
    commitment       beta: how strongly features are pulled to their words
    priors           as of `betti_prior`: Betti numbers of unions of classes; None: none are known
    prior_window     side of windows, in pixels, in each of which the foreground of a draw is to have the Betti numbers
                     of the label there; None: not asked for. With neither of the two nothing is drawn
    prior_weight     weight of the priors, each a sum over features
    prior_from_step  first step at which draws are scored; before, decodings have no shape to speak of
    temperature      of the draws: 0.1 chooses a word half as far again as the nearest 150 times less often
    """

    learns_without_labels = True

    def __init__(
        self,
        channels_in,
        channels_out,
        *,
        channels=(32, 64, 128),
        dimensions=2,
        codes=64,
        skips=None,
        commitment=0.2,
        priors=None,
        prior_window=None,
        prior_weight=0.01,
        prior_from_step=1000,
        temperature=0.1,
    ):
        super().__init__()
        if codes < 2:
            raise InvalidInput(f"codes is {codes}; a dictionary has 2 words or more.")
        if skips is not None and skips < 0:
            raise InvalidInput(f"skips is {skips}; give how many skip connections pass, 0 or more, or null for all.")
        if min(commitment, prior_weight) < 0 or temperature <= 0:
            raise InvalidInput(
                f"commitment {commitment} and prior_weight {prior_weight} must be at least 0, temperature"
                f" {temperature} above 0."
            )
        if prior_window is not None and prior_window < 1:
            raise InvalidInput(f"prior_window is {prior_window}; give a side of at least 1 pixel, or null.")
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
        self.closed = 0 if skips is None else max(len(channels) - 1 - skips, 0)  # the finest ones
        self.commitment, self.temperature = commitment, temperature
        self.priors, self.prior_window, self.prior_weight = priors, prior_window, prior_weight
        self.prior_from_step = prior_from_step
        self.dimensions, self.multiple, self.receptive_field = dimensions, self.unet.multiple, self.unet.receptive_field

    def _encode(self, image):
        """Features of the skip connections, 0 where none passes, and of the deepest level."""
        *skips, deepest = self.unet.encode(image)
        return [torch.zeros_like(skip) if level < self.closed else skip for level, skip in enumerate(skips)], deepest

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, channels_in, ...) to logits (N, channels_out, ...) composed of the nearest words."""
        skips, deepest = self._encode(image)
        return self.unet.decode([*skips, _places(self.dictionary.replace(_rows(deepest)), deepest)])

    def learn(
        self, image: torch.Tensor, target: torch.Tensor, *, ignore: int | None, step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits, and the terms {commitment} and, where priors count, {betti_prior} and {window_prior}; the last one
        alone looks at the target.
        """
        skips, deepest = self._encode(image)
        with torch.autocast(image.device.type, enabled=False):  # half precision cannot tell near words apart
            rows = _rows(deepest.float())
            self.dictionary.revive(rows.detach())
            chosen = self.dictionary.nearest(rows.detach())
            words = self.dictionary.words[chosen]
            self.dictionary.follow(rows.detach(), chosen)
            apart = (rows - words).square()
            passed = _places(rows + (words - rows).detach(), deepest)
        logits = self.unet.decode([*skips, passed])
        terms = {"commitment": self.commitment * apart.view(len(image), -1).mean(1)}
        if step >= self.prior_from_step and (self.priors or self.prior_window):
            terms |= self._priors_of_a_draw(skips, deepest, target, ignore)
        return logits, terms

    def _priors_of_a_draw(self, skips, deepest, target, ignore):
        """Cost (N,) of the Betti numbers of what a draw of the codes is decoded to, for each kind of prior."""
        with torch.autocast(deepest.device.type, enabled=False):
            drawn = _places(self.dictionary.draw(_rows(deepest.float()), self.temperature), deepest)
        # As when the network is used: by its running statistics, which draws must not change.
        self.unet.decoder.eval()
        logits = self.unet.decode([*skips, drawn]).float()
        self.unet.decoder.train()
        costs = {}
        if self.priors:
            costs["betti_prior"] = self.prior_weight * betti_prior(logits, target, priors=self.priors, reduction="sum")
        if self.prior_window:
            known = labelled(target, ignore).flatten(1).any(1)
            share = len(known) / known.sum().clamp(min=1)  # the mean over the batch is over labelled samples
            options = {"window": self.prior_window, "reduction": "sum"}
            cost = window_prior(logits, target, ignore=ignore, **options)
            costs["window_prior"] = self.prior_weight * share * known * cost
        return costs

    def checks(self) -> dict[str, AbstractContextManager[None]]:
        """{"shuffled_words": context}: inside it, a network that composes its answer of words must be worse."""
        return {"shuffled_words": self.dictionary.shuffled()}


def _rows(features):
    """(N, width, ...) to (N * places, width)."""
    return features.movedim(1, -1).flatten(0, -2)


def _places(rows, like):
    """The inverse of `_rows`, for features of the shape of `like`."""
    return rows.view(like.shape[0], *like.shape[2:], like.shape[1]).movedim(
        -1, 1
    )  # `len` would fix the batch of an exported network
