"""One linear with many weights: rows lie in blocks, and each block has a weight of its own.

Written as autograd functions because the composition of slices, products and concatenations would make several passes over
memory where a dense linear makes one, and a gradient of the whole bank for each of its experts.
Legend: R rows, C weights, O out, I in.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from parallel.dispatch_plan import Blocks, RowGroups


def grouped_linear(
    x_RI: Tensor, groups: RowGroups | Blocks, weight_COI: Tensor, bias_CO: Tensor | None, scale_R: Tensor | None = None
) -> Tensor:
    """By groups of rows: scale (W x + b) -> [R, O]. A weight without rows gets a zero gradient, not none.

    Groups that only a device knows take torch's grouped products, which a GPU has for bf16; blocks that the host knows a product each.
    Inputs are scaled where a layer widens, and outputs where it does not: the fewer numbers.
    """
    if scale_R is not None and weight_COI.shape[1] <= weight_COI.shape[2]:
        scaled_RO: Tensor = _ScaledRows.apply(grouped_linear(x_RI, groups, weight_COI, bias_CO), scale_R)
        return scaled_RO
    if isinstance(groups, RowGroups) and groups.rows and has_grouped_products(x_RI) and _is_aligned(weight_COI):
        y_RO: Tensor = _GroupedProducts.apply(groups, x_RI, weight_COI, bias_CO, scale_R)
        return y_RO
    blocks = groups.blocks if isinstance(groups, RowGroups) else groups
    y_RO = _GroupedLinear.apply(blocks, x_RI, weight_COI, bias_CO, scale_R)
    return y_RO


def has_grouped_products(x: Tensor) -> bool:
    """Where torch has a kernel for them: of bf16 on Hopper and Blackwell. On other GPUs it asks the device in each product where groups
    end, and blocks ask once a decision. On a CPU the products are as fast one by one, and the bias joins them."""
    return x.is_cuda and x.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x.device)[0] in (9, 10)


def leaves_gradients_unwritten(x: Tensor) -> bool:
    """Whether the gradient of a weight without rows is what lay in memory: on Blackwell, not on Hopper (pytorch issue 172439)."""
    return x.is_cuda and torch.cuda.get_device_capability(x.device)[0] >= 10


def _is_aligned(weight_COI: Tensor) -> bool:
    """The kernel reads rows of whole 16 bytes."""
    return all(size * weight_COI.element_size() % 16 == 0 for size in weight_COI.shape[1:])


def _dots(a_RN: Tensor, b_RN: Tensor, dtype: torch.dtype) -> Tensor:
    """Of each row, summed in `dtype`: in fp16 products and sums would overflow."""
    if a_RN.dtype == torch.float16:
        a_RN, b_RN = a_RN.to(dtype), b_RN.to(dtype)
    if a_RN.dtype == b_RN.dtype == dtype:
        return torch.linalg.vecdot(a_RN, b_RN)
    return (a_RN * b_RN).sum(1, dtype=dtype)


def _covered(blocks: Blocks) -> int:
    """Rows that belong to a block."""
    return blocks[-1][1] if blocks else 0


class _ScaledRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y_RO, scale_R):
        ctx.save_for_backward(y_RO, scale_R)
        return y_RO * scale_R[:, None].to(y_RO.dtype)

    @staticmethod
    def backward(ctx, dy_RO):
        y_RO, scale_R = ctx.saved_tensors
        wants_y, wants_scale = ctx.needs_input_grad
        dscale_R = _dots(dy_RO, y_RO, scale_R.dtype) if wants_scale else None
        return dy_RO * scale_R[:, None].to(dy_RO.dtype) if wants_y else None, dscale_R


class _GroupedProducts(torch.autograd.Function):
    """Sums over rows are products too: of a matrix that is 1 where a row is of an expert."""

    @staticmethod
    def forward(ctx, groups, x_RI, weight_COI, bias_CO, scale_R):
        ctx.groups = groups
        scale_R1 = None if scale_R is None else scale_R[:, None].to(x_RI.dtype)
        ctx.save_for_backward(x_RI, weight_COI, bias_CO, scale_R1)
        rows_RI = x_RI if scale_R1 is None else x_RI * scale_R1
        y_RO = grouped_mm(rows_RI, weight_COI.transpose(1, 2), offs=groups.covering_ends_e)
        if bias_CO is not None:
            bias_RO = bias_CO.index_select(0, groups.expert_R)
            y_RO = y_RO.add_(bias_RO) if scale_R1 is None else y_RO.addcmul_(bias_RO, scale_R1)
        return y_RO

    @staticmethod
    def backward(ctx, dy_RO):
        x_RI, weight_COI, bias_CO, scale_R1 = ctx.saved_tensors
        _, wants_x, wants_weight, wants_bias, wants_scale = ctx.needs_input_grad
        ends_e, dy_RO = ctx.groups.covering_ends_e, dy_RO.contiguous()
        dx_RI = dscale_R = dweight_COI = dbias_CO = None
        if wants_x or wants_scale:
            dx_RI = grouped_mm(dy_RO, weight_COI, offs=ends_e)
        if wants_scale:
            assert dx_RI is not None
            dscale_R = _dots(dx_RI, x_RI, torch.float32)
            if bias_CO is not None:
                dscale_R += _dots(dy_RO, bias_CO.index_select(0, ctx.groups.expert_R), torch.float32)
        dy_scaled_RO = dy_RO if scale_R1 is None else dy_RO * scale_R1
        if wants_weight:
            dweight_COI = grouped_mm(dy_scaled_RO.t(), x_RI, offs=ends_e)
            if leaves_gradients_unwritten(x_RI):
                dweight_COI = dweight_COI.masked_fill_(ctx.groups.is_empty_e[:, None, None], 0)
        if wants_bias:
            dbias_CO = ctx.groups.is_of_eR.to(dy_RO.dtype) @ dy_scaled_RO
        if dx_RI is not None and scale_R1 is not None:
            dx_RI = dx_RI.mul_(scale_R1)
        return None, dx_RI if wants_x else None, dweight_COI, dbias_CO, dscale_R


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, blocks, x_RI, weight_COI, bias_CO, scale_R):
        ctx.blocks = blocks
        ctx.save_for_backward(x_RI, weight_COI, bias_CO, scale_R)
        y_RO = x_RI.new_empty(x_RI.shape[0], weight_COI.shape[1])
        y_RO[_covered(blocks) :] = 0
        for start, end, index in blocks:
            out, rows, weight_IO = y_RO[start:end], x_RI[start:end], weight_COI[index].t()
            if scale_R is not None:
                # A scaled bias is what the product is added to.
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
        if dx_RI is not None:
            dx_RI[_covered(ctx.blocks) :] = 0
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
                dscale_R[start:end] = _dots(dx_RI[start:end], rows, dscale_R.dtype)
                if bias_CO is not None:
                    dscale_R[start:end] += _dots(drows, bias_CO[index].expand_as(drows), dscale_R.dtype)
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
                of_block = drows.sum(0) if scale_R1 is None else scale_R1.squeeze(1) @ drows
                dbias_CO[index].add_(of_block)
        if dweight_COI is not None:
            for index in set(range(weight_COI.shape[0])) - written:
                dweight_COI[index].zero_()
        return None, dx_RI if wants_x else None, dweight_COI, dbias_CO, dscale_R
