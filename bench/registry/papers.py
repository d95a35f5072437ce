"""The registry of the methods' papers: one line each."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PaperEntry:
    """A registry entry of a paper: where and when it was published, and its address if known."""

    venue: str
    year: int
    link: str | None = None


PAPERS: Mapping[str, PaperEntry] = {
    "bu2022qcfs": PaperEntry("ICLR", 2022, "https://arxiv.org/abs/2303.04347"),
    "yang2025csqcfs": PaperEntry("Neural Networks", 2025, "https://doi.org/10.1016/j.neunet.2024.107076"),
    "huang2024nq": PaperEntry("TNNLS", 2025, "https://arxiv.org/abs/2404.17456"),
    "hao2023cos": PaperEntry("ICLR", 2023, "https://arxiv.org/abs/2302.10685"),
    "hao2023srp": PaperEntry("AAAI", 2023, "https://arxiv.org/abs/2302.02091"),
    "ding2021rnl": PaperEntry("IJCAI", 2021, "https://arxiv.org/abs/2105.11654"),
    "ho2021tcl": PaperEntry("DAC", 2021, "https://arxiv.org/abs/2008.04509"),
    "deng2021rts": PaperEntry("ICLR", 2021, "https://arxiv.org/abs/2103.00476"),
    "diehl2015": PaperEntry("IJCNN", 2015, "https://doi.org/10.1109/IJCNN.2015.7280696"),
    "rueckauer2017": PaperEntry("Frontiers in Neuroscience", 2017, "https://doi.org/10.3389/fnins.2017.00682"),
    "bu2022opi": PaperEntry("AAAI", 2022, "https://arxiv.org/abs/2202.01440"),
    "li2021snnc": PaperEntry("ICML", 2021, "https://arxiv.org/abs/2106.06984"),
    "wang2022snm": PaperEntry("IJCAI", 2022, "https://doi.org/10.24963/ijcai.2022/347"),
    "ledinauskas2020": PaperEntry("arXiv", 2020, "https://arxiv.org/abs/2006.04436"),
    "meng2022dsr": PaperEntry("CVPR", 2022, "https://arxiv.org/abs/2205.00459"),
    "wu2021ptl": PaperEntry("TPAMI", 2021, "https://arxiv.org/abs/2007.01204"),
    "hong2023lasnn": PaperEntry("arXiv", 2023, "https://arxiv.org/abs/2304.09101"),
    "tang2022snn2ann": PaperEntry("arXiv", 2022, "https://arxiv.org/abs/2206.09449"),
    "stanojevic2023exact": PaperEntry("Neural Networks", 2023, "https://arxiv.org/abs/2212.12522"),
    "bu2025inference": PaperEntry("CVPR", 2025, "https://arxiv.org/abs/2409.03368"),
    "huang2025dcgs": PaperEntry("ICML", 2025, "https://arxiv.org/abs/2503.00301"),
    "lv2024gn": PaperEntry("ICASSP", 2024, "https://arxiv.org/abs/2402.19061"),
    "hmt2026": PaperEntry("AAAI", 2026, "https://github.com/faizwh/H-MT"),
    "wu2024ftbc": PaperEntry("ECCV", 2024, "https://arxiv.org/abs/2403.18388"),
    "hao2025parallel": PaperEntry("ICML", 2025, "https://arxiv.org/abs/2412.13610"),
    "datta2025meets": PaperEntry("TMLR", 2025, "https://arxiv.org/abs/2312.06900"),
    "bojkovic2025tpp": PaperEntry("ICML", 2025, "https://arxiv.org/abs/2502.14487"),
    "ramesh2025pascal": PaperEntry("TMLR", 2025, "https://arxiv.org/abs/2505.01730"),
    "li2022burst": PaperEntry("IJCAI", 2022, "https://arxiv.org/abs/2204.13271"),
}
