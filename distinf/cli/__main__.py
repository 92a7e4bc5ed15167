"""python -m distinf.cli"""

import sys

from distinf.cli import main

if __name__ == "__main__":
    sys.exit(main())
