"""Every network a specification may name: name -> builder."""

from models.errors import InvalidInput
from models.networks.simple_points import SimplePointUNet
from models.networks.unet import UNet

NETWORKS = {"unet": UNet, "unet_tcsp": SimplePointUNet}


def build(network, *, channels_in, channels_out):
    """An untrained network from `{"name": ..., <its own keyword arguments>}`.

    channels_in   channels of the image
    channels_out  1 for two classes (a sigmoid follows), otherwise the number of classes (a softmax follows)

    The result maps (N, channels_in, ...) float32 to logits (N, channels_out, ...) of the same sides and has `.dimensions`,
    `.multiple` (sides must be multiples of it) and `.receptive_field` in pixels.
    """
    options = dict(network)
    name = options.pop("name", "unet")
    if name not in NETWORKS:
        raise InvalidInput(f"Network {name!r} is not known; the networks are {', '.join(sorted(NETWORKS))}.")
    try:
        return NETWORKS[name](channels_in, channels_out, **options)
    except TypeError as error:
        raise InvalidInput(f"Network {name!r} does not take these options: {error}.") from error
