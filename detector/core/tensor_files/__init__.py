"""Files of ``torch.save``, read without running code from them, verified, within bounds."""

from detector.core.tensor_files.archive import DamagedFile
from detector.core.tensor_files.pickle_scan import ForeignContent
from detector.core.tensor_files.reading import read_tensor_file, walk

__all__ = ["DamagedFile", "ForeignContent", "read_tensor_file", "walk"]
