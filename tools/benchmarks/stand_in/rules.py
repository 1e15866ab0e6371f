"""What PyTorch does on CUDA, operation by operation: what it refuses, where the host waits, what a kernel must move.

A kernel reads each of its inputs once and writes its outputs once; whatever PyTorch does not fuse is a kernel of its
own. Operations that gather or scatter are counted by what they touch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, flop_registry

from benchmarks.stand_in.operators import OPERATORS
from benchmarks.stand_in.record import Arithmetic, Kernel


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Operations that compute nothing: they make another view, or memory without content.
NO_KERNEL = _names(
    "view _unsafe_view reshape permute transpose t mT slice select expand unsqueeze squeeze as_strided detach alias "
    "split split_with_sizes chunk unbind diagonal unfold movedim narrow expand_as _reshape_alias flatten unflatten "
    "lift_fresh view_as_real view_as_complex empty empty_like new_empty empty_strided new_empty_strided set_ "
    "is_same_size _linalg_check_errors"
)
PRODUCTS = (
    _names(
        "mm bmm addmm baddbmm matmul dot mv linear convolution _convolution cudnn_convolution cudnn_convolution_relu "
        "cudnn_convolution_add_relu convolution_backward attention _scaled_dot_product_attention_math "
        "_addmm_activation mkldnn_convolution"
    )
    | OPERATORS
)
_INTEGER_PRODUCTS_MISSING = _names("mm bmm addmm baddbmm matmul dot mv")
_GATHERS = _names("index index_select gather embedding take _unsafe_index")
_SCATTERS = _names(
    "index_put_ _index_put_impl_ index_put scatter_ scatter index_copy_ index_copy index_add_ index_add scatter_add_ "
    "scatter_add index_fill_ index_fill"
)
_INDEXING = _names("index index_put index_put_ _index_put_impl_ _unsafe_index")
_OVERWRITES = _names("copy_ fill_ zero_ normal_ uniform_ random_ bernoulli_")
_NAMES_THE_HOST = _names(
    "new_zeros new_empty new_full new_ones new_empty_strided zeros_like empty_like full_like ones_like rand_like "
    "randn_like"
)
_WAITS = _names(
    "nonzero masked_select _unique2 unique_consecutive unique_dim is_nonzero equal bincount "
    "argwhere _linalg_check_errors linalg_eigh _linalg_eigh linalg_svd _linalg_svd linalg_lstsq linalg_eig "
    "_linalg_eigvals"
)
#: See ``torch.use_deterministic_algorithms``.
_ANY_ORDER = _names(
    "index_add_ index_add scatter_add_ scatter_add scatter_reduce scatter_reduce_ histc put_ cumsum cumsum_ "
    "grid_sampler_2d_backward upsample_bilinear2d_backward upsample_bicubic2d_backward embedding_dense_backward"
)
_HALF = (torch.bfloat16, torch.float16)


def refusal(
    func: Any, args: Sequence[Any], on_device: Sequence[Tensor], on_host: Sequence[Tensor], target: torch.device | None
) -> str | None:
    """Why CUDA would not take these tensors; None if it does.

    Args:
        func: the operation.
        args: its arguments.
        on_device, on_host: the tensors among them.
        target: the device that it is asked to put its result on, if any.
    """
    name = func.overloadpacket.__name__
    if target is not None and target.type == "cpu" and on_device and name not in _NAMES_THE_HOST:
        return "the result of an operation on the device cannot be put into host memory"
    if on_device and on_host and not _may_mix(func, args, on_device, on_host):
        shapes = ", ".join(str(list(tensor.shape)) for tensor in on_host)
        return f"Expected all tensors to be on the same device, but found cuda:0 and cpu (shape {shapes})"
    first = (*on_device, *on_host)[0]
    if name in _INTEGER_PRODUCTS_MISSING and not (first.is_floating_point() or first.is_complex()):
        return f"not implemented for {first.dtype} on CUDA"
    return None


def _may_mix(func: Any, args: Sequence[Any], on_device: Sequence[Tensor], on_host: Sequence[Tensor]) -> bool:
    """Whether an operation takes tensors of both: host scalars in element-wise operations, host indices of a tensor."""
    name = func.overloadpacket.__name__
    if name in _INDEXING:
        values = args[2] if len(args) > 2 else None
        is_scalar = isinstance(values, Tensor) and values.ndim == 0
        return any(args[0] is one for one in on_device) and (
            values is None or is_scalar or any(values is one for one in on_device)
        )
    is_elementwise = torch.Tag.pointwise in func.tags or name in ("fill_", "masked_fill", "masked_fill_")
    changes_host = func._schema.is_mutable and any(args[0] is one for one in on_host)
    return is_elementwise and not changes_host and all(tensor.ndim == 0 for tensor in on_host)


def waits(name: str, args: Sequence[Any], kwargs: dict[str, Any], on_host: Sequence[Tensor]) -> list[str]:
    """Why the host waits in this operation: one text for each time."""
    found = [name] if name in _WAITS else []
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        found.append("repeat_interleave without output_size")
    if name in _INDEXING:
        indices = [index for index in args[1] if isinstance(index, Tensor)]
        found += ["index by a mask" for index in indices if index.dtype in (torch.bool, torch.uint8)]
        found += ["index from the host" for index in indices if any(index is one for one in on_host)]
    return found


def adds_in_any_order(name: str, args: Sequence[Any], is_floating_point: bool) -> bool:
    """Whether the order of its sums on CUDA, and so the last bits of its result, differs from run to run."""
    return is_floating_point and (name in _ANY_ORDER or (name == "bincount" and len(args) > 1))


def adds_bias_afterwards(func: Any, args: Sequence[Any]) -> bool:
    """Whether PyTorch adds the bias in a kernel of its own, as it does behind cuDNN's convolutions."""
    is_convolution = func.overloadpacket.__name__ == "convolution"
    return is_convolution and args[2] is not None and args[8] == 1  # by groups it has kernels of its own


def kernel_of(
    func: Any,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    place: str,
) -> Kernel:
    """The kernel that an operation on host tensors stands for.

    Args:
        func: the operation, not one of ``NO_KERNEL``.
        args, kwargs: its arguments.
        inputs, outputs: the tensors among its arguments, and those that it returned.
        place: who asked for it.
    """
    name = func.overloadpacket.__name__
    arithmetic = arithmetic_of(name, inputs or outputs)
    num_bytes, num_flops = moved_bytes(func, inputs, outputs), flops(func, args, kwargs, outputs)
    return Kernel(name, place, arithmetic, name in PRODUCTS, num_bytes, num_flops)


def arithmetic_of(name: str, tensors: Iterable[Tensor]) -> Arithmetic:
    """In which numbers it computes; float32 products as PyTorch's settings say at this moment."""
    dtypes = [tensor.dtype for tensor in tensors]
    if torch.float64 in dtypes or torch.complex128 in dtypes:
        return "float64"
    found = next((dtype for dtype in dtypes if dtype.is_floating_point or dtype.is_complex), None)
    if found is None:
        return "integer"
    if found in _HALF:
        return "half" if name in PRODUCTS else "float32"
    if name in PRODUCTS:
        by_cudnn = "convolution" in name and torch.backends.cudnn.allow_tf32
        by_cublas = "convolution" not in name and torch.get_float32_matmul_precision() != "highest"
        return "tf32" if by_cudnn or by_cublas else "float32"
    return "float32"


def moved_bytes(func: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
    """Bytes that a kernel must read and write at least."""
    name = func.overloadpacket.__name__
    written = sum(map(_extent, outputs))
    if name in _GATHERS:
        return 2 * written + sum(_extent(tensor) for tensor in inputs[1:])
    if name in _SCATTERS:
        touched = 2 * _extent(inputs[-1]) + sum(_extent(tensor) for tensor in inputs[1:-1])
        return touched if name.endswith("_") else touched + 2 * written
    read = inputs[1:] if name in _OVERWRITES else {id(tensor): tensor for tensor in inputs}.values()  # each once
    return written + sum(map(_extent, read))


def _extent(tensor: Tensor) -> int:
    """Bytes of a tensor; what is repeated or overlaps counts once."""
    if tensor.is_contiguous():
        return tensor.nbytes
    distinct = math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return min(distinct * tensor.element_size(), tensor.untyped_storage().nbytes())


def flops(func: Any, args: Sequence[Any], kwargs: dict[str, Any], outputs: Sequence[Tensor]) -> int:
    """Floating-point operations: two for each multiplication of a product, one for each element of anything else."""
    name, packet = func.overloadpacket.__name__, func.overloadpacket
    first = next((arg for arg in args if isinstance(arg, Tensor)), None)
    if not outputs:
        return 0
    if name == "mkldnn_convolution":
        return conv_flop_count(list(args[0].shape), list(args[1].shape), list(outputs[0].shape))
    if name.startswith("cudnn_convolution"):
        return 2 * outputs[0].numel() * args[1][0].numel()
    if name == "convolution_backward":
        gradient, weight, wanted = args[0], args[2], args[-1]
        return 2 * gradient.numel() * weight[0].numel() * sum(wanted[:2])
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=outputs[0]))
    if first is not None and name in ("linalg_cholesky_ex", "linalg_solve_ex", "_linalg_solve_ex"):
        return first.numel() * first.shape[-1] * (1 if "cholesky" in name else 2) // 3
    if first is not None and name in ("linalg_solve_triangular", "cholesky_solve"):
        return outputs[0].numel() * first.shape[-1] * (2 if name == "cholesky_solve" else 1)
    if first is not None and name.startswith("_fft"):
        length = first.shape[args[1][-1]]
        return int(2.5 * first.numel() * math.log2(max(length, 2)))
    return max(tensor.numel() for tensor in (*outputs, first) if tensor is not None)
