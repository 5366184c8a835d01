"""`python -m sage.gateway`."""

import sys

from sage.gateway.main import main

sys.exit(main())
