"""Every network a specification may name: name -> builder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, Self

import torch

from models.errors import InvalidInput
from models.losses.pixels import labelled
from models.networks.borrowed import AttentionUnet, DynUNet, SegResNet
from models.networks.dictionary import DictionaryUNet
from models.networks.morse import ProbabilisticMorseUNet
from models.networks.simple_points import SimplePointUNet
from models.networks.unet import UNet


class Network(Protocol):
    """A torch module from (N, channels_in, ...) float32 images to logits (N, channels_out, ...) of the same sides.

    dimensions       2 or 3
    multiple         sides of its input must be multiples of it
    receptive_field  side, in pixels, of what an output pixel depends on; None: the whole image
    It may also have `learn` and `learns_without_labels`, see `learn`, `extra_outputs` with `explain`, see `explain`,
    and `checks`, {name: context} inside which a trained network must be worse.
    """

    dimensions: int
    multiple: int
    training: bool

    @property
    def receptive_field(self) -> int | None:
        """Side, in pixels, of what an output pixel depends on; None: the whole image."""

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Logits of a batch."""

    def eval(self) -> Self:
        """The network, from now on as it answers."""

    def train(self, mode: bool = True) -> Self:
        """The network, from now on as it is trained."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """What is learnt."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Take these tensors by name."""

    def to(self, device: torch.device) -> Self:
        """The network on that device."""


NETWORKS: dict[str, Callable[..., Network]] = {
    "unet": UNet,
    "unet_tcsp": SimplePointUNet,
    "unet_pdmt": ProbabilisticMorseUNet,
    "unet_dictionary": DictionaryUNet,
    "dynunet": DynUNet,
    "segresnet": SegResNet,
    "attention_unet": AttentionUnet,
}


def build(network: Mapping[str, Any], *, channels_in: int, channels_out: int) -> Network:
    """An untrained network from `{"name": ..., <its own keyword arguments>}`.

    channels_in   channels of the image
    channels_out  1 for two classes (a sigmoid follows), otherwise the number of classes (a softmax follows)
    """
    options = dict(network)
    name = options.pop("name", "unet")
    if name not in NETWORKS:
        raise InvalidInput(f"Network {name!r} is not known; the networks are {', '.join(sorted(NETWORKS))}.")
    try:
        return NETWORKS[name](channels_in, channels_out, **options)
    except TypeError as error:
        raise InvalidInput(f"Network {name!r} does not take these options: {error}.") from error


def learn(
    network: Network, image: torch.Tensor, target: torch.Tensor, *, ignore: int | None = None, step: int = 1
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The logits of a training step and what the network itself adds to the loss: (logits, {"network/<term>": (N,)}).

    A network with terms of its own has `learn(image, target, *, ignore, step) -> (logits, {term: (N,)})`, the terms
    already weighted. What it draws at random comes from torch's CPU generator, which checkpoints keep, so that a
    resumed run draws the same.
    """
    own = getattr(network, "learn", None)
    logits, terms = (network(image), {}) if own is None else own(image, target, ignore=ignore, step=step)
    share = (
        1
        if learns_without_labels(network)
        else len(target) / labelled(target, ignore).flatten(1).any(1).sum().clamp(min=1)
    )
    return logits, {f"network/{name}": share * value for name, value in terms.items()}


def learns_without_labels(network: Network) -> bool:
    """True when a term of the network needs no reference.

    Otherwise its terms are 0 for samples without a label, and their mean is over the others.
    """
    return getattr(network, "learns_without_labels", False)


def explain(network: Network, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The logits and, in the order of the network's `extra_outputs`, what it says beside them:
    (logits, tensor, ...).
    """
    own = getattr(network, "explain", None)
    return (network(image),) if own is None else own(image)


def extra_outputs(network: Network) -> list[str]:
    """Names of what the network says beside its logits; `app.serving.contract.Manifest` says what each is."""
    return list(getattr(network, "extra_outputs", ()))
