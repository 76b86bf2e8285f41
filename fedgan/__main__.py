"""`python -m fedgan` is the command `fedgan`."""

import sys

from fedgan.cli import main

sys.exit(main())
