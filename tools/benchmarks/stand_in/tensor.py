"""Tensors that say they are on ``cuda:0`` and are computed on the host.

Every operation of a thread comes by ``StandInMode``. One that touches the device is checked against what CUDA does
(``rules``), counted (``record``), put in order (``streams``) and computed by the same operation on host tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.stand_in import rules
from benchmarks.stand_in.record import Copy, Kernel, Record, Wait, place_of_caller
from benchmarks.stand_in.streams import Timeline

DEVICE = torch.device("cuda:0")


class StandInTensor(Tensor):
    """Wraps a host tensor. It holds values, or is hollow: its host tensor is on ``meta`` and has a shape alone."""

    host: Tensor
    device_of: StandInDevice

    @staticmethod
    def __new__(cls, host: Tensor, device_of: StandInDevice) -> StandInTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=DEVICE,
        )
        made.host, made.device_of = host, device_of
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        device = next(leaf.device_of for leaf in tensors_of(args, kwargs or {}) if isinstance(leaf, StandInTensor))
        return device.dispatch(func, args, kwargs or {})

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = _ANSWERS.get(func)
        if answer is not None:
            return answer(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    def __repr__(self, *, tensor_contents: Any = None) -> Any:  # type: ignore[override]
        return f"StandInTensor({self.host})"

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.ndim == 0 else repr(self), spec)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saved as the host tensor that loading it onto a machine without a GPU gives."""
        self.device_of._leave(self)
        return _filled(self.host).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> StandInTensor:
        return StandInTensor(self.host.clone(), self.device_of)


def _tolist(tensor: StandInTensor) -> Any:
    tensor.device_of.wait("tolist")
    return tensor.host.tolist()


def _getitem(tensor: Tensor, index: Any) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return Tensor.__getitem__(tensor, _without_lists(index, tensor))


def _setitem(tensor: Tensor, index: Any, value: Any) -> None:
    with torch._C.DisableTorchFunctionSubclass():
        Tensor.__setitem__(tensor, _without_lists(index, tensor), value)


def _without_lists(index: Any, tensor: Tensor) -> Any:
    """Lists and arrays as index are copied to the device, which the host waits for."""

    def one(part: Any) -> Any:
        if isinstance(tensor, StandInTensor) and (
            isinstance(part, list) or (type(part).__module__ == "numpy" and part.ndim)
        ):
            return tensor.device_of.upload(torch.as_tensor(part), is_asynchronous=False)
        return part

    return tuple(map(one, index)) if isinstance(index, tuple) else one(index)


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
    """``scaled_dot_product_attention`` as one fused kernel; PyTorch would ask the driver which one."""
    mask = kwargs.pop("attn_mask", mask)
    given = [tensor for tensor in (query, key, value, mask) if tensor is not None]
    device = next(tensor.device_of for tensor in given if isinstance(tensor, StandInTensor))
    if not all(isinstance(tensor, StandInTensor) for tensor in given):
        raise RuntimeError(f"attention: Expected all tensors to be on the same device, at {place_of_caller()}")
    hosts = [tensor.host for tensor in given if isinstance(tensor, StandInTensor)]
    if any(host.is_meta for host in hosts):
        result = torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device="meta")
    else:
        fused: Callable[..., Tensor] = F.scaled_dot_product_attention
        result = fused(*hosts[:3], hosts[3] if mask is not None else None, *args, **kwargs)
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in (*hosts, result))
    num_flops = 2 * query.numel() * key.shape[-2] + 2 * result.numel() * key.shape[-2]
    kernel = Kernel("attention", place_of_caller(), rules.arithmetic_of("attention", hosts), True, num_bytes, num_flops)
    device.count(kernel, hosts, [], [result])
    return StandInTensor(result, device)


def _recurrent(layer: Callable[..., Any], x: Tensor, state: Any, weights: Sequence[Tensor], *settings: Any) -> Any:
    """``gru`` or ``lstm`` as the one call of cuDNN that it is; PyTorch would ask the driver for cuDNN."""
    states = list(state) if isinstance(state, (list, tuple)) else [state]
    given = [x, *states, *weights]
    device = next(tensor.device_of for tensor in given if isinstance(tensor, StandInTensor))
    hosts = [tensor.host for tensor in given if isinstance(tensor, StandInTensor)]
    if len(hosts) < len(given):
        raise RuntimeError(f"{layer.__name__}: tensors are not at the same device, at {place_of_caller()}")
    first = 1 + len(states)
    results = layer(hosts[0], hosts[1:first] if len(states) > 1 else hosts[1], hosts[first:], *settings)
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in (*hosts, *results))
    num_flops = 2 * sum(weight.numel() for weight in hosts[first:]) * x.shape[:-1].numel()
    name = layer.__name__
    kernel = Kernel(name, place_of_caller(), rules.arithmetic_of(name, hosts), True, num_bytes, num_flops)
    device.count(kernel, hosts, [], list(results))
    return tuple(StandInTensor(result, device) for result in results)


#: Functions that PyTorch would answer without asking the tensor, or by asking the driver.
_ANSWERS: dict[Any, Callable[..., Any]] = {
    Tensor.tolist: _tolist,
    Tensor.__getitem__: _getitem,
    Tensor.__setitem__: _setitem,
    Tensor.is_pinned: lambda tensor, *_: False,
    F.scaled_dot_product_attention: _attention,
    torch.gru: partial(_recurrent, torch.gru),
    torch.lstm: partial(_recurrent, torch.lstm),
}


def _refuse(reason: str) -> Any:
    raise RuntimeError(f"{reason}, at {place_of_caller()}")


def hollow(tensor: Tensor) -> Tensor:
    """A tensor on the stand-in device without values, which makes everything computed from it hollow, too."""
    assert isinstance(tensor, StandInTensor)
    return StandInTensor(tensor.host.to("meta"), tensor.device_of)


class StandInDevice:
    """The device: checks, counts and computes each operation."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.timeline = Timeline(self.wait)

    def wait(self, kind: str) -> None:
        self.record.waits.append(Wait(kind, place_of_caller()))

    def count(self, kernel: Kernel, reads: Sequence[Tensor], writes: Sequence[Tensor], makes: Sequence[Tensor]) -> None:
        self.timeline.launch(reads, writes, makes, kernel.place)
        self.record.kernels.append(kernel)

    def dispatch(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        leaves = list(tensors_of(args, kwargs))
        on_device = [leaf for leaf in leaves if isinstance(leaf, StandInTensor)]
        target = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        if kwargs.pop("pin_memory", False):
            if on_device or (target is not None and target.type == "cuda"):
                _refuse("only dense CPU tensors can be pinned")
            return as_pinned(func(*args, **kwargs))
        if not on_device and (target is None or target.type != "cuda"):
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name == "_to_copy":
            return self._to_copy(args[0], kwargs, target)
        if name == "copy_" and len(on_device) < 2:
            return self._copy_across(*args, **kwargs)
        if name == "_local_scalar_dense":
            self._leave(on_device[0])
            return _filled(on_device[0].host).item()
        on_host = [leaf for leaf in leaves if not isinstance(leaf, StandInTensor)]
        if leaves and (reason := rules.refusal(func, args, on_device, on_host, target)):
            _refuse(f"{name}: {reason}")
        result = self._compute(func, args, kwargs, on_device)
        for kind in rules.waits(name, args, kwargs, on_host):
            self.wait(kind)
            self.timeline.host_waits()
        return result

    def _compute(self, func: Any, args: Any, kwargs: dict[str, Any], on_device: Sequence[StandInTensor]) -> Any:
        is_mutable = func._schema.is_mutable
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": "cpu"}
        plain_args, plain = self._on_host(args, kwargs, on_device, is_mutable)
        name = func.overloadpacket.__name__
        result = _call(func, plain_args, plain)
        outputs = list(tensors_of((result,), {}))
        if name not in rules.NO_KERNEL:
            inputs = list(tensors_of(plain_args, plain))
            kernel = rules.kernel_of(func, plain_args, plain, inputs, outputs, place_of_caller())
            changed = outputs if is_mutable else []
            self.count(kernel, [one.host for one in on_device], changed, [] if is_mutable else outputs)
            if rules.adds_bias_afterwards(func, plain_args):
                addition = kernel._replace(
                    op="add_ bias", is_product=False, num_bytes=2 * outputs[0].nbytes, num_flops=0
                )
                self.count(addition, outputs, outputs, [])
            if rules.adds_in_any_order(name, args, kernel.arithmetic != "integer"):
                self.record.unordered[f"{name} at {kernel.place}"] += 1
        given = {id(one.host): one for one in on_device} if is_mutable else {}

        def wrap(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            own = given.get(id(leaf))
            return StandInTensor(leaf, self) if own is None else own

        return _mapped(wrap, result)

    def _on_host(
        self, args: Any, kwargs: Any, on_device: Sequence[StandInTensor], is_mutable: bool
    ) -> tuple[list[Any], dict[str, Any]]:
        """The same arguments as host tensors: all hollow if one is, except that what is changed keeps its values."""
        is_hollow = any(one.host.is_meta for one in on_device)
        keeps_values = is_hollow and is_mutable and not args[0].host.is_meta

        def convert(leaf: Any) -> Any:
            host = leaf.host if isinstance(leaf, StandInTensor) else leaf
            if is_hollow and isinstance(host, Tensor):
                return _filled(host) if keeps_values else host.to("meta")
            return host

        return [_mapped(convert, arg) for arg in args], {name: _mapped(convert, arg) for name, arg in kwargs.items()}

    def _to_copy(self, source: Tensor, kwargs: dict[str, Any], target: torch.device | None) -> Tensor:
        settings = {name: value for name, value in kwargs.items() if name not in ("device", "non_blocking")}
        stays = isinstance(source, StandInTensor) and (target is None or target.type == "cuda")
        if not isinstance(source, StandInTensor):
            made = torch.ops.aten._to_copy.default(source, **settings)
            return self.upload(made, bool(kwargs.get("non_blocking")) and is_pinned(source))
        if stays:
            made = torch.ops.aten._to_copy.default(source.host, **settings)
            num_bytes = rules.moved_bytes(torch.ops.aten._to_copy.default, [source.host], [made])
            kernel = Kernel("_to_copy", place_of_caller(), "integer", False, num_bytes, 0)
            self.count(kernel, [source.host], [], [made])
            return StandInTensor(made, self)
        self._leave(source)
        return torch.ops.aten._to_copy.default(_filled(source.host), **settings)

    def upload(self, made: Tensor, is_asynchronous: bool) -> StandInTensor:
        """A copy of a host tensor on the device."""
        place = place_of_caller()
        self.record.copies.append(Copy(place, made.numel() * made.element_size(), to_device=True))
        self.timeline.launch([], [], [made], place)
        if not is_asynchronous:
            self.wait("copy to the device")
            self.timeline.host_waits()
        return StandInTensor(made, self)

    def _leave(self, source: StandInTensor, is_asynchronous: bool = False) -> None:
        place = place_of_caller()
        self.record.copies.append(Copy(place, source.numel() * source.element_size(), to_device=False))
        self.timeline.launch([source.host], [], [], place)
        if not is_asynchronous:
            self.wait("copy to the host")
            self.timeline.host_waits()

    def _copy_across(self, into: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        """``copy_`` between the memories of host and device."""
        if isinstance(into, StandInTensor):
            place = place_of_caller()
            self.record.copies.append(Copy(place, into.numel() * into.element_size(), to_device=True))
            self.timeline.launch([], [into.host], [], place)
            if not into.host.is_meta:
                into.host.copy_(source)
            if not (non_blocking and is_pinned(source)):
                self.wait("copy to the device")
                self.timeline.host_waits()
            return into
        assert isinstance(source, StandInTensor)
        is_asynchronous = non_blocking and is_pinned(into)
        self._leave(source, is_asynchronous)
        if is_asynchronous:
            self.timeline.copy_later(into, _filled(source.host).to(into.dtype))
        else:
            into.copy_(_filled(source.host))
        return into


def tensors_of(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """All tensors among the arguments of an operation, which are at most in lists."""
    for arg in (*args, *kwargs.values()):
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from (part for part in arg if isinstance(part, Tensor))


def _mapped(function: Callable[[Any], Any], arg: Any) -> Any:
    """An argument or result of an operation, with every part of a list replaced."""
    return type(arg)(map(function, arg)) if isinstance(arg, (list, tuple)) else function(arg)


def _filled(host: Tensor) -> Tensor:
    """With zeros where it has no values."""
    return torch.zeros(host.shape, dtype=host.dtype) if host.is_meta else host


def _call(func: Any, args: Any, kwargs: Any) -> Any:
    own = _BY_CUDNN.get(func.overloadpacket.__name__)
    if own is not None:
        return own(*args)
    try:
        return func(*args, **kwargs)
    except NotImplementedError:  # CUDA has operations of its own, which are defined by others
        return func.decompose(*args, **kwargs)


def _cudnn_batch_norm(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return *torch.native_batch_norm(x, weight, *rest), x.new_empty(0, dtype=torch.uint8)


def _cudnn_batch_norm_backward(
    x: Tensor, gradient: Tensor, weight: Tensor, mean: Any, variance: Any, *saved: Any
) -> tuple[Tensor, ...]:
    save_mean, save_deviation, epsilon, _ = saved
    known = (mean, variance, save_mean, save_deviation)
    backward = torch.ops.aten.native_batch_norm_backward
    return backward(gradient, x, weight, *known, True, epsilon, [True, True, True])


def _cudnn_convolution_relu(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    return F.conv2d(x, weight, bias, *geometry).relu_()


def _cudnn_convolution_add_relu(
    x: Tensor, weight: Tensor, residual: Tensor, scale: float | None, bias: Tensor | None, *geometry: Any
) -> Tensor:
    scaled = residual if scale is None else scale * residual
    return F.conv2d(x, weight, bias, *geometry).add_(scaled).relu_()


_BY_CUDNN: dict[str, Callable[..., Any]] = {
    "cudnn_convolution_relu": _cudnn_convolution_relu,
    "cudnn_convolution_add_relu": _cudnn_convolution_add_relu,
    "cudnn_batch_norm": _cudnn_batch_norm,
    "cudnn_batch_norm_backward": _cudnn_batch_norm_backward,
}


def as_pinned(tensor: Tensor) -> Tensor:
    """Mark host memory as pinned."""
    if isinstance(tensor, StandInTensor):
        _refuse("only dense CPU tensors can be pinned")
    vars(tensor)["_is_pinned_stand_in"] = True
    return tensor


def is_pinned(tensor: Tensor) -> bool:
    return getattr(tensor, "_is_pinned_stand_in", False)


class StandInMode(TorchDispatchMode):
    """Sends all operations of a thread to the device, which computes those of the host as ever."""

    def __init__(self, device: StandInDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.device.dispatch(func, args, dict(kwargs or {}))
