"""Kill a fit repeatedly at random moments and check that it resumes without loss.

    python benchmarks/kill50.py [kills]

Each process is killed by SIGKILL after a random time: while it starts, trains, evaluates or saves, which it does after
every step. The next process resumes with `training.resume=auto` and another number of loader workers. A completed run
is compared with an uninterrupted one: weights, optimizer state and metrics must be bit-identical."""
import contextlib
import multiprocessing
import pandas as pd
import random
import sys
import tempfile
import time
import torch
from memory_vlm.config import compose
from memory_vlm.training.checkpoint import UNFINISHED_PREFIX, list_checkpoints, read_state
from pathlib import Path
from safetensors.torch import load_file

WORDS = ['training.epochs=3', 'training.batch_size=16', 'training.data.train_path=scenes:tiny',
         'training.data.val_path=scenes:tiny',
         'model.embed_dim=32', 'model.depth=2', 'model.text.embed_dim=16', 'model.text.depth=1', # a checkpoint of 10 MB
         'model.drop_rate=0.1', 'model.memory.mem_reinit_steps=4', 'training.checkpoint.save_top_k=2',
         'training.checkpoint.monitor=val_loss',
         'training.checkpoint.mode=min', 'training.logging.save_interval=1', 'training.logging.log_interval=3',
         'training.logging.eval_interval=5',
         'training.logging.tensorboard=false', 'training.resume=auto']
TIMES = ['samples_per_second', 'data_wait'] # columns of metrics.csv that differ between any two runs
SERVER = multiprocessing.get_context('forkserver') # imports once; each fit is a separate process
SERVER.set_forkserver_preload(['memory_vlm.run'])


def work(folder, said, words):
    from memory_vlm.run import fit
    torch.set_num_threads(1)
    with open(said, 'a', encoding='utf-8') as f, contextlib.redirect_stdout(f), contextlib.redirect_stderr(f):
        fit(compose([*WORDS, f'training.run_dir={folder}', *words], config_name='quickstart'))


def start(folder, said, *words):
    "Start a process that fits or resumes."
    process = SERVER.Process(target=work, args=(str(folder), str(said), words))
    process.start()
    return process


def finish(folder, said, *words):
    "Run a fit to completion."
    process = start(folder, said, *words)
    process.join()
    assert process.exitcode == 0 and (folder/'DONE').exists(), Path(said).read_text(encoding='utf-8')[-2000:]


def same(run, other):
    "Compare two completed runs."
    a, b = (list_checkpoints(f/'checkpoints')[-1] for f in (run, other))
    weights, others = load_file(a/'model.safetensors'), load_file(b/'model.safetensors')
    assert weights.keys() == others.keys() and all(torch.equal(w, others[k]) for k,
                                                   w in weights.items()), 'weights differ'
    states = [read_state(f)['opt']['state'] for f in (a, b)]
    def equal(a, b): return torch.equal(a, b) if torch.is_tensor(a) else a == b
    assert all(equal(v, states[1][i][k]) for i, s in states[0].items() for k, v in s.items()), 'optimizers differ'
    tables = [pd.read_csv(f/'metrics.csv').drop(columns=TIMES) for f in (run, other)]
    pd.testing.assert_frame_equal(*tables)
    assert [p.name for p in list_checkpoints(run/'checkpoints')] == [p.name
                                                                     for p in list_checkpoints(other/'checkpoints')]


def kill_often(folder, kills, seed=0):
    "Kill fits `kills` times; return counts of what was observed."
    draw, seen = random.Random(seed), dict(kills=0, runs=0, in_a_save=0, before_any_checkpoint=0)
    straight, said = folder/'straight', folder/'said.txt'
    warm = SERVER.Process(target=int) # the server imports here
    warm.start()
    warm.join()
    begin = time.time()
    finish(straight, said)
    length = time.time() - begin
    while seen['kills'] < kills:
        run = folder/f"run{seen['runs']}"
        for attempt in range(10):
            process = start(run, said, f'training.data.num_workers={attempt % 2}', 'training.data.prefetch_factor=2')
            process.join(draw.uniform(0, 0.6 * length))
            if process.exitcode is not None: break
            process.kill()
            process.join()
            seen['kills'] += 1
            kept = list_checkpoints(run/'checkpoints')
            seen['in_a_save'] += any(run.glob(f'checkpoints/{UNFINISHED_PREFIX}*'))
            seen['before_any_checkpoint'] += not kept
            assert len(kept) <= 4, f'{len(kept)} checkpoints'
            if seen['kills'] == kills: break
        assert process.exitcode in (0, -9), said.read_text()[-2000:]
        if not (run/'DONE').exists(): finish(run, said)
        same(run, straight)
        seen['runs'] += 1
    return seen


if __name__ == '__main__':
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    with tempfile.TemporaryDirectory() as d:
        seen = kill_often(Path(d), kills)
    print(f"{seen['kills']} kills ({seen['in_a_save']} while a checkpoint was being written or removed, "
          f"{seen['before_any_checkpoint']} "
          f"before there was one): {seen['runs']} runs completed, each bit-identical to the uninterrupted one")
