"""The registry of methods: one line each, imported only when used."""

from bench.registry import MethodEntry

METHODS: dict[str, MethodEntry] = {
    "qcfs": MethodEntry("methods.qcfs:QCFS", "quantisation clip-floor-shift activation", paper="bu2022qcfs"),
}
