"Run the command line: `python -m memory_vlm COMMAND` is `memory_vlm COMMAND`."
import sys
from memory_vlm.cli import main

if __name__ == '__main__': sys.exit(main())
