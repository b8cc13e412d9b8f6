"Fit a memory-CLIP: python train.py --config-name=quickstart, or any key=value of nbs/explain/configuration.ipynb."
from memory_vlm.train import main

if __name__ == '__main__': main()
