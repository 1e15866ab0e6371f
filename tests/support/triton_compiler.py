"""Compiles a Triton kernel for a GPU that need not be there, and reads from the result what it needs of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
LAUNCH_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


@dataclass(frozen=True)
class Compiled:
    """What the machine code of a kernel needs."""

    registers: int  # of a thread
    stack_bytes: int  # of a thread, in the device's memory: registers that are spilled, and arrays that are indexed
    shared_bytes: int  # of a program


def compile_kernel(kernel: Any, types: Mapping[str, str], settings: Mapping[str, Any], arch: int) -> Compiled:
    """Compile a kernel as a launch with aligned tensors, and channels that are multiples of 16, would.

    Args:
        kernel: decorated by ``triton.jit``.
        types: of its arguments that are not whole numbers, such as ``*fp32``; pointers are aligned to 16 bytes.
        settings: its constants and launch options.
        arch: 90 for sm_90.
    """
    constants = {name: value for name, value in settings.items() if name not in LAUNCH_OPTIONS}
    options = {name: settings[name] for name in LAUNCH_OPTIONS if name in settings}
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = [name for name in names if signature[name].startswith("*")]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, signature, constants, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return Compiled(*_resources(made.asm["cubin"]), shared_bytes=made.metadata.shared)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Read registers and bytes of stack from machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    assert found, report
    return int(found[1]), int(found[2])
