"""The registry of methods: one entry each; a class is imported when it is used."""

from collections.abc import Mapping

from pydantic import JsonValue

from bench.registry.entries import MethodEntry

# Options of all methods that train, and those of the potential that neurons start with.
TRAINED: Mapping[str, JsonValue] = {"init": "kaiming_normal", "max_pool": "average"}
POTENTIAL: Mapping[str, JsonValue] = {"v_init": 0.0}

METHODS: dict[str, MethodEntry] = {
    "qcfs": MethodEntry(
        "methods.qcfs:QCFS",
        "activation quantised in L steps with a trained threshold; v_0 = theta / 2",
        title="QCFS",
        paper="bu2022qcfs",
        younger=TRAINED,
    ),
    "cs_qcfs": MethodEntry(
        "methods.cs_qcfs:CSQCFS",
        "QCFS with a threshold for each channel, positive by softplus",
        title="CS-QCFS",
        paper="yang2025csqcfs",
        younger=TRAINED,
    ),
    "nq": MethodEntry(
        "methods.nq:NQ",
        "QCFS trained with its own measured conversion error as noise",
        title="NQ",
        paper="huang2024nq",
        reference_ann="ann_noisy",
        younger=TRAINED,
    ),
    "cos": MethodEntry(
        "methods.cos:COS",
        "v_0 from a calibration run of each layer on each image",
        title="COS",
        paper="hao2023cos",
        source="qcfs",
        warmup=True,
    ),
    "srp": MethodEntry(
        "methods.srp:SRP",
        "neurons are silenced by their residual potential",
        title="SRP",
        paper="hao2023srp",
        source="qcfs",
        warmup=True,
    ),
    "rnl": MethodEntry(
        "methods.rnl:RNL",
        "rate norm layers; then one parameter is trained for speed",
        title="RNL",
        paper="ding2021rnl",
        younger=TRAINED,
    ),
    "tcl": MethodEntry(
        "methods.tcl:TCL", "activation clipped at a trained ceiling", title="TCL", paper="ho2021tcl", younger=TRAINED
    ),
    "rts": MethodEntry(
        "methods.rts:RTS",
        "activation clipped at a fixed ceiling; a current of theta / 2T at each step",
        title="RTS",
        paper="deng2021rts",
        per_T=True,
        younger={**TRAINED, **POTENTIAL},
    ),
    "relu": MethodEntry(
        "methods.relu:ReLU",
        "plain ReLU: the source of the methods below, by itself converted as max_norm",
        title="ReLU",
        paper="diehl2015",
        source_only=True,
        younger=TRAINED,
    ),
    "max_norm": MethodEntry(
        "methods.max_norm:MaxNorm",
        "theta is the layer's largest activation",
        title="max-norm",
        paper="diehl2015",
        source="relu",
    ),
    "robust_norm": MethodEntry(
        "methods.robust_norm:RobustNorm",
        "theta is the 99.9th percentile of the layer's activations",
        title="robust norm",
        paper="rueckauer2017",
        source="relu",
    ),
    "opi": MethodEntry(
        "methods.opi:OPI",
        "v_0 = theta / 2 (or others, to compare)",
        title="OPI",
        paper="bu2022opi",
        source={"relu": "relu", "clip": "tcl"},
    ),
    "snnc_lp": MethodEntry(
        "methods.snnc_lp:SNNCLight",
        "thresholds of least square error, biases corrected layer by layer",
        title="SNNC-LP",
        paper="li2021snnc",
        source="relu",
        per_T=True,
        younger=POTENTIAL,
    ),
    "snnc_ap": MethodEntry(
        "methods.snnc_ap:SNNCAdvanced",
        "snnc_lp, and weights refitted and potentials started layer by layer",
        title="SNNC-AP",
        paper="li2021snnc",
        source="relu",
        per_T=True,
        younger=POTENTIAL,
    ),
    "snm": MethodEntry(
        "methods.snm:SNM",
        "signed spikes, which take back what was too much",
        title="SNM",
        paper="wang2022snm",
        source="relu",
        younger=POTENTIAL,
    ),
    "burst": MethodEntry(
        "methods.burst:Burst",
        "up to gamma spikes in one step",
        title="burst",
        paper="li2022burst",
        source="relu",
        younger=POTENTIAL,
    ),
    "ltb": MethodEntry(
        "methods.ltb:LTB",
        "thresholds balanced channel by channel in plain inference; delayed read-out (--snn.delay auto)",
        title="LTB",
        paper="bu2025inference",
        source="relu",
    ),
    "dcgs": MethodEntry(
        "methods.dcgs:DCGS",
        "graded spikes of either sign stand for changes of a mean",
        title="DCGS",
        paper="huang2025dcgs",
        source="relu",
    ),
    "group": MethodEntry(
        "methods.group:Group",
        "a group of m neurons on one membrane tells m levels in a step",
        title="GN",
        paper="lv2024gn",
        source="qcfs",
    ),
    "hmt": MethodEntry(
        "methods.hmt:HMT",
        "n thresholds on one membrane, 2^n - 1 levels in a step, of least square error",
        title="H-MT",
        paper="hmt2026",
        source="relu",
        per_T=True,
    ),
    "ftbc": MethodEntry(
        "methods.ftbc:FTBC",
        "a correction current for each channel and step",
        title="FTBC",
        paper="wu2024ftbc",
        source={"qcfs": "qcfs", "relu": "relu"},
    ),
    "parallel": MethodEntry(
        "methods.parallel:Parallel",
        "a layer decides all steps at once from its whole input; the quantised ANN by construction",
        title="parallel conversion",
        paper="hao2025parallel",
        source={"qcfs": "qcfs", "relu": "relu"},
        per_T=True,
    ),
    "bitplane": MethodEntry(
        "methods.bitplane:BitPlane",
        "counts sent as T bits, 2^T - 1 levels; the quantised ANN by construction",
        title="bit planes",
        paper="datta2025meets",
        source="qcfs",
        per_T=True,
    ),
    "tpp": MethodEntry(
        "methods.tpp:TPP",
        "a layer counts its whole input, then sends at random steps",
        title="TPP",
        paper="bojkovic2025tpp",
        source="qcfs",
        per_T=True,
    ),
    "pascal": MethodEntry(
        "methods.pascal:PASCAL",
        "spikes are counted, corrected and sent again; the quantised ANN by construction",
        title="PASCAL",
        paper="ramesh2025pascal",
        source="qcfs",
        per_T=True,
    ),
}
