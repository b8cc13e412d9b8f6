"""End workers and fill /dev/shm, and check that a fit ends with one line instead of waiting forever."""
import pytest
import re
import shutil
import signal
import subprocess
import sys
import time

LOADER = '''
import os, signal, sys, time, warnings
from memory_vlm.data.loaders import LostWorkerError, make_loader
from memory_vlm.data.scenes import SceneSource
class Slow(SceneSource):
    def pixels(self, i):
        if os.getpid() != MAIN: time.sleep(SLOW)
        return super().pixels(i)
MAIN, SLOW = os.getpid(), float(sys.argv[2])
loader = make_loader(Slow('train', 'tiny'), image_size=int(sys.argv[3]), batch_size=32, train=True, num_workers=2)
warnings.simplefilter('ignore')
'''
KILL = LOADER + '''
batches = iter(loader)
import threading, multiprocessing
def kill():
    time.sleep(2)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
threading.Thread(target=kill, daemon=True).start()
start = time.monotonic()
try: list(batches)
except LostWorkerError as e: print('ended after', int(time.monotonic() - start), e)
'''
COUNT = LOADER + '''
if sys.argv[1] == 'blind':
    from memory_vlm.data import loaders
    loaders._shared_memory_free = lambda: 1e12
try: print('batches', sum(1 for _ in loader), 'workers', loader.num_workers)
except LostWorkerError as e: print('ended:', e)
'''


def python(code, *args, before=()):
    done = subprocess.run([*before, sys.executable, '-c', code, *args], capture_output=True, encoding='utf-8',
                          timeout=300)
    return done.stdout, done.stderr


def small_shm(size):
    "Return the start of a command that runs with a /dev/shm of its own."
    words = ['unshare', '-m', 'sh', '-c', f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"', 'sh']
    if not shutil.which('unshare') or subprocess.run([*words, 'true'], capture_output=True).returncode:
        pytest.skip('no rights to mount a small /dev/shm')
    return words


def test_a_killed_worker_is_an_error_of_one_line():
    out, err = python(KILL, 'kill', '5', '64')
    assert re.match(r'ended after \d+ DataLoader worker', out), out + err
    assert out.count('\n') == 1 and 'training.resume=auto' in out
    assert int(out.split()[2]) < 60


@pytest.mark.slow
@pytest.mark.parametrize('size, workers', [('4m', 2), ('100k', 0)])
def test_a_small_shared_memory_gives_all_batches(size, workers):
    out, err = python(COUNT, 'look', '0', '256', before=small_shm(size))
    assert out == f'batches 7 workers {workers}\n', out + err


@pytest.mark.slow
def test_a_full_shared_memory_is_an_error_of_one_line():
    out, err = python(COUNT, 'blind', '0', '256', before=small_shm('4m'))
    assert out.startswith('ended: DataLoader worker') and out.count('\n') == 1, out + err


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_for_a_batch(tmp_path, number):
    code = '''
import time
from memory_vlm.config import compose
from memory_vlm.data.scenes import SceneSource
from memory_vlm.run import fit
pixels = SceneSource.pixels
def wait(self, i): time.sleep(600) if os.getpid() != MAIN else None; return pixels(self, i)
import os, sys
MAIN, SceneSource.pixels = os.getpid(), wait
words = ['training.max_steps=3', 'training.batch_size=16', 'training.data.num_workers=1', 'training.preflight=false',
         'training.data.train_path=scenes:tiny', 'training.data.val_path=scenes:tiny', 'model.depth=1',
         'model.text.depth=1', f'training.run_dir={sys.argv[1]}', 'training.logging.wandb=false']
print('stopped', fit(compose(words, config_name='quickstart')).interrupted, flush=True)
'''
    process = subprocess.Popen([sys.executable, '-c', code, str(tmp_path/'run')],
                               stdout=subprocess.PIPE, encoding='utf-8')
    lines = []
    while not (lines and lines[-1].startswith('Run folder')): lines.append(process.stdout.readline())
    time.sleep(3) # the workers have started, and none of them sends a batch
    process.send_signal(number)
    out, _ = process.communicate(timeout=300)
    assert 'stopped True' in out
