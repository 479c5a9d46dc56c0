"""Studies behind a DICOMweb server: which series are images, fetching them, and the segmentations that refer to them."""
