"""Bytes that a compiled program moves between a device's memory and its cores, read off its optimised HLO.

Each instruction that XLA schedules reads its operands and writes its results, once; what a fusion computes on the way
stays in registers, and of an array that it only takes slices from the slices count. Caches and the workspaces of
libraries are not seen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

# Bytes of an element; what is not listed has none.
BYTES = {
    **{"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4},
    **{"s64": 8, "u64": 8, "f64": 8},
}
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%(\S+) = (.+?) ([a-z][a-z-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) \(.*\{$")
# Its layout may say that it lies in memory on the chip, as S(1).
_ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\](\{[^}]*S\([1-9]\)\})?")
# They name memory, or only begin what another instruction ends.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("while", "conditional", "call", "opt-barrier", "copy-done", "slice-done", "all-reduce-done"),
    *("all-gather-done", "async-done", "collective-permute-done"),
}
_SLICES = {"dynamic-slice", "slice", "gather"}


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      name, shape, kind: as written; a tuple's shape names all of its arrays.
      operands: names.
      rest: all that is written behind the operands' opening bracket.
    """

    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    rest: str


class Mover(NamedTuple):
    """What an instruction moves in one run of the program, over all repetitions of the loops around it.

    Attributes:
      kind: of instruction; of a library's call its target.
      source: the operation of the traced program that it is for.
      size: bytes.
    """

    kind: str
    source: str
    size: float


def array_bytes(shape: str) -> float:
    """Bytes of the arrays that ``shape`` names, without those on the chip itself."""
    return sum(
        BYTES.get(dtype, 0) * math.prod(map(int, filter(None, dims.split(","))))
        for dtype, dims, on_chip in _ARRAY.findall(shape)
        if not on_chip
    )


def computations(hlo: str) -> tuple[str, dict[str, dict[str, Instruction]]]:
    """Name of the entry computation, and the instructions of every computation, by name."""
    entry, found = "", dict[str, dict[str, Instruction]]()
    current: dict[str, Instruction] = {}
    for line in hlo.splitlines():
        if header := _COMPUTATION.match(line):
            current = found.setdefault(header.group(2), {})
            entry = header.group(2) if header.group(1) else entry
        elif match := _INSTRUCTION.match(line):
            name, shape, kind, rest = match.groups()
            current[name] = Instruction(name, shape, kind, tuple(re.findall(r"%([\w.-]+)", rest.split(")")[0])), rest)
    return entry, found


def _reads(parameter: Instruction, body: Mapping[str, Instruction]) -> float:
    """Bytes that a fusion reads of one of its parameters."""
    read, waiting, whole = 0.0, [parameter.name], array_bytes(parameter.shape)
    while waiting:
        name = waiting.pop()
        for user in body.values():
            if name not in user.operands:
                continue
            if user.kind == "bitcast":
                waiting.append(user.name)
            elif user.kind in _SLICES and user.operands[0] == name:
                read += array_bytes(user.shape)
            elif user.kind != "dynamic-update-slice" or user.operands[0] != name:  # That is updated in place.
                return whole
    return min(read, whole)


def _writes(root: Instruction, body: Mapping[str, Instruction]) -> float:
    """Bytes that a fusion writes."""
    if root.kind == "tuple":
        return sum(_writes(body[name], body) for name in root.operands)
    if root.kind == "bitcast" and root.operands:
        return _writes(body[root.operands[0]], body)
    if root.kind == "dynamic-update-slice":
        return array_bytes(body[root.operands[1]].shape)
    return array_bytes(root.shape)


def _moved(
    instruction: Instruction, scope: Mapping[str, Instruction], found: Mapping[str, Mapping[str, Instruction]]
) -> float:
    """Bytes that one instruction reads and writes, each time."""
    shape, operands = instruction.shape, [scope[name].shape for name in instruction.operands]
    if match := re.search(r"calls=%([\w.-]+)", instruction.rest) if instruction.kind == "fusion" else None:
        body = found[match.group(1)]
        parameters = [x for x in body.values() if x.kind == "parameter"]
        parameters.sort(key=lambda x: int(x.rest.split(")")[0]))
        # An array on the chip is written so only where it is made.
        reads = sum(min(_reads(x, body), array_bytes(at)) for x, at in zip(parameters, operands, strict=True))
        return reads + min(_writes(list(body.values())[-1], body), array_bytes(shape))
    if instruction.kind in _SLICES:
        return 2 * array_bytes(shape)
    if instruction.kind == "dynamic-update-slice":
        return 2 * array_bytes(operands[1])
    if instruction.kind in ("copy-start", "slice-start"):
        # (result, operand, ...): as much is read as written, and one of the two may be on the chip.
        result, operand = list(_ARRAY.finditer(shape))[:2]
        copied = array_bytes(f"{result[1]}[{result[2]}]")
        return copied * ((not result[3]) + (not operand[3]))
    if instruction.kind == "custom-call":
        # The last result of a library's call is its workspace.
        shape = re.sub(r",? ?(/\*.*?\*/)?[us]8\[\d+\]\{0\}\)$", ")", shape)
    return array_bytes(shape) + sum(map(array_bytes, operands))


def movers(hlo: str) -> Iterator[Mover]:
    """Every instruction of the compiled program ``hlo`` that moves something."""
    entry, found = computations(hlo)

    def walk(name: str, times: int) -> Iterator[Mover]:
        for instruction in found[name].values():
            if instruction.kind == "while":
                trips = re.search(r'known_trip_count":\{"n":"(\d+)"', instruction.rest)
                body = re.search(r"body=%([\w.-]+)", instruction.rest)
                yield from walk(body.group(1), times * (int(trips.group(1)) if trips else 1))  # type: ignore[union-attr]
            elif instruction.kind in ("call", "conditional"):
                for called in re.findall(r"(?:to_apply|computation)=%([\w.-]+)", instruction.rest):
                    yield from walk(called, times)
            if instruction.kind not in _FREE:
                target = re.search(r'custom_call_target="([^"]*)"', instruction.rest)
                source = re.search(r'op_name="([^"]*)"', instruction.rest)
                yield Mover(
                    target.group(1) if target else instruction.kind,
                    source.group(1) if source else "",
                    times * _moved(instruction, found[name], found),
                )

    yield from walk(entry, 1)
