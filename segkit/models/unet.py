"""U-Net (Ronneberger et al., 2015) for images and volumes."""

from __future__ import annotations

from typing import Any, ClassVar, get_args

from torch import nn

from segkit.models.encoder_decoder import EncoderDecoder, check_levels, per_level
from segkit.models.options import Convs, DropRate, Norm, Widths
from segkit.models.sizes import checked_kernels, checked_strides
from segkit.models.unet_blocks import (
    Groups,
    Init,
    Kernel,
    Layers,
    Stage,
    Stride,
    drop_rates,
    initialise,
)

GROUPS = 8  # of a group norm


class UNet(EncoderDecoder):
    """U-Net with encoder, decoder and skip connections: image [B, in_channels, *S] -> logits [B, out_channels, *S].

    widths: channels per resolution, finest first.
    strides: downsampling factors between consecutive resolutions, one number per axis, such as [[2, 2, 1], [2, 2, 2]]
        for three widths and volumes with thick slices; None halves all axes each time. Each side of the image must be
        a multiple of the product of its strides, which is the attribute `multiple`: 2 ** (len(widths) - 1), or one
        number per axis if they differ.
    kernels: kernel of the convolutions at each resolution, one number per axis, 1 or 3, such as [[3, 3, 1], [3, 3, 3]];
        None is 3 everywhere.
    encoder_convs, decoder_convs: convolutions per resolution in the encoder and the decoder: one number, or one per
        resolution, finest first; the decoder has one resolution fewer.
    norm: `batch`, `instance`, which is independent of the batch and slower on a CPU, or `group` (Wu & He, 2018).
    norm_groups: groups of `norm: group`; a width that they do not divide gets the greatest common divisor of both.
    bias: whether convolutions before norms have a bias, as in nnU-Net. Norms remove it, except over several channels.
    residual: add the input of each stage to its output.
    stochastic_depth: probability with which an image skips the convolutions of the last stage in training (Huang et
        al., 2016); it rises linearly from the first stage on. Needs `residual`.
    dropout: probability of dropping a channel of the coarsest features.
    deep_supervision: in `train()` mode, return a list of logits, finest first, one per resolution of the decoder (Lee
        et al., 2015). The attribute `head_strides` holds the downsampling factor of each, per axis.
    attention: gate the skip connections with the coarser features (Oktay et al., 2018).
    init: `torch`, the default of its layers: weights and biases are uniform within +-1 / sqrt(fan_in). `he`: normal
        weights for leaky ReLUs, biases 0 (He et al., 2015), as in nnU-Net. Norms start with weight 1 and bias 0.

    `presets` holds sets of options by name, for the option `preset` of a configuration.

    The attribute `minimum_pixels` is the smallest number of pixels of an image that leaves enough for the norm at the
    coarsest resolution.

    Raises ValueError for invalid arguments, and for an image whose sides are not multiples of `multiple` or that has
    fewer pixels than `minimum_pixels`; the message names the size to pad to.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"widths": [16, 32, 64, 128], "encoder_convs": 2, "decoder_convs": 2},
        "medium": {"widths": [32, 64, 128, 256, 320], "encoder_convs": 2, "decoder_convs": 2},
        "large": {"widths": [64, 128, 256, 512, 512], "encoder_convs": [2, 3, 3, 4, 4], "decoder_convs": 2},
    }

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        dims: int,
        widths: Widths = [16, 32, 64, 128],  # noqa: B006  (never modified; YAML has lists, not tuples)
        strides: list[list[Stride]] | None = None,
        encoder_convs: Convs = 2,
        decoder_convs: Convs = 2,
        norm: Norm = "batch",
        residual: bool = False,
        dropout: DropRate = 0.0,
        deep_supervision: bool = False,
        kernels: list[list[Kernel]] | None = None,
        norm_groups: Groups = GROUPS,
        bias: bool = False,
        stochastic_depth: DropRate = 0.0,
        attention: bool = False,
        init: Init = "torch",
    ):
        check_levels(dims, widths)
        if min(widths) < 1 or not 0 <= dropout < 1 or not 0 <= stochastic_depth < 1:
            raise ValueError(
                "expected widths of at least 1, 0 <= dropout < 1 and 0 <= stochastic_depth < 1, got "
                f"{list(widths)}, {dropout} and {stochastic_depth}"
            )
        if stochastic_depth and not residual:
            raise ValueError(
                f"stochastic_depth: {stochastic_depth} drops the convolutions of residual stages; set residual: true"
            )
        if norm_groups != GROUPS and norm != "group":
            raise ValueError(f"norm_groups: {norm_groups} is for norm: group, got norm: {norm}")
        layers, levels = Layers(dims, norm, norm_groups, bias), len(widths)
        steps = checked_strides(strides, levels - 1, dims)
        sizes = checked_kernels(kernels, levels, dims, get_args(Kernel))
        encoding = per_level("encoder_convs", encoder_convs, levels)
        decoding = per_level("decoder_convs", decoder_convs, levels - 1)
        drops = drop_rates(stochastic_depth, 2 * levels - 1)
        inputs, strides_in = [in_channels, *widths[:-1]], [layers.ones, *steps]
        encoder = nn.ModuleList(
            Stage(layers, width_in, width, kernel=size, strides=step, convs=convs, residual=residual, drop=drop)
            for width_in, width, size, step, convs, drop in zip(
                inputs, widths, sizes, strides_in, encoding, drops[:levels], strict=True
            )
        )
        super().__init__(
            layers,
            encoder,
            out_channels,
            widths=widths,
            steps=steps,
            kernels=sizes,
            convs=decoding,
            residual=residual,
            drops=drops[levels:],
            dropout=dropout,
            deep_supervision=deep_supervision,
            attention=attention,
        )
        if init == "he":
            initialise(self)
