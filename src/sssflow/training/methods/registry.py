"""Every method by its name; a new one is one file plus one line here."""

from __future__ import annotations

import torch

from sssflow.networks.base import SegmentationNet
from sssflow.training.config import TrainConfig
from sssflow.training.data import derive_seed
from sssflow.training.methods.base import Method
from sssflow.training.methods.bcp import Bcp
from sssflow.training.methods.cps import Cps
from sssflow.training.methods.dan import Dan
from sssflow.training.methods.fixmatch import FixMatch
from sssflow.training.methods.mean_teacher import MeanTeacher
from sssflow.training.methods.semisam import SemiSam
from sssflow.training.methods.sss import Sss
from sssflow.training.methods.sss_in_loop import SssInLoop
from sssflow.training.methods.supervised import Supervised
from sssflow.training.methods.ua_mt import UaMt
from sssflow.training.methods.unimatch import UniMatch
from sssflow.training.methods.unimatch_v2 import UniMatchV2

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "mean_teacher": MeanTeacher,
    "ua_mt": UaMt,
    "cps": Cps,
    "fixmatch": FixMatch,
    "unimatch": UniMatch,
    "unimatch_v2": UniMatchV2,
    "bcp": Bcp,
    "dan": Dan,
    "semisam": SemiSam,  # type: ignore[type-abstract]  # builds the subclass on its base
    "sss": Sss,
    "sss_in_loop": SssInLoop,
}


def build_method(student: SegmentationNet, config: TrainConfig) -> Method:
    """The method that `config.method` names, around `student`.

    Extra modules start from the run's seed; the global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "extras"))
        method = METHODS[config.method](student, config)
    if config.ema_evaluation:
        method.keep_average(config.ema_evaluation_decay)
    return method
