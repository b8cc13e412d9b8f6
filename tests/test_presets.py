"""Does every memory preset learn what it learned when benchmarks/presets.py was run last?"""
import pandas as pd
import pytest
import sys
from memory_vlm.config import compose
from memory_vlm.run import fit
from pathlib import Path

BENCHMARKS = Path(__file__).parent.parent/'benchmarks'
sys.path.insert(0, str(BENCHMARKS))
from presets import BASE, PRESETS, bands

BANDS = bands(pd.read_csv(BENCHMARKS/'results'/'presets.csv'))


def loss(preset, folder, *words):
    "What a preset comes to with a seed."
    return fit(compose([*BASE, f'model/memory={preset}', f'training.run_dir={folder}', *words], config_name='quickstart')).metrics['val_loss']


def test_every_preset_has_a_band(): assert sorted(BANDS) == PRESETS


@pytest.mark.slow
@pytest.mark.parametrize('preset', PRESETS)
def test_a_preset_learns_as_it_did(preset, tmp_path):
    low, high = BANDS[preset]
    assert low < loss(preset, tmp_path/'run') < high


@pytest.mark.slow
@pytest.mark.parametrize('broken', ['training.learning_rate=2e-4', 'training.freeze=vision', 'training.data.train_path=scenes:easy:animals'])
def test_a_band_sees_what_is_broken(broken, tmp_path):
    "A tenth of the learning rate, no training of images, other images: each learns less than a band allows."
    assert loss('registers', tmp_path/'run', broken) > BANDS['registers'][1]
