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
        importable=True,
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
        "methods.tcl:TCL",
        "activation clipped at a trained ceiling",
        title="TCL",
        paper="ho2021tcl",
        importable=True,
        younger=TRAINED,
    ),
    "rts": MethodEntry(
        "methods.rts:RTS",
        "activation clipped at a fixed ceiling; a current of theta / 2T at each step",
        title="RTS",
        paper="deng2021rts",
        per_T=True,
        younger={**TRAINED, **POTENTIAL},
    ),
    "surrogate": MethodEntry(
        "methods.surrogate:Surrogate",
        "backpropagation through T steps with a surrogate derivative of the spike",
        title="surrogate gradient",
        paper="ledinauskas2020",
        begins_from=("relu", "tcl", "qcfs", "nq"),
    ),
    "dsr": MethodEntry(
        "methods.dsr:DSR",
        "T steps forward, backward the clipped rate that they stand for; trained thresholds",
        title="DSR",
        paper="meng2022dsr",
        begins_from=("relu", "tcl", "qcfs", "nq"),
    ),
    "tandem": MethodEntry(
        "methods.tandem:Tandem",
        "the layers of a ReLU net become spiking one after another, and the rest is trained on their spikes",
        title="PTL",
        paper="wu2021ptl",
        begins_from=("relu",),
    ),
    "lasnn": MethodEntry(
        "methods.lasnn:LaSNN",
        "an ANN teaches its conversion where to look, layer by layer; surrogate gradients",
        title="LaSNN",
        paper="hong2023lasnn",
        begins_from=("relu", "tcl", "qcfs", "nq"),
    ),
    "snn2ann": MethodEntry(
        "methods.snn2ann:SNN2ANN",
        "an ANN with the SNN's weights is trained on that one's spikes in the place of its activations; hard reset",
        title="SNN2ANN",
        paper="tang2022snn2ann",
        begins_from=("relu", "tcl", "qcfs", "nq"),
    ),
    "relu": MethodEntry(
        "methods.relu:ReLU",
        "plain ReLU: the source of the methods below, by itself converted as max_norm",
        title="ReLU",
        paper="diehl2015",
        source_only=True,
        importable=True,
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
    "ttfs": MethodEntry(
        "methods.ttfs:TTFS",
        "one spike for each neuron at most, whose time is the activation; each layer waits for the whole of its input",
        title="TTFS",
        paper="rueckauer2018ttfs",
        source={"relu": "relu", "qcfs": "qcfs"},
        per_T=True,
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
}


def display(name: str) -> str:
    """A method as people know it, ``QCFS (ICLR 2022)``; a name that is not registered stays as it is."""
    return METHODS[name].display if name in METHODS else name
