"""The registry of methods: one line each, imported only when used."""

from bench.registry import MethodEntry

METHODS: dict[str, MethodEntry] = {
    "qcfs": MethodEntry("methods.qcfs:QCFS", "quantisation clip-floor-shift activation", paper="bu2022qcfs"),
    "cos": MethodEntry(
        "methods.cos:COS", "offset-spike calibration of a QCFS net", paper="hao2023cos", source="qcfs", warmup=True
    ),
    "srp": MethodEntry(
        "methods.srp:SRP", "residual-membrane masks on a QCFS net", paper="hao2023srp", source="qcfs", warmup=True
    ),
}
