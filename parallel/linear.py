"""Linear layers and the token table, cut over the tensor axis by megatron-core's layers, or whole on one rank.

Both variants have the same parameter names, shapes up to the cut, and a call that returns one tensor. The serial ones
need no import of megatron-core, which keeps tests of the model quick.
"""

from __future__ import annotations

from torch import nn

from parallel.mesh import Mesh
from parallel.placement import TENSOR_AXIS, Cut, Placement, place


def column_linear(in_features: int, out_features: int, mesh: Mesh, bias: bool = True) -> nn.Module:
    """[..., in] -> [..., out / tensor]: rows of the weight are cut; feeds a `row_linear`.

    Where rows are cut over the sequence axis, the gradient of the input stays this rank's part of a sum.
    """
    axis = mesh.tensor
    if axis.size == 1:
        return nn.Linear(in_features, out_features, bias=bias)
    from parallel.megatron_layers import ColumnLinear, layer_config

    layer = ColumnLinear(
        in_features,
        out_features,
        config=layer_config(axis.size),
        init_method=lambda weight: None,
        bias=bias,
        gather_output=False,
        disable_grad_reduce=mesh.sequence.size > 1,
    )
    layer.axis, layer.reduces = axis, mesh.sequence.size == 1
    cut = (Cut(0, TENSOR_AXIS, axis.rank, axis.size),)
    place(layer.weight, Placement((out_features, in_features), cut))
    if bias:
        place(layer.bias, Placement((out_features,), cut))
    return layer


def row_linear(in_features: int, out_features: int, mesh: Mesh, bias: bool = True) -> nn.Module:
    """[..., in / tensor] -> [..., out]: columns of the weight are cut, results summed over tensor ranks.

    Where rows are cut over the sequence axis, the result stays this rank's part of the sum.
    """
    axis = mesh.tensor
    if axis.size == 1:
        return nn.Linear(in_features, out_features, bias=bias)
    from parallel.megatron_layers import PartialRowLinear, RowLinear, layer_config

    layer = (PartialRowLinear if mesh.sequence.size > 1 else RowLinear)(
        in_features,
        out_features,
        config=layer_config(axis.size),
        init_method=lambda weight: None,
        bias=bias,
        input_is_parallel=True,
        skip_bias_add=False,
    )
    place(layer.weight, Placement((out_features, in_features), (Cut(1, TENSOR_AXIS, axis.rank, axis.size),)))
    layer.axis = axis
    return layer


def vocabulary_embedding(num_rows: int, width: int, mesh: Mesh) -> nn.Module:
    """[...] ids -> [..., width]; rows are cut over tensor ranks. `num_rows` must divide by the tensor degree."""
    axis = mesh.tensor
    if axis.size == 1:
        return nn.Embedding(num_rows, width)
    from parallel.megatron_layers import VocabularyEmbedding, layer_config

    layer = VocabularyEmbedding(num_rows, width, init_method=lambda weight: None, config=layer_config(axis.size))
    layer.axis = axis
    place(layer.weight, Placement((num_rows, width), (Cut(0, TENSOR_AXIS, axis.rank, axis.size),)))
    return layer
