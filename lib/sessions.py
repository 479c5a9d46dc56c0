"""Sessions, the images that viewers send along with their requests, in a folder that several servers of a user may share."""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path

from monailabel.utils.sessions import SessionInfo, Sessions

from app_cdm.data.writing import write_atomically

logger = logging.getLogger(__name__)

META = "meta.info"


class SafeSessions(Sessions):  # type: ignore[misc]  # monailabel ships no types
    """The host's sessions; one that was cut short, by a kill or a full disk, harms neither the others nor the clean-up."""

    def __bool__(self) -> bool:
        """True: the host asks this whether sessions are in use, and would not clean up after an earlier server."""
        return True

    def remove_expired(self) -> int:
        """Removes sessions that are over, and what is left of those cut short once it is as old; never raises."""
        count = 0
        for folder in Path(self.store_path).glob("*/"):
            try:
                if self._ends(folder) < time.time():
                    logger.info("Removing session %s, which is over", folder.name)
                    self.pop(folder.name, None)
                    shutil.rmtree(folder)
                    count += 1
            except OSError as error:  # such as another server that removes it too
                logger.warning("Session %s cannot be removed: %s", folder.name, error)
        return count

    def _ends(self, folder: Path) -> float:
        """When a session is over, in seconds as `time.time` counts."""
        try:
            meta = json.loads((folder / META).read_bytes())
            return float(meta["last_access_ts"]) + float(meta["expiry"])
        except (OSError, ValueError, TypeError, KeyError):  # cut short, or just being made
            return folder.stat().st_mtime + float(self.expiry)

    def _write_meta_info(self, session_id: str, session_info: SessionInfo) -> None:
        write_atomically(Path(self.store_path) / session_id / META, session_info.to_str().encode())
