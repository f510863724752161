"""python -m kdrun."""

import sys

from kdrun.cli.main import main

sys.argv[0] = "kdrun"  # which a shell completes
sys.exit(main())
