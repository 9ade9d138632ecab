"""Results in the formats of the programs that people look at them with: ``export_result``. A format is one file and one line here."""

from unet_core.exports.exporting import FORMATS, Exported, Options, export_result

__all__ = ["FORMATS", "Exported", "Options", "export_result"]
