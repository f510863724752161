"""python -m kdrun."""

import sys

from kdrun.cli.main import main

sys.exit(main())
