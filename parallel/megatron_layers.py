"""megatron-core's parallel layers with a call that returns the output alone (theirs returns (output, bias)).

Each has the tensor axis, to which it tells the sums over ranks that megatron-core makes.
"""

from __future__ import annotations

from megatron.core import ModelParallelConfig
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
from torch import Tensor
from torch.nn.functional import linear

from parallel.collectives import Axis, count_gradient_sum, count_sum
from parallel.sequence_parallel import only_first


def layer_config(tensor_size: int) -> ModelParallelConfig:
    """Weights are left for our own initialisation, which draws the logical tensor and keeps the slice."""
    return ModelParallelConfig(
        tensor_model_parallel_size=tensor_size,
        use_cpu_initialization=True,
        perform_initialization=False,
        gradient_accumulation_fusion=False,
        async_tensor_model_parallel_allreduce=False,
    )


class ColumnLinear(ColumnParallelLinear):
    """reduces: whether the gradient of the input is summed here."""

    axis: Axis
    reduces: bool

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(count_gradient_sum(x, self.axis) if self.reduces else x)[0]


class RowLinear(RowParallelLinear):
    axis: Axis

    def forward(self, x: Tensor) -> Tensor:
        return count_sum(super().forward(x)[0], self.axis)


class PartialRowLinear(RowParallelLinear):
    """Leaves the sum over the ranks of its axis to the block; the bias enters it once."""

    axis: Axis

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, None if self.bias is None else only_first(self.bias, self.axis))


class VocabularyEmbedding(VocabParallelEmbedding):
    axis: Axis

    def forward(self, ids: Tensor) -> Tensor:
        return count_sum(super().forward(ids), self.axis)
