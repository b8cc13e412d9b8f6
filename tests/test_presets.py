"""Every memory preset reaches a loss in the band of the stored runs of benchmarks/presets.py."""
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
    "Return the loss of a preset with one seed."
    return fit(compose([*BASE, f'model/memory={preset}', f'training.run_dir={folder}', *words],
                       config_name='quickstart')).metrics['val_loss']


def test_every_preset_has_a_loss_band(): assert sorted(BANDS) == PRESETS


@pytest.mark.slow
@pytest.mark.parametrize('preset', PRESETS)
def test_preset_loss_is_in_its_band(preset, tmp_path):
    low, high = BANDS[preset]
    assert low < loss(preset, tmp_path/'run') < high


@pytest.mark.slow
@pytest.mark.parametrize('broken', ['training.learning_rate=2e-4', 'training.freeze=vision',
                                    'training.data.train_path=scenes:easy:animals'])
def test_broken_training_leaves_the_band(broken, tmp_path):
    "A tenth of the learning rate, a frozen image tower, or shuffled images: each leaves the band."
    assert loss('registers', tmp_path/'run', broken) > BANDS['registers'][1]
