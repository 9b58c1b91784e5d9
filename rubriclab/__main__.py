"The command line: `python -m rubriclab`, as launchers start it."
from .lab.cli import main

if __name__ == "__main__": main()
