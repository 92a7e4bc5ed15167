"""DeepRx (arXiv 2005.01494, Table I): a fully convolutional receiver, from slot to bit logits.

Rebuilt from the paper's table and public re-implementations that agree on widths, dilations and
depth multiplier; at full size, 4 bits and two antennas it has the 1,232,516 parameters that one
of them reports. Biases everywhere and the 1x1 shortcut (from the block's input) are theirs too.

Shapes: N slots, A receive antennas, C channels, S = 14 symbols, F subcarriers, B bits a symbol.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, relu

from distinf.numerics.layer_gradients import RULES

# Table I; a dilation is (symbols, subcarriers), as the table lists shapes in that order.
TABLE_I_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 128, 128, 64, 64)
TABLE_I_DILATIONS = (
    *((1, 1),) * 2,
    *((2, 3),) * 3,
    (3, 6),
    *((2, 3),) * 3,
    *((1, 1),) * 2,
)


@dataclass(frozen=True)
class DeepRxConfig:
    """The network (arXiv 2005.01494, Table I); small runs give fewer and narrower blocks.

    widths            channels of each residual block
    dilations         one (symbols, subcarriers) pair a block; null takes Table I's, for another
                      number of blocks picked at equal distances along it: five get (1,1) (2,3)
                      (3,6) (2,3) (1,1)
    depth_multiplier  of the depthwise convolutions
    kernel            side of the convolutions, odd
    """

    widths: tuple[int, ...] = TABLE_I_WIDTHS
    dilations: tuple[tuple[int, int], ...] | None = None
    depth_multiplier: int = 2
    kernel: int = 3

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths={self.widths}: give one positive width for each block")
        if self.dilations is not None and len(self.dilations) != len(self.widths):
            raise ValueError(
                f"dilations has {len(self.dilations)} pairs for {len(self.widths)} widths; "
                "give one for each block, or none at all"
            )
        if self.depth_multiplier < 1:
            raise ValueError(f"depth_multiplier={self.depth_multiplier}: set at least 1")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel}: must be odd, so that the grid keeps its size")

    def block_dilations(self) -> tuple[tuple[int, int], ...]:
        if self.dilations is not None:
            return self.dilations
        last, blocks = len(TABLE_I_DILATIONS) - 1, len(self.widths)
        step = last / max(blocks - 1, 1)
        return tuple(TABLE_I_DILATIONS[int(k * step)] for k in range(blocks))


class DepthwiseConv(nn.Conv2d):
    """A depthwise convolution with a depth multiplier, on a CPU in a form that is faster there.

    PyTorch's CPU kernels are slow on several outputs a channel, and slower on dilation: so each of
    the phases of a dilated grid becomes a sample of its own, and meets an undilated kernel, once
    for each output of a channel. Outputs are those of nn.Conv2d up to rounding.
    """

    def forward(self, x_NCSF: Tensor) -> Tensor:
        if x_NCSF.device.type != "cpu" or x_NCSF.dim() == 3:
            return super().forward(x_NCSF)
        assert self.bias is not None
        times, edge = self.out_channels // self.in_channels, self.kernel_size[0] // 2
        x = _phases(x_NCSF, self.dilation[0], self.dilation[1])
        outputs = [
            conv2d(x, self.weight[k::times], self.bias[k::times], 1, edge, 1, self.groups)
            for k in range(times)
        ]
        return _from_phases(_alternating(outputs), *self.dilation, *x_NCSF.shape[2:])


RULES[DepthwiseConv] = RULES[nn.Conv2d]  # the same layer, computed otherwise


def _alternating(parts: list[Tensor]) -> Tensor:
    """Tensors [N, C, S, F] to one: the first channel of each, then the second of each, …"""
    last = [part.permute(0, 2, 3, 1) for part in parts]
    if len(last) == 2 and last[0].dtype in (torch.float32, torch.float64):
        together = torch.view_as_real(torch.complex(*last))  # four times as fast as to stack
    else:
        together = torch.stack(last, -1)
    return together.flatten(3).permute(0, 3, 1, 2)


def _phases(x: Tensor, a: int, b: int) -> Tensor:
    """[N, C, S, F] -> [a b N, C, S / a, F / b], rounded up and filled with zeros."""
    *_, symbols, subcarriers = x.shape
    if a == b == 1:
        return x
    if symbols % a or subcarriers % b:
        x = pad(x, (0, -subcarriers % b, 0, -symbols % a))
    x = x.permute(0, 2, 3, 1).unflatten(2, (-1, b)).unflatten(1, (-1, a))
    return x.permute(2, 4, 0, 1, 3, 5).flatten(0, 2).permute(0, 3, 1, 2)


def _from_phases(x: Tensor, a: int, b: int, symbols: int, subcarriers: int) -> Tensor:
    if a == b == 1:
        return x
    x = x.permute(0, 2, 3, 1).unflatten(0, (a, b, -1)).permute(2, 3, 0, 4, 1, 5)
    x = x.flatten(3, 4).flatten(1, 2)
    return x[:, :symbols, :subcarriers].contiguous().permute(0, 3, 1, 2)


class SeparableConv(nn.Module):
    """Depthwise convolution with a depth multiplier, then a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, dilation: tuple[int, int], config: DeepRxConfig):
        super().__init__()
        middle = inputs * config.depth_multiplier
        self.depthwise = DepthwiseConv(
            inputs, middle, config.kernel, padding="same", dilation=dilation, groups=inputs
        )
        self.pointwise = nn.Conv2d(middle, outputs, 1)

    def forward(self, x_NCSF: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x_NCSF))


class ResidualBlock(nn.Module):
    """Preactivation residual block of two separable convolutions."""

    def __init__(self, inputs: int, outputs: int, dilation: tuple[int, int], config: DeepRxConfig):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = SeparableConv(inputs, outputs, dilation, config)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = SeparableConv(outputs, outputs, dilation, config)
        same = inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x_NCSF: Tensor) -> Tensor:
        y = self.conv1(relu(self.norm1(x_NCSF)))
        y = self.conv2(relu(self.norm2(y)))
        return self.shortcut(x_NCSF) + y


class DeepRx(nn.Module):
    """Inputs [N, 2(2A+1), S, F] (see `deeprx_inputs`) to logits [N, B, S, F].

    A positive logit means that bit 1 is the likelier (DeepRx writes its LLRs the other way).
    On a CPU both weights and inputs must be channels_last (6 to 100 times faster); the weights
    are built so. Per-sample gradients need BatchNorm in eval mode.
    """

    def __init__(self, config: DeepRxConfig, bits_per_symbol: int = 4, rx_antennas: int = 2):
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(
            2 * (2 * rx_antennas + 1), widths[0], config.kernel, padding="same"
        )
        sizes = zip((widths[0], *widths), widths, config.block_dilations())
        self.blocks = nn.ModuleList(
            ResidualBlock(before, after, dilation, config) for before, after, dilation in sizes
        )
        self.norm_out = nn.BatchNorm2d(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], bits_per_symbol, 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, inputs_NCSF: Tensor) -> Tensor:
        x = self.conv_in(inputs_NCSF)
        for block in self.blocks:
            x = block(x)
        return self.conv_out(relu(self.norm_out(x)))


def deeprx_inputs(grid: Tensor, pilots: Tensor) -> Tensor:
    """Z = [Y, Xp, Y conj(Xp)] as real and imaginary channels, channels_last float32.

    grid: float [N, A, S, F, 2], the received slot; pilots: complex64 [N, S, F], zero where no
    pilot is. Channels: real Y (A), Xp, raw channel (A), then the imaginary parts likewise.
    """
    received = torch.view_as_complex(grid.float())
    known = pilots[:, None]
    stacked = torch.cat([received, known, received * known.conj()], dim=1)
    inputs = torch.cat([stacked.real, stacked.imag], dim=1)
    return inputs.contiguous(memory_format=torch.channels_last)
