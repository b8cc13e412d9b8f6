"""Does memory help a small CLIP on scenes, and which kind? Three mechanisms, 4 and 16 tokens, no memory, and 16 that
are never trained.

    python benchmarks/study.py
    python benchmarks/study.py --steps 500 --seeds 3 --csv benchmarks/results/study.csv

Every variant gets the same steps, batches and seeds, and no resets. Tokens that are never trained
(`memory_init=frozen`) cost the same computation as tokens that are, so what those have beyond them is due to what they
learned. `kv` has its tokens in every layer. The model is smaller than the quickstart's, so that a run takes about a
minute of one CPU core. Runs lie in runs/benchmark_study and finished ones are not run again.
nbs/tutorials/5_a_study.ipynb reads the file. """
import argparse
from memory_vlm.study import paired_differences, study, summarize
from pathlib import Path
from results import store

MECHANISMS = {'attention': [], 'gated': ['model.memory.memory_update=gated'],
              'kv': ['model.memory.memory_update=static', 'model.memory.memory_position=kv']}
FROZEN = ['model.memory.memory_init=frozen']


def tokens(number): return [f'model.memory.num_memory_tokens={number}']


VARIANTS = {'no memory': ['model/memory=off']}
VARIANTS |= {f'{name}, {number}': [*words, *tokens(number)] for name, words in MECHANISMS.items() for number in (4, 16)}
VARIANTS |= {f'{name}, 16, frozen': [*words, *tokens(16), *FROZEN] for name, words in MECHANISMS.items()}
SMALL = ['model.patch_size=16', 'model.embed_dim=64', 'model.num_heads=2', 'model.text.embed_dim=64', 'model.text.depth=1', 'model.text.num_heads=2',
         'training.batch_size=64', 'training.scheduler_kwargs.warmup_epochs=0.3', 'training.logging.eval_interval=10000',
         'training.logging.tensorboard=false', 'training.checkpoint.save_last=false', 'training.checkpoint.save_top_k=0']


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--steps', type=int, default=500, help='optimizer steps of each run')
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--csv', help='write the runs to this file')
    args = p.parse_args()
    base = [*SMALL, 'model.memory.mem_reinit_steps=0', f'training.max_steps={args.steps}']
    runs = study(VARIANTS, range(args.seeds), base, folder=f'runs/benchmark_study/{args.steps}_steps')
    print(summarize(runs), paired_differences(runs, 'no memory'), sep='\n\n')
    if args.csv:
        Path(args.csv).unlink(missing_ok=True) # all runs are in the table, those of before as well
        store(args.csv, runs.drop(columns='folder').round(5).to_dict('records'), steps=args.steps)


if __name__ == '__main__': main()
