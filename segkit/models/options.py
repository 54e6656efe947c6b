"""Types of the options that several networks share, with the bounds of their values."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Width = Annotated[int, Field(ge=1, le=2**16)]  # channels
Widths = Annotated[list[Width], Field(max_length=16)]  # channels at each resolution, finest first
Layers = Annotated[int, Field(ge=1, le=64)]  # of the same kind in a row
Convs = Layers | Annotated[list[Layers], Field(max_length=16)]  # the same at each resolution, or one number for each
