"""Score predictions of whole images against references, block by block where a score allows it. Knows no torch.

open_pairs --> Pair (two images, and what their numbers mean) --> gather --> Evidence --> METRICS --> ScoreTable
"""

from unet_core.evaluation.evidence import Evidence, gather
from unet_core.evaluation.meaning import Meaning, MeaningOptions
from unet_core.evaluation.opening import OpeningOptions, open_pairs
from unet_core.evaluation.pairs import Pair, pair_of_arrays
from unet_core.evaluation.scores import METRICS, check_metrics
from unet_core.evaluation.table import ScoreTable, score_images

__all__ = [
    "METRICS",
    "Evidence",
    "Meaning",
    "MeaningOptions",
    "OpeningOptions",
    "Pair",
    "ScoreTable",
    "check_metrics",
    "gather",
    "open_pairs",
    "pair_of_arrays",
    "score_images",
]
