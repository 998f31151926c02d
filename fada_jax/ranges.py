"""Types of numbers with their range: the schema of configs is written in them, and pydantic checks it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from annotated_types import Ge, Le, Len
from pydantic import AllowInfNan, StringConstraints, ValidationError, WrapValidator

# What counts anything here fits into 32 bits, as devices count.
MOST = 2**31 - 1
Whole = Annotated[int, Ge(0), Le(MOST)]
Positive = Annotated[int, Ge(1), Le(MOST)]
Byte = Annotated[int, Ge(0), Le(255)]
Seed = Annotated[int, Ge(0), Le(MOST)]
FolderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Finite = Annotated[float, AllowInfNan(False)]
NonNegative = Annotated[Finite, Ge(0)]
Share = Annotated[Finite, Ge(0), Le(1)]
Half = Annotated[Finite, Ge(0), Le(0.5)]
Divisor = Annotated[Finite, Ge(1e-6)]


def described(text: str) -> WrapValidator:
    """Says ``must be`` and ``text`` about whatever is wrong with a value of several numbers."""

    def check(value: Any, inner: Callable[[Any], Any]) -> Any:
        try:
            return inner(tuple(value) if isinstance(value, list) else value)  # JSON has no tuples.
        except ValidationError as error:
            raise ValueError(f"must be {text}") from error

    return WrapValidator(check)


_Side = Annotated[int, Ge(8), Le(2**15)]
Size = Annotated[tuple[_Side, _Side], described("(width, height), whole numbers of 8 to 32768 pixels")]
Crop = Annotated[
    tuple[()] | tuple[_Side, _Side], described("() or (width, height), whole numbers of 8 to 32768 pixels")
]
_Factor = Annotated[Finite, Ge(0.01)]
Scale = Annotated[tuple[()] | tuple[_Factor, _Factor], described("() or (low, high) of positive factors")]
Scales = Annotated[tuple[Annotated[Finite, Ge(0.1)], ...], Len(1), described("one or more numbers of at least 0.1")]
Widths = Annotated[tuple[Positive, ...], described("whole numbers of at least 1")]
Pair = Annotated[tuple[Positive, Positive], described("2 whole numbers of at least 1")]
Rates = Annotated[tuple[Positive, ...], Len(1), described("one or more whole numbers of at least 1")]
Channels = Annotated[tuple[Finite, Finite, Finite], described("3 numbers")]
Divisors = Annotated[tuple[Divisor, Divisor, Divisor], described("3 numbers of at least 1e-06")]
