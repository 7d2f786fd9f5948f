"""Receptive fields of runs of codec layers: how much context a chunk needs so that its middle
equals one pass.
"""

from mgen.codec.blocks import NamedLayers, ResidualUnit
from mgen.nn.activations import Activation
from mgen.nn.conv import Conv1d, ConvTranspose1d


def input_interval(layers: NamedLayers, first: int, last: int) -> tuple[int, int]:
    """First and last input step that the outputs `first`..`last` depend on, far from the edges.

    Raises `TypeError` for a layer without a finite receptive field (an LSTM).
    """
    for _, layer in reversed(layers):
        if isinstance(layer, Conv1d):
            start = first * layer.stride - layer.padding[0]
            first, last = start, last * layer.stride - layer.padding[0] + layer.span - 1
        elif isinstance(layer, ConvTranspose1d):
            left, stride = layer.trim[0], layer.stride
            first = -((layer.kernel_size - 1 - first - left) // stride)
            # A layer one step short at its end needs an input more to have its last output at all.
            short = last + (0 if layer.output_padding else 1)
            last = max((last + left) // stride, short // stride)
        elif isinstance(layer, ResidualUnit):
            branch = ResidualUnit.branch(layer.config, layer.features, layer.dilation)
            inner = input_interval(branch, first, last)
            first, last = min(first, inner[0]), max(last, inner[1])
        elif not isinstance(layer, Activation):
            raise TypeError(f"{type(layer).__name__} has no finite receptive field")
    return first, last


def context(layers: NamedLayers, in_unit: int, out_unit: int) -> tuple[int, int]:
    """Frames of context left and right of a frame; it has `in_unit` input and `out_unit` output
    steps.
    """
    first, last = input_interval(layers, 0, out_unit - 1)
    return max(0, -(first // in_unit)), max(0, last // in_unit)


def first_block_frames(layers: NamedLayers, in_unit: int) -> int:
    """Frames that the first block of a stream needs for every mirrored ("reflect") padding to find
    its samples.
    """
    frames, steps_per_frame = 1, in_unit
    for _, layer in layers:
        convs = [layer]
        if isinstance(layer, ResidualUnit):
            branch = ResidualUnit.branch(layer.config, layer.features, layer.dilation)
            convs = [conv for _, conv in branch]
        for conv in convs:
            if isinstance(conv, Conv1d) and conv.pad_mode == "reflect":
                frames = max(frames, conv.padding[0] // steps_per_frame + 1)
        if isinstance(layer, Conv1d):
            steps_per_frame //= layer.stride
        if isinstance(layer, ConvTranspose1d):
            steps_per_frame *= layer.stride
    return frames
