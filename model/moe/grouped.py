"""One linear with many weights: rows lie in blocks, and each block has a weight of its own.

Written as autograd functions because the composition of slices, products and concatenations would make several passes over
memory where a dense linear makes one, and a gradient of the whole bank for each of its experts.
Legend: R rows, C weights, O out, I in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parallel.dispatch import Blocks


def grouped_linear(
    x_RI: Tensor, blocks: Blocks, weight_COI: Tensor, bias_CO: Tensor | None, scale_R: Tensor | None = None
) -> Tensor:
    """By blocks of rows: scale (W x + b) -> [R, O]. A weight without rows gets a zero gradient, not none."""
    y_RO: Tensor = _GroupedLinear.apply(blocks, x_RI, weight_COI, bias_CO, scale_R)
    return y_RO


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, blocks, x_RI, weight_COI, bias_CO, scale_R):
        ctx.blocks = blocks
        ctx.save_for_backward(x_RI, weight_COI, bias_CO, scale_R)
        y_RO = x_RI.new_empty(x_RI.shape[0], weight_COI.shape[1])
        for start, end, index in blocks:
            out, rows, weight_IO = y_RO[start:end], x_RI[start:end], weight_COI[index].t()
            if scale_R is not None:
                # Scaling the inputs is cheaper where the layer widens; a scaled bias is what the product is added to.
                scale_R1 = scale_R[start:end, None].to(x_RI.dtype)
                rows = rows * scale_R1
                if bias_CO is not None:
                    torch.mul(scale_R1, bias_CO[index], out=out)
                    torch.addmm(out, rows, weight_IO, out=out)
                    continue
            if bias_CO is None:
                torch.mm(rows, weight_IO, out=out)
            else:
                torch.addmm(bias_CO[index], rows, weight_IO, out=out)
        return y_RO

    @staticmethod
    def backward(ctx, dy_RO):
        x_RI, weight_COI, bias_CO, scale_R = ctx.saved_tensors
        _, wants_x, wants_weight, wants_bias, wants_scale = ctx.needs_input_grad
        dweight_COI = torch.empty_like(weight_COI) if wants_weight else None
        dbias_CO = torch.zeros_like(bias_CO) if wants_bias else None
        dscale_R = torch.zeros_like(scale_R) if wants_scale else None
        dx_RI = torch.empty_like(x_RI) if wants_x or wants_scale else None
        written: set[int] = set()
        dy_RO = dy_RO.contiguous()
        for start, end, index in ctx.blocks:
            if start == end:
                continue
            rows, drows = x_RI[start:end], dy_RO[start:end]
            scale_R1 = None if scale_R is None else scale_R[start:end, None].to(x_RI.dtype)
            if dx_RI is not None:
                torch.mm(drows, weight_COI[index], out=dx_RI[start:end])
            if dscale_R is not None:
                assert dx_RI is not None
                dscale_R[start:end] = torch.linalg.vecdot(dx_RI[start:end], rows)
                if bias_CO is not None:
                    dscale_R[start:end] += drows @ bias_CO[index]
            if scale_R1 is not None:
                rows = rows * scale_R1
                if dx_RI is not None:
                    dx_RI[start:end] *= scale_R1
            if dweight_COI is not None:
                if index in written:
                    torch.addmm(dweight_COI[index], drows.t(), rows, out=dweight_COI[index])
                else:
                    torch.mm(drows.t(), rows, out=dweight_COI[index])
                    written.add(index)
            if dbias_CO is not None:
                dbias_CO[index] += drows.sum(0) if scale_R1 is None else scale_R1.squeeze(1) @ drows
        if dweight_COI is not None:
            for index in set(range(weight_COI.shape[0])) - written:
                dweight_COI[index].zero_()
        return None, dx_RI if wants_x else None, dweight_COI, dbias_CO, dscale_R
