"""SimKD's projector from the student's map to the teacher's channels."""

from torch import nn

from atsc_plugin.errors import ModelRefused


class Projector(nn.Sequential):
    """SimKD's bottleneck C_s -> inner -> C_t: 1x1, 3x3, 1x1 convolutions without bias, each with BN and ReLU."""

    def __init__(self, channels_in: int, inner: int, channels_out: int) -> None:
        layers: list[nn.Module] = []
        for before, after, kernel in ((channels_in, inner, 1), (inner, inner, 3), (inner, channels_out, 1)):
            layers.append(nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False))
            layers += [nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        super().__init__(*layers)
        self.channels = channels_in, inner, channels_out


def projector(channels_in: int, channels_out: int, factor: int, key: str) -> Projector:
    """A Projector whose inner width is C_t / factor; `key` is the config key that a refusal names."""
    check_factor(channels_out, factor, key)
    return Projector(channels_in, channels_out // factor, channels_out)


def check_factor(channels_out: int, factor: int, key: str) -> None:
    if not 1 <= factor <= channels_out:
        raise ModelRefused(
            f"{key} is {factor}, but the teacher's map has {channels_out} channels; expected 1 to {channels_out}."
        )
