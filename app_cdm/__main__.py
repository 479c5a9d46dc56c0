"""`python -m app_cdm`."""

import sys

from app_cdm.cli import main

sys.exit(main())
