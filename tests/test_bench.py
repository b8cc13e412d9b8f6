"The benchmark suite separates regressions from noise and compares only rows of equal settings."
import ast
import csv
import pytest
import sys
import yaml
from fastcore.nbio import read_nb
from memory_vlm.config import compose
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1]/'benchmarks'
sys.path.insert(0, str(BENCHMARKS))
import readout
import results
import study
import suite

PART = suite.Part('x', 'a thing over another', dict(speed='higher', size='lower'), ('batch',))
CPU, GPU = '2 cores, some processor', 'some GPU'


def verdicts(now, before, tolerance=0.15):
    return [line['verdict'] for line in suite.lines(PART, [now], before, tolerance)]


def test_verdict_separates_worse_noise_and_better():
    before = [dict(batch='8', speed='2.0', size='0.5', machine=CPU)]
    assert verdicts(dict(batch='8', speed='1.8', size='0.55', machine=CPU), before) == ['as before', 'as before']
    assert verdicts(dict(batch='8', speed='1.6', size='0.4', machine=CPU), before) == ['REGRESSION by 20%', 'better']
    assert verdicts(dict(batch='8', speed='2.4', size='0.6', machine=CPU), before) == ['better', 'REGRESSION by 20%']
    assert verdicts(dict(batch='8', speed='1.6', size='0.6', machine=CPU), before, 0.25) == ['as before', 'as before']


def test_only_rows_of_equal_settings_are_compared():
    before = [dict(batch='8', speed='9', size='9', machine=CPU), dict(batch='8', speed='2', size='1', machine=CPU),
              dict(batch='8', speed='5', size='1', machine=GPU)]
    row = dict(batch='8', speed='2', size='1')
    # the newest of its kind
    assert verdicts(row | dict(machine=CPU), before) == ['as before', 'as before']
    assert verdicts(row | dict(machine=GPU), before)[0].startswith('REGRESSION')
    assert verdicts(row | dict(machine=CPU, batch='16'), before) == ['new', 'new']


def test_table_names_machine_and_date(monkeypatch):
    monkeypatch.setattr(suite, 'PARTS', [PART])
    found = list(suite.lines(PART, [dict(batch='8', speed='2', size='1', machine=CPU)], [], 0.15))
    shown = suite.table(found, 'cpu')
    assert ('cores' in shown and 'torch 2' in shown and '| x | speed | 8 | 2 |  | higher | new |' in shown
            and '- `x`: a thing over another' in shown)


def test_kept_rows_name_no_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, 'HERE', tmp_path)
    (tmp_path/'results').mkdir()
    path = tmp_path/'new'/'x.csv'
    path.parent.mkdir()
    path.write_text(f'batch,speed,size,command\n8,2,1,python {tmp_path}/x.py --csv {path}\n')
    for _ in range(2): suite.keep(PART, path)
    rows = list(csv.DictReader((tmp_path/'results/x.csv').open()))
    assert [r['command'] for r in rows] == ['python benchmarks/x.py --csv benchmarks/results/x.csv'] * 2


def test_processor_name_without_cpuinfo(monkeypatch):
    monkeypatch.setattr(results.Path, 'exists', lambda self: False)
    monkeypatch.setattr(results.platform, 'processor', lambda: '')
    monkeypatch.setattr(results.platform, 'machine', lambda: 'arm64')
    assert results.machine().endswith(' cores, arm64')


def test_tutorial_shows_all_study_results():
    cells = read_nb(BENCHMARKS.parent/'nbs'/'tutorials'/'5_a_study.ipynb').cells
    call, = [c.source for c in cells if '    study({' in c.source]
    quoted = call[call.index('base=['):call.index("'],\n          folder")].split("'")[1::2]
    assert sorted(quoted) == sorted(study.base(1760))
    for name, words in study.HEADLINE.items(): assert all(f"'{w}'" in call for w in (name, *words)), name


def test_readout_spec_has_the_settings_of_the_benchmark():
    spec = yaml.safe_load((BENCHMARKS/'readout.yaml').read_text(encoding='utf-8'))
    for name, words in spec['variants'].items():
        own = compose([*readout.BASE, *readout.ARMS[name][0]])
        assert compose([*spec['base'], *words], config_name=spec['config_name']) == own, name
    assert own.training.max_steps == 1100 and len(spec['variants']) == 5


@pytest.mark.parametrize('part', suite.PARTS, ids=lambda p: p.name)
def test_every_benchmark_exists_with_its_columns(part):
    text = (BENCHMARKS/f'{part.name}.py').read_text(encoding='utf-8')
    names = {n.arg for n in ast.walk(ast.parse(text)) if isinstance(n, ast.keyword)} | {n.value
            for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant)}
    wanted = {*part.figures, *part.settings} - {'saving', 'speedup'}
    assert wanted <= names, wanted - names
    assert ("'--rounds'" in text) >= part.rounds and ("'--device'" in text) >= part.device
    for row in suite.read(BENCHMARKS/'results'/f'{part.name}.csv'): assert {*part.figures, *part.settings} <= row.keys()
