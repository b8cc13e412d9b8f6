"Fit a memory-CLIP: python train.py --config-name=quickstart, or any key=value of nbs/explain/configuration.ipynb."
from memory_vlm.cli import fit_main

if __name__ == '__main__': fit_main()
