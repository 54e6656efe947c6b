"""Types of the options that several networks share, with the bounds of their values."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

Width = Annotated[int, Field(ge=1, le=2**16)]  # channels
Widths = Annotated[list[Width], Field(max_length=16)]  # channels at each resolution, finest first
Repeats = Annotated[int, Field(ge=1, le=64)]  # layers or blocks of the same kind in a row
DropRate = Annotated[float, Field(ge=0, lt=1)]  # probability of leaving something out
Norm = Literal["batch", "instance", "group"]
Halving = Annotated[int, Field(ge=1, le=2)]  # stride along one axis: 1 or 2
AxisStrides = Annotated[list[list[Halving]], Field(max_length=16)]  # of each further resolution, one number per axis
Heads = Annotated[int, Field(ge=1, le=256)]  # of an attention
Side = Annotated[int, Field(ge=1, le=2**16)]  # pixels along one axis
Convs = Repeats | Annotated[list[Repeats], Field(max_length=16)]  # the same at each resolution, or one number for each
