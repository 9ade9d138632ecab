"""Images of any format that is read, written as OME-Zarr with a pyramid: ``convert(job)``. Knows no network."""

from unet_core.conversion.convert import ConversionSummary, convert
from unet_core.conversion.job import ConversionJob, make_conversion
from unet_core.conversion.plan import stage_name as conversion_stage

__all__ = ["ConversionJob", "ConversionSummary", "conversion_stage", "convert", "make_conversion"]
