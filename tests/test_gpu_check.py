"""benchmarks/gpu_check.py finds a wrong attention kernel, survives failures, and a fit restores torch's kernels."""
import json
import pytest
import subprocess
import sys
import torch
import torch.nn.functional as F
from memory_vlm.config import compose
from memory_vlm.learner import make_learner
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'benchmarks'))
import gpu_check

ATTEND = F.scaled_dot_product_attention
SMALL = ['model=tiny', 'model.embed_dim=32', 'model.depth=2', 'model.num_heads=2', 'model.text.embed_dim=32',
         'model.text.depth=1', 'model.text.num_heads=2']
ARGS = gpu_check.parse([*SMALL, '--device', 'cpu', '--batch', '4', '--precisions', 'bf16'])


def wrong_flash(*args, **kwargs):
    "Scale the gradient by 1.3 if the flash kernel is enabled."
    out = ATTEND(*args, **kwargs)
    return out.detach() + 1.3 * (out - out.detach()) if torch.backends.cuda.flash_sdp_enabled() else out


def wrong_attention(*args, **kwargs):
    "Scale the gradient by 1.3 with each kernel."
    out = ATTEND(*args, **kwargs)
    return out.detach() + 1.3 * (out - out.detach())


def test_bisect_finds_rounding_only():
    rows = list(gpu_check.bisect(ARGS))
    assert {r['setting'] for r in rows} == set(gpu_check.settings('cpu')) and {r['verdict'] for r in rows} == {'ok'}
    assert all(0 < float(r[f'error_{g}']) < 0.08 for r in rows for g in ('all', 'vision', 'text', 'heads'))
    assert {b.split('=')[0] for b in rows[0]['blocks'].split()} == {'visual.0', 'visual.1', 'text.0'}
    assert 'flash with mask' in rows[0]['detail'] and 'flash' not in rows[3]['detail'] # the kernels that ran
    line, = gpu_check.conclude(rows)
    assert line.startswith('bf16: gradients differ from float64 by') and line.endswith('rounding')


@pytest.mark.parametrize('attend,culprit', [(wrong_flash, 'culprit: the attention kernel flash ('),
                                            (wrong_attention, 'culprit: the attention kernel flash and math (')])
def test_bisect_names_wrong_kernel(monkeypatch, attend, culprit):
    monkeypatch.setattr(F, 'scaled_dot_product_attention', attend)
    rows = list(gpu_check.bisect(ARGS))
    verdicts = {r['setting']: r['verdict'] for r in rows}
    assert verdicts['kernel flash'] == verdicts[gpu_check.DEFAULT] == verdicts['loss products in fp32'] == 'OFF'
    assert verdicts[gpu_check.DEFINITION] == 'ok' and (verdicts['kernel math'] == 'ok') == (attend is wrong_flash)
    assert float(rows[0]['error_vision']) > 0.1 > float(rows[0]['error_heads'])
    line, = gpu_check.conclude(rows)
    assert culprit in line and 'fits are affected' in line


def test_kernels_alone(monkeypatch):
    monkeypatch.setattr(gpu_check, 'CASES', {'odd': (33, 8, None), 'causal mask': (18, 0, 'added')})
    assert [(r['setting'], r['verdict']) for r in gpu_check.kernels(ARGS)] == [('flash', 'ok'), ('math', 'ok')]
    monkeypatch.setattr(F, 'scaled_dot_product_attention', wrong_flash)
    rows = list(gpu_check.kernels(ARGS))
    assert [(r['setting'], r['verdict']) for r in rows] == [('flash', 'OFF'), ('math', 'ok')]
    assert rows[0]['detail'].startswith('wrong: odd/16, odd/32, odd/64, causal mask/16')
    assert gpu_check.conclude(rows) == ['bf16: attention alone has wrong gradients with the attention kernel flash']


def rows_of(**errors): # of settings, in bf16
    return [gpu_check.row('bisect', s, 'bf16', str(e)) for s, e in errors.items()]


@pytest.mark.parametrize('errors,words', [
    ({"torch's choice": .32, 'as in a fit': .025, 'kernel cudnn': .32, 'kernel flash': .025, gpu_check.DEFINITION: .02},
     ['by 32.00%', 'fits are not affected', 'culprit: the attention kernel cudnn (2.00% by definition)']),
    ({"torch's choice": .02, 'as in a fit': .3, 'kernel cudnn': .02, 'kernel flash': .3, gpu_check.DEFINITION: .02},
     ['by 30.00%', 'fits are affected', 'culprit: the attention kernel flash']),
    ({"torch's choice": .32, 'as in a fit': .32, gpu_check.DEFINITION: .32, 'loss products in fp32': .02},
     ['culprit: the products of the loss']),
    ({"torch's choice": float('nan'), 'as in a fit': .32, gpu_check.DEFINITION: .32}, ['no setting removes']),
    ({"torch's choice": .02, 'as in a fit': .02, 'kernel cudnn': float('nan')},
     ['by 2.00%, rounding; the attention kernel cudnn, not selected by torch'])])
def test_conclusion(errors, words):
    line, = gpu_check.conclude(rows_of(**errors))
    assert all(w in line for w in words), line


@pytest.mark.parametrize('end,detail', [('raise ValueError("too large")', 'status 1: ValueError: too large'),
                                        ('time.sleep(60)', 'stopped after its 5 s')])
def test_rows_before_a_failure_are_kept(tmp_path, monkeypatch, end, detail):
    script = tmp_path/'section.py'
    script.write_text("import sys, time\nwith open(sys.argv[sys.argv.index('--rows') + 1], 'w') as f: f.write("
                      f"'{json.dumps(gpu_check.row('bisect', 'first'))}\\n')\n{end}\n")
    monkeypatch.setattr(gpu_check, '__file__', str(script))
    first, failure = gpu_check.run_section('bisect', ARGS, 5)
    assert first['setting'] == 'first' and (failure['verdict'], failure['detail']) == ('failed', detail)
    assert detail in gpu_check.show([first, failure])


def test_reason_is_the_last_error():
    assert gpu_check.last_words('a.b.SomeError: too large\n\nnbdev Tests Failed On The Following Notebooks:\n\tx\n') \
        == 'a.b.SomeError: too large'
    assert (gpu_check.last_words('one\n two\n\n'), gpu_check.last_words('')) == ('two', 'no output')


def test_fit_restores_attention_kernels():
    learn = make_learner(compose([*SMALL, 'training.data.train_path=scenes:tiny', 'training.data.val_path=scenes:tiny',
                                  'training.batch_size=8', 'training.max_steps=1'], config_name='quickstart'))
    inside, flags = [], torch.backends.cuda
    def look(*_): inside.append((flags.cudnn_sdp_enabled(), flags.flash_sdp_enabled(), flags.math_sdp_enabled()))
    def fail(*_): raise RuntimeError('out of memory')
    learn.model.visual.norm.register_forward_pre_hook(look)
    with learn.no_bar(), learn.no_logging():
        learn.fit_cosine(1)
        assert flags.cudnn_sdp_enabled() and set(inside) == {(False, True, True)}
        learn.model.visual.norm.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match='out of memory'): learn.fit_cosine(1)
    assert flags.cudnn_sdp_enabled()


@pytest.mark.slow
def test_whole_program_on_a_cpu(tmp_path):
    path = tmp_path/'rows.csv'
    done = subprocess.run([sys.executable, gpu_check.__file__, '--device', 'cpu', '--csv', path], encoding='utf-8',
                          capture_output=True)
    rows = gpu_check.suite.read(path)
    assert {r['section'] for r in rows} == set(gpu_check.SECTIONS), done.stderr
    assert not [r for r in rows if r['verdict'] == 'OFF'] and 'bf16: gradients differ' in done.stdout
    assert 'gpu_check.py' in rows[0]['command']


def test_host_times_waits_and_formats():
    rows = {r['setting']: r for r in gpu_check.host(ARGS)}
    assert {'three waits', 'two waits, as in a fit', 'no wait'} < rows.keys() and float(rows['no wait']['result']) > 0
    assert rows['channels-last patches']['verdict'] == 'ok'
