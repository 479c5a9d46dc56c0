"""ITK with what reading NRRD and compressed DICOM takes, which it loads when it is first used: five seconds."""

from __future__ import annotations

import itk
from itk.support.lazy import ITKLazyLoadLock, LazyITKModule

LOADED = itk.NrrdImageIO, itk.GDCMImageIO

# The lock of that loading would be one for all processes that fork from this one.
del LazyITKModule._lock, ITKLazyLoadLock.mp_lock
