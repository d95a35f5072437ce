"""The energy of arithmetic, from counts of operations."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EnergyModel:
    """Energy of arithmetic alone, without memory.

    Attributes:
        name: as the record names it.
        mac: joules for one multiply-accumulate.
        ac: joules for one accumulate.
    """

    name: str
    mac: float
    ac: float

    def joules(self, macs: float, synops: float) -> float:
        """Energy of one image."""
        return macs * self.mac + synops * self.ac


# 32-bit floating point at 0.9 V (Horowitz, ISSCC 2014, https://doi.org/10.1109/ISSCC.2014.6757323): a multiplication
# 3.7 pJ, an addition 0.9 pJ.
ENERGY_MODEL = EnergyModel("45nm-fp32", mac=4.6e-12, ac=0.9e-12)
