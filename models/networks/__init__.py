"""Every network a specification may name: name -> builder."""

from models.errors import InvalidInput
from models.losses.pixels import labelled
from models.networks.dictionary import DictionaryUNet
from models.networks.morse import ProbabilisticMorseUNet
from models.networks.simple_points import SimplePointUNet
from models.networks.unet import UNet

NETWORKS = {
    "unet": UNet,
    "unet_tcsp": SimplePointUNet,
    "unet_pdmt": ProbabilisticMorseUNet,
    "unet_dictionary": DictionaryUNet,
}


def build(network, *, channels_in, channels_out):
    """An untrained network from `{"name": ..., <its own keyword arguments>}`.

    channels_in   channels of the image
    channels_out  1 for two classes (a sigmoid follows), otherwise the number of classes (a softmax follows)

    The result maps (N, channels_in, ...) float32 to logits (N, channels_out, ...) of the same sides and has
    `.dimensions`, `.multiple` (sides must be multiples of it) and `.receptive_field` in pixels. It may also have
    `.learn` and `.learns_without_labels`, see `learn`, `.extra_outputs` with `.explain`, see `explain`, and `.checks`,
    {name: context} inside which a trained network must be worse.
    """
    options = dict(network)
    name = options.pop("name", "unet")
    if name not in NETWORKS:
        raise InvalidInput(f"Network {name!r} is not known; the networks are {', '.join(sorted(NETWORKS))}.")
    try:
        return NETWORKS[name](channels_in, channels_out, **options)
    except TypeError as error:
        raise InvalidInput(f"Network {name!r} does not take these options: {error}.") from error


def learn(network, image, target, *, ignore=None, step=1):
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


def learns_without_labels(network):
    """True when a term of the network needs no reference.

    Otherwise its terms are 0 for samples without a label, and their mean is over the others.
    """
    return getattr(network, "learns_without_labels", False)


def explain(network, image):
    """The logits and, in the order of the network's `extra_outputs`, what it says beside them:
    (logits, tensor, ...).
    """
    return network.explain(image) if extra_outputs(network) else (network(image),)


def extra_outputs(network):
    """Names of what the network says beside its logits; `app.serving.contract.Manifest` says what each is."""
    return list(getattr(network, "extra_outputs", ()))
