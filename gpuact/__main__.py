"""`python -m gpuact`."""

import sys

from .cli import main

sys.exit(main())
