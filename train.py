"Fit a memory-CLIP: python train.py --config-name=quickstart, or any key=value of nbs/explain/configuration.ipynb."
import os, signal, sys, warnings
import hydra
from hydra.errors import HydraException
from memory_vlm.config import config_dir, explain, free_keys, register_schema
from memory_vlm.core import UserError

def stop(mistake, status=2):
    print(mistake, file=sys.stderr)
    sys.exit(status)

@hydra.main(config_path=str(config_dir().absolute()), config_name='default', version_base='1.3')
def main(cfg):
    warnings.filterwarnings('ignore', '.*torch.jit.script', FutureWarning) # of libraries, when they are imported
    try:
        from memory_vlm.run import DivergedError, LostRankError, fit # here, so that --help and mistakes are answered at once
        try: run = fit(cfg)
        except UserError as e: stop(e)
        except (DivergedError, LostRankError) as e: stop(e, status=1)
    except KeyboardInterrupt: sys.exit(130) # before the fit began, or after its end
    if run.interrupted: sys.exit(128 + (run.signal or signal.SIGINT))

if __name__ == '__main__':
    os.environ['HYDRA_FULL_ERROR'] = '1' # else Hydra exits by itself, and advises +key= for a typo
    register_schema()
    sys.argv[1:] = free_keys(sys.argv[1:])
    try: main()
    except HydraException as e: stop(explain(e)) if os.environ.get('RANK', '0') == '0' else sys.exit(2)
