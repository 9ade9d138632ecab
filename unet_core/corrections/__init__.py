"""Places of a result to be corrected by a person, and learnt from: chosen, exported with their labels, described as a data set.

open_segmented --> Segmented --> scores of boxes --> choose --> Crop --> files, crops.csv, dataset.yaml
"""

from unet_core.corrections.sample import SampleSummary, sample
from unet_core.corrections.sample_job import SampleJob, make_sample_job

__all__ = ["SampleJob", "SampleSummary", "make_sample_job", "sample"]
