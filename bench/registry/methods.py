"""The registry of methods: one line each; a class is imported when it is used."""

from bench.registry.entries import MethodEntry

METHODS: dict[str, MethodEntry] = {
    "qcfs": MethodEntry("methods.qcfs:QCFS", "quantisation clip-floor-shift activation", paper="bu2022qcfs"),
    "cs_qcfs": MethodEntry(
        "methods.cs_qcfs:CSQCFS", "QCFS with channel-wise softplus thresholds", paper="yang2025csqcfs"
    ),
    "nq": MethodEntry("methods.nq:NQ", "QCFS trained with its conversion error as noise", paper="huang2024nq"),
    "cos": MethodEntry("methods.cos:COS", "offset-spike calibration", paper="hao2023cos", source="qcfs", warmup=True),
    "srp": MethodEntry("methods.srp:SRP", "residual-membrane masks", paper="hao2023srp", source="qcfs", warmup=True),
    "rnl": MethodEntry(
        "methods.rnl:RNL", "rate norm layers, trained for accuracy, then for speed", paper="ding2021rnl"
    ),
    "tcl": MethodEntry("methods.tcl:TCL", "trainable clipping layers", paper="ho2021tcl"),
    "rts": MethodEntry("methods.rts:RTS", "clipped ReLU and a shift of theta / 2T", paper="deng2021rts", per_T=True),
    "relu": MethodEntry(
        "methods.relu:ReLU", "plain ReLU, the source of the methods below", paper="diehl2015", source_only=True
    ),
    "max_norm": MethodEntry(
        "methods.max_norm:MaxNorm", "theta is the layer's maximum", paper="diehl2015", source="relu"
    ),
    "robust_norm": MethodEntry(
        "methods.robust_norm:RobustNorm", "theta is the layer's 99.9th percentile", paper="rueckauer2017", source="relu"
    ),
    "opi": MethodEntry(
        "methods.opi:OPI", "potentials start at theta / 2", paper="bu2022opi", source={"relu": "relu", "clip": "tcl"}
    ),
    "snnc_lp": MethodEntry(
        "methods.snnc_lp:SNNCLight",
        "thresholds of least error, bias correction",
        paper="li2021snnc",
        source="relu",
        per_T=True,
    ),
    "snnc_ap": MethodEntry(
        "methods.snnc_ap:SNNCAdvanced",
        "snnc_lp, refitted weights, initial potentials",
        paper="li2021snnc",
        source="relu",
        per_T=True,
    ),
    "snm": MethodEntry(
        "methods.snm:SNM", "signed spikes that take back what was too much", paper="wang2022snm", source="relu"
    ),
    "burst": MethodEntry("methods.burst:Burst", "up to gamma spikes in one step", paper="li2022burst", source="relu"),
}
